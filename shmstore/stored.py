"""From a value to what is stored of it, and back to its payload.

Where a payload lies is decided here: in the manifest's log up to the inline
limit, in a segment of its own above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from time import time_ns
from typing import Any, TypeAlias

from shmstore import codecs, names, provenance, reading, segment, writing
from shmstore.codecs.plain import PLAIN
from shmstore.codecs.trust import Trust
from shmstore.commit import WRITTEN, Change, commit
from shmstore.entry import INLINE, Entry
from shmstore.errors import CorruptValue, UnsafeValue
from shmstore.lock import between_forks
from shmstore.manifest import Manifest
from shmstore.opened import OpenDags
from shmstore.provenance import build_meta, codec_meta, this_process, type_name
from shmstore.reading import peek
from shmstore.record import LARGEST, PUT, SPILLED, UNTRUSTED, Record, key_hash, middle
from shmstore.relief import with_relief
from shmstore.retired import segment_directory
from shmstore.segment import READ

#: Payloads up to this many bytes lie in the log and are copied out by get; larger
#: ones get a segment. About where both cost the same (docs/performance.md).
INLINE_LIMIT = 16 << 10

_ROUNDS = 16
_new = tuple.__new__  # a third of what calling a named tuple's class costs


def _imported(name: str) -> Any:
    return between_forks(import_module, name)


codecs.importing = _imported

#: A value to be stored: id, its bytes, value, what it was encoded to, bytes of its deps.
Item: TypeAlias = tuple[str, bytes, Any, codecs.Encoded, Sequence[bytes]]


def store(
    dags: OpenDags,
    dag_id: str,
    items: Sequence[Item],
    overwrite: bool = True,
    origin: str | None = None,
) -> list[Entry]:
    """Stores values of one DAG, all or none; makes room if there is too little.

    Args:
        dags: The open DAGs.
        dag_id: The DAG.
        items: The values.
        overwrite: If False, an id that has a value is refused.
        origin: The node that the values were fetched from, None for those of this host.
            Values of other hosts are marked: every get of them decodes with distrust.

    Raises:
        EntryExists: As said. Nothing was changed.
        StoreFull: No room. Nothing was changed.
    """
    return with_relief(dags.space, lambda: _store(dags, dag_id, items, overwrite, origin))


def _store(
    dags: OpenDags, dag_id: str, items: Sequence[Item], overwrite: bool, origin: str | None
) -> list[Entry]:
    changes: list[Change] = []
    try:
        entries = [_prepare(dags, dag_id, item, origin, changes) for item in items]
        dags.write(dag_id, commit, changes, overwrite)
    finally:
        for change in changes:
            written = change[WRITTEN]
            if written is not None:
                written.end()
    return entries


def _prepare(
    dags: OpenDags, dag_id: str, item: Item, origin: str | None, changes: list[Change]
) -> Entry:
    """Writes a payload, if it is large, and adds the parts of its record to ``changes``.

    Nobody sees anything of it until the change is committed. If the process dies
    before that, the kernel frees what was written.
    """
    id, key, value, (codec, own_meta, parts, nbytes), deps = item
    kind = type(value)
    meta = build_meta(own_meta, kind, deps, origin)
    number, written, location = 0, None, INLINE
    if nbytes <= INLINE_LIMIT:
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        rest = middle(key, meta, payload)
    else:
        rest = middle(key, meta)
        space = dags.space
        written = writing.write(space, parts, nbytes, space.directory)
        # After it: a child that is forked from here on has no open file that it could give
        # the same name, one forked before has a number of its own.
        number = names.new_segment_number()
        location = names.segment_name(number)
    now = time_ns()
    flags = 0 if origin is None else UNTRUSTED
    changes.append(
        (PUT, codec, flags, key, key_hash(key), len(meta), rest, nbytes, number, written, now)
    )
    if len(rest) > LARGEST:
        raise ValueError(f"what is to be noted of value {id!r}, its deps, is too large")
    entry = (
        dag_id,
        id,
        codecs.NAMES[codec],
        type_name(kind),
        nbytes,
        location,
        now,
        this_process(),
        origin,
        tuple([dep.decode() for dep in deps]) if deps else (),
    )
    return _new(Entry, entry)


def find_quickly(manifest: Manifest, key: bytes) -> tuple[int, bytes, memoryview] | None:
    """Codec, meta and payload, for reading, of a value that is found at the first look.

    Returns:
        None for whatever takes a second look, or is not there: see ``find``.
    """
    seen = peek(manifest, key)
    if seen is None:
        return None
    codec, meta, payload, number, nbytes = seen
    if not number:
        return codec, meta, memoryview(payload)
    try:
        return codec, meta, segment.attach(manifest.directory, number, nbytes)
    except (segment.SegmentGone, OSError):
        return None


def find(dags: OpenDags, dag_id: str, key: bytes, mode: str) -> tuple[Record, memoryview] | None:
    """The record of a value and its payload, mapped or copied as ``mode`` says.

    Returns:
        None if there is no such value on this host.
    """
    for _ in range(_ROUNDS):
        try:
            return dags.read(dag_id, _find, key, mode)
        except segment.SegmentGone:
            continue  # replaced since its record was read
    return dags.read(dag_id, _find_under_lock, key, mode)


def _find(
    manifest: Manifest, key: bytes, mode: str, locked: bool = False
) -> tuple[Record, memoryview] | None:
    stored = reading.find(manifest, key)
    if stored is None:
        return None
    number = stored.segment
    if not number:
        payload = stored.payload
        return stored, memoryview(payload if mode == READ else bytearray(payload))
    try:
        place, spilled = segment_directory(manifest, stored.flags)
        attached = segment.attach(
            place, number, stored.nbytes, mode, spilled=spilled, locked=locked
        )
    except OSError as error:
        raise manifest.converted(error) from error
    except segment.SegmentGone:
        manifest.check_place()
        raise
    return stored, attached


def _find_under_lock(manifest: Manifest, key: bytes, mode: str) -> tuple[Record, memoryview] | None:
    """What ``_find`` does if writers were faster each time: with none at work."""

    def look() -> tuple[Record, memoryview] | None:
        reading.find_settled(manifest, key)
        return _find(manifest, key, mode, locked=True)

    try:
        return manifest.guarded(look)
    except segment.SegmentGone as gone:
        raise CorruptValue(
            "its segment is missing", str(gone), manifest.dag_id, key.decode()
        ) from None


def decoded(
    dag_id: str, id: str, codec: int, meta: bytes, payload: memoryview, trust: Trust | None = None
) -> Any:
    """The value of a payload.

    Args:
        dag_id: The DAG.
        id: The value's id.
        codec: Number of the codec.
        meta: The record's meta.
        payload: The payload.
        trust: What ``trust_in`` says of the record; ``find_quickly`` finds only values
            of this host.

    Raises:
        CorruptValue: A check of the codec failed; names the value.
        UnsafeValue: The value came from another host and asks for what it may not have.
    """
    try:
        # A plain value has no meta of its codec; it is what most gets are about.
        return codecs.decode(codec, b"" if codec == PLAIN else codec_meta(meta), payload, trust)
    except CorruptValue as error:
        raise CorruptValue(error.check, error.where, dag_id, id) from error
    except UnsafeValue as error:
        raise UnsafeValue(error.what, dag_id, id, provenance.parse(meta).origin) from error


def trust_in(dags: OpenDags, stored: Record) -> Trust | None:
    """How far a record's value is trusted; None if this host stored it."""
    return dags.trust if stored.flags & UNTRUSTED else None


def decoded_record(
    dags: OpenDags, dag_id: str, id: str, stored: Record, payload: memoryview
) -> Any:
    """The value of a record and its payload; see ``decoded``."""
    return decoded(dag_id, id, stored.codec, stored.meta, payload, trust_in(dags, stored))


def entry_of(dag_id: str, stored: Record) -> Entry:
    """The entry of a record."""
    by, origin, kind, deps = provenance.parse(stored.meta)
    return Entry(
        dag_id,
        stored.key.decode(),
        codecs.NAMES.get(stored.codec, str(stored.codec)),
        kind,
        stored.nbytes,
        location(stored),
        stored.created_ns,
        by,
        origin,
        deps,
    )


def location(stored: Record) -> str:
    """Where a value's payload lies: "inline", or its segment's name."""
    if not stored.segment:
        return INLINE
    return names.segment_name(stored.segment, spilled=bool(stored.flags & SPILLED))
