"""Writing whole files and mapping them: the few system calls every module shares.

Shared memory is written by ``write(2)`` or into pages that were allocated before,
never through a fresh mapping: a full tmpfs answers a write with ENOSPC, but a
mapping with SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Sequence
from typing import Any

from shmstore import cgroup, mounts
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreFull
from shmstore.forked import here, refused

#: Keeps ``mmap`` from holding a descriptor of its own, where it can be kept from it.
UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_MOST_PARTS = 1024  # IOV_MAX on Linux
#: After so many bytes of one write, what is free is looked at again: others write, too.
STRIDE = 64 << 20

#: What a system call says when something has run out, and the words for it.
EXHAUSTED = {
    errno.ENOSPC: "shared memory",
    errno.EDQUOT: "disk quota",
    errno.ENOMEM: "memory maps or memory",
    errno.EMFILE: "file descriptors of this process",
    errno.ENFILE: "file descriptors of this host",
}


def store_full(error: OSError, asked: int | None, fd: int | None = None) -> StoreFull | None:
    """The StoreFull that an exhausted resource means, or None for other errors."""
    what = EXHAUSTED.get(error.errno or 0)
    if what is None:
        return None
    free = limit = None
    if fd is not None and error.errno == errno.ENOSPC:
        status = os.fstatvfs(fd)
        free, limit = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return StoreFull(what, asked, free, limit)


def check_free(place: Descriptor, asked: int, headroom: int = 0) -> int:
    """Returns the bytes that may be taken on the file system of an open file.

    Its free bytes, or what the memory cgroups of this process leave, if that is less.

    Raises:
        StoreFull: Taking ``asked`` of them would leave less than ``headroom``.
    """
    return _check(place.fd, place.device, asked, headroom)


def check_small(place: Descriptor, asked: int) -> None:
    """Holds many small writes together against what the memory cgroups leave.

    Raises:
        StoreFull: They leave too little.
    """
    if mounts.in_memory(place.device):
        cgroup.check_together(asked)


def _check(fd: int, device: int, asked: int, headroom: int = 0) -> int:
    status = os.fstatvfs(fd)
    free = cgroup.UNBOUNDED
    if status.f_blocks:  # a tmpfs without a limit has none
        free = status.f_bavail * status.f_frsize
        if free - asked < headroom:
            limit = status.f_blocks * status.f_frsize
            raise StoreFull("shared memory", asked, free, limit, headroom or None)
    if mounts.in_memory(device):
        free = min(free, cgroup.check(asked, headroom))
    return free


def write_all(file: Descriptor, parts: Sequence[memoryview | bytes], at: int = 0) -> int:
    """Writes ``parts`` one after another from offset ``at`` on; returns the end.

    A short write (a signal, a file system nearly full) is gone on with. During a
    large one, it is looked now and then whether what is left of it still fits.

    Raises:
        StoreFull: It does not.
    """
    end = at + sum(map(len, parts))
    pending = list(parts)
    if end - at > STRIDE:
        pending = [
            memoryview(part)[start : start + STRIDE]
            for part in parts
            for start in range(0, len(part), STRIDE)
        ]
    first = 0
    checked = at
    while first < len(pending):
        now = pending[first : first + _MOST_PARTS]
        if end - checked > STRIDE:
            if at - checked >= STRIDE:
                check_rest(file.fd, end)
                checked = at
            now = _up_to_stride(now)
        if here.lost:
            raise refused()
        # A child that a signal handler forks comes back to here with the file closed, and
        # its number may be another file's.
        written = os.pwritev(file.fd, now, at)
        at += written
        while first < len(pending) and written >= len(pending[first]):
            written -= len(pending[first])
            first += 1
        if written:
            pending[first] = memoryview(pending[first])[written:]
    return at


def _up_to_stride(pieces: list[memoryview | bytes]) -> list[memoryview | bytes]:
    """The first of several pieces, and as many more as make a stride with it."""
    size = 0
    for count, piece in enumerate(pieces):
        size += len(piece)
        if size > STRIDE and count:
            return pieces[:count]
    return pieces


def check_rest(fd: int, end: int) -> None:
    """Raises StoreFull if the file cannot grow to ``end``; what it has it keeps."""
    status = os.fstat(fd)
    missing = end - status.st_blocks * 512
    if missing > 0:
        _check(fd, status.st_dev, missing)


def map_shared(fd: int, size: int, writable: bool = True) -> mmap.mmap:
    """Maps ``size`` bytes for reading and, if ``writable``, storing words; keeps no ``fd``."""
    access = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    return mmap.mmap(fd, size, mmap.MAP_SHARED, access, **UNTRACKED)


def create_file(directory: Descriptor, name: str) -> Descriptor:
    """A new, empty file under a name that only a dead writer's leftover may have."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        return Descriptor.open(name, flags, within=directory.fd)
    except FileExistsError:
        if here.lost:
            raise refused() from None
        os.unlink(name, dir_fd=directory.fd)
        return Descriptor.open(name, flags, within=directory.fd)


def listed(directory: Descriptor) -> list[str]:
    """The names in a directory.

    By a description of its own: how far a directory was read is noted in the open
    description, which threads and forked children share. Of two that list by the same
    one at once, either may miss names.
    """
    own = Descriptor.open(".", os.O_RDONLY | os.O_DIRECTORY, within=directory.fd, inherit=False)
    try:
        return os.listdir(own.fd)
    finally:
        own.close()


def claimed(file: Descriptor, directory: Descriptor, name: str) -> bool:
    """Takes a file or directory for oneself, to build in it or to remove it.

    Whoever does either holds LOCK_EX on a description of their own, and then looks
    whether it still is what lies there: so the kernel tells what is being worked on
    from what a dead process left, and nobody works on what another has removed.

    Returns:
        False if somebody else has it, or it is no longer there.
    """
    if here.lost:
        raise refused()  # and its descriptor is closed
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    return (status.st_dev, status.st_ino) == (file.device, file.inode)


def unlink(directory: Descriptor, name: str) -> bool:
    """Removes a file; False if somebody else was faster."""
    if here.lost:
        raise refused()
    try:
        os.unlink(name, dir_fd=directory.fd)
    except FileNotFoundError:
        return False
    return True


def allocated(directory: Descriptor, name: str) -> int:
    """The bytes that a file takes; 0 if it is gone."""
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


def rename(name: str, source: Descriptor, new_name: str, target: Descriptor) -> None:
    """Renames from one directory to another."""
    if here.lost:
        raise refused()
    os.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)


def remove_tree(directory: Descriptor, name: str) -> None:
    """Removes a directory of files, or one file; others may be doing the same."""
    try:
        inner = Descriptor.open(name, os.O_RDONLY | os.O_DIRECTORY, within=directory.fd)
    except NotADirectoryError:
        unlink(directory, name)
        return
    except FileNotFoundError:
        return
    try:
        for entry in listed(inner):
            unlink(inner, entry)
    finally:
        inner.close()
    if here.lost:
        raise refused()
    try:
        os.rmdir(name, dir_fd=directory.fd)
    except FileNotFoundError:
        pass
