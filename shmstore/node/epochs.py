"""How often each DAG was cleared everywhere, as the registry says and every node remembers.

An epoch only goes up. It is written by compare-and-set, so that two who raise it at once
raise it twice, and one that the registry lost is written again by whoever remembers it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from shmstore.errors import RegistryUnavailable
from shmstore.node import protocol, subjects
from shmstore.node.bucket import Bucket
from shmstore.node.connection import Connection, Message
from shmstore.node.kept import Kept, WrongRevision

_ROUNDS = 50
#: The pauses before each look whether an epoch that was published is stored, seconds.
_CONFIRM_S = (0.0, 0.002, 0.01, 0.05, 0.2, 1.0, 3.0)
# What the epoch is to be after what it is.
Next = Callable[[int], int]


class Epochs:
    """The epochs of a namespace. Every call raises ``RegistryUnavailable`` if need be."""

    def __init__(self, connection: Connection, bucket: Bucket) -> None:
        self._connection = connection
        self._bucket = bucket
        self._known: dict[str, int] = {}
        self._following = False
        self._confirming: set[asyncio.Task[None]] = set()
        self._callbacks: list[Callable[[str, int], None]] = []

    def on_raised(self, callback: Callable[[str, int], None]) -> None:
        """Calls back whenever a higher epoch is heard of; must not block."""
        self._callbacks.append(callback)

    def of(self, dag_id: str) -> int:
        """The highest epoch of a DAG that is known here; 0 if it was never cleared."""
        return self._known.get(dag_id, 0)

    def learn(self, dag_id: str, epoch: int) -> None:
        """Remembers an epoch that another node told of."""
        if epoch > self.of(dag_id):
            self._known[dag_id] = epoch
            for callback in self._callbacks:
                callback(dag_id, epoch)

    async def load(self) -> None:
        """Follows the epochs from now on, reads them all, and writes what the registry lost."""
        if not self._following:
            pattern = subjects.key_subject(self._bucket.name, subjects.epochs_of_all())
            await self._connection.subscribe(pattern, self._told)
            self._following = True
        kept: dict[str, int] = {}
        async for one in self._bucket.walk(subjects.epochs_of_all()):
            read = _unpacked(one.key, one.value)
            if read is not None:
                kept[read[0]] = read[1]
                self.learn(*read)
        for dag_id, epoch in list(self._known.items()):
            if kept.get(dag_id, 0) < epoch:
                await self.ensure(dag_id, epoch)

    async def raise_one(self, dag_id: str, least: int) -> int:
        """Raises a DAG's epoch by one, and to ``least`` at least.

        Returns:
            The new epoch, which no other call of any node returns.
        """
        return await self._write(dag_id, lambda now: max(now, self.of(dag_id), least - 1) + 1)

    async def ensure(self, dag_id: str, at_least: int) -> int:
        """Raises a DAG's epoch to what it was, if the registry has lost that."""
        return await self._write(dag_id, lambda now: max(now, self.of(dag_id), at_least))

    async def read(self, dag_id: str) -> int:
        """The epoch as the registry has it now."""
        return _number(await self._bucket.last(subjects.epoch_key(dag_id)))

    async def revision(self, dag_id: str) -> int:
        """The revision at which the epoch was raised: older entries are dead. 0 if never."""
        kept = await self._bucket.last(subjects.epoch_key(dag_id))
        return _number(kept) and kept.revision if kept else 0

    async def _write(self, dag_id: str, next_after: Next) -> int:
        key = subjects.epoch_key(dag_id)
        for _ in range(_ROUNDS):
            kept = await self._bucket.last(key)
            now = _number(kept)
            epoch = next_after(now)
            if epoch > now:
                value = json.dumps({"dag_id": dag_id, "epoch": epoch}).encode()
                try:
                    await self._bucket.write(key, value, kept.revision if kept else 0)
                except WrongRevision:
                    continue
            self.learn(dag_id, epoch)
            return epoch
        raise self._connection.unavailable(f"the epoch of DAG {dag_id!r} is raised all the time")

    async def _told(self, message: Message) -> None:
        # A subscriber sees what JetStream refuses, and sees the rest before it is stored. A
        # raise that lost its race would make living entries dead here: so this is no news, but
        # a reason to look, and to look again.
        key = subjects.subject_key(self._bucket.name, message.subject) or ""
        read = _unpacked(key, message.data)
        if read is None or read[1] <= self.of(read[0]):
            return
        task = asyncio.create_task(self._confirm(key, read[1]))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm(self, key: str, told: int) -> None:
        for pause in _CONFIRM_S:
            await asyncio.sleep(pause)
            try:
                kept = await self._bucket.last(key)
            except RegistryUnavailable:
                return  # read with all others after the reconnect
            read = _unpacked(key, kept.value) if kept else None
            if read is not None:
                self.learn(*read)
                if read[1] >= told:
                    return


def _number(kept: Kept | None) -> int:
    read = _unpacked(kept.key, kept.value) if kept else None
    return read[1] if read else 0


def _unpacked(key: str, value: bytes) -> tuple[str, int] | None:
    """The dag_id and epoch that a key has, or None if it is none of that key."""
    try:
        header = json.loads(value)
        if type(header) is not dict:
            return None
        dag_id = protocol.id_of(header, "dag_id")
        epoch = protocol.integer(header, "epoch", most=1 << 48)
    except (ValueError, RecursionError, protocol.ProtocolError):
        return None
    return (dag_id, epoch) if subjects.epoch_key(dag_id) == key else None
