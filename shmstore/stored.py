"""From a value to what is stored of it, and back to its payload.

Where a payload lies is decided here: in the manifest's log up to the inline
limit, in a segment of its own above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time_ns
from typing import Any

from shmstore import codecs, names, provenance, reading, segment
from shmstore.codecs.plain import PLAIN
from shmstore.commit import Change
from shmstore.entry import INLINE, Entry
from shmstore.errors import CorruptValue
from shmstore.manifest import Manifest
from shmstore.opened import OpenDags
from shmstore.provenance import build_meta, codec_meta, this_process, type_name
from shmstore.reading import peek
from shmstore.record import LARGEST, PUT, Record, key_hash, middle
from shmstore.segment import READ

#: Payloads up to this many bytes lie in the log and are copied out by get; larger
#: ones get a segment. About where both cost the same (docs/performance.md).
INLINE_LIMIT = 16 << 10

_ROUNDS = 16
_new = tuple.__new__  # a third of what calling a named tuple's class costs


def prepare(
    dags: OpenDags,
    dag_id: str,
    id: str,
    key: bytes,
    value: Any,
    encoded: codecs.Encoded,
    deps: Sequence[bytes],
) -> tuple[Change, Entry]:
    """Writes a payload, if it is large, and makes the parts of its record.

    Nobody sees anything of it until the change is committed. If the process dies
    before that, the kernel frees what was written.

    Raises:
        StoreFull: No room for the payload.
    """
    codec, own_meta, parts, nbytes = encoded
    kind = type(value)
    meta = build_meta(own_meta, kind, deps)
    number, file, location = 0, None, INLINE
    if nbytes <= INLINE_LIMIT:
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        rest = middle(key, meta, payload)
    else:
        rest = middle(key, meta)
        number = names.new_segment_number()
        location = names.segment_name(number)
        file = segment.write(dags.space.directory, parts, nbytes)
    if len(rest) > LARGEST:
        raise ValueError(f"what is to be noted of value {id!r}, its deps, is too large")
    now = time_ns()
    entry = (
        dag_id,
        id,
        codecs.NAMES[codec],
        type_name(kind),
        nbytes,
        location,
        now,
        this_process(),
        None,
        tuple([dep.decode() for dep in deps]) if deps else (),
    )
    return (
        (PUT, codec, 0, key, key_hash(key), len(meta), rest, nbytes, number, file, now),
        _new(Entry, entry),
    )


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


def _find(manifest: Manifest, key: bytes, mode: str) -> tuple[Record, memoryview] | None:
    stored = reading.find(manifest, key)
    if stored is None:
        return None
    if not stored.segment:
        payload = stored.payload
        return stored, memoryview(payload if mode == READ else bytearray(payload))
    try:
        attached = segment.attach(manifest.directory, stored.segment, stored.nbytes, mode)
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
        return _find(manifest, key, mode)

    try:
        return manifest.guarded(look)
    except segment.SegmentGone:
        raise CorruptValue(
            "its segment is missing", "the DAG's directory", manifest.dag_id, key.decode()
        ) from None


def decoded(dag_id: str, id: str, codec: int, meta: bytes, payload: memoryview) -> Any:
    """The value of a payload.

    Raises:
        CorruptValue: A check of the codec failed; names the value.
    """
    try:
        # A plain value has no meta of its codec; it is what most gets are about.
        return codecs.decode(codec, b"" if codec == PLAIN else codec_meta(meta), payload)
    except CorruptValue as error:
        raise CorruptValue(error.check, error.where, dag_id, id) from error


def entry_of(dag_id: str, stored: Record) -> Entry:
    """The entry of a record."""
    by, origin, kind, deps = provenance.parse(stored.meta)
    return Entry(
        dag_id,
        stored.key.decode(),
        codecs.NAMES.get(stored.codec, str(stored.codec)),
        kind,
        stored.nbytes,
        names.segment_name(stored.segment) if stored.segment else INLINE,
        stored.created_ns,
        by,
        origin,
        deps,
    )
