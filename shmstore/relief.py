"""Making room when shared memory, or what is allowed of it, runs short.

In this order: emptied segments, leftovers, fetched copies that nobody views, values
moved to disk. What is decided here about a value is committed only if its slot still
holds the record that was looked at; a newer put is never touched. None of it happens
under a lock of the caller's: whoever is short lets go first and tries again afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from shmstore import lifecycle, names, pool, provenance, reading, segment, spill, writing
from shmstore.commit import Change, Replaced, commit
from shmstore.errors import NotFound, StoreError, StoreFull
from shmstore.files import EXHAUSTED
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import DELETE, PUT, SPILLED, Record, middle

R = TypeVar("R")

_NOT_MEMORY = {EXHAUSTED[number] for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)}
_ROUNDS = 64
# What is moved at least, so that not every put has to look for values to move.
_LEAST_MOVED = 64 << 20
_LEAST_SHORT = 1 << 20


def with_relief(space: Namespace, call: Callable[[], R]) -> R:
    """Returns ``call()``, called again after room was made for it, as long as that helps.

    Raises:
        StoreFull: All that can be done has been done.
    """
    for _ in range(_ROUNDS):
        try:
            return call()
        except StoreFull as full:
            if full.what in _NOT_MEMORY or not relieve(space, full):
                raise
    return call()


def relieve(space: Namespace, full: StoreFull) -> bool:
    """Frees what can be freed; True if trying again is worth it.

    Raises:
        StoreFull: The disk to which values are moved is full, too.
    """
    if pool.trim(space, 0):
        return True
    if lifecycle.empty_trash(space) or space.ledger.recount() > 0:
        return True
    short = max((full.asked or 0) + (full.kept or 0) - (full.free or 0), _LEAST_SHORT)
    candidates = sorted(_unviewed(space), key=lambda found: found[1].created_ns)
    if _evict(candidates, short):
        return True
    if spill.place(space) is None:
        return False
    capacity = space.ledger.capacity
    batch = max(short, min(_LEAST_MOVED, capacity // 16 or _LEAST_MOVED))
    return _spill(space, candidates, batch, full)


def _unviewed(space: Namespace) -> Iterator[tuple[Manifest, Record]]:
    """Values in segments of shared memory that nobody views."""
    for _, manifest in lifecycle.every_dag(space):
        if isinstance(manifest, StoreError):
            continue
        try:
            for record in reading.segment_records(manifest):
                if record.flags & SPILLED:
                    continue
                # Viewing a segment is holding its lock.
                file = pool.take(manifest.directory, names.segment_name(record.segment))
                if file is not None:
                    file.close()
                    yield manifest, record
        except (Superseded, StoreError):
            continue


def _evict(candidates: list[tuple[Manifest, Record]], short: int) -> int:
    """Deletes copies of other hosts' values; bytes freed."""
    freed = 0
    for manifest, record in candidates:
        if freed >= short:
            break
        if provenance.parse(record.meta).origin is None:
            continue
        if _commits(manifest, _deletion(record), record):
            freed += record.nbytes
    return freed


def _deletion(record: Record) -> Change:
    key = record.key
    return (
        DELETE, 0, 0, key, record.key_hash, 0, middle(key, b""), 0, 0, None, time.time_ns(),
    )  # fmt: skip


def _spill(
    space: Namespace, candidates: list[tuple[Manifest, Record]], batch: int, full: StoreFull
) -> bool:
    """Moves values to disk, until ``batch`` bytes have been freed; whether any was."""
    moved = 0
    for manifest, record in candidates:
        if moved >= batch:
            break
        try:
            if spill_one(manifest, record):
                moved += record.nbytes
        except StoreFull as no_disk:
            if moved:
                break
            raise StoreFull(
                f"{full.what}, and of space in {spill.place(space)}",
                full.asked,
                no_disk.free,
                no_disk.limit,
            ) from full
    return moved > 0


def spill_one(manifest: Manifest, record: Record) -> bool:
    """Moves one value to disk; False if it was replaced or deleted meanwhile.

    If the process dies here, the value is where it was, or on disk: never gone.

    Raises:
        StoreFull: The disk is full. Nothing was changed.
    """
    try:
        directory = spill.dag_directory(manifest)
        name = names.segment_name(record.segment)
        payload = segment.attach(manifest.directory, name, record.segment, record.nbytes)
    except segment.SegmentGone:
        return False
    written = writing.write(manifest.space, [payload], record.nbytes, directory)
    del payload
    written.flush()
    number = names.new_segment_number()
    change = (
        PUT,
        record.codec,
        record.flags | SPILLED,
        record.key,
        record.key_hash,
        len(record.meta),
        middle(record.key, record.meta),
        record.nbytes,
        number,
        written,
        record.created_ns,
    )
    stored = False
    try:
        stored = _commits(manifest, change, record)
    finally:
        written.end(stored)
    return stored


def _commits(manifest: Manifest, change: Change, judged: Record) -> bool:
    try:
        commit(manifest, (change,), judged=judged)
    except (Replaced, NotFound, Superseded):
        return False
    return True
