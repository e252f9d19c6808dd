"""What the processes of this host ask their node for, by operation.

Fields are read as strictly as those of strangers: a process may be of another version.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from shmstore.errors import FetchTimeout, RegistryUnavailable, StoreError
from shmstore.node import protocol
from shmstore.node.entries import Entry
from shmstore.node.fetching import Wanted
from shmstore.node.gateway import Handler, Streamer
from shmstore.node.protocol import Header

if TYPE_CHECKING:
    from shmstore.node.everywhere import Everywhere
    from shmstore.node.fetching import Fetching
    from shmstore.node.publisher import Publisher
    from shmstore.node.registry import Registry

_LONGEST_S = 86_400.0


class Requests:
    """Answers the operations of ``handlers`` and ``streamers``.

    Args:
        registry: Where values are.
        publisher: What registers those of this host.
        fetching: What brings those of others.
        everywhere: What clears DAGs on all nodes.
        status: How the node is.
    """

    def __init__(
        self,
        registry: Registry,
        publisher: Publisher,
        fetching: Fetching,
        everywhere: Everywhere,
        status: Callable[[], Header],
    ) -> None:
        self._registry, self._publisher = registry, publisher
        self._fetching, self._everywhere = fetching, everywhere
        self._told_status = status

    def handlers(self) -> dict[str, Handler]:
        """What answers each operation."""
        return {
            "bring": self._bring,
            "await": self._await,
            "prefetch": self._prefetch,
            "sync": self._sync,
            "register": self._register,
            "lookup": self._lookup,
            "clear": self._clear,
            "clear-registry": self._clear_registry,
            "status": self._status,
        }

    def streamers(self) -> dict[str, Streamer]:
        """What answers those in parts."""
        return {"get-all": self._get_all, "bring-many": self._bring_many, "nodes": self._nodes}

    async def _in_time(
        self, header: Header, work: Awaitable[Any], dag_id: str, ids: tuple[str, ...], stage: str
    ) -> Any:
        timeout_s = protocol.seconds(header, "timeout", _LONGEST_S)
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except StoreError:
            raise  # StoreBusy is a TimeoutError, too
        except TimeoutError:
            if not self._told_status()["connected"]:
                stage = "there is no connection to NATS"
            raise FetchTimeout(dag_id, ids, timeout_s, stage) from None

    async def _bring(self, header: Header) -> Header:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        node = None if header.get("from") is None else protocol.node_of(header, "from")
        wanted = Wanted(dag_id, id, node, header.get("refresh") is True)
        work = self._fetching.bring(wanted)
        await self._in_time(header, work, dag_id, (id,), "it was not here in time")
        return {}

    async def _bring_many(self, header: Header) -> AsyncIterator[Header]:
        dag_id, ids = protocol.id_of(header, "dag"), header.get("ids")
        timeout_s = protocol.seconds(header, "timeout", _LONGEST_S)
        if type(ids) is not list:
            raise protocol.ProtocolError("ids is no list")

        async def one(id: str) -> Header | None:
            try:
                await self._fetching.bring(Wanted(dag_id, id))
                return None
            except StoreError as error:
                return {"id": id, **protocol.pack_error(error)}

        wanted = [protocol.id_of({"id": id}, "id") for id in ids]
        tasks = {asyncio.create_task(one(id)) for id in wanted}
        try:
            for done in asyncio.as_completed(tasks, timeout=timeout_s):
                failed = await done
                if failed is not None:
                    yield failed
        except TimeoutError:
            pass  # whose ids are missing
        finally:
            for task in tasks:
                task.cancel()

    async def _await(self, header: Header) -> Header:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        work = self._fetching.bring_when_stored(dag_id, id)
        await self._in_time(header, work, dag_id, (id,), "no host has stored it")
        return {}

    async def _prefetch(self, header: Header) -> Header:
        dag_id, ids = protocol.id_of(header, "dag"), header.get("ids")
        if type(ids) is not list:
            raise protocol.ProtocolError("ids is no list")
        for id in ids:
            self._fetching.prefetch(dag_id, protocol.id_of({"id": id}, "id"))
        return {}

    async def _sync(self, header: Header) -> Header:
        timeout_s = protocol.seconds(header, "timeout", _LONGEST_S)
        try:
            await asyncio.wait_for(self._publisher.barrier(), timeout_s)
        except TimeoutError:
            late = f"not all that was put was registered within {timeout_s:,.1f} s"
            raise RegistryUnavailable(self._publisher.fault or late) from None
        return {}

    async def _register(self, header: Header) -> Header:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        node = protocol.node_of(header, "node")
        claim = await self._registry.claim_of(node)
        incarnation = "" if claim is None else claim.incarnation
        epoch = self._registry.epoch(dag_id)
        entry = Entry(dag_id, id, node, incarnation, epoch, 0, "", 0)
        if await self._registry.put_many([entry]):
            raise RegistryUnavailable("it has not acknowledged the entry")
        return {}

    async def _lookup(self, header: Header) -> Header:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        entry = await self._registry.lookup(dag_id, id)
        return {"node": None if entry is None else entry.node}

    async def _get_all(self, header: Header) -> AsyncIterator[Header]:
        part: list[tuple[str, str]] = []
        size = 0
        async for entry in self._registry.get_all(protocol.id_of(header, "dag")):
            part.append((entry.id, entry.node))
            size += 6 * len(entry.id) + 48  # escaped
            if size > protocol.LARGEST_FRAME // 2:
                yield {"entries": part}
                part, size = [], 0
        yield {"entries": part}

    async def _clear(self, header: Header) -> Header:
        dag_id = protocol.id_of(header, "dag")
        patience_s = protocol.seconds(header, "timeout", _LONGEST_S)
        cleared, unreachable = await self._everywhere.clear(dag_id, patience_s)
        return {"cleared": cleared, "unreachable": unreachable}

    async def _clear_registry(self, header: Header) -> Header:
        dag_id = protocol.id_of(header, "dag")
        await self._registry.forget(dag_id)
        return {}

    async def _nodes(self, header: Header) -> AsyncIterator[Header]:
        for one in await self._registry.nodes():
            yield {
                "node": one.node,
                "host": one.host,
                "pid": one.pid,
                "started_at": one.started,
                "incarnation": one.incarnation,
            }

    async def _status(self, header: Header) -> Header:
        return self._told_status()
