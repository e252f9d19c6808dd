"""A payload on its way into a segment: written before the lock, given its name under it.

It is written at once (``write``), or piece by piece as it comes in (``begin``).

New memory has no name until then (``O_TMPFILE``): if its writer dies, the kernel frees
it. Reused memory (``pool``) has the name of an emptied segment until then, and its
writer's exclusive lock: if the writer dies, it is an emptied segment again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence

from shmstore import files, pool, warm
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import UnusableRoot
from shmstore.forked import here, refused
from shmstore.ledger import taken, whole_pages
from shmstore.lock import between_forks
from shmstore.namespace import Namespace
from shmstore.pool import Claimed
from shmstore.reservations import Reservation

_CLOSED = "the descriptor of a value being stored was closed"
# Payloads from this size on are held against what is free before they are written,
# so that a value which cannot fit does not drive others into a full file system.
_CHECKED_FIRST = 1 << 20


class Written:
    """A segment that holds a payload and is no value yet.

    Dropping it without ``end`` frees it, or leaves it in the pool; only the account
    of a capacity stays too high until the process ends or calls ``end``.
    """

    __slots__ = ("_check_at", "_claimed", "_file", "_named", "_nbytes", "_reserved", "_space")

    def __init__(
        self,
        space: Namespace,
        file: Descriptor,
        nbytes: int,
        reserved: Reservation | None,
        claimed: str | None = None,
    ) -> None:
        self._space = space
        self._file = file
        self._nbytes = nbytes
        self._reserved = reserved
        self._claimed = claimed
        self._named = False
        self._check_at = files.STRIDE

    def fill(self, parts: Sequence[memoryview | bytes]) -> None:
        """Writes the whole payload.

        Raises:
            StoreFull: There is no room for it.
            OSError: Also if there is none.
        """
        if self._claimed is None:
            files.write_all(self._file, parts)
            reach("segment:written")
            return
        nbytes = self._nbytes
        # What was shorter, or has holes, has been claimed to be written anew, not to be mapped.
        if not (
            nbytes >= warm.SMALLEST
            and self._reserved is None
            and not here.lost
            and warm.fill(self._space.pool, self._claimed, self._file, parts, nbytes)
        ):
            files.write_all(self._file, parts)
        reach("pool:written")

    def write_at(self, at: int, piece: memoryview | bytes) -> None:
        """Writes a piece of the payload, in any order. Whoever begins must write it all.

        Raises:
            StoreFull: There is no room for the rest.
        """
        if not 0 <= at <= at + len(piece) <= self._nbytes:
            raise ValueError(f"{len(piece):,} bytes at {at:,} are not within {self._nbytes:,}")
        try:
            if at >= self._check_at:
                self._check_at = at + files.STRIDE
                files.check_rest(self._file.fd, self._nbytes)
            files.write_all(self._file, (piece,), at)
        except OSError as error:
            raise _converted(error, self._nbytes, self._file) from error

    def read_at(self, at: int, most: int) -> bytes:
        """Reads back some of what was written."""
        try:
            return os.pread(self._file.fd, min(most, self._nbytes - at), at)
        except OSError as error:
            raise _converted(error, most, self._file) from error

    def name(self, directory: Descriptor, name: str) -> None:
        """Gives it its name in a directory. Under the DAG's lock, before the commit point.

        If the process dies after it, the segment is an orphan.
        """
        file = self._file
        if not file.ours():
            raise OSError(errno.EBADF, _CLOSED)
        if here.lost:
            raise refused()
        self._named = True
        if self._claimed is None:
            source = f"/proc/self/fd/{file.fd}"
            os.link(source, name, dst_dir_fd=directory.fd, follow_symlinks=True)
            return
        self._space.ledger.still(files.rename, self._claimed, self._space.pool, name, directory)

    def open_to_readers(self) -> None:
        """Ends the writer's claim: out of the pool, nobody else claims it any more."""
        if self._claimed is not None:
            fcntl.flock(self._file.fd, fcntl.LOCK_UN)

    def take_back(self, directory: Descriptor, name: str) -> None:
        """Undoes ``name``, if it has begun, before the commit point."""
        if not self._named:
            return  # the name may be that of the parent which forked this process
        if self._claimed is None:
            files.unlink(directory, name)
        else:
            try:
                self._space.ledger.still(
                    files.rename, name, directory, self._claimed, self._space.pool
                )
            except FileNotFoundError:
                pass
        self._named = False

    def flush(self) -> None:
        """Writes it to the disk, so that one that is full or failing says so now."""
        try:
            if not self._file.ours():
                raise OSError(errno.EBADF, _CLOSED)
            os.fdatasync(self._file.fd)
            os.posix_fadvise(self._file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _converted(error, 0, self._file) from error

    def end(self) -> None:
        """Lets go of the file, and settles what was reserved. After the DAG's lock.

        Whether it has become a value need not be known: what has a name is found by a
        recount, and that of the pool has one either way, longer though it may be.
        """
        self._file.close()
        if self._named or self._claimed is not None:
            self._space.ledger.settle(self._reserved)
        else:
            self._space.ledger.cancel(self._reserved)
        self._reserved = None


def write(
    space: Namespace, parts: Sequence[memoryview | bytes], nbytes: int, directory: Descriptor
) -> Written:
    """Writes a payload into a new segment, or one of the pool.

    Straight from the value's own memory: one copy in all.

    Args:
        space: The namespace.
        parts: One-dimensional views of bytes.
        nbytes: Their size.
        directory: Any directory of the file system on which the segment is to be.

    Raises:
        StoreFull: There is no room for it.
    """
    try:
        written = _begin(space, nbytes, directory)
        try:
            written.fill(parts)
        except BaseException:
            written.end()
            raise
    except TimeoutError:
        raise  # StoreBusy
    except OSError as error:
        raise _converted(error, nbytes, directory) from error
    return written


def begin(space: Namespace, nbytes: int) -> Written:
    """A segment of shared memory for a payload that comes in pieces (``Written.write_at``).

    If the process dies before it is committed, it is freed, or in the pool as before.

    Raises:
        StoreFull: There is no room for it.
    """
    try:
        return _begin(space, nbytes, space.directory)
    except TimeoutError:
        raise  # StoreBusy
    except OSError as error:
        raise _converted(error, nbytes, space.directory) from error


def _begin(space: Namespace, nbytes: int, directory: Descriptor) -> Written:
    if nbytes >= pool.SMALLEST and directory is space.directory:
        claimed = pool.claim(space, nbytes)
        if claimed is not None:
            return _reuse(space, claimed, nbytes)
    return _make(space, nbytes, directory)


def _converted(error: OSError, nbytes: int, place: Descriptor) -> Exception:
    full = files.store_full(error, nbytes, place.fd)
    return full or UnusableRoot("the namespace", str(error))


def _make(space: Namespace, nbytes: int, directory: Descriptor) -> Written:
    reserved = space.ledger.reserve(nbytes) if directory is space.directory else None
    try:
        if nbytes >= _CHECKED_FIRST:
            files.check_free(directory, nbytes)
        else:
            files.check_small(directory, nbytes)
        file = between_forks(
            Descriptor.open, ".", os.O_TMPFILE | os.O_RDWR, within=directory.fd, inherit=False
        )
        reach("segment:opened")
    except BaseException:
        space.ledger.cancel(reserved)
        raise
    return Written(space, file, nbytes, reserved)


def _reuse(space: Namespace, claimed: Claimed, nbytes: int) -> Written:
    file, ledger = claimed.file, space.ledger
    reserved = None
    try:
        reach("pool:claimed")
        recounts = ledger.recounts
        size, took = file.size, _taken(file)
        if size > nbytes:
            if here.lost:
                raise refused()
            os.ftruncate(file.fd, nbytes)
            left = _taken(file)
            ledger.give_back(took - left, recounts)
            took = left
        more = whole_pages(nbytes) - took
        if more:
            # It was smaller, or whoever wrote it piece by piece has left holes.
            reserved = ledger.reserve(more)
            files.check_free(space.directory, more)
    except BaseException:
        file.close()
        ledger.cancel(reserved)
        raise
    # If it fails from here on, it is longer by as much as was written.
    return Written(space, file, nbytes, reserved, claimed.name)


def _taken(file: Descriptor) -> int:
    """What a claimed segment takes, if it still is ours."""
    status = os.fstat(file.fd)
    if (status.st_dev, status.st_ino) != (file.device, file.inode):
        raise OSError(errno.EBADF, _CLOSED)
    return taken(status)
