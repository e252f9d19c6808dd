from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer
from shmstore.errors import RegistryUnavailable
from shmstore.node.claims import Claim
from shmstore.node.connection import Connection, Message, NoAnswer, Settings
from shmstore.node.registry import Registry
from shmstore.node.subjects import bucket, call_subject, key_subject, nodes_bucket
from tests.cluster.nodes import DEADLINE_S, entry, registered

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hosts.md"
ADMIN = '{ user: admin, password: "pw" }'


def documented() -> str:
    """The permissions of docs/hosts.md."""
    (found,) = re.findall(r"<!-- permissions -->\n```\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    return found


def permitting(line: str) -> bool:
    """Whether a line of the permissions allows something."""
    return re.match(r' +"|.*_responses', line) is not None


def user(node: str, namespace: str = "test", without: int | None = None) -> str:
    """A user for a node, as documented, or with one line left out."""
    lines = documented().replace('"..."', '"pw"').splitlines()
    if without is not None:
        del lines[without]
    return "\n".join(lines).replace("NAMESPACE", namespace).replace("NODE", node)


def config(*users: str) -> str:
    """The configuration of a server with these users, and an administrator."""
    return f"authorization {{ users: [\n{','.join((ADMIN, *users))}\n] }}"


async def open_as(url: str, node: str, namespace: str = "test") -> Connection:
    """A connection of a node, as its own user."""
    env = {"SHMSTORE_NATS_USER": node, "SHMSTORE_NATS_PASSWORD": "pw"}
    return await Connection.open(Settings.parse(url, env), namespace, node)


async def everything(connection: Connection, node: str, answer_s: float = DEADLINE_S) -> None:
    """All that a node does with its registry and other nodes."""
    dag_id = f"DAG of {node}"
    registry = Registry(connection, connection.namespace, node, "1")
    await registry.prepare()
    await registry.claim(f"store of {node}")
    for _ in range(6):
        await registry.renew()
    assert node in [claim.node for claim in await registry.nodes()]
    assert await registry.claim_of(node)
    heard = asyncio.Event()
    watched = await registry.subscribe_dag(dag_id, lambda _: heard.set())
    entries = [entry(dag_id, f"x{number}", node) for number in range(5)]
    assert await registry.put_many(entries) == []
    await asyncio.wait_for(heard.wait(), answer_s)
    await watched.stop()
    assert await registry.lookup(dag_id, "x1") == entries[1]
    assert await registry.lookup(dag_id, "nothing") is None
    assert len([one async for one in registry.get_all(dag_id)]) == 5
    assert await registry.withdraw(dag_id, "x1")
    assert await registry.raise_epoch(dag_id) == 1
    assert await registry.purge(dag_id)

    for bulk in (False, True):

        async def answer(message: Message, bulk: bool = bulk) -> None:
            await connection.publish(message.reply, b"answer", bulk=bulk)

        mine = await connection.subscribe(call_subject("test", node, f"{bulk}"), answer, bulk)
        asked = call_subject("test", node, f"{bulk}")
        assert await connection.request(asked, b"", answer_s, bulk) == b"answer"
        await mine.stop()
    await registry.release()


def violations(connection: Connection) -> list[str]:
    """What the server forbade."""
    return [*connection._control.client.violations, *connection._bulk.client.violations]


def test_with_the_documented_permissions_everything_works(tmp_path: Path) -> None:
    """A node with the permissions of docs/hosts.md does all that it has to, and nothing more."""

    async def scenario(url: str) -> None:
        connection = await open_as(url, "a")
        try:
            await everything(connection, "a")
            assert violations(connection) == []
        finally:
            await connection.close()

    with NatsServer(tmp_path / "nats", config=config(user("a"))) as server:
        asyncio.run(scenario(server.url))


def test_each_documented_permission_is_needed(tmp_path: Path) -> None:
    """With any line of the permissions of docs/hosts.md left out, something does not work."""
    lines = documented().splitlines()
    nodes = {f"n{place}": place for place, line in enumerate(lines) if permitting(line)}
    assert len(nodes) == 21

    async def lacks(url: str, node: str) -> bool:
        connection = await open_as(url, node)
        try:
            async with asyncio.timeout(2 * DEADLINE_S):
                await everything(connection, node, DEADLINE_S / 10)
        except (RegistryUnavailable, NoAnswer, TimeoutError, AssertionError):
            return True
        finally:
            lacking = violations(connection)
            await connection.close()
        return bool(lacking)

    async def scenario(server: NatsServer) -> None:
        makes = [node for node, place in nodes.items() if "STREAM.CREATE" in lines[place]]
        for node in makes:
            assert await lacks(server.url, node), lines[nodes[node]]
        connection = await open_as(server.url, "whole")
        await Registry(connection, "test", "whole", "1").prepare()
        await connection.close()
        others = [node for node in nodes if node not in makes]
        found = await asyncio.gather(*(lacks(server.url, node) for node in others))
        needless = [node for node, one in zip(others, found, strict=True) if not one]
        assert [lines[nodes[node]] for node in needless] == []

    users = [user(node, without=place) for node, place in nodes.items()]
    with NatsServer(tmp_path / "nats", config=config(user("whole"), *users)) as server:
        asyncio.run(scenario(server))


def test_another_namespace_is_out_of_reach(tmp_path: Path) -> None:
    """With the documented permissions a node can neither read nor write another namespace."""

    async def scenario(server: NatsServer) -> None:
        async with registered(f"nats://admin:pw@{server.address}", "z", "other") as theirs:
            await theirs.claim("their store")
            await theirs.put_many([entry("d", "x", "z")])
            connection = await open_as(server.url, "a")
            registry = Registry(connection, "other", "a", "1")
            with pytest.raises(RegistryUnavailable, match="does not let us publish"):
                await registry.prepare()
            with pytest.raises(RegistryUnavailable):
                await registry.lookup("d", "x")
            with pytest.raises(RegistryUnavailable):
                [one async for one in registry.get_all("d")]
            with pytest.raises(RegistryUnavailable, match="does not let us subscribe"):
                await registry.subscribe_dag("d", lambda _: None)
            with pytest.raises(RegistryUnavailable, match="does not let us publish"):
                await registry.put_many([entry("d", "x", "a")])

            async def came(message: Message) -> None:
                raise AssertionError(message)

            for subject in (">", "_INBOX_shmstore.other.>", "_INBOX_shmstore.test.z.>", "$KV.>"):
                with pytest.raises(RegistryUnavailable, match="does not let us subscribe"):
                    await connection.subscribe(subject, came)
            with pytest.raises(NoAnswer, match="does not let us publish"):
                await connection.request(call_subject("other", "z", "get"), b"", 0.5)
            await connection.close()
            assert await theirs.lookup("d", "x") == entry("d", "x", "z")

    with NatsServer(tmp_path / "nats", config=config(user("a"))) as server:
        asyncio.run(scenario(server))


def test_another_nodes_name_cannot_be_taken(tmp_path: Path) -> None:
    """With the documented permissions a node can claim its own name and no other."""

    async def scenario(server: NatsServer) -> None:
        async with registered(f"nats://admin:pw@{server.address}", "z") as theirs:
            claim = await theirs.claim("their store")
            connection = await open_as(server.url, "a")
            forged = Claim("z", "mine", "1", "here", 1, 0.0, "t")
            with pytest.raises(NoAnswer, match="does not let us publish"):
                await connection.request(
                    key_subject(nodes_bucket("test"), "z"), forged.packed(), 0.5
                )
            await connection.close()
            assert await theirs.claim_of("z") == claim
            await theirs.renew()
            assert bucket("test") != nodes_bucket("test")

    with NatsServer(tmp_path / "nats", config=config(user("a"))) as server:
        asyncio.run(scenario(server))
