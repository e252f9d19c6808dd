"""Waiting in an event loop: one thread a DAG follows its log and tells all who wait.

A thread a waiter would cost 500 threads for 500 waiters, and those of the loop's own
pool are for work: waiters would starve the puts that they wait for. So there is one
thread a DAG and store, started by the first waiter, over within about a second of the
last; it reads each record once, however many wait. A waiter is cancelled by taking it
off the list, without a word to the thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING

from shmstore import doorbell
from shmstore.follower import Taken
from shmstore.opened import OpenDags
from shmstore.waiting import Feed

if TYPE_CHECKING:
    import asyncio

# How long a hub without waiters goes on, seconds.
_LINGER_S = 1.0


class Waiter:
    """One task that waits, on the list of a hub.

    Used as a context manager, which takes it off the list.

    Args:
        hub: The hub.
        keys: The ids' bytes that it waits for; None for whatever is put.
        loop: The task's event loop.
    """

    __slots__ = ("_hub", "bell", "keys", "loop", "missing", "ready", "seen")

    def __init__(
        self, hub: Hub, keys: frozenset[bytes] | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._hub = hub
        self.keys = keys
        self.loop = loop
        #: The hub follows the log by now.
        self.ready: asyncio.Future[None] = loop.create_future()
        #: What is waited for has been put, or will never be.
        self.bell: asyncio.Future[None] = loop.create_future()
        # What was put since it is on the list, and what else it waits for, once it knows.
        self.seen: set[bytes] = set()
        self.missing: set[bytes] | None = None

    def miss(self, keys: Iterable[bytes]) -> None:
        """Notes which values a look has missed, that was begun after joining the hub."""
        self._hub.arm(self, set(keys))

    async def ring(self, timeout_s: float) -> None:
        """Waits until all that was missed has been put, or for the given time.

        Raises:
            StoreError: What the hub met.
        """
        import asyncio

        try:
            async with asyncio.timeout(None if timeout_s == float("inf") else timeout_s):
                await self.bell
        except TimeoutError:
            if self.bell.done() and not self.bell.cancelled() and self.bell.exception():
                raise
            return

    def tell(self, error: BaseException | None = None) -> None:
        """Ends the wait. In the loop's thread."""
        if error is None:
            if not self.bell.done():
                self.bell.set_result(None)
            return
        for future in (self.ready, self.bell):
            if not future.done():
                future.set_exception(error)
                future.exception()  # somebody who has left by now need not hear of it

    def tell_ready(self) -> None:
        """Lets the waiter look for the first time. In the loop's thread."""
        if not self.ready.done():
            self.ready.set_result(None)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.leave(self)


class Hub:
    """The list of those who wait for values of a DAG, and the thread that follows it.

    Tasks of several event loops may be on it.

    Args:
        dags: The open DAGs.
        dag_id: The DAG, created if need be.
    """

    def __init__(self, dags: OpenDags, dag_id: str) -> None:
        self._dags, self._dag_id = dags, dag_id
        self._lock = threading.Lock()
        self._by_key: dict[bytes, set[Waiter]] = {}
        self._of_any: set[Waiter] = set()
        self._thread: threading.Thread | None = None
        self._follows = self._over = False
        self._idle_since: float | None = None
        self.pid = os.getpid()

    def join(self, keys: frozenset[bytes] | None, loop: asyncio.AbstractEventLoop) -> Waiter | None:
        """Puts a task on the list; None if this hub is over and a new one is needed."""
        waiter = Waiter(self, keys, loop)
        with self._lock:
            if self._over:
                return None
            if self._thread is None:
                name = f"shmstore waiting in {self._dag_id!r}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._thread = thread
            if keys is None:
                self._of_any.add(waiter)
            else:
                for key in keys:
                    self._by_key.setdefault(key, set()).add(waiter)
            if self._follows:
                waiter.tell_ready()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Takes a task off the list."""
        with self._lock:
            self._of_any.discard(waiter)
            for key in waiter.keys or ():
                waiting = self._by_key.get(key)
                if waiting is not None:
                    waiting.discard(waiter)
                    if not waiting:
                        del self._by_key[key]

    def arm(self, waiter: Waiter, missing: set[bytes]) -> None:
        """See ``Waiter.miss``. What was put since it joined is to be looked at again."""
        with self._lock:
            waiter.missing = missing - waiter.seen
            if not waiter.missing:
                waiter.tell()

    def _run(self) -> None:
        try:
            feed = Feed(self._dags, self._dag_id)
            with self._lock:
                self._follows = True
                waiting = self._everyone()
            for waiter in waiting:
                _tell(waiter, waiter.tell_ready)
            while not self._idle():
                seen = feed.listen()
                taken = feed.take()
                if taken:
                    self._tell_of(taken)
                else:
                    feed.sleep(seen, doorbell.LONGEST_S)
        except BaseException as error:
            with self._lock:
                self._over = True
                waiting = self._everyone()
            for waiter in waiting:
                _tell(waiter, waiter.tell, error)

    def _tell_of(self, taken: list[Taken]) -> None:
        with self._lock:
            told = set(self._of_any)
            for _, put in taken:
                for waiter in self._by_key.get(put.key, ()):
                    waiter.seen.add(put.key)
                    if waiter.missing is not None:
                        waiter.missing.discard(put.key)
                        if not waiter.missing:
                            told.add(waiter)
        for waiter in told:
            _tell(waiter, waiter.tell)

    def _idle(self) -> bool:
        """True if nobody has waited for a while, which ends the thread.

        Not at once: who waits for one value after the other shall meet the same thread.
        """
        now = time.monotonic()
        with self._lock:
            lists = chain((self._of_any,), self._by_key.values())  # the first one does mostly
            if any(not waiter.loop.is_closed() for waiter in chain.from_iterable(lists)):
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = now
            elif now - self._idle_since >= _LINGER_S:
                self._over = True
            return self._over

    def _everyone(self) -> set[Waiter]:
        return self._of_any.union(*self._by_key.values())


def _tell(waiter: Waiter, call: Callable[..., None], *args: BaseException) -> None:
    try:
        waiter.loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        pass  # its loop was closed: nobody waits there any more


class Hubs:
    """The hubs of a store, by dag_id.

    Args:
        dags: The open DAGs.
    """

    __slots__ = ("_dags", "_hubs")

    def __init__(self, dags: OpenDags) -> None:
        self._dags = dags
        self._hubs: dict[str, Hub] = {}

    async def join(self, dag_id: str, keys: frozenset[bytes] | None) -> Waiter:
        """Puts the running task on the list of a DAG's hub.

        A put that is committed after this returns is not missed; for one before that,
        the caller looks.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            hub = self._hubs.get(dag_id)
            # A forked child has neither the thread nor, maybe, a lock that can be taken.
            if hub is None or hub.pid != os.getpid():
                hub = self._hubs[dag_id] = Hub(self._dags, dag_id)
            waiter = hub.join(keys, loop)
            if waiter is not None:
                break
            if self._hubs.get(dag_id) is hub:
                self._hubs.pop(dag_id, None)
        try:
            await waiter.ready
        except BaseException:
            hub.leave(waiter)
            raise
        return waiter
