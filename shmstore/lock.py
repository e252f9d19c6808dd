"""The lock around a change: ``flock``, safe against kills, signals, threads and forks.

The kernel drops a ``flock`` when its holder dies, whatever the pid namespace.
Its file is never mapped, since a mapping inherited by a child would keep a dead
parent's lock. Between threads of one process, which share the descriptor, a
dictionary entry made by one C call (``setdefault``) decides; that call both
takes and records ownership, so an interrupt cannot fall between the two.

What runs under a lock must not call user code, import, or log. A thread that
comes back while it is inside (a finalizer, a signal handler) is refused at once.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from os import SEEK_CUR, SEEK_SET, lseek
from sys import is_finalizing
from threading import get_ident
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from shmstore import descriptor, holder
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreBusy, StoreClosed, StoreError
from shmstore.forked import Again, here, refused

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


def _timeout() -> float:
    given = os.environ.get("SHMSTORE_LOCK_TIMEOUT")
    if not given:
        return 30.0
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(
            f"SHMSTORE_LOCK_TIMEOUT must be a number of seconds, 0 or more, not {given!r}"
        )
    return seconds


#: Seconds to wait for a lock before StoreBusy.
TIMEOUT_S = _timeout()

_TAKE = LOCK_EX | LOCK_NB
_LET_GO = LOCK_UN
_MOMENT_S = 20e-6  # between two looks whether others have left their sections
_YIELDS = 8  # polls that only give up the processor, before sleeping
_LONGEST_SLEEP_S = 0.001
# How often a holder looks whether the lock's file still has a name. It loses it
# when somebody removes the whole root; that a put was done a moment before that
# or after makes no difference to anyone.
_LOOK_EVERY_S = 0.001

# Threads inside, or trying to get inside, a locked section. A fork waits until no
# thread but its own is in here, except for those that wait for others to let go.
_inside: dict[int, Lock | _NoLock] = {}
_waiting: dict[int, bool] = {}  # and whether they hold another lock meanwhile
_all: WeakSet[Lock] = WeakSet()
# Under 0 the ident of the thread that forks; empty when none does. Taken and given back
# by one C call each: what a signal handler raises in a callback of a fork is dropped, and
# with it the rest of the callback.
_forking: dict[int, int] = {}


class LockLost(Again):
    """The lock's file is gone or its descriptor is no longer ours: reopen by path."""


#: Threads that rather do without a lock than wait for it.
_impatient: set[int] = set()

# What a child that was forked inside may stumble over. Exceptions of the user's, from the
# handler that forked, pass.
_STRAYED = (Again, StoreError, OSError, LookupError, ValueError, struct.error)


class Lock:
    """One lock file of a DAG or a namespace, as one open description."""

    __slots__ = (
        "__weakref__",
        "_descriptor",
        "_directory",
        "_look_at",
        "_mark",
        "_name",
        "_owner",
        "noted",
        "patience_s",
        "rank",
        "what",
    )

    def __init__(self, directory: Descriptor, name: str, what: str, rank: int = 1) -> None:
        self._directory = directory
        self._name = name
        self._owner: dict[int, int] = {}
        self._descriptor: Descriptor | None = None
        self._mark = -1
        self._look_at = 0.0
        self.what = what
        #: A thread takes locks in rising rank only, so that no two wait for each other.
        self.rank = rank
        #: Seconds to wait for it; None for ``TIMEOUT_S``.
        self.patience_s: float | None = None
        #: A word of shared memory that tells when the lock was last used, or None.
        self.noted: memoryview | None = None
        _all.add(self)

    def run(self, body: Callable[[A], R], argument: A) -> R:
        """Returns ``body(argument)``, called under the lock.

        An exception in ``body`` is like a crash there: the lock is let go and the
        next holder puts things right.

        Raises:
            StoreBusy: The holder did not let go for ``TIMEOUT_S``, the calling thread
                is already inside a locked section, or this is a child that was forked
                in the middle of one.
            StoreClosed: The interpreter is shutting down.
            LockLost: The lock's file is no longer at its place.

        If the process dies here, the kernel lets the lock go.
        """
        if is_finalizing():
            raise StoreClosed("the interpreter is shutting down")
        me = get_ident()
        outer = _inside.get(me)
        if outer is not None and outer.rank >= self.rank:
            raise StoreBusy(self.what, 0.0, "this very thread, further up its stack")
        mine = {0: me}
        owner = self._owner
        # The lock is taken inside the try: an interrupt may come at any bytecode
        # that calls or jumps back. Letting go uses nothing but C calls, each in a
        # finally of its own, since an interrupt can only come after such a call.
        try:
            _inside[me] = self
            held = self._descriptor
            if held is None or _forking or owner.setdefault(0, me) != me:
                held = self._wait(me, outer is not None)
            else:
                # Is the number still our file? Nothing ever moves the offset of ours.
                if lseek(held.fd, 0, SEEK_CUR) != self._mark:
                    owner.clear()  # nothing to let go of
                    raise LockLost
                try:
                    flock(held.fd, _TAKE)
                except BlockingIOError:
                    held = self._wait(me, outer is not None)
            now = monotonic()
            if now > self._look_at:
                if not held.intact():
                    raise LockLost
                self._look_at = now + _LOOK_EVERY_S
                if self.noted is not None and not here.lost:
                    self.noted[0] = clock_gettime_ns(CLOCK_BOOTTIME)
            result = body(argument)
            if not here.lost:
                return result
            raise refused()
        except _STRAYED as error:
            if here.lost and not isinstance(error, StoreBusy):
                # A child without the lock has looked at what others were changing. What it
                # found is worth nothing, and no reason to try again once it has the lock.
                raise refused() from error
            held = self._descriptor
            if isinstance(error, OSError) and held is not None and not held.intact():
                raise LockLost from error
            raise
        finally:
            try:
                if owner == mine:
                    try:
                        held = self._descriptor
                        if held is not None:
                            flock(held.fd, _LET_GO)
                    except OSError:
                        pass  # the descriptor was closed under us: that let the lock go
                    finally:
                        owner.clear()
            finally:
                if outer is None:
                    here.lost = False
                    _inside.pop(me, None)
                else:
                    _inside[me] = outer

    def _wait(self, me: int, holding: bool) -> Descriptor:
        """Polls until the lock is ours.

        Args:
            me: The thread.
            holding: True if it is inside another lock's section meanwhile.
        """
        start = monotonic()
        patience = TIMEOUT_S if self.patience_s is None else self.patience_s
        if me in _impatient:
            patience = 0.0
        tries = 0
        owner = self._owner
        while True:
            if (not _forking or _forking.get(0) == me) and owner.setdefault(0, me) == me:
                held = self._descriptor
                if held is None:
                    held = self._descriptor = self._open()
                elif lseek(held.fd, 0, SEEK_CUR) != self._mark:
                    owner.clear()
                    raise LockLost
                try:
                    flock(held.fd, _TAKE)
                    return held
                except BlockingIOError:
                    owner.clear()  # let this process's other threads try
            if monotonic() - start > patience:
                raise StoreBusy(self.what, monotonic() - start, self.holder())
            tries += 1
            try:
                _waiting[me] = holding
                if tries <= _YIELDS:
                    os.sched_yield()
                else:
                    longest = min(_LONGEST_SLEEP_S, 20e-6 * 1.5 ** min(tries - _YIELDS, 16))
                    time.sleep(random.uniform(longest / 4, longest))
            finally:
                _waiting.pop(me, None)

    def _open(self) -> Descriptor:
        try:
            opened = Descriptor.open(
                self._name, os.O_RDWR, within=self._directory.fd, inherit=False
            )
            self._mark = lseek(opened.fd, random.randrange(1 << 30, 1 << 40), SEEK_SET)
            return opened
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LockLost from error
        except OSError as error:
            if not self._directory.intact():
                raise LockLost from error
            raise

    def holder(self) -> str | None:
        """Who holds the lock, as far as the kernel tells."""
        held = self._descriptor
        return None if held is None else holder.of(held.device, held.inode)


@contextmanager
def impatience() -> Iterator[None]:
    """Has this thread get StoreBusy instead of waiting for a lock: an event loop must not."""
    me = get_ident()
    _impatient.add(me)
    try:
        yield
    finally:
        _impatient.discard(me)


def between_forks(body: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls ``body`` with no fork by another thread in the middle of it.

    For opening a file and noting down that it is open, as a child must not inherit
    what it cannot know of; and for a change that needs no lock.
    """
    me = get_ident()
    if me in _inside:
        return body(*args, **kwargs)
    try:
        while True:
            _inside[me] = _NO_LOCK
            if not _forking or _forking.get(0) == me:
                return body(*args, **kwargs)
            _inside.pop(me, None)
            time.sleep(_MOMENT_S)
    finally:
        here.lost = False
        _inside.pop(me, None)


class _NoLock:
    rank = 0


_NO_LOCK = _NoLock()


def _before_fork() -> None:
    me = get_ident()
    while _forking.setdefault(0, me) != me:
        time.sleep(_MOMENT_S)
    deadline = monotonic() + TIMEOUT_S
    # Sections are short and never wait for others while registered.
    while (
        any(thread != me and thread not in _waiting for thread in list(_inside))
        and monotonic() < deadline
    ):
        time.sleep(_MOMENT_S)


def _after_fork_in_child() -> None:
    me = get_ident()
    # Until this thread has left what it is inside of; waiting alone is nothing yet.
    here.lost = me in _inside and _waiting.get(me, True)
    here.forks += 1
    _waiting.clear()
    for thread in [thread for thread in _inside if thread != me]:
        del _inside[thread]
    for lock in list(_all):
        lock._owner.clear()
        lock._descriptor = None
    descriptor.close_in_child()
    _forking.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_forking.clear,
    after_in_child=_after_fork_in_child,
)
