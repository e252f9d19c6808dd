"""Writing many keys at once: a burst, and one acknowledgement for each.

Each message has a place in its burst, which its reply subject tells, so that one subscription
counts all acknowledgements, in whatever order they come.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol

from shmstore.node import subjects
from shmstore.node.connection import Connection, Message

#: Messages published and not acknowledged yet: a stream refuses more than 10,000 of all its
#: clients together.
_WINDOW = 2_000
#: Messages made and sent without a look at anything else: some milliseconds.
_SLICE = 250
#: How long nothing may come, seconds.
_ANSWER_S = 5.0
_REVISION = re.compile(rb'"seq": ?([0-9]+)')


class Writable(Protocol):
    """What can be written: made into bytes only when its turn comes."""

    @property
    def key(self) -> str:
        """Its key."""

    def packed(self) -> bytes:
        """Its value."""


class Bursts:
    """The bursts of a bucket."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._bucket = bucket
        self._inbox = connection.new_inbox()
        self._running: dict[str, Burst] = {}
        self._made = 0
        self._starting = asyncio.Lock()
        self._started = False

    async def write(self, items: Sequence[Writable]) -> Burst:
        """Publishes items, and waits for what comes of it.

        Raises:
            RegistryUnavailable: There is no connection.
        """
        async with self._starting:
            if not self._started:
                await self._connection.subscribe(f"{self._inbox}.*.*", self._came)
                self._started = True
        self._made += 1
        name = str(self._made)
        burst = self._running[name] = Burst()
        try:
            for start in range(0, len(items), _SLICE):
                if not await burst.fewer_than(_WINDOW - _SLICE):
                    burst.missing.update(range(start, len(items)))
                    return burst
                places = range(start, min(start + _SLICE, len(items)))
                burst.missing.update(places)
                await self._connection.publish_many(
                    (
                        subjects.key_subject(self._bucket, items[place].key),
                        f"{self._inbox}.{name}.{place}",
                        items[place].packed(),
                    )
                    for place in places
                )
            await burst.fewer_than(1)
        finally:
            del self._running[name]
        return burst

    async def _came(self, message: Message) -> None:
        name, _, place = message.subject[len(self._inbox) + 1 :].partition(".")
        burst = self._running.get(name)
        if burst is not None and place.isdecimal():
            burst.answered(int(place), message)


class Burst:
    """What came of a burst.

    Attributes:
        missing: The places of the items that nothing answered.
        refused: Those of the items that were not stored, says the answer.
        lowest: The lowest revision that was given to an item; 0 if none was.
        highest: The highest one.
        nobody: Whether there was no stream to take an item.
    """

    def __init__(self) -> None:
        self.missing: set[int] = set()
        self.refused: set[int] = set()
        self.lowest = self.highest = 0
        self.nobody = False
        self._fewer = asyncio.Event()
        self._goal = 0

    def answered(self, place: int, message: Message) -> None:
        """Counts an answer."""
        if place not in self.missing:
            return
        self.missing.discard(place)
        found = _REVISION.search(message.data)
        if found is not None and b'"error"' not in message.data:
            revision = int(found[1])
            self.lowest = min(self.lowest or revision, revision)
            self.highest = max(self.highest, revision)
        else:
            self.refused.add(place)
            self.nobody |= (message.headers or {}).get("Status") == "503"
        if len(self.missing) < self._goal:
            self._fewer.set()

    async def fewer_than(self, goal: int) -> bool:
        """Waits until fewer are missing; False if nothing more comes."""
        self._goal = goal
        while len(self.missing) >= goal:
            self._fewer.clear()
            before = len(self.missing)
            try:
                await asyncio.wait_for(self._fewer.wait(), _ANSWER_S)
            except TimeoutError:
                if len(self.missing) == before:
                    return False
        return True
