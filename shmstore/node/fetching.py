"""Bringing values here: from which node, once however many ask, and when they appear.

A value that is asked for by many is transferred once: the first who asks starts a task, the
others join it; it is cancelled when the last of them has given up. Those who ask in different
ways, for a value of a certain node or of whichever has it, share what comes over the network.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from shmstore import reading
from shmstore.errors import NotFound, RegistryUnavailable, RemoteError, StoreError
from shmstore.names import encode_id
from shmstore.node.transfer import Cleared, Original, fetch
from shmstore.opened import OpenDags
from shmstore.record import UNTRUSTED, Record

if TYPE_CHECKING:
    from shmstore.node.connection import Connection
    from shmstore.node.entries import Entry
    from shmstore.node.registry import Registry

_log = logging.getLogger("shmstore.node")

# A value that moves from node to node is run after so often.
_MOST_MOVES = 4
# Between two tries to reach the node of a value that is waited for.
_AGAIN_S = 1.0
# How long the registry may be away before that is told, and how often it is asked again.
_RESTART_S = 3.0
_RESTART_AGAIN_S = 0.1
_NOWHERE = "on any host that the registry knows of"


class Wanted(NamedTuple):
    """A value, and from where.

    Attributes:
        dag_id: The DAG.
        id: The value.
        from_node: The node to ask; None for whichever the registry names.
        refresh: Bring it also if there is a copy of it here.
    """

    dag_id: str
    id: str
    from_node: str | None = None
    refresh: bool = False


class Fetching:
    """Brings values of other hosts into this host's store.

    Args:
        dags: The open DAGs of the namespace.
        registry: Where values are.
        connection: The way to other nodes.
        node: This node's name.
    """

    def __init__(
        self, dags: OpenDags, registry: Registry, connection: Connection, node: str
    ) -> None:
        self._dags, self._registry, self._connection = dags, registry, connection
        self._node = node
        self._background: set[asyncio.Task[None]] = set()
        self._under_way: dict[Wanted, tuple[asyncio.Task[None], set[object]]] = {}
        self._transfers: dict[tuple[str, str, str], asyncio.Future[None]] = {}

    async def bring(self, wanted: Wanted) -> None:
        """Brings a value here, unless it is here.

        To be bounded in time by the caller, whose cancellation ends the transfer if nobody
        else wants it.

        Raises:
            NotFound: The registry does not have it, or its node says so.
            NodeUnreachable: Its node does not answer.
            RegistryUnavailable: It cannot be found out where it is.
            StoreFull: No room here.
        """
        under_way = self._under_way.get(wanted)
        if under_way is None:
            task = asyncio.create_task(self._bring(wanted))
            under_way = self._under_way[wanted] = task, set()
            task.add_done_callback(lambda done: self._over(wanted, done))
        task, asking = under_way
        me = object()
        asking.add(me)
        try:
            await asyncio.shield(task)
        finally:
            asking.discard(me)
            if not asking and not task.done():
                self._under_way.pop(wanted, None)
                task.cancel()

    def _over(self, wanted: Wanted, done: asyncio.Task[None]) -> None:
        under_way = self._under_way.get(wanted)
        if under_way is not None and under_way[0] is done:
            del self._under_way[wanted]

    async def _bring(self, wanted: Wanted) -> None:
        dag_id, id, from_node, refresh = wanted
        here = self._here(dag_id, id)
        if here is not None and (not refresh or not here.flags & UNTRUSTED):
            return  # an original is never replaced by what others have of it
        asked: Entry | None = None
        clears = 0
        for _ in range(_MOST_MOVES):
            node = from_node
            if node is None:
                entry = await self._lookup(dag_id, id, newest=asked is not None)
                if entry is None or entry == asked:
                    raise NotFound(dag_id, id, _NOWHERE)
                node, asked = entry.node, entry
                if node == self._node:
                    # Ours, and not here: deleted a moment ago, or of before a restart.
                    if self._here(dag_id, id) is not None:
                        return
                    raise NotFound(dag_id, id, _NOWHERE)
            elif node == self._node:
                raise NotFound(dag_id, id, "on this host, which is the node that was asked for")
            try:
                await self._transfer(node, dag_id, id)
                return
            except Original:
                return  # put here meanwhile
            except Cleared:
                clears += 1
                if from_node is not None or clears == _MOST_MOVES:
                    raise NotFound(dag_id, id, "any more: its DAG has just been cleared") from None
                asked = None  # cleared on this host only, the registry still has it
            except NotFound:
                if from_node is not None:
                    raise NotFound(dag_id, id, f"on node {node!r}") from None
        raise NotFound(dag_id, id, _NOWHERE)

    async def _lookup(self, dag_id: str, id: str, *, newest: bool) -> Entry | None:
        """Where a value is; a server that is just being restarted is waited for."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _RESTART_S
        while True:
            try:
                return await self._registry.lookup(dag_id, id, newest=newest)
            except RegistryUnavailable:
                if loop.time() > until:
                    raise
            await asyncio.sleep(_RESTART_AGAIN_S)

    async def _transfer(self, node: str, dag_id: str, id: str) -> None:
        """Fetches a value, or waits for the end of another call's transfer of it."""
        key = node, dag_id, id
        while (others := self._transfers.get(key)) is not None:
            await asyncio.wait((others,))
            if not others.cancelled():
                return others.result()
        mine = self._transfers[key] = asyncio.get_running_loop().create_future()
        try:
            await fetch(self._connection, node, dag_id, id, self._dags)
            mine.set_result(None)
        except Exception as error:
            mine.set_exception(error)
            mine.exception()  # it is told here, whether anybody else waits or not
            raise
        finally:
            mine.cancel()  # does nothing if it is done
            del self._transfers[key]

    def _here(self, dag_id: str, id: str) -> Record | None:
        return self._dags.read(dag_id, reading.find, encode_id(id, "id"))

    async def bring_when_stored(self, dag_id: str, id: str) -> None:
        """Brings a value here as soon as any host has stored it. Never gives up by itself.

        Raises:
            StoreFull: No room here.
        """
        news: asyncio.Queue[str | None] = asyncio.Queue()

        def heard(entry: Entry | None) -> None:
            # None: something may have come that was not heard of.
            if entry is None:
                news.put_nowait(None)
            elif entry.id == id and entry.dag_id == dag_id and entry.node != self._node:
                news.put_nowait(entry.node)

        watched = await self._registry.subscribe_dag(dag_id, heard)
        try:
            node: str | None = None
            while True:
                patience_s = None
                try:
                    # Straight from the node that the notice names: a lookup may still miss it.
                    await self.bring(Wanted(dag_id, id, node))
                    return
                except NotFound:
                    pass
                except RemoteError:
                    patience_s = _AGAIN_S  # no notice will tell that it can be had after all
                try:
                    node = await asyncio.wait_for(news.get(), patience_s)
                except TimeoutError:
                    node = None
        finally:
            await watched.stop()

    def prefetch(self, dag_id: str, id: str) -> None:
        """Brings a value here in the background; what goes wrong is logged."""

        async def quietly() -> None:
            try:
                await self.bring(Wanted(dag_id, id))
            except StoreError as error:
                _log.info("not prefetched: %s", str(error))

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
