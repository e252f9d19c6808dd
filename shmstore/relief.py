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
from typing import NamedTuple, TypeVar

from shmstore import (
    cgroup,
    lookup,
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
from shmstore.errors import CorruptValue, NotFound, StoreError, StoreFull, UnusableRoot
from shmstore.files import EXHAUSTED
from shmstore.forked import here, refused
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import DELETE, PUT, SPILLED, Record, middle

R = TypeVar("R")

_NOT_MEMORY = {EXHAUSTED[number] for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)}
_ROUNDS = 64
# What is moved at least, so that not every put has to look for values to move.
_LEAST_MOVED = 64 << 20
_LEAST_SHORT = 1 << 20
_MOST_OPEN = 32


def with_relief(space: Namespace, call: Callable[[], R]) -> R:
    """Returns ``call()``, called again after room was made for it, as long as that helps.

    Raises:
        StoreFull: All that can be done has been done.
        UnusableRoot: The namespace has been removed.
    """
    begun_after = here.forks
    for tries in range(_ROUNDS):
        if here.forks != begun_after:
            raise refused()  # a child that was forked meanwhile: its parent makes the change
        try:
            return call()
        except StoreFull as full:
            # More each time: what is asked for may be the first of many segments.
            if full.what in _NOT_MEMORY or not relieve(space, full, _LEAST_MOVED << tries):
                lookup.check_space(space)
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
    short = (full.asked or 0) + (full.kept or 0) - (full.free or 0)
    gained = max(upkeep.on_full(space), space.ledger.recount())
    if 0 < gained >= short:
        return True
    if _evict(space, max(short, _LEAST_SHORT)) or _spill(space, short, least, full):
        return True
    return gained > 0


class _Found(NamedTuple):
    """A value in a segment of shared memory, in a DAG that is not kept open."""

    created_ns: int
    dag_id: str
    generation: int
    record: Record


def _in_memory(space: Namespace) -> Iterator[_Found]:
    """All values in segments of shared memory."""
    for _, manifest in lookup.every_dag(space):
        if isinstance(manifest, StoreError):
            continue
        try:
            for record in reading.segment_records(manifest):
                if not record.flags & SPILLED:
                    yield _Found(record.created_ns, manifest.dag_id, manifest.generation, record)
        except (Superseded, StoreError):
            continue


def _oldest_first(space: Namespace, found: Iterable[_Found]) -> Iterator[tuple[Manifest, Record]]:
    """Those that are still there and that nobody views, with few DAGs open at a time."""
    opened: dict[str, Manifest] = {}
    for one in sorted(found, key=lambda one: one.created_ns):
        manifest = opened.get(one.dag_id)
        if manifest is None:
            try:
                manifest = lookup.find_dag(space, one.dag_id)
            except StoreError:
                continue
            if manifest is None:
                continue
            while len(opened) >= _MOST_OPEN:
                del opened[next(iter(opened))]
            opened[one.dag_id] = manifest
        if manifest.generation == one.generation and not _viewed(manifest, one.record):
            yield manifest, one.record


def _viewed(manifest: Manifest, record: Record) -> bool:
    """Whether anybody views a value, or it is gone. To view a segment is to hold its lock."""
    file = pool.take(manifest.directory, names.segment_name(record.segment))
    if file is None:
        return True
    file.close()
    return False


def _evict(space: Namespace, short: int) -> int:
    """Deletes copies of other hosts' values; bytes freed."""
    copies = (
        one for one in _in_memory(space) if provenance.parse(one.record.meta).origin is not None
    )
    freed = 0
    for manifest, record in _oldest_first(space, copies):
        if _commits(manifest, _deletion(record), record):
            freed += record.nbytes
        if freed >= short:
            break
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
    in_memory = [*_in_memory(space)]
    if sum(one.record.nbytes for one in in_memory) < short:
        return False
    batch = max(short, _LEAST_SHORT, min(least, space.ledger.capacity // 16 or least))
    moved = 0
    for manifest, record in _oldest_first(space, in_memory):
        try:
            if spill_one(manifest, record):
                moved += record.nbytes
            if moved >= batch:
                break
        except CorruptValue:
            continue  # not the concern of the value that needs room
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
    directory = spill.dag_directory(manifest, make=True)
    try:
        payload = segment.attach(manifest.directory, record.segment, record.nbytes)
    except segment.SegmentGone:
        return False
    try:
        written = writing.write(manifest.space, [payload], record.nbytes, directory)
        written.flush()
    except StoreFull as full:
        what = f"space in {spill.place(manifest.space)}"
        raise StoreFull(what, full.asked, full.free, full.limit) from full
    except UnusableRoot:
        if directory.intact():
            raise
        return False  # removed with its DAG, or as another one was chosen
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
    try:
        return _commits(manifest, change, record)
    except UnusableRoot:
        if manifest.spilled is directory and directory.intact():
            raise
        return False  # another directory was chosen meanwhile, or this one has been removed
    finally:
        written.end()


def _commits(manifest: Manifest, change: Change, judged: Record) -> bool:
    try:
        commit(manifest, (change,), judged=judged)
    except (Replaced, NotFound, Superseded):
        return False
    return True
