from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer
from shmstore.errors import RegistryUnavailable
from shmstore.node import subjects
from shmstore.node.connection import Connection
from shmstore.node.registry import Registry
from tests.cluster.nodes import DEADLINE_S, connected, entry, until

Servers = list[NatsServer]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Three servers that are one cluster."""
    with ExitStack() as stack:
        holding = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in holding]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                NatsServer(
                    tmp_path / f"server-{port}",
                    config=(
                        f"server_name: server-{port}\n"
                        f'cluster {{ name: three, listen: "127.0.0.1:{port}", '
                        f"routes: [ {routes} ] }}"
                    ),
                )
            )
            for port in ports
        ]


async def prepared(registry: Registry) -> bool:
    """Whether the registry can be prepared now: a cluster takes its time to agree."""
    try:
        await registry.prepare()
    except RegistryUnavailable:
        return False
    return True


async def leader(connection: Connection, servers: Servers) -> NatsServer:
    """The server that leads the entries' stream."""
    stream = subjects.stream(subjects.bucket("test"))
    answer = await connection.request(f"$JS.API.STREAM.INFO.{stream}", b"{}", DEADLINE_S)
    name = json.loads(answer)["cluster"]["leader"]
    return next(one for one in servers if one.directory.name == name)


def test_on_three_servers_nothing_that_was_acknowledged_is_missed(servers: Servers) -> None:
    """With replicas, a lookup by any server right after an acknowledged put never misses it."""
    env = {"SHMSTORE_NATS_REPLICAS": "3"}

    async def scenario() -> None:
        async with (
            connected(servers[0].url, "a", env=env) as one,
            connected(servers[1].url, "b", env=env) as two,
            connected(servers[2].url, "c", env=env) as three,
        ):
            registries = [
                Registry(connection, "test", connection.node, "1")
                for connection in (one, two, three)
            ]
            for registry in registries:
                await until(lambda registry=registry: prepared(registry), "it is prepared")
            # By direct gets alone, 1 to 3 in 100 of these are missed, or older ones found.
            for number in range(400):
                new = entry("d", f"x{number}")
                assert await registries[0].put_many([new]) == []
                found = await asyncio.gather(*(one.lookup("d", new.id) for one in registries))
                assert found == [new] * 3
            for number in range(400):
                moved = entry("d", "x0", "b", nbytes=number)
                assert await registries[1].put_many([moved]) == []
                found = await asyncio.gather(
                    *(one.lookup("d", "x0", newest=True) for one in registries)
                )
                assert found == [moved] * 3

    asyncio.run(scenario())


def test_the_death_of_a_leader_is_survived(servers: Servers) -> None:
    """Killing the server that leads loses no acknowledged entry, and nodes go on by themselves."""
    urls = ",".join(server.url for server in servers)

    async def scenario() -> None:
        async with connected(urls, env={"SHMSTORE_NATS_REPLICAS": "3"}) as mine:
            registry = Registry(mine, "test", "a", "1")
            told = asyncio.Event()
            registry.on_recreated(told.set)
            await until(lambda: prepared(registry), "it is prepared")
            entries = [entry("d", f"x{number}") for number in range(500)]
            assert await registry.put_many(entries) == []
            dead = await leader(mine, servers)
            dead.kill()

            async def goes_on() -> bool:
                try:
                    assert await registry.lookup("d", "x1") == entries[1]
                    return await registry.put_many([entry("d", "new")]) == []
                except RegistryUnavailable:
                    return False

            await until(goes_on, "another server leads")
            await until(lambda: prepared(registry), "it can be prepared again")
            assert await registry.prepare() is False
            found = {one.id async for one in registry.get_all("d")}
            assert found == {"new", *(one.id for one in entries)}
            assert not told.is_set()
            dead.start()

    asyncio.run(scenario())


def test_servers_of_the_cluster_are_found_by_themselves(servers: Servers) -> None:
    """A node that was told of one server goes on with the others when that one is gone."""

    async def scenario() -> None:
        async with connected(servers[0].url) as mine:

            def knows_all() -> bool:
                return len(mine._control._known) == 3

            await until(knows_all, "the servers know each other, and say so")
            before = mine.generation
            servers[0].kill()
            await until(lambda: mine.generation > before and mine.connected, "it goes on")
            servers[0].start()

    asyncio.run(scenario())
