"""A site of its own: a leaf node without JetStream, configured as docs/hosts.md says."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

from shmstore.demo.server import NatsServer
from shmstore.node.connection import Message
from shmstore.node.subjects import call_subject
from tests.cluster.nodes import connected, entry, registered, until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hosts.md"


def documented(name: str) -> str:
    """A configuration of docs/hosts.md."""
    (found,) = re.findall(rf"<!-- {name} -->\n```\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def test_a_site_behind_a_leaf_node(tmp_path: Path) -> None:
    """Its nodes share the main server's registry; what they send each other stays in the site."""
    port = free_port()
    hub_config = documented("hub").replace("0.0.0.0:7422", f"127.0.0.1:{port}")
    hub_config = hub_config.replace("/var/lib/nats", str(tmp_path / "kept"))
    leaf_config = documented("leaf").replace("nats.example.com:7422", f"127.0.0.1:{port}")
    hub = NatsServer(tmp_path / "hub", config=f"server_name: hub\n{hub_config}", jetstream=False)
    leaf = NatsServer(
        tmp_path / "leaf", config=f"server_name: leaf\n{leaf_config}", jetstream=False
    )

    async def scenario() -> None:
        await until(lambda: leaf.monitor("leafz")["leafnodes"] == 1, "the leaf has joined")
        async with (
            registered(leaf.url, "a") as a,
            registered(leaf.url, "b") as b,
            registered(hub.url, "c") as c,
        ):
            await a.claim("store of a")
            await c.claim("store of c")
            new = entry("d", "x", "a")
            assert await a.put_many([new]) == []
            assert await b.lookup("d", "x") == new
            assert await c.lookup("d", "x") == new
            assert await c.put_many([entry("d", "y", "c")]) == []
            assert {one.id async for one in a.get_all("d")} == {"x", "y"}
            assert [claim.node for claim in await b.nodes()] == ["a", "c"]

    async def between_two() -> None:
        async def answer(message: Message) -> None:
            await message.respond(bytes(100_000))

        async with connected(leaf.url, "a") as a, connected(leaf.url, "b") as b:
            subject = call_subject("test", "a", "get")
            await a.subscribe(subject, answer)
            before = hub.monitor("varz")["in_bytes"]
            assert len(await b.request(subject, b"", 10.0)) == 100_000
            assert hub.monitor("varz")["in_bytes"] - before < 10_000

    with hub, leaf:
        asyncio.run(scenario())
        asyncio.run(between_two())
