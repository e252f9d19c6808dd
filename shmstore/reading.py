"""Finding what is stored in a DAG, without its lock.

A reader compares ``current``, follows the index to a record and checks it. Only
what looks odd is looked at again under the lock: a writer at work explains most
of it, the rest is damage, which is repaired from the log or reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
from xxhash import xxh3_64_intdigest as checksum

from shmstore import names, recovery
from shmstore.errors import CorruptValue
from shmstore.index import IndexDamagedError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import (
    CHECKPOINT,
    CREATED_WORD,
    CURRENT,
    FLAGS_SHIFT,
    HEAD_SIZE,
    INDEXED,
    LENGTH_WORD,
    LIVE,
    PAGE,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    SPILLED,
    STATE,
    TAG,
    TAIL,
    Record,
    Totals,
    key_hash,
    unpack_head,
)
from shmstore.view import DOUBTFUL, Doubt, View
from shmstore.words import union

_ATTEMPTS = 8


def find(manifest: Manifest, key: bytes) -> Record | None:
    """The newest record of a key if it is a PUT, else None.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
        CorruptValue: The record fails its check.
    """
    found = find_at_once(manifest, key)
    if found is not DOUBTFUL:
        return found
    return manifest.guarded(find_settled, manifest, key)


def find_at_once(manifest: Manifest, key: bytes) -> Record | Literal[Doubt.DOUBTFUL] | None:
    """What ``find`` does, or DOUBTFUL where it would wait for the lock.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
    """
    manifest.look()
    try:
        control = manifest.control
        view = manifest.view
        if view is None or control[STATE] != LIVE or control[CURRENT] != view.current:
            view = manifest.fresh()
        hashed = key_hash(key)
        words = view.log.words
        view.cover(words[TAIL])
        # A writer is between the two, or died there: what it committed counts.
        pending: set[int] = set()
        if words[TAIL] != words[INDEXED]:
            newest = _newest_in_gap(view, key, pending)
            if newest is not None:
                return newest if newest.op == PUT else None
        return view.probe(key, hashed, pending)
    except (IndexDamagedError, FileNotFoundError):
        return DOUBTFUL
    except OSError as error:
        raise manifest.converted(error) from error


def peek(manifest: Manifest, key: bytes) -> tuple[int, bytes, bytes, int, int] | None:
    """What ``find`` does, in one function for the commonest get, if all is well.

    Returns:
        The value's codec, meta, payload, segment's number and payload's size; the
        payload is empty if there is a segment. None for whatever is not as it
        should be, or merely not there: that is left to ``find``.
    """
    view = manifest.view
    if view is None:
        return None
    control = manifest.control
    log, index = view.log, view.index
    words = log.words
    if control[STATE] != LIVE or control[CURRENT] != view.current or words[TAIL] != words[INDEXED]:
        return None
    hashed = key_hash(key)
    slots = index.slots
    at = (hashed & index.mask) * 2
    try:
        while slots[at] != hashed:
            if not slots[at + 1]:
                return None
            at += 2
        word = slots[at + 1]
    except IndexError:  # the last slot, which is to stay unused, is damaged
        return None
    offset = word >> 16
    if not PAGE <= offset <= log.size - SMALLEST or (offset ^ hashed) % TAG != word & 0xFFFF:
        return None
    raw = log.map[offset : offset + (words[(offset >> 3) + LENGTH_WORD] & 0xFFFFFFFF)]
    if len(raw) < SMALLEST:
        return None
    check, _, op, codec, flags, _, _, nbytes, segment, key_size, _, meta_size = unpack_head(raw)
    meta_at = HEAD_SIZE + key_size
    if op != PUT or check != checksum(raw[8:], log.seed) or raw[HEAD_SIZE:meta_at] != key:
        return None
    if flags:
        return None
    payload_at = meta_at + meta_size
    payload = b"" if segment else raw[payload_at : payload_at + nbytes]
    return codec, raw[meta_at:payload_at], payload, segment, nbytes


def _newest_in_gap(view: View, key: bytes, hashes: set[int]) -> Record | None:
    """The newest record of a key among those that the index may lack.

    Args:
        view: The files.
        key: The key.
        hashes: Takes the hashes of all those records.

    Raises:
        IndexDamagedError: The gap is no run of whole records.
        FileNotFoundError: The log has been replaced.
    """
    words = view.log.words
    # `indexed` first: a writer raises it last, so what lies between the two as
    # read in this order holds every record that the index lacks.
    start, end = words[INDEXED], words[TAIL]
    if not PAGE <= start <= end:
        raise IndexDamagedError
    log = view.cover(end)
    newest = None
    reached = start
    for offset, found in log.scan(start, end):
        reached = offset + found.length
        hashes.add(found.key_hash)
        if found.key == key and found.op != CHECKPOINT:
            newest = found
    if reached != end:
        raise IndexDamagedError
    return newest


def find_settled(manifest: Manifest, key: bytes) -> Record | None:
    """What ``find`` does, under the lock, after putting right what made it doubt."""
    view = recovery.settled(manifest, [])
    hashed = key_hash(key)
    log = view.cover(view.log.words[TAIL])
    try:
        _, offset = view.locate(log, key, hashed)
    except IndexDamagedError:
        view = recovery.rebuild_index(manifest)
        log = view.log
        _, offset = view.locate(log, key, hashed)
    if not offset:
        return None
    found = log.read(offset)
    if found is None:
        raise CorruptValue(
            "its record fails its check",
            f"{names.log_name(log.number)} at {offset}",
            manifest.dag_id,
            key.decode(errors="replace"),
        )
    return found if found.op == PUT else None


def totals(manifest: Manifest) -> Totals:
    """The running totals, as of the last commit."""
    manifest.look()
    for _ in range(_ATTEMPTS):
        try:
            view = manifest.fresh()
            tail = view.log.words[TAIL]
            if tail >= PAGE and not tail & 7:
                log = view.cover(tail)
                if tail <= log.size:
                    return log.totals(tail)
        except (IndexDamagedError, FileNotFoundError):
            pass
        except OSError as error:
            raise manifest.converted(error) from error
        manifest.guarded(recovery.settled, manifest, [])
    raise CorruptValue("its tail is damaged", names.MANIFEST, manifest.dag_id)


def footprint(manifest: Manifest) -> tuple[int, int]:
    """Bytes of shared memory allocated for the log and for the index."""
    totals(manifest)
    view = manifest.fresh()
    return view.log.size, len(view.index.map)


def records(manifest: Manifest, newest_first: bool = False) -> Iterator[Record]:
    """The live records as of now, in the order in which they were stored.

    A snapshot: what is stored or deleted while this goes on does not change it.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
        CorruptValue: A record fails its check.
    """
    log, offsets, newer, _ = snapshot(manifest)
    if _within(log, offsets):
        words = np.frombuffer(log.words, dtype=np.uint64)
        at = offsets >> np.uint64(3)
        if (words[at + np.uint64(LENGTH_WORD)] & np.uint64(SPILLED << FLAGS_SHIFT)).any():
            # Moving a value to disk wrote its record anew, at another place.
            created = words[at + np.uint64(CREATED_WORD)]
            offsets = offsets[np.argsort(created, kind="stable")]
    if newest_first:
        offsets = offsets[::-1]
    return _read_each(manifest, log, offsets, newer)


def segment_records(manifest: Manifest) -> Iterator[Record]:
    """The live records whose payloads are in segments, as of now."""
    log, offsets, newer, _ = snapshot(manifest)
    if _within(log, offsets):
        words = np.frombuffer(log.words, dtype=np.uint64)
        offsets = offsets[words[(offsets >> np.uint64(3)) + np.uint64(SEGMENT_WORD)] != 0]
    return _read_each(manifest, log, offsets, newer)


def _within(log: Log, offsets: np.typing.NDArray[np.uint64]) -> bool:
    """Whether there are offsets, all in the log; damaged ones are left to who reads there."""
    return bool(len(offsets)) and int(offsets.max()) + SMALLEST <= log.size


#: A log, offsets of newest records in it in rising order, the offsets of those records,
#: by key, that are newer than what the index said, and where the log ended.
Snapshot: TypeAlias = tuple[Log, np.typing.NDArray[np.uint64], dict[bytes, int], int]


def _read_each(
    manifest: Manifest,
    log: Log,
    offsets: np.typing.NDArray[np.uint64],
    newer: dict[bytes, int],
) -> Iterator[Record]:
    for start in range(0, len(offsets), 4096):
        for offset in offsets[start : start + 4096].tolist():
            found = log.read(offset)
            if found is None:
                raise CorruptValue(
                    "a record fails its check",
                    f"{names.log_name(log.number)} at {offset}",
                    manifest.dag_id,
                )
            if found.op == PUT and newer.get(found.key, offset) == offset:
                yield found


def snapshot(manifest: Manifest) -> Snapshot:
    """Where the records are that say what is stored as of now, live or deleted.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
        CorruptValue: The log is damaged.
    """
    manifest.look()
    for _ in range(_ATTEMPTS):
        try:
            copied = _copied(manifest, manifest.fresh())
            if copied is not None:
                return copied
        except IndexDamagedError:
            break
        except FileNotFoundError:
            pass  # replaced meanwhile
        except OSError as error:
            raise manifest.converted(error) from error
    return manifest.guarded(_snapshot_settled, manifest)


def _copied(manifest: Manifest, view: View) -> Snapshot | None:
    """A copy of what the index says, or None if a commit came between.

    A commit stores ``tail`` first and its slots after that. So if ``tail`` has not
    moved, no slot of a later commit is in the copy, nor half of a put_many.
    """
    words = view.log.words
    start, end = words[INDEXED], words[TAIL]
    offsets = view.index.entries()[1]
    log = view.cover(end)
    if words[TAIL] != end or manifest.control[CURRENT] != view.current:
        return None
    newer = {found.key: offset for offset, found in log.scan(start, end)}
    more = np.array([*newer.values()], dtype=np.uint64)
    return log, union(offsets, more), newer, end


def _snapshot_settled(manifest: Manifest) -> Snapshot:
    """Under the lock, if writers were faster each time or the index looks damaged."""
    try:
        copied = _copied(manifest, recovery.settled(manifest, []))
    except IndexDamagedError:
        copied = _copied(manifest, recovery.rebuild_index(manifest))
    if copied is None:
        raise CorruptValue("its tail moves under the lock", names.MANIFEST, manifest.dag_id)
    return copied
