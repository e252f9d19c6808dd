"""Emptied segments, kept to be written again: filling warm memory is several times faster.

A segment that no record names any more goes to ``pool`` under a name that says its size
and when. Whoever takes it out again, to use it or to free it, first locks it
exclusively, on a description of its own, and looks whether it still is the file at that
name. A view of the old value is a shared lock on the same file: while there is one, the
lock is refused and the segment stays where it is.

What is freed is cut to nothing before it loses its name. So a mapping that a process
keeps warm does not hold the memory (``warm``).
"""

from __future__ import annotations

import fcntl
import os
import random
import time

from shmstore import files, names
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.forked import here, refused
from shmstore.ledger import taken
from shmstore.lock import between_forks
from shmstore.namespace import Namespace

#: Segments smaller than this are freed at once: making a new one costs no more.
SMALLEST = 128 << 10
#: Seconds after which an emptied segment is freed.
KEPT_S = 300

_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_MOST_TRIES = 8
# So that a look into the pool stays cheap, however many are viewed.
_MOST_FILES = 256


class Claimed:
    """An emptied segment that is ours to write, as long as ``file`` is open.

    Attributes:
        file: The open file, locked.
        name: Its name in the pool.
    """

    __slots__ = ("file", "name")

    def __init__(self, file: Descriptor, name: str) -> None:
        self.file = file
        self.name = name


def claim(space: Namespace, nbytes: int) -> Claimed | None:
    """An emptied segment that suits a payload of ``nbytes``, or None.

    If the process dies while it has it, the segment is in the pool as before.
    """
    fitting, smaller = [], []
    for name, size, _ in listed(space):
        if nbytes <= size <= 2 * nbytes:
            fitting.append((size, random.random(), name))
        elif nbytes // 2 <= size < nbytes:
            smaller.append((-size, random.random(), name))
    for _, _, name in [*sorted(fitting), *sorted(smaller)][:_MOST_TRIES]:
        file = take(space.pool, name)
        if file is not None:
            return Claimed(file, name)
    return None


def take(directory: Descriptor, name: str) -> Descriptor | None:
    """Locks a segment that no record names; None if it is viewed, or others were faster.

    The look at the name comes after the lock: in between it may have been claimed,
    written and stored under another name.
    """
    return between_forks(_take, directory, name)


def _take(directory: Descriptor, name: str) -> Descriptor | None:
    try:
        file = Descriptor.open(name, os.O_RDWR, within=directory.fd, inherit=False)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file.fd, _LOCK)
        at_name = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        file.close()
        return None
    if (at_name.st_dev, at_name.st_ino) != (file.device, file.inode):
        file.close()
        return None
    file.size = at_name.st_size
    return file


def retire(space: Namespace, directory: Descriptor, name: str, nbytes: int) -> None:
    """Takes in a segment that no record names any more, or frees it.

    Args:
        space: The namespace.
        directory: The DAG's.
        name: The segment's name there; somebody else may have retired it already.
        nbytes: Its size.

    If the process dies before it, the segment is an orphan, which a sweep retires.
    """
    found = listed(space) if nbytes >= SMALLEST else []
    if nbytes < SMALLEST or len(found) >= _MOST_FILES:
        discard(space, directory, name, nbytes)
        return
    # Also what is larger than the pool: while it is viewed, its memory cannot be freed.
    now_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    aside = names.pooled_name(nbytes, now_s)
    try:
        space.ledger.still(files.rename, name, directory, aside, space.pool)
    except FileNotFoundError:
        return
    reach("pool:retired")
    _trim(space, space.pool_limit, [*found, (aside, nbytes, now_s)])


def discard(space: Namespace, directory: Descriptor, name: str, nbytes: int) -> bool:
    """Frees a segment that no record names any more; False if that cannot be now.

    Views that are held keep theirs. Its memory is free with the last of them; where memory
    is accounted for, it counts until then: it stays, under a name in ``trash``.

    If the process dies here, the segment is where it was, empty or not, or in the trash.
    """
    ledger = space.ledger
    recounts = ledger.recounts
    if nbytes < SMALLEST and not ledger.capacity:
        return ledger.unlink(directory, name)
    file = take(directory, name)
    if file is None:
        if not ledger.capacity:
            return ledger.unlink(directory, name)
        try:
            aside = names.scratch_name(names.VIEWED)
            ledger.still(files.rename, name, directory, aside, space.trash)
        except FileNotFoundError:
            pass  # somebody was faster
        return False
    try:
        if nbytes < SMALLEST:
            return ledger.unlink(directory, name)
        return ledger.unlink(directory, name, (_empty(file), recounts))
    finally:
        file.close()


def _empty(file: Descriptor) -> int:
    """Frees the memory of a segment that is locked; how much it was."""
    nbytes = taken(os.fstat(file.fd))
    if here.lost:
        raise refused()
    os.ftruncate(file.fd, 0)
    reach("pool:emptied")
    return nbytes


def trim(space: Namespace, limit: int) -> int:
    """Frees emptied segments, the oldest first, until at most ``limit`` bytes are left.

    Those that are viewed stay, and count. Those larger than the limit are freed as soon
    as nobody views them, and do not count: else one would drive out all others.

    Args:
        space: The namespace.
        limit: Bytes to be left.

    Returns:
        Bytes freed.
    """
    return _trim(space, limit, listed(space))


def _trim(space: Namespace, limit: int, found: list[tuple[str, int, int]]) -> int:
    found.sort(key=lambda one: one[2])
    total = sum(size for _, size, _ in found if size <= limit)
    freed = 0
    for name, size, _ in found:
        if size <= limit and total <= limit:
            continue
        nbytes = free(space, name)
        if nbytes is not None:
            total -= size if size <= limit else 0
            freed += nbytes
    return freed


def free(space: Namespace, name: str) -> int | None:
    """Frees one emptied segment; its bytes, or None if it is viewed or gone.

    If the process dies here, the segment is empty and still in the pool.
    """
    return between_forks(_free, space, space.pool, name)


def free_viewed(space: Namespace, name: str) -> int | None:
    """Frees one that ``discard`` found viewed; its bytes, or None if it still is, or gone.

    If the process dies here, the segment is empty and still in the trash.
    """
    return between_forks(_free, space, space.trash, name)


def _free(space: Namespace, directory: Descriptor, name: str) -> int | None:
    recounts = space.ledger.recounts
    file = take(directory, name)
    if file is None:
        return None
    try:
        nbytes = _empty(file)
        files.unlink(directory, name)
    finally:
        file.close()
    space.ledger.give_back(nbytes, recounts)
    return nbytes


def set_limit(space: Namespace, nbytes: int) -> None:
    """Bounds the pool, for all processes, and frees what is beyond it."""
    space.set_pool_limit(nbytes)
    trim(space, nbytes)


def unviewed(directory: Descriptor, name: str) -> int | None:
    """What freeing a segment of no value would free; None if it is viewed or gone."""
    file = take(directory, name)
    if file is None:
        return None
    try:
        return taken(os.fstat(file.fd))
    finally:
        file.close()


def viewed(space: Namespace) -> list[str]:
    """The names in the trash of segments that were viewed when their values died."""
    return [n for n in files.listed(space.trash) if n.startswith(f"{names.VIEWED}-")]


def kept(space: Namespace) -> int:
    """Bytes of emptied segments that are in the pool."""
    return sum(size for _, size, _ in listed(space))


def listed(space: Namespace) -> list[tuple[str, int, int]]:
    """Name, size and time (seconds, CLOCK_BOOTTIME) of each emptied segment."""
    found = []
    for name in files.listed(space.pool):
        facts = names.parse_pooled_name(name)
        if facts is not None:
            found.append((name, *facts))
    return found
