"""Mappings that this process keeps of segments it has written, to write into them again.

Memory that is mapped and was written before takes a copy at the speed of ``memcpy``, a
write(2) into it half of that, a fresh file a tenth. The mappings are a cache by inode
and mean nothing else: a segment is claimed by its lock first, like by anyone else, and
only then looked up here. So a mapping that is kept says nothing about who uses the
segment, holds no lock, and is dropped at will.

What has been freed is truncated first (``pool``), so that a mapping which some process
still keeps here does not hold its memory.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

import numpy as np

from shmstore.descriptor import Descriptor
from shmstore.files import UNTRACKED
from shmstore.forked import refused

#: Below this, a write(2) is as fast as making and keeping a mapping.
SMALLEST = 1 << 20

_MOST_MAPPINGS = 8
_MOST_BYTES = 2 << 30
_POPULATED = mmap.MAP_SHARED | mmap.MAP_POPULATE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

_kept: dict[tuple[int, int], mmap.mmap] = {}  # by device and inode, least used first


def fill(
    directory: Descriptor,
    name: str,
    file: Descriptor,
    parts: Sequence[memoryview | bytes],
    nbytes: int,
) -> bool:
    """Copies a payload into a claimed segment through a mapping; False if it cannot.

    Args:
        directory: Where the segment is.
        name: Its name there.
        file: The segment, claimed; its first ``nbytes`` are allocated.
        parts: The payload.
        nbytes: Its size.

    If the process dies here, the segment holds some of both payloads and is still
    an emptied one.
    """
    # Taken out while in use, so no other thread has it, nor a child forked meanwhile.
    mapping = _kept.pop((file.device, file.inode), None)
    if mapping is None or len(mapping) < nbytes:
        mapping = _map(directory, name, file, nbytes)
        if mapping is None:
            return False
    try:
        # Holds the claim for as long as the copy takes, also if user code closes the file.
        claim = mmap.mmap(file.fd, 1, mmap.MAP_SHARED, mmap.PROT_READ, **UNTRACKED)
    except OSError:
        return False
    try:
        if not file.ours():
            raise OSError(errno.EBADF, "the descriptor of a value being stored was closed")
        _copy(np.frombuffer(mapping, dtype=np.uint8), parts, file)
    finally:
        claim.close()
    _keep((file.device, file.inode), mapping)
    return True


def _copy(
    target: np.typing.NDArray[np.uint8], parts: Sequence[memoryview | bytes], file: Descriptor
) -> None:
    copy = np.copyto
    at = 0
    for part in parts:
        if not len(part):
            continue
        source = np.frombuffer(part, dtype=np.uint8)
        place = target[at : at + len(source)]
        at += len(source)
        # A child that a signal handler forked comes back to here, with the claim closed.
        if file.fd < 0:
            raise refused()
        # In one piece: pieces of 16 or 64 MiB take almost twice as long in all.
        copy(place, source)


def _map(directory: Descriptor, name: str, file: Descriptor, nbytes: int) -> mmap.mmap | None:
    """Maps a segment on a description of its own, which carries no lock."""
    try:
        own = Descriptor.open(name, os.O_RDWR, within=directory.fd)
    except OSError:
        return None
    try:
        if (own.device, own.inode) != (file.device, file.inode) or own.size < nbytes:
            return None
        return mmap.mmap(own.fd, own.size, _POPULATED, _READ_WRITE, **UNTRACKED)
    except OSError:
        return None  # out of maps, memory or descriptors
    finally:
        own.close()


def _keep(key: tuple[int, int], mapping: mmap.mmap) -> None:
    _kept[key] = mapping
    while len(_kept) > _MOST_MAPPINGS or sum(map(len, [*_kept.values()])) > _MOST_BYTES:
        _kept.pop(next(iter(_kept)), None)


def forget() -> None:
    """Drops all mappings that are kept."""
    _kept.clear()


os.register_at_fork(after_in_child=forget)
