"""Telling the registry where this host's values are: all that is put here, by itself.

The publisher follows the logs of all DAGs. What it finds goes out in bursts; of an id that
was put and deleted and put again meanwhile, only what is so now. While the registry cannot
be reached nothing is noted down: afterwards the whole of both sides is compared, which is
right after any outage, a wiped registry, and a node that was away. So the publisher may be
killed at any point.

Copies that were fetched from other hosts are never registered.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shmstore import clearing, codecs, doorbell, lookup, reading
from shmstore.errors import CorruptValue, RegistryUnavailable, StoreError
from shmstore.following import Following, Seen
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.node.entries import Entry
from shmstore.record import EPOCH, PUT, UNTRUSTED, Record

if TYPE_CHECKING:
    from shmstore.node.registry import Registry

_log = logging.getLogger("shmstore.node")

# Between two looks as long as there is something new: what comes meanwhile goes out in one
# burst, and committers do not ring.
_PAUSE_S = 0.002
_LONGEST_SLEEP_S = 1.0
# How long it goes on looking before it sleeps: who puts one value after the other shall not
# have to wake it each time.
_AWAKE_S = 0.05
_BURST = 8192
_WITHDRAWN_AT_ONCE = 64
# Before another try with a registry that failed; up to as much again by chance.
_BACK_OFF_S = 0.25
_JITTER_S = 0.25

_Key = tuple[str, str]


class Publisher:
    """Keeps the registry's entries of one node as its namespace is.

    Args:
        space: The namespace.
        registry: The registry.
        node: The node's name.
        incarnation: What tells this content of the namespace from what was there before.
        still_ours: Raises RegistryUnavailable if the name is not this node's any more: asked
            before anything is registered, at the start and after each outage.
    """

    def __init__(
        self,
        space: Namespace,
        registry: Registry,
        node: str,
        incarnation: str,
        still_ours: Callable[[], Awaitable[None]],
    ) -> None:
        self._space, self._registry = space, registry
        self._still_ours = still_ours
        self._node, self._incarnation = node, incarnation
        self._following = Following(space)
        #: What is to be registered, or, None, to be withdrawn.
        self._pending: dict[_Key, Entry | None] = {}
        #: Entries of ours that the registry had when it was compared, by their hashes.
        self._known: set[int] = set()
        #: Values of ours that another node has registered as well, and when it created its.
        self._theirs: dict[_Key, int] = {}
        self._barriers: list[asyncio.Future[None]] = []
        self._compare_again = False
        self._awake_until = 0.0
        self._sleeper = ThreadPoolExecutor(1, "shmstore node's bell")
        #: Why nothing can be registered at the moment; None if it can.
        self.fault: str | None = "it has not been reached yet"

    # --- For others -------------------------------------------------------------------

    async def barrier(self) -> None:
        """Returns once all that was put before this call is registered."""
        passed = asyncio.get_running_loop().create_future()
        # Those whose callers have given up are not kept for as long as NATS is away.
        self._barriers = [one for one in self._barriers if not one.done()] + [passed]
        doorbell.ring(self._space)
        await passed

    def compare_again(self) -> None:
        """Has both sides compared: the registry may have lost something."""
        self._compare_again = True
        doorbell.ring(self._space)

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        try:
            while True:
                try:
                    await self._session()
                except RegistryUnavailable as error:
                    if self.fault is None:
                        _log.warning("nothing can be registered: %s", error.why)
                    self.fault = error.why
                await asyncio.sleep(_BACK_OFF_S + random.random() * _JITTER_S)
        finally:
            doorbell.ring(self._space)
            self._sleeper.shutdown(wait=False, cancel_futures=True)

    # --- One session: from a comparison to the next outage ----------------------------

    async def _session(self) -> None:
        await self._registry.prepare()
        await self._still_ours()
        self._compare_again = False
        self._pending.clear()
        self._following = Following(self._space)
        await self._compare()
        if self.fault is not None:
            _log.info("registering")
        self.fault = None
        while not self._compare_again:
            await self._round()

    async def _round(self) -> None:
        """Looks, tells the registry, and sleeps if there was nothing."""
        barriers = list(self._barriers)
        loop = asyncio.get_running_loop()
        if await self._look():
            while len(self._pending) < _BURST and await self._look():
                await asyncio.sleep(0)
            await self._flush()
            self._awake_until = loop.time() + _AWAKE_S
            await asyncio.sleep(_PAUSE_S)
            return
        await self._flush()
        for barrier in barriers:
            if not barrier.done():
                barrier.set_result(None)
        self._barriers = [one for one in self._barriers if not one.done()]
        # What was compared has been read by now; what comes is new.
        self._known.clear()
        self._theirs.clear()
        if loop.time() < self._awake_until:
            await asyncio.sleep(_PAUSE_S)
            return
        bell = doorbell.mark_asleep(self._space)
        try:
            if self._barriers or self._compare_again or await self._look():
                return
            rung = await loop.run_in_executor(
                self._sleeper, doorbell.sleep, self._space, bell, _LONGEST_SLEEP_S
            )
        finally:
            doorbell.mark_awake(self._space)
        if not rung:
            await self._look(thorough=True)

    async def _look(self, thorough: bool = False) -> bool:
        """Notes what is new; whether there was anything."""
        for token, manifest in list(self._following.new()):
            if isinstance(manifest, StoreError):
                _log.warning("DAG at %s is not registered: %s", token, str(manifest))
                continue
            await self._admit(token, manifest)
            await asyncio.sleep(0)  # opening many takes long
        seen = self._following.look(thorough)
        await self._note(seen)
        return bool(seen)

    async def _note(self, seen: Seen) -> None:
        for manifest, taken in seen.taken:
            epoch = max(0, manifest.control[EPOCH] - 1)
            for _, record in taken:
                self._note_record(manifest.dag_id, record, epoch)
            if len(self._pending) >= _BURST:
                await self._flush()
        for fault in seen.faults:
            _log.warning("a DAG is not registered any more: %s", fault)
        for manifest in seen.missed:
            await self._compare_dag(manifest.dag_id)
        for dag_id in seen.gone:
            await self._compare_dag(dag_id)

    def _note_record(self, dag_id: str, record: Record, epoch: int) -> None:
        id = record.key.decode()
        key = dag_id, id
        if record.op != PUT:
            self._pending[key] = None
            return
        if record.flags & UNTRUSTED:
            self._pending.pop(key, None)
            return
        entry = self._entry(dag_id, id, record, epoch)
        if self._known and hash(entry) in self._known:
            return
        if self._theirs and self._theirs.get(key, -1) >= record.created_ns:
            return  # the other host has put it later
        self._pending[key] = entry

    def _entry(self, dag_id: str, id: str, record: Record, epoch: int) -> Entry:
        return Entry(
            dag_id=dag_id,
            id=id,
            node=self._node,
            incarnation=self._incarnation,
            epoch=epoch,
            nbytes=record.nbytes,
            codec=codecs.NAMES.get(record.codec, str(record.codec)),
            created_ns=record.created_ns,
        )

    async def _flush(self) -> None:
        """Tells the registry. What fails is noted again, unless something newer is."""
        while self._pending:
            batch = [self._pending.popitem() for _ in range(min(_BURST, len(self._pending)))]
            done = False
            try:
                wanted = [entry for _, entry in batch if entry is not None]
                failed = await self._registry.put_many(wanted)
                if failed and len(failed) == len(wanted):
                    # What keeps them may be gone; the next session makes it anew.
                    raise RegistryUnavailable("it acknowledges nothing")
                gone = [key for key, entry in batch if entry is None]
                for at in range(0, len(gone), _WITHDRAWN_AT_ONCE):
                    some = gone[at : at + _WITHDRAWN_AT_ONCE]
                    await asyncio.gather(*(self._registry.withdraw(*key) for key in some))
                done = True
            finally:
                if not done:
                    for key, entry in batch:
                        self._pending.setdefault(key, entry)
            for entry in failed:
                self._pending.setdefault((entry.dag_id, entry.id), entry)
            if failed:
                await asyncio.sleep(_BACK_OFF_S)

    # --- DAGs as they come -----------------------------------------------------------------

    async def _admit(self, token: str, manifest: Manifest) -> None:
        """Follows a DAG, unless it is from before a clearing that this host had not heard of."""
        registry, control = self._registry, manifest.control
        epoch, noted = registry.epoch(manifest.dag_id), control[EPOCH]
        if not noted:
            control[EPOCH] = epoch + 1
        elif noted <= epoch:
            await self.obey(manifest.dag_id, epoch)
            return
        elif noted > epoch + 1:
            await registry.ensure_epoch(manifest.dag_id, noted - 1)
        try:
            self._following.add(token, manifest)
        except Superseded:
            pass
        except (CorruptValue, StoreError) as error:
            _log.warning("DAG %r is not registered: %s", manifest.dag_id, str(error))

    async def obey(self, dag_id: str, epoch: int) -> bool:
        """Clears a DAG that began before its epoch was raised to ``epoch``."""

        def from_before(manifest: Manifest) -> bool:
            return 0 < manifest.control[EPOCH] <= epoch

        cleared = await asyncio.to_thread(clearing.clear_dag_if, self._space, dag_id, from_before)
        if cleared:
            _log.info("cleared DAG %r, as it was cleared everywhere", dag_id)
        return cleared

    # --- Comparing both sides ---------------------------------------------------------------

    async def _compare(self) -> None:
        """Withdraws what is registered and gone, notes what need not be registered again."""
        self._known.clear()
        self._theirs.clear()
        here = _Here(self._space)
        async for entry in self._registry.get_all(None):
            key = entry.dag_id, entry.id
            record = here.original(*key)
            if entry.node != self._node:
                # Of this very content under another name, which the node had before: not theirs.
                if record is not None and entry.incarnation != self._incarnation:
                    self._theirs[key] = entry.created_ns
            elif entry.incarnation == self._incarnation and record is not None:
                if entry == self._entry(*key, record, here.epoch(entry.dag_id)):
                    self._known.add(hash(entry))
            elif record is None:
                self._pending[key] = None
        await self._flush()

    async def _compare_dag(self, dag_id: str) -> None:
        """Withdraws what is registered of a DAG and gone."""
        here = _Here(self._space)
        async for entry in self._registry.get_all(dag_id):
            if entry.node == self._node and here.original(dag_id, entry.id) is None:
                self._pending.setdefault((dag_id, entry.id), None)


class _Here:
    """Looking up what this host has, with each DAG opened once."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._opened: dict[str, Manifest | None] = {}

    def _dag(self, dag_id: str) -> Manifest | None:
        if dag_id not in self._opened:
            try:
                self._opened[dag_id] = lookup.find_dag(self._space, dag_id)
            except StoreError:
                self._opened[dag_id] = None
        return self._opened[dag_id]

    def epoch(self, dag_id: str) -> int:
        manifest = self._dag(dag_id)
        return 0 if manifest is None else max(0, manifest.control[EPOCH] - 1)

    def original(self, dag_id: str, id: str) -> Record | None:
        """The record of a value that was put on this host."""
        manifest = self._dag(dag_id)
        if manifest is None:
            return None
        try:
            record = reading.find(manifest, id.encode())
        except Superseded:
            self._opened.pop(dag_id)
            return self.original(dag_id, id)
        except StoreError:
            return None
        return None if record is None or record.flags & UNTRUSTED else record
