"""The account of a namespace's shared memory, kept while it has a capacity.

Bytes are reserved before they are written and given back after they have been freed,
so that a death in between makes the account too high, never too low. A recount puts
it right; it comes before anyone is told that the capacity is used up.

What is reserved and has no name yet cannot be seen by a recount. So each process notes
the sum of it in a file of its own, which it keeps locked: the note of a dead process
does not count. A recount leaves the freed bytes of others alone: who frees something
gives it back only if nobody has counted since before.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from shmstore import files, names
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreFull, UnusableRoot
from shmstore.forked import here, refused
from shmstore.lock import Lock, LockLost

P = ParamSpec("P")
R = TypeVar("R")

# Words of the namespace's control page that change. SWEPT is when it was last swept by
# itself, CLOCK_BOOTTIME in nanoseconds.
CAPACITY, POOL_LIMIT, USED, RECOUNTS, SWEPT = range(8, 13)

_PAGE = 4096
_UNKNOWN = 1 << 62  # an account that nobody has kept; more than any capacity
_BLOCK = 512  # the unit of st_blocks


class Reservation:
    """Bytes that are about to be written and have no name yet.

    Attributes:
        nbytes: How many.
        counted: False if there was no capacity when they were reserved.
    """

    __slots__ = ("__weakref__", "counted", "nbytes")

    def __init__(self, nbytes: int, counted: bool = True) -> None:
        self.nbytes = nbytes
        self.counted = counted


class Ledger:
    """The account of one open namespace.

    Args:
        directory: The namespace's.
        control: Its control page, as words.
        what: The namespace, for errors.
    """

    __slots__ = ("_control", "_directory", "_lock", "_note", "_reserved", "_what")

    def __init__(self, directory: Descriptor, control: memoryview, what: str) -> None:
        self._control = control
        self._directory = directory
        self._what = what
        self._lock = Lock(directory, names.LEDGER_LOCK, f"the account of {what}", rank=2)
        self._note: Descriptor | None = None
        self._reserved: WeakSet[Reservation] = WeakSet()

    @property
    def capacity(self) -> int:
        """The most bytes of shared memory that the namespace may take, 0 for no limit."""
        return self._control[CAPACITY]

    @property
    def used(self) -> int:
        """The account: at least what is taken, as long as there is a capacity."""
        return self._control[USED]

    @property
    def recounts(self) -> int:
        """How often the account was put right; to be noted before freeing something."""
        return self._control[RECOUNTS]

    def reserve(self, nbytes: int, headroom: int = 0) -> Reservation:
        """Takes bytes out of what the capacity allows.

        If the process dies afterwards, they count until the next recount.

        Args:
            nbytes: How many.
            headroom: Bytes that must stay free.

        Raises:
            StoreFull: The capacity would be exceeded. Nothing was changed.
        """
        if not self._control[CAPACITY]:
            return Reservation(whole_pages(nbytes), counted=False)
        return self._run(self._reserve, whole_pages(nbytes), headroom)

    def _reserve(self, nbytes: int, headroom: int) -> Reservation:
        self._after_fork()
        control = self._control
        capacity, used = control[CAPACITY], control[USED]
        if capacity and used + nbytes + headroom > capacity:
            free = max(capacity - used, 0)
            what = f"the capacity of {self._what}"
            raise StoreFull(what, nbytes, free, capacity, headroom or None)
        control[USED] = used + nbytes
        reach("ledger:reserved")
        reserved = Reservation(nbytes)
        self._reserved.add(reserved)
        self._write_note()
        return reserved

    def settle(self, reserved: Reservation | None) -> None:
        """The reserved bytes have a name now, by which a recount finds them."""
        if reserved is None:
            return
        if reserved.counted:
            self._run(self._end, reserved, 0)
        elif self._control[CAPACITY]:
            # The capacity was given meanwhile, and its count may have come too early.
            self._run(self._raise, reserved.nbytes)

    def _raise(self, nbytes: int) -> None:
        self._control[USED] += nbytes

    def cancel(self, reserved: Reservation | None) -> None:
        """The reserved bytes were not used and are free."""
        if reserved is not None and reserved.counted:
            self._run(self._end, reserved, reserved.nbytes)

    def _end(self, reserved: Reservation, freed: int) -> None:
        self._after_fork()
        if reserved not in self._reserved:
            return
        self._reserved.discard(reserved)
        self._write_note()
        self._lower(freed)

    def give_back(self, nbytes: int, recounts: int) -> None:
        """A file that had a name has been freed.

        Args:
            nbytes: Its size.
            recounts: ``recounts`` as of before they were freed.
        """
        if self._control[CAPACITY]:
            self._run(self._give_back, whole_pages(nbytes), recounts)

    def _give_back(self, nbytes: int, recounts: int) -> None:
        if self._control[RECOUNTS] == recounts:
            self._lower(nbytes)

    def _lower(self, nbytes: int) -> None:
        left = max(self._control[USED] - nbytes, 0)
        if here.lost:
            raise refused()
        self._control[USED] = left

    def unlink(self, directory: Descriptor, name: str, cut: tuple[int, int] | None = None) -> bool:
        """Removes a file that nobody needs, and gives it back; False if somebody was faster.

        Args:
            directory: Where it is.
            name: Its name.
            cut: If its memory has been freed already, how much that was, and ``recounts``
                as of before.
        """
        if not self._control[CAPACITY]:
            return files.unlink(directory, name)
        recounts = self.recounts
        try:
            nbytes = os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return False
        removed = files.unlink(directory, name)
        if removed:  # else whoever was faster gives it back
            self.give_back(*(cut or (nbytes, recounts)))
        return removed

    def still(self, move: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls ``move``, which moves files within the namespace, while nobody counts."""
        if not self._control[CAPACITY]:
            return move(*args, **kwargs)
        return self._run(move, *args, **kwargs)

    def set_capacity(self, nbytes: int) -> None:
        """Limits the namespace for all processes; 0 for no limit.

        If the process dies here, the new limit holds and the account is too high, or
        the old one does.
        """
        if self._control[CAPACITY] != nbytes:
            self._run(self._set_capacity, nbytes)

    def _set_capacity(self, nbytes: int) -> None:
        control = self._control
        if not control[CAPACITY]:
            control[USED] = _UNKNOWN
        control[CAPACITY] = nbytes
        reach("ledger:limited")
        if nbytes:
            # Who began to move a file before there was a limit, and nobody had to be
            # asked, may have kept it from the first count.
            self._count()
            self._count()

    def recount(self) -> int:
        """Puts the account right; returns by how much it was too high."""
        return self._run(self._count) if self._control[CAPACITY] else 0

    def _count(self) -> int:
        self._after_fork()
        control = self._control
        before = control[USED]
        # First the notes: what is named meanwhile counts twice rather than not at all.
        self._write_note()
        total = sum(self._noted())
        total += sum(_allocated(self._directory))
        if here.lost:
            raise refused()
        control[RECOUNTS] += 1
        reach("ledger:counting")
        if here.lost:
            raise refused()
        control[USED] = total
        return before - total

    def _noted(self) -> Iterator[int]:
        """What each living process has reserved; removes the notes of dead ones."""
        for name, reserved in self._notes():
            if reserved is None:
                self._drop(name)
            else:
                yield reserved

    def _notes(self) -> Iterator[tuple[str, int | None]]:
        """Each note's name, and what it says; None for one of a dead process."""
        place = self._place()
        try:
            for name in os.listdir(place.fd):
                try:
                    note = Descriptor.open(name, os.O_RDWR, within=place.fd, inherit=False)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(note.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield name, None
                except BlockingIOError:
                    yield name, int.from_bytes(os.pread(note.fd, 8, 0), "little")
                finally:
                    note.close()
        finally:
            place.close()

    def _drop(self, name: str) -> None:
        place = self._place()
        try:
            files.unlink(place, name)
        finally:
            place.close()
        self._lower(_PAGE)

    def notes_of_the_dead(self, dry_run: bool) -> list[tuple[str, int]]:
        """Name and size of each note that a dead process left; removed, unless ``dry_run``."""
        return self._run(self._drop_dead, dry_run)

    def _drop_dead(self, dry_run: bool) -> list[tuple[str, int]]:
        dead = [name for name, reserved in self._notes() if reserved is None]
        if not dry_run:
            for name in dead:
                self._drop(name)
        return [(name, _PAGE) for name in dead]

    def _write_note(self) -> None:
        """Writes down what this process has reserved."""
        total = sum(reserved.nbytes for reserved in self._reserved)
        if self._note is None or not self._note.ours():
            if not total:
                return
            # So that processes that come and go leave no more than one each.
            for _ in self._noted():
                pass
            self._raise(_PAGE)
            place = self._place()
            try:
                self._note = Descriptor.open(
                    os.urandom(8).hex(),
                    os.O_RDWR | os.O_CREAT | os.O_EXCL,
                    within=place.fd,
                    inherit=False,
                )
            finally:
                place.close()
            fcntl.flock(self._note.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.write_all(self._note.fd, [total.to_bytes(8, "little")])

    def _after_fork(self) -> None:
        """In a child, in which the note is closed: what the parent reserved is the parent's."""
        if self._note is not None and self._note.fd < 0:
            self._note = None
            self._reserved.clear()

    def _place(self) -> Descriptor:
        flags = os.O_RDONLY | os.O_DIRECTORY
        return Descriptor.open(names.RESERVATIONS, flags, within=self._directory.fd)

    def _run(self, body: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self._lock.run(lambda _: body(*args, **kwargs), None)
        except LockLost as error:
            raise _removed(self._what) from error
        except TimeoutError:
            raise
        except OSError as error:
            if not self._directory.intact():
                raise _removed(self._what) from error
            raise


def _removed(what: str) -> UnusableRoot:
    why = "its files have been removed while it was in use; open a new Store"
    return UnusableRoot(what, why)


def whole_pages(nbytes: int) -> int:
    """What a file of that size takes."""
    return -(-nbytes // _PAGE) * _PAGE


def _allocated(directory: Descriptor) -> Iterator[int]:
    """Bytes that each file below a directory takes; one moved meanwhile counts once."""
    seen: set[int] = set()
    pending = [f"/proc/self/fd/{directory.fd}"]
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # freed as we looked
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    elif status.st_ino not in seen:
                        seen.add(status.st_ino)
                        yield status.st_blocks * _BLOCK
        except FileNotFoundError:
            continue
