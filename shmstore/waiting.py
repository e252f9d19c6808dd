"""Waiting until something is stored: how long, for what, and looking again.

What is common to ``wait``, ``wait_many`` and the feeds of ``watch``. A thread that
waits sleeps at the DAG's doorbell and looks each time it is rung.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from threading import get_ident
from typing import Any, Final, NamedTuple, TypeVar

from shmstore import doorbell, lock, reading, stored
from shmstore.entry import Entry
from shmstore.errors import StoreBusy, WaitTimeout
from shmstore.follower import Follower, Taken
from shmstore.forked import here
from shmstore.manifest import Manifest, Superseded
from shmstore.opened import OpenDags
from shmstore.record import COUNTER, Record
from shmstore.sizes import parse_seconds

R = TypeVar("R")

#: A value's record and its payload.
Found = tuple[Record, memoryview]


class Position(NamedTuple):
    """A place in the history of a DAG: behind one of its entries. Picklable.

    Attributes:
        generation: Which of the DAGs that had this name one after the other.
        sequence: How many changes it had seen.
    """

    generation: int
    sequence: int


class Countdown:
    """The time that a call may take.

    Args:
        timeout_s: Seconds, or None for no end.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or no number at all (NaN).
    """

    __slots__ = ("_began", "_end")

    def __init__(self, timeout_s: object) -> None:
        self._began = time.monotonic()
        seconds = math.inf if timeout_s is None else parse_seconds(timeout_s, "timeout")
        self._end = self._began + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0; infinite without an end."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._began


def check_may_sleep() -> None:
    """Refuses to sleep in a handler or finalizer that came up inside a locked section.

    What it would wait for could not be committed: its own thread holds the lock. A child
    that was forked there holds none.
    """
    if get_ident() in lock._inside and not here.lost:
        raise StoreBusy("a wait", 0.0, "this very thread, further up its stack")


def until(
    dags: OpenDags,
    dag_id: str,
    look: Callable[[Manifest], R | None],
    clock: Countdown,
    missing: Callable[[], Iterable[str]],
    glance: Callable[[Manifest], R | None] | None = None,
) -> R:
    """What ``look`` returns, as soon as that is not None.

    Args:
        dags: The open DAGs.
        dag_id: The DAG, created if need be, again if it is cleared meanwhile.
        look: Looks for what is waited for.
        clock: How long.
        missing: The ids that are missing, for the error.
        glance: Looks as well, quickly, and may fail to find what is there.

    Raises:
        WaitTimeout: The time is over.
        StoreClosed: The store was closed meanwhile.
    """
    while True:
        manifest = dags.write_with_relief(dag_id, in_place)
        try:
            while True:
                seen = doorbell.listen(manifest)
                manifest.check_live()
                found = look(manifest)
                if found is not None:
                    return found
                left_s = clock.left_s
                if not left_s:
                    raise WaitTimeout(dag_id, tuple(missing()), clock.passed_s)
                check_may_sleep()
                doorbell.wait(manifest, seen, left_s)
                if glance is not None and (found := glance(manifest)) is not None:
                    return found
                dags.check_open()
                if manifest.control[COUNTER] == seen:
                    manifest.check_place()
        except Superseded:
            continue


def in_place(manifest: Manifest) -> Manifest:
    """A manifest that still is the DAG's. Raises Superseded if it is not."""
    manifest.check_place()
    return manifest


class Several:
    """Looks for several values, each of which is looked up only when it has been put.

    Args:
        dags: The open DAGs.
        dag_id: The DAG.
        keys: Their ids' bytes.
        mode: How to map them.
    """

    def __init__(self, dags: OpenDags, dag_id: str, keys: Iterable[bytes], mode: str) -> None:
        self._dags, self._dag_id, self._mode = dags, dag_id, mode
        self._keys = list(keys)
        self._follower: Follower | None = None
        self.missing: dict[bytes, None] = dict.fromkeys(self._keys)

    def look(self, manifest: Manifest) -> dict[bytes, Found] | None:
        """All of them, each as it is by now, or None."""
        if self._follower is None or self._follower.manifest is not manifest:
            # First the place in the log, then a look: what comes between is seen twice.
            self._follower = Follower(manifest)
            absent = [key for key in self._keys if reading.find(manifest, key) is None]
            self.missing = dict.fromkeys(absent)
        while taken := self._follower.take():
            for _, put in taken:
                self.missing.pop(put.key, None)
        if self.missing:
            return None
        values: dict[bytes, Found] = {}
        for key in self._keys:
            found = stored.find(self._dags, self._dag_id, key, self._mode)
            if found is None:
                self.missing[key] = None  # deleted again
            else:
                values[key] = found
        return None if self.missing else values


class Feed:
    """The PUTs of a DAG as they come, also across its clearing. One thread's.

    Args:
        dags: The open DAGs.
        dag_id: The DAG, created if need be.
        since: Where to begin, see ``Store.watch``.
    """

    def __init__(self, dags: OpenDags, dag_id: str, since: object = None) -> None:
        self._dags, self._dag_id = dags, dag_id
        self._follower: Follower = dags.write_with_relief(dag_id, _begin, checked_since(since))
        self._taken: deque[Taken] = deque()
        self._last = self._follower.began
        #: Which DAG the last entry was of.
        self._generation = self._follower.manifest.generation

    @property
    def position(self) -> Position:
        """Behind the entry that came last."""
        return Position(self._generation, self._last)

    def next(self) -> Entry | None:
        """The next entry, or None if there is none yet."""
        if not self._taken:
            self._taken.extend(self.take())
        return self.next_taken()

    def next_taken(self) -> Entry | None:
        """The next of the entries that have been read from the log already, or None."""
        if not self._taken:
            return None
        self._last, put = self._taken.popleft()
        return stored.entry_of(self._dag_id, put)

    def take(self) -> list[Taken]:
        """The next PUTs; none if there are none yet."""
        self._dags.check_open()
        while True:
            try:
                return self._follower.take()
            except Superseded:
                self._succeed()

    def listen(self) -> int:
        """See ``doorbell.listen``."""
        return doorbell.listen(self._follower.manifest)

    def sleep(self, seen: int, timeout_s: float) -> None:
        """Sleeps until something has changed since ``listen``, or for a second at most."""
        check_may_sleep()
        manifest = self._follower.manifest
        doorbell.wait(manifest, seen, timeout_s)
        self._dags.check_open()
        lost = manifest.control[COUNTER] == seen and not manifest.directory.intact()
        if lost and not self._taken:
            self._taken.extend(self.take())
            if not self._taken and manifest is self._follower.manifest:
                self._succeed()

    def wake(self) -> None:
        """Ends a ``sleep`` of another thread."""
        doorbell.wake(self._follower.manifest)

    def _succeed(self) -> None:
        """Goes on with the DAG that has taken the place of ours, from its beginning."""
        self._follower = self._dags.write_with_relief(self._dag_id, _from_beginning)
        self._generation, self._last = self._follower.manifest.generation, 0


_NOW: Final = object()


def checked_since(since: object) -> object:
    """Where a watch begins, checked.

    Raises:
        TypeError: It is none of what it may be.
        ValueError: Another integer than 0, or a time without a time zone.
    """
    if since is None or isinstance(since, Position):
        return since
    if isinstance(since, datetime):
        if since.utcoffset() is None:
            raise ValueError(f"since must have a time zone, unlike {since!r}")
        return since
    if type(since) is int:
        if since:
            raise ValueError(f"since may be 0, a watch's position or a datetime, not {since!r}")
        return since
    raise TypeError(
        f"since must be None, 0, a watch's position or a datetime, not {type(since).__name__}"
    )


def _begin(manifest: Manifest, since: Any) -> Follower:
    manifest.check_place()
    if since is None:
        return Follower(manifest)
    if isinstance(since, Position):
        # Of a DAG that was cleared since then: all of its successor came later.
        same = since.generation == manifest.generation
        return Follower.after(manifest, since.sequence if same else 0)
    created_ns = -(1 << 63) if since == 0 else _nanoseconds(since)
    return Follower.stored_since(manifest, created_ns)


def _from_beginning(manifest: Manifest) -> Follower:
    manifest.check_place()
    return Follower.after(manifest, 0)


def _nanoseconds(moment: datetime) -> int:
    """Unix time, exactly: a float would lose the microseconds."""
    whole = int(moment.replace(microsecond=0).timestamp())
    return (whole * 1_000_000 + moment.microsecond) * 1000
