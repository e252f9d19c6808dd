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

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeAlias, TypeVar

from shmstore import files, names
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreFull, UnusableRoot
from shmstore.forked import here, refused
from shmstore.lock import Lock, LockLost
from shmstore.reservations import Reservation, Reservations

P = ParamSpec("P")
R = TypeVar("R")

# Words of the namespace's control page that change. SWEPT is when it was last swept by
# itself, CLOCK_BOOTTIME in nanoseconds.
CAPACITY, POOL_LIMIT, USED, RECOUNTS, SWEPT = range(8, 13)

_PAGE = 4096
_UNKNOWN = 1 << 62  # an account that nobody has kept; more than any capacity
_BLOCK = 512  # the unit of st_blocks

#: How often the account had been put right, and how often the process had been forked.
Moment: TypeAlias = tuple[int, int]


class Ledger:
    """The account of one open namespace.

    Args:
        directory: The namespace's.
        control: Its control page, as words.
        what: The namespace, for errors.
    """

    __slots__ = ("_control", "_directory", "_lock", "_reserved", "_what")

    def __init__(self, directory: Descriptor, control: memoryview, what: str) -> None:
        self._control = control
        self._directory = directory
        self._what = what
        self._lock = Lock(directory, names.LEDGER_LOCK, f"the account of {what}", rank=2)
        self._reserved = Reservations(directory)

    @property
    def capacity(self) -> int:
        """The most bytes of shared memory that the namespace may take, 0 for no limit."""
        return self._control[CAPACITY]

    @property
    def used(self) -> int:
        """The account: at least what is taken, as long as there is a capacity."""
        return self._control[USED]

    @property
    def recounts(self) -> Moment:
        """How often the account was put right; to be noted before freeing something.

        And which process it is: a child that is forked in between frees nothing, as its
        parent goes on.
        """
        return self._control[RECOUNTS], here.forks

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
        self._reserved.after_fork()
        control = self._control
        capacity, used = control[CAPACITY], control[USED]
        if capacity and used + nbytes + headroom > capacity:
            free = max(capacity - used, 0)
            what = f"the capacity of {self._what}"
            raise StoreFull(what, nbytes, free, capacity, headroom or None)
        self._raise(nbytes)
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
        more = self._control[USED] + nbytes
        if here.lost:
            raise refused()
        self._control[USED] = more

    def cancel(self, reserved: Reservation | None) -> None:
        """The reserved bytes were not used and are free."""
        if reserved is not None and reserved.counted:
            self._run(self._end, reserved, reserved.nbytes)

    def _end(self, reserved: Reservation, freed: int) -> None:
        self._reserved.after_fork()
        if reserved not in self._reserved:
            return
        self._reserved.discard(reserved)
        self._write_note()
        self._lower(freed)

    def give_back(self, nbytes: int, recounts: Moment) -> None:
        """A file that had a name has been freed.

        Args:
            nbytes: What it took.
            recounts: ``recounts`` as of before they were freed.
        """
        if self._control[CAPACITY]:
            self._run(self._give_back, nbytes, recounts)

    def _give_back(self, nbytes: int, recounts: Moment) -> None:
        if self.recounts == recounts:
            self._lower(nbytes)

    def _lower(self, nbytes: int) -> None:
        left = max(self._control[USED] - nbytes, 0)
        if here.lost:
            raise refused()
        self._control[USED] = left

    @contextmanager
    def new_file(
        self, directory: Descriptor, name: str, reserved: Reservation
    ) -> Iterator[Descriptor]:
        """Makes a file for which bytes were reserved; removes it if writing it fails.

        If the process dies inside, the file is left over, of a name that nobody uses.
        """
        file = None
        try:
            file = files.create_file(directory, name)
            yield file
        except BaseException:
            if not here.lost:
                files.unlink(directory, name)
                self.cancel(reserved)
            raise
        finally:
            if file is not None:
                file.close()
        self.settle(reserved)

    def unlink(
        self, directory: Descriptor, name: str, cut: tuple[int, Moment] | None = None
    ) -> bool:
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
            nbytes = taken(os.stat(name, dir_fd=directory.fd, follow_symlinks=False))
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

    def missing(self) -> int:
        """Bytes that files take and the account does not have; 0 as long as all is well.

        Changes nothing. What is reserved and has no name yet is in the account only.
        """
        return self._run(self._missing) if self._control[CAPACITY] else 0

    def _missing(self) -> int:
        # Frees may come as this looks; what they give back waits for the lock.
        return max(sum(_allocated(self._directory)) - self._control[USED], 0)

    def _count(self) -> int:
        self._reserved.after_fork()
        control = self._control
        before = control[USED]
        # First the notes: what is named meanwhile counts twice rather than not at all.
        self._write_note()
        self._drop_dead(dry_run=False)
        total = sum(nbytes or 0 for _, nbytes in self._reserved.of_all())
        total += sum(_allocated(self._directory))
        if here.lost:
            raise refused()
        control[RECOUNTS] += 1
        reach("ledger:counting")
        if here.lost:
            raise refused()
        control[USED] = total
        return before - total

    def notes_of_the_dead(self, dry_run: bool) -> list[tuple[str, int]]:
        """Name and size of each note that a dead process left; removed, unless ``dry_run``."""
        return self._run(self._drop_dead, dry_run)

    def _drop_dead(self, dry_run: bool) -> list[tuple[str, int]]:
        dead = [name for name, nbytes in self._reserved.of_all() if nbytes is None]
        if not dry_run:
            for name in dead:
                self._reserved.drop(name)
                self._lower(_PAGE)
        return [(name, _PAGE) for name in dead]

    def _write_note(self) -> None:
        if not self._reserved.noted:
            # So that processes that come and go leave no more than one each.
            self._raise(_PAGE)
            self._drop_dead(dry_run=False)
        self._reserved.note()

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


def taken(status: os.stat_result) -> int:
    """What a file takes, as far as its bytes are its own: less than its size, if it has holes."""
    return min(status.st_blocks * _BLOCK, whole_pages(status.st_size))


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
