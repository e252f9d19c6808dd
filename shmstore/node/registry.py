"""The registry of a namespace: which node has which value, kept by NATS for all of them.

Entries of others are never deleted, only disregarded: one whose epoch is below the DAG's is
dead, whoever wrote it and whenever it arrives. Raises ``RegistryUnavailable`` and nothing
else, unless a method says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable

from shmstore.node import subjects
from shmstore.node.bucket import Bucket
from shmstore.node.claims import HOLDS_S, Claim, Claims
from shmstore.node.connection import Connection, Message, Subscribed
from shmstore.node.entries import Entry, unpacked
from shmstore.node.epochs import Epochs
from shmstore.node.kept import Kept, Stream, WrongRevision

__all__ = ["Entry", "Registry"]

_WITHDRAWN_AT_ONCE = 200
_AFTER_ALL = (1 << 63) - 1
#: Every how many renewals of the claim it is looked whether the entries' bucket is the same.
_RENEWALS_A_LOOK = 5


class Registry:
    """What a node says to the registry, and asks of it. ``prepare`` comes first."""

    def __init__(self, connection: Connection, namespace: str, node: str, incarnation: str) -> None:
        self.node = node
        self.incarnation = incarnation
        self._connection = connection
        self._entries = Bucket(connection, subjects.bucket(namespace), self._gone, self._doubt)
        self._nodes = Bucket(connection, subjects.nodes_bucket(namespace), self._gone, self._doubt)
        self._epochs = Epochs(connection, self._entries)
        self._claims = Claims(self._nodes, node, incarnation)
        self._stream: Stream | None = None
        self._preparing = asyncio.Lock()
        self._recreated: list[Callable[[], None]] = []
        self._watching: set[Callable[[Entry | None], None]] = set()
        self._checking: asyncio.Task[None] | None = None
        self._renewals = random.randrange(_RENEWALS_A_LOOK)
        connection.on_reconnect(self._look_again)

    async def prepare(self) -> bool:
        """Makes the buckets if they are missing, and reads the epochs.

        To be called at the start, after each reconnect, and when ``on_recreated`` says so.

        Returns:
            Whether the bucket of entries is another one than before, or was set back: then
            all that this node has must be registered again.
        """
        async with self._preparing:
            replicas = self._connection.settings.replicas
            stream, new = await self._entries.ensure({"num_replicas": replicas})
            await self._nodes.ensure(
                {"storage": "memory", "num_replicas": replicas, "max_age": int(HOLDS_S * 1e9)}
            )
            another = new or self._is_another(stream)
            if another:
                self._entries.highest = 0
            self._stream = stream
            await self._epochs.load()
            return another

    def on_recreated(self, callback: Callable[[], None]) -> None:
        """Calls back when the registry turns out to have lost what it had; must not block."""
        self._recreated.append(callback)

    async def put_many(self, entries: Iterable[Entry]) -> list[Entry]:
        """Registers values, in one burst.

        Returns:
            Those that were not acknowledged, which may be registered all the same; they are
            to be tried again in the state that they will have then.
        """
        items = list(entries)
        failed = await self._entries.write_many(items)
        return [items[place] for place in sorted(failed)]

    async def lookup(self, dag_id: str, id: str, *, newest: bool = False) -> Entry | None:
        """Where a value is, or None: then it is registered nowhere, for certain.

        Args:
            dag_id: The DAG.
            id: The value.
            newest: Whether an entry must be the newest as well. The nearest server of a
                cluster may not know yet that a value has moved; the leader always does.
        """
        key = subjects.entry_key(dag_id, id)
        if not newest:
            entry = self._entry(await self._entries.near(key))
            if entry is not None:
                return entry
        # That there is none, only the leader can say.
        return self._entry(await self._entries.last(key))

    async def get_all(self, dag_id: str | None) -> AsyncIterator[Entry]:
        """Every entry of a DAG; one that changes meanwhile may come twice, the newer last.

        Args:
            dag_id: The DAG; None for all of them.
        """
        of = subjects.ALL_ENTRIES if dag_id is None else subjects.entries_of(dag_id)
        async for kept in self._entries.walk(of):
            entry = self._entry(kept)
            if entry is not None:
                yield entry

    async def withdraw(self, dag_id: str, id: str) -> bool:
        """Removes this node's entry of a value.

        Returns:
            Whether it was removed; it is not if there is none, or it is another node's, or
            a newer one came between.
        """
        key = subjects.entry_key(dag_id, id)
        kept = await self._entries.last(key)
        entry = None if kept is None or kept.removed else unpacked(key, kept.value)
        if kept is None or entry is None or entry.node != self.node:
            return False
        try:
            await self._entries.remove(key, kept.revision)
        except WrongRevision:
            return False
        return True

    async def withdraw_many(self, dag_id: str, ids: Iterable[str]) -> int:
        """Withdraws many at once; returns how many were removed."""
        turn = asyncio.Semaphore(_WITHDRAWN_AT_ONCE)

        async def one(id: str) -> bool:
            async with turn:
                return await self.withdraw(dag_id, id)

        tasks = [asyncio.ensure_future(one(id)) for id in ids]
        try:
            return sum(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def epoch(self, dag_id: str) -> int:
        """How often a DAG was cleared everywhere, as far as this node knows."""
        return self._epochs.of(dag_id)

    def on_epoch(self, callback: Callable[[str, int], None]) -> None:
        """Calls back with a DAG and its epoch whenever a higher one is heard of."""
        self._epochs.on_raised(callback)

    async def read_epoch(self, dag_id: str) -> int:
        """The epoch as the registry has it now."""
        return await self._epochs.read(dag_id)

    def learn_epoch(self, dag_id: str, epoch: int) -> None:
        """Notes an epoch that another node told of."""
        self._epochs.learn(dag_id, epoch)

    async def raise_epoch(self, dag_id: str, least: int = 1) -> int:
        """Makes every entry of a DAG dead; returns the epoch that entries need from now on."""
        return await self._epochs.raise_one(dag_id, least)

    async def ensure_epoch(self, dag_id: str, at_least: int) -> int:
        """Raises a DAG's epoch to one that is known from before a loss, if it is lower now."""
        return await self._epochs.ensure(dag_id, at_least)

    async def purge(self, dag_id: str, below_revision: int | None = None) -> int:
        """Frees a DAG's dead entries; nothing depends on it.

        Args:
            dag_id: The DAG.
            below_revision: Entries older than that; by default those from before the epoch
                was raised the last time.

        Returns:
            How many were freed.
        """
        if below_revision is None:
            below_revision = await self._epochs.revision(dag_id)
        if below_revision <= 0:
            return 0
        return await self._entries.purge(subjects.entries_of(dag_id), below_revision)

    async def forget(self, dag_id: str) -> int:
        """Removes all entries of a DAG, whoever made them; returns how many."""
        return await self._entries.purge(subjects.entries_of(dag_id), _AFTER_ALL)

    async def claim(self, store_id: str) -> Claim:
        """Takes this node's name.

        Raises:
            NameTaken: Another store's living node has it.
        """
        return await self._claims.claim(store_id)

    async def renew(self) -> None:
        """Says that this node lives; to be called every ``claims.RENEW_S`` seconds.

        Raises:
            NameTaken: Another node has the name by now; this one has to stop.
        """
        if not await self._claims.renew():
            self._gone()
        self._renewals += 1
        if self._renewals % _RENEWALS_A_LOOK == 0:
            await self._check()

    async def release(self) -> None:
        """Gives this node's name up."""
        await self._claims.release()

    async def claim_of(self, node: str) -> Claim | None:
        """The claim of a node, or None if none of that name lives."""
        return await self._claims.of(node)

    async def nodes(self) -> list[Claim]:
        """Every living node, by name."""
        return await self._claims.all()

    async def subscribe_dag(self, dag_id: str, callback: Callable[[Entry | None], None]) -> Watched:
        """Tells of a DAG's entries as they are registered, until ``stop()`` of what is returned.

        Args:
            dag_id: The DAG.
            callback: Takes an entry, or None when something was withdrawn or may have been
                missed: then look again. Must not block.
        """

        async def came(message: Message) -> None:
            key = subjects.subject_key(self._entries.name, message.subject)
            callback(self._alive(key or "", message.data) if message.data else None)

        pattern = subjects.key_subject(self._entries.name, subjects.entries_of(dag_id))
        subscribed = await self._connection.subscribe(pattern, came)
        self._watching.add(callback)
        return Watched(subscribed, lambda: self._watching.discard(callback))

    def _entry(self, kept: Kept | None) -> Entry | None:
        return None if kept is None or kept.removed else self._alive(kept.key, kept.value)

    def _alive(self, key: str, value: bytes) -> Entry | None:
        entry = unpacked(key, value)
        if entry is None or entry.epoch < self._epochs.of(entry.dag_id):
            return None
        self._epochs.learn(entry.dag_id, entry.epoch)
        return entry

    def _is_another(self, stream: Stream) -> bool:
        known = self._stream
        return known is not None and (
            stream.created != known.created or stream.last_revision < self._entries.highest
        )

    async def _check(self) -> None:
        stream = await self._entries.look()
        if stream is None or self._is_another(stream) or await self._nodes.look() is None:
            self._gone()

    def _doubt(self) -> None:
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._checked)

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checking = None
        if not task.cancelled():
            task.exception()  # it cannot be said now; renewals look again

    def _gone(self) -> None:
        for callback in self._recreated:
            callback()

    def _look_again(self) -> None:
        for callback in list(self._watching):
            callback(None)


class Watched:
    """A subscription to a DAG's entries."""

    def __init__(self, subscribed: Subscribed, ended: Callable[[], None]) -> None:
        self._subscribed = subscribed
        self._ended = ended

    async def stop(self) -> None:
        """Ends it."""
        self._ended()
        await self._subscribed.stop()
