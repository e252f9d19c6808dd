"""Bringing values here: once however many ask, from where they are, as soon as they are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

import shmstore
from shmstore.demo.server import NatsServer
from shmstore.node.connection import Connection
from shmstore.node.fetching import Fetching, Wanted
from shmstore.node.owner import Owner
from shmstore.node.publisher import Publisher
from shmstore.node.registry import Registry
from tests.cluster.nodes import DEADLINE_S, connected, nobodys, run, until

_MIB = 1 << 20


class Host:
    """A host's store and the parts of its node that register, give out and bring values."""

    def __init__(
        self,
        store: shmstore.Store,
        publisher: Publisher,
        fetching: Fetching,
        connection: Connection,
    ) -> None:
        self.store, self.publisher, self.fetching = store, publisher, fetching
        self.connection = connection

    async def put(self, id: str, value: object) -> None:
        """Stores a value and has it registered."""
        self.store.put("d", id, value)
        await asyncio.wait_for(self.publisher.barrier(), DEADLINE_S)

    async def bring(self, id: str, from_node: str | None = None, refresh: bool = False) -> None:
        """Brings a value here."""
        wanted = Wanted("d", id, from_node, refresh)
        await asyncio.wait_for(self.fetching.bring(wanted), DEADLINE_S)


@asynccontextmanager
async def host(server: NatsServer, root: str, node: str) -> AsyncIterator[Host]:
    """A host at work."""
    async with AsyncExitStack() as ending:
        connection = await ending.enter_async_context(connected(server.url, node, "default"))
        store = ending.enter_context(shmstore.Store(root))
        registry = Registry(connection, "default", node, node)
        publisher = Publisher(store._dags.space, registry, node, node, nobodys)
        owner = Owner(connection, store._dags, "default", node)
        await owner.start()
        ending.push_async_callback(owner.stop)
        task = asyncio.create_task(publisher.run())
        fetching = Fetching(store._dags, registry, connection, node)
        made = Host(store, publisher, fetching, connection)
        try:
            await asyncio.wait_for(publisher.barrier(), DEADLINE_S)
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def sent(server: NatsServer) -> int:
    """Bytes that the server has sent to its clients."""
    count = server.monitor("varz")["out_bytes"]
    assert type(count) is int
    return count


def test_a_value_comes_over_once_and_is_here_from_then_on(
    root: str, other_root: str, server: NatsServer
) -> None:
    """It is equal, its entry names where it came from, and asking again costs no transfer."""
    value = np.arange(_MIB)

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            await a.put("v", value)
            await b.bring("v")
            assert np.array_equal(b.store.get("d", "v"), value)
            here, there = b.store.entry("d", "v"), a.store.entry("d", "v")
            assert (here.origin, there.origin) == ("a", None)
            assert here._replace(origin=None, location="") == there._replace(location="")
            before = sent(server)
            await b.bring("v")
            assert sent(server) - before < 100_000

    run(work())


def test_many_who_ask_at_once_cost_one_transfer(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Eight at once take at most a tenth more than one, by the server's own count."""
    value = np.arange(4 * _MIB)

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            for id in ("one", "eight"):
                await a.put(id, value)
            before = sent(server)
            await b.bring("one")
            one = sent(server) - before
            await asyncio.gather(*(b.bring("eight") for _ in range(8)))
            assert sent(server) - before - one < one * 1.1
            assert one > value.nbytes

    run(work())


def test_giving_up_ends_the_transfer_of_those_who_asked_and_of_nobody_else(
    root: str, other_root: str, server: NatsServer
) -> None:
    """One of two who gives up leaves the other its value; when all have, nothing is under way."""
    value = np.arange(8 * _MIB)

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            await a.put("v", value)
            first = asyncio.create_task(b.bring("v"))
            second = asyncio.create_task(b.bring("v"))
            await asyncio.sleep(0)
            first.cancel()
            await second
            assert np.array_equal(b.store.get("d", "v"), value)
            await a.put("w", value)
            alone = asyncio.create_task(b.bring("w"))
            await until(lambda: bool(b.fetching._under_way), "a transfer")
            ((transfer, _),) = b.fetching._under_way.values()
            alone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await alone
            assert not b.fetching._under_way
            await asyncio.wait([transfer], timeout=DEADLINE_S)
            assert transfer.cancelled()
            assert not b.store.has_value("d", "w")

    run(work())


def test_calls_of_different_kinds_share_a_transfer(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Who waits, names the node, refreshes or just gets: together they cost one transfer.

    The others get the value also if the one whose transfer it is gives up.
    """
    value = np.arange(8 * _MIB)

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            waiting = asyncio.create_task(b.fetching.bring_when_stored("d", "v"))
            await until(lambda: bool(b.fetching._registry._watching), "one waits")
            before = sent(server)
            await a.put("v", value)
            await asyncio.gather(
                waiting, b.bring("v"), b.bring("v", "a"), b.bring("v", refresh=True)
            )
            assert value.nbytes < sent(server) - before < 1.1 * value.nbytes

            await a.put("w", value)
            first = asyncio.create_task(b.bring("w", "a"))
            await until(lambda: bool(b.fetching._transfers), "a transfer")
            others = asyncio.gather(b.bring("w"), b.bring("w", refresh=True))
            await until(lambda: len(b.fetching._under_way) == 3, "others ask")
            first.cancel()
            await others
            assert np.array_equal(b.store.get("d", "w"), value)
            assert not b.fetching._transfers
            with pytest.raises(shmstore.NotFound):
                await asyncio.gather(b.bring("never", "a"), b.bring("never", "a", refresh=True))

    run(work())


def test_a_clear_of_this_host_alone_is_no_reason_to_miss_a_value(
    root: str, other_root: str, server: NatsServer
) -> None:
    """What is being brought into a DAG that is cleared here only is brought once more."""
    value = np.arange(8 * _MIB)

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            await a.put("v", value)
            b.store.put("d", "own", 1)
            bringing = asyncio.create_task(b.bring("v"))
            await until(lambda: bool(b.fetching._transfers), "a transfer")
            before = sent(server)
            await until(lambda: sent(server) > before + _MIB, "pieces come")
            b.store.clear("d")
            await bringing
            assert np.array_equal(b.store.get("d", "v"), value)
            assert not b.store.has_value("d", "own")

    run(work())


def test_a_server_that_is_restarted_is_no_error(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Who asks while it is away has to wait a little; who asks for long is told so."""

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            await a.put("v", 1)
            server.kill()
            await until(lambda: not b.connection.connected, "the connection is lost")
            bringing = asyncio.create_task(b.bring("v"))
            await until(lambda: bool(b.fetching._under_way), "it is asked for")
            server.start()
            await bringing
            assert b.store.get("d", "v") == 1
            server.kill()
            with pytest.raises(shmstore.RegistryUnavailable):
                await b.bring("w")

    run(work())


def test_from_node_goes_straight_there(root: str, other_root: str, server: NatsServer) -> None:
    """Also for what is registered elsewhere, or nowhere; a node without it says NotFound."""

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            a.store.put("d", "v", 1)
            await b.bring("v", "a")
            assert b.store.get("d", "v") == 1
            with pytest.raises(shmstore.NotFound, match="on node 'a'"):
                await b.bring("never", "a")
            with pytest.raises(shmstore.NodeUnreachable, match="'nobody'"):
                await b.bring("v2", "nobody")
            with pytest.raises(shmstore.NotFound, match="this host"):
                await b.bring("never", "b")
            with pytest.raises(shmstore.NotFound, match="any host"):
                await b.bring("never")

    run(work())


def test_refreshing_replaces_copies_and_never_originals(
    root: str, other_root: str, server: NatsServer
) -> None:
    """A copy is brought anew when asked for; what was put here stays as it is."""

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            await a.put("v", "old")
            await b.bring("v")
            await a.put("v", "new")
            await b.bring("v")
            assert b.store.get("d", "v") == "old"
            await b.bring("v", refresh=True)
            assert b.store.get("d", "v") == "new"
            b.store.put("d", "v", "own")
            await b.bring("v", refresh=True)
            await b.bring("v", "a", refresh=True)
            assert b.store.get("d", "v") == "own"

    run(work())


def test_a_value_that_is_waited_for_comes_as_soon_as_it_is_stored(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Many wait on one host, before the DAG or anything of it exists; each gets its value."""
    ids = [f"v.{n}" for n in range(20)]

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            waiting = [asyncio.create_task(b.fetching.bring_when_stored("d", id)) for id in ids]
            await asyncio.sleep(0.1)
            for id in ids:
                a.store.put("d", id, id)
            await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_S)
            assert [b.store.get("d", id) for id in ids] == ids
            # And what is there already.
            await asyncio.wait_for(b.fetching.bring_when_stored("d", ids[0]), DEADLINE_S)

    run(work())


def test_waiting_goes_on_across_an_outage_of_the_server(
    root: str, other_root: str, server: NatsServer
) -> None:
    """What is stored while nobody is connected is brought when all are again."""

    async def work() -> None:
        async with host(server, root, "a") as a, host(server, other_root, "b") as b:
            waiting = asyncio.create_task(b.fetching.bring_when_stored("d", "v"))
            await asyncio.sleep(0.1)
            server.kill()
            a.store.put("d", "v", 1)
            await asyncio.sleep(0.1)
            server.start()
            await asyncio.wait_for(waiting, DEADLINE_S)
            assert b.store.get("d", "v") == 1

    run(work())


def test_nobody_polls_nats_while_waiting(root: str, other_root: str, server: NatsServer) -> None:
    """Twenty who wait for two seconds send the server next to nothing."""

    async def work() -> None:
        async with host(server, root, "a"), host(server, other_root, "b") as b:
            waiting = [
                asyncio.create_task(b.fetching.bring_when_stored("d", f"v{n}")) for n in range(20)
            ]
            await asyncio.sleep(0.5)
            before = server.monitor("varz")["in_msgs"]
            await asyncio.sleep(2.0)
            assert server.monitor("varz")["in_msgs"] - before < 20
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(work())
