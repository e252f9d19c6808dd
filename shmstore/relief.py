"""Making room when shared memory, or what is allowed of it, runs short.

In this order: emptied segments, leftovers, fetched copies that nobody views, values
moved to disk. What is decided here about a value is committed only if its slot still
holds the record that was looked at; a newer put is never touched. None of it happens
under a lock of the caller's: whoever is short lets go first and tries again afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from shmstore import (
    cgroup,
    lifecycle,
    names,
    pool,
    provenance,
    reading,
    segment,
    spill,
    upkeep,
    writing,
)
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
    for tries in range(_ROUNDS):
        try:
            return call()
        except StoreFull as full:
            # More each time: what is asked for may be the first of many segments.
            if full.what in _NOT_MEMORY or not relieve(space, full, _LEAST_MOVED << tries):
                raise
    return call()


def relieve(space: Namespace, full: StoreFull, least: int) -> bool:
    """Frees what can be freed; True if trying again is worth it.

    Args:
        space: The namespace.
        full: What was short.
        least: Bytes to be moved to disk at least, if it comes to that and a sixteenth
            of the capacity is not less.

    Raises:
        StoreFull: The disk to which values are moved is full, too.
    """
    if full.asked and full.limit and full.asked > full.limit:
        return False  # it does not fit at all
    if pool.trim(space, 0):
        return True
    if full.what == cgroup.WHAT and spill.place(space) is None:
        return False  # looking further takes memory itself, and past the limit one is killed
    if upkeep.on_full(space) or space.ledger.recount() > 0:
        return True
    short = max((full.asked or 0) + (full.kept or 0) - (full.free or 0), _LEAST_SHORT)
    return _evict(space, short) > 0 or _spill(space, short, least, full)


def _in_memory(space: Namespace) -> Iterator[tuple[Manifest, Record]]:
    """All values in segments of shared memory."""
    for _, manifest in lifecycle.every_dag(space):
        if isinstance(manifest, StoreError):
            continue
        try:
            for record in reading.segment_records(manifest):
                if not record.flags & SPILLED:
                    yield manifest, record
        except (Superseded, StoreError):
            continue


def _oldest_first(found: Iterable[tuple[Manifest, Record]]) -> list[tuple[Manifest, Record]]:
    return sorted(found, key=lambda one: one[1].created_ns)


def _viewed(manifest: Manifest, record: Record) -> bool:
    """Whether anybody views a value, or it is gone. To view a segment is to hold its lock."""
    file = pool.take(manifest.directory, names.segment_name(record.segment))
    if file is None:
        return True
    file.close()
    return False


def _evict(space: Namespace, short: int) -> int:
    """Deletes copies of other hosts' values; bytes freed."""
    copies = _oldest_first(
        (manifest, record)
        for manifest, record in _in_memory(space)
        if provenance.parse(record.meta).origin is not None
    )
    freed = 0
    for manifest, record in copies:
        if freed >= short:
            break
        if not _viewed(manifest, record) and _commits(manifest, _deletion(record), record):
            freed += record.nbytes
    return freed


def _deletion(record: Record) -> Change:
    key = record.key
    return (
        DELETE, 0, 0, key, record.key_hash, 0, middle(key, b""), 0, 0, None, time.time_ns(),
    )  # fmt: skip


def _spill(space: Namespace, short: int, least: int, full: StoreFull) -> bool:
    """Moves values to disk; whether any was moved.

    Args:
        space: The namespace.
        short: Bytes that are needed. If all values together have less, none is moved.
        least: Bytes to be moved at least, or a sixteenth of the capacity.
        full: What was short.

    Raises:
        StoreFull: The disk is full, too.
    """
    if spill.place(space) is None:
        return False
    in_memory = _oldest_first(_in_memory(space))
    if sum(record.nbytes for _, record in in_memory) < short:
        return False
    batch = max(short, min(least, space.ledger.capacity // 16 or least))
    moved = 0
    for manifest, record in in_memory:
        if moved >= batch:
            break
        if _viewed(manifest, record):
            continue
        try:
            if spill_one(manifest, record):
                moved += record.nbytes
        except StoreFull as also:
            if moved:
                break
            what = f"{full.what}, and of {also.what}"
            raise StoreFull(what, full.asked, full.free, full.limit, full.kept) from also
    return moved > 0


def spill_one(manifest: Manifest, record: Record) -> bool:
    """Moves one value to disk; False if it was replaced or deleted meanwhile.

    If the process dies here, the value is where it was, or on disk: never gone.

    Raises:
        StoreFull: The disk is full. Nothing was changed.
    """
    directory = spill.dag_directory(manifest)
    name = names.segment_name(record.segment)
    try:
        payload = segment.attach(manifest.directory, name, record.segment, record.nbytes)
    except segment.SegmentGone:
        return False
    try:
        written = writing.write(manifest.space, [payload], record.nbytes, directory)
        written.flush()
    except StoreFull as full:
        what = f"space in {spill.place(manifest.space)}"
        raise StoreFull(what, full.asked, full.free, full.limit) from full
    finally:
        del payload
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
