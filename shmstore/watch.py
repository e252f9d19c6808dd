"""``Store.watch`` and ``Store.watch_async``: iterating over entries as they are stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from shmstore import hub
from shmstore.entry import Entry
from shmstore.errors import WaitTimeout
from shmstore.opened import OpenDags
from shmstore.store_async import in_thread
from shmstore.waiting import Countdown, Feed, Position, checked_since


class Watch(Iterator[Entry]):
    """The entries of a DAG as they are stored; made by ``Store.watch``.

    An iterator without an end, and a context manager. It belongs to one thread at a
    time; only ``close`` may be called from another one, where it ends the iteration. In a
    forked child it goes on from where it was, on its own.
    """

    def __init__(
        self, dags: OpenDags, dag_id: str, since: object, timeout: float | None = None
    ) -> None:
        """See ``Store.watch``."""
        Countdown(timeout)
        self._dag_id = dag_id
        self._timeout = timeout
        self._closed = False
        self._feed: Feed | None = None
        self._position: Position
        self._feed = Feed(dags, dag_id, since)

    @property
    def position(self) -> Position:
        """Behind the entry that came last: what ``since`` takes to go on there."""
        if self._feed is not None:
            self._position = self._feed.position
        return self._position

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Entry:
        """The next entry, waited for if there is none yet.

        Raises:
            StopIteration: ``close`` was called.
            WaitTimeout: There was none in time. The iteration can be gone on with.
            StoreClosed: The store was closed.
            UnusableRoot: The store's root was removed.
            CorruptValue: The log is damaged.
        """
        clock = Countdown(self._timeout)
        while (feed := self._feed) is not None and not self._closed:
            entry = feed.next()
            if entry is None:
                # Again, as committers ring only from here on.
                seen = feed.listen()
                entry = feed.next()
            if entry is not None:
                return entry
            left_s = clock.left_s
            if not left_s:
                raise WaitTimeout(self._dag_id, (), clock.passed_s)
            if not self._closed:
                feed.sleep(seen, left_s)
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration, also one that another thread is waiting in."""
        self._closed = True
        feed = self._feed
        if feed is not None:
            self._position = feed.position
            self._feed = None
            feed.wake()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncWatch(AsyncIterator[Entry]):
    """The entries of a DAG as they are stored; made by ``Store.watch_async``.

    An asynchronous iterator without an end, and an asynchronous context manager. It
    belongs to one task at a time; ``aclose`` may be called from any task of its loop.
    """

    def __init__(
        self,
        dags: OpenDags,
        hubs: hub.Hubs,
        dag_id: str,
        since: object,
        timeout: float | None = None,
    ) -> None:
        """See ``Store.watch_async``."""
        Countdown(timeout)
        self._dags, self._hubs, self._dag_id = dags, hubs, dag_id
        self._since = checked_since(since)
        self._timeout = timeout
        self._waiter: hub.Waiter | None = None
        self._closed = False
        # What is stored is looked up in a thread, later; "from now on" means from now on.
        self._feed = Feed(dags, dag_id) if since is None else None

    @property
    def position(self) -> Position:
        """Behind the entry that came last: what ``since`` takes to go on there."""
        return self._begun().position

    def _begun(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self._dags, self._dag_id, self._since)
        return self._feed

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Entry:
        """The next entry, as ``Watch`` gives it."""
        clock = Countdown(self._timeout)
        while not self._closed:
            feed = self._feed
            if feed is not None and (entry := feed.next_taken()) is not None:
                return entry
            entry = await in_thread(self._next)
            if entry is not None:
                return entry
            if not clock.left_s:
                raise WaitTimeout(self._dag_id, (), clock.passed_s)
            joined = await self._hubs.join(self._dag_id, None)
            with joined as waiter:
                entry = await in_thread(self._next)
                if entry is not None:
                    return entry
                self._waiter = waiter
                try:
                    if not self._closed:
                        await waiter.ring(clock.left_s)
                finally:
                    self._waiter = None
        raise StopAsyncIteration

    def _next(self) -> Entry | None:
        return self._begun().next()

    async def aclose(self) -> None:
        """Ends the iteration, also one that another task is waiting in."""
        self._closed = True
        if self._waiter is not None:
            self._waiter.tell()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()
