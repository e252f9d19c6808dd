"""Segments: one file a value, written once, mapped by its readers.

The only module that maps values. A reader holds a *lease* on what it maps: a shared
``flock`` on the open file that the mapping pins. It lasts exactly as long as the
mapping does, and the mapping as long as any view of it; the kernel drops both when
the process dies. A lease is never unlocked and never upgraded: either would end it
for forked relatives, too.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from weakref import WeakValueDictionary

import numpy as np

from shmstore import cgroup, maps, names
from shmstore.descriptor import Descriptor, open_descriptor, spare
from shmstore.errors import CorruptValue, StoreFull
from shmstore.files import UNTRACKED
from shmstore.forked import Again
from shmstore.lock import between_forks

READ, COW, COPY = "read", "cow", "copy"
MODES = (READ, COW, COPY)

_LEASE = fcntl.LOCK_SH | fcntl.LOCK_NB
_MAP_EXHAUSTED = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_ALIGNMENT = 64
# Copies from this size on are held against what the memory cgroup leaves.
_CHECKED_FIRST = 1 << 20
# A process maps a segment once; all views share the mapping. Numbers are never
# used twice, so an entry cannot mean another segment than it did.
_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
_turn = threading.RLock()  # held between forks only


class SegmentGone(Again):
    """The named segment is gone, or is being reclaimed: look the value up again."""


def attach(
    directory: Descriptor,
    number: int,
    nbytes: int,
    mode: str = READ,
    *,
    spilled: bool = False,
    locked: bool = False,
) -> memoryview:
    """The payload of a segment.

    Args:
        directory: Where the segment is.
        number: Its number.
        nbytes: The payload's size.
        mode: "read" for a view of the shared memory, read-only; "cow" for a private
            mapping, writable, whose pages are copied when written to; "copy" for
            private memory.
        spilled: It is one of those on disk.
        locked: The caller holds the DAG's lock and has seen the record. Then nobody can
            retire the segment, and it is copied if somebody holds its lock, which may be
            for a look whether it is viewed.

    Raises:
        SegmentGone: Look the value up again.
        CorruptValue: The segment is shorter than the payload, and the caller has the lock.
    """
    if mode == READ:
        mapping = _mapped.get(number)
        if mapping is not None and len(mapping) == nbytes:
            return memoryview(mapping)
    return between_forks(_attach, directory, number, nbytes, mode, spilled, locked)


def _attach(
    directory: Descriptor, number: int, nbytes: int, mode: str, spilled: bool, locked: bool
) -> memoryview:
    name = names.segment_name(number, spilled)
    leased = True
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = open_descriptor(name, flags, 0, directory.fd)
    except FileNotFoundError:
        raise SegmentGone(name) from None
    try:
        # The lease first, then the look whether it is on the file at this name:
        # in between, a writer might have claimed the file for another value.
        try:
            fcntl.flock(fd, _LEASE)
        except BlockingIOError:
            if not locked:
                raise SegmentGone(name) from None
            leased = False
        status = os.fstat(fd)
        try:
            at_name = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise SegmentGone(name) from None
        if at_name.st_ino != status.st_ino or at_name.st_dev != status.st_dev:
            raise SegmentGone(name)
        if status.st_size < nbytes:
            if not locked:  # a dead value's, cut by who frees it
                raise SegmentGone(name)
            raise CorruptValue(f"it holds {status.st_size:,} of the value's {nbytes:,} bytes", name)
        mapping = None if mode == COPY or not leased else _map(fd, nbytes, mode)
        if mapping is None:
            # Out of maps or descriptors, or nearly: a copy is better than a failure.
            copied = _read(fd, nbytes)
            return copied.toreadonly() if mode == READ else copied
        if mode == COW:
            return memoryview(mapping)
        with _turn:
            # Another thread may have been faster: all share one mapping.
            first = _mapped.get(number)
            if first is not None and len(first) == nbytes:
                return memoryview(first)
            _mapped[number] = mapping
        return memoryview(mapping)
    finally:
        os.close(fd)


def _map(fd: int, nbytes: int, mode: str) -> mmap.mmap | None:
    """A mapping of a segment; None if the process should not, or cannot have one more."""
    # Before Python 3.13, a mapping takes a descriptor for as long as it lives.
    if not maps.may_map() or (not UNTRACKED and not spare(fd)):
        return None
    flags, access = mmap.MAP_SHARED, mmap.PROT_READ
    if mode == COW:
        flags, access = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        return mmap.mmap(fd, nbytes, flags, access, **UNTRACKED)
    except OSError as error:
        if error.errno not in _MAP_EXHAUSTED:
            raise
        return None


def _read(fd: int, nbytes: int) -> memoryview:
    if nbytes >= _CHECKED_FIRST:
        cgroup.check(nbytes)
    try:
        memory = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    except MemoryError as error:
        raise StoreFull("memory maps or memory", nbytes) from error
    start = -memory.ctypes.data % _ALIGNMENT
    target = memory.data[start : start + nbytes]
    done = 0
    while done < nbytes:
        count = os.preadv(fd, [target[done:]], done)
        if not count:
            raise CorruptValue(f"it ends after {done:,} bytes", "a segment")
        done += count
    return target


def mapped_count() -> int:
    """How many segments this process has mapped for its views."""
    return len(_mapped)
