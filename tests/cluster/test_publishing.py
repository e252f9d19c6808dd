"""What is put on a host is in the registry, and what is gone is not, whatever happens between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

import shmstore
from shmstore import lookup, names
from shmstore.demo.server import NatsServer
from shmstore.node import protocol, subjects
from shmstore.node.everywhere import Everywhere
from shmstore.node.publisher import Publisher
from shmstore.node.registry import Registry
from shmstore.record import EPOCH
from tests.cluster.nodes import DEADLINE_S, connected, nobodys, run, until
from tests.fault.killing import kill_at

_SEED = 20261124
Clear = Callable[[str, float], Awaitable[tuple[bool, list[str]]]]


class Publishing:
    """A host whose values are registered, in this process."""

    def __init__(self, root: str, registry: Registry, publisher: Publisher, clear: Clear) -> None:
        self.store = shmstore.Store(root)
        self.registry, self.publisher = registry, publisher
        self.clear = clear

    async def synced(self) -> None:
        """Waits until all that was put is registered."""
        await asyncio.wait_for(self.publisher.barrier(), DEADLINE_S)

    async def where(self, dag_id: str) -> dict[str, str]:
        """The nodes that have a DAG's values."""
        return {entry.id: entry.node async for entry in self.registry.get_all(dag_id)}


@asynccontextmanager
async def publishing(
    server: NatsServer,
    root: str,
    node: str = "a",
    incarnation: str | None = None,
    still_ours: Callable[[], Awaitable[None]] = nobodys,
) -> AsyncIterator[Publishing]:
    """The part of a node that registers what is put, at work; a life of its own for each name."""
    incarnation = incarnation or f"1 of {node}"
    space = shmstore.Store(root)._dags.space
    async with connected(server.url, node, "default") as connection:
        registry = Registry(connection, "default", node, incarnation)
        publisher = Publisher(space, registry, node, incarnation, still_ours)
        registry.on_recreated(publisher.compare_again)
        connection.on_reconnect(publisher.compare_again)
        task = asyncio.create_task(publisher.run())
        everywhere = Everywhere(space, connection, registry, publisher, node)
        host = Publishing(root, registry, publisher, everywhere.clear)
        try:
            await host.synced()
            await everywhere.start()
            yield host
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_whatever_is_put_is_registered_by_itself(root: str, server: NatsServer) -> None:
    """Before and after the node came, small and large, in old and new DAGs, under any name."""
    odd = ["a.b", "*", ">", "two words", "a\nb", "é" * 512, "=", "x" * 1024, "."]

    async def work() -> None:
        before = shmstore.Store(root)
        before.put("old dag", "first", 1)
        before.put("old dag", "large", np.arange(100_000))
        async with publishing(server, root) as host:
            assert await host.where("old dag") == {"first": "a", "large": "a"}
            host.store.put("old dag", "second", 2)
            host.store.put_many("new.dag.*", dict.fromkeys(odd, 3))
            await host.synced()
            assert await host.where("old dag") == dict.fromkeys(["first", "large", "second"], "a")
            assert await host.where("new.dag.*") == dict.fromkeys(odd, "a")
            entry = await host.registry.lookup("old dag", "large")
            assert entry is not None
            assert (entry.nbytes, entry.codec) == (800_000, "array")

    run(work())


@pytest.mark.parametrize("point", ["commit:tail", "commit:indexed", "commit:counted"])
def test_what_a_killed_process_has_stored_is_registered(
    root: str, server: NatsServer, point: str
) -> None:
    """Committed, and nobody was rung for: the node finds it by itself a little later."""

    async def work() -> None:
        async with publishing(server, root) as host:
            host.store.put("d", "before", 1)
            await host.synced()
            await asyncio.sleep(0.2)  # so that it sleeps at its bell
            await asyncio.to_thread(
                kill_at, point, 1, lambda: shmstore.Store(root).put("d", "last words", [2])
            )
            async with asyncio.timeout(DEADLINE_S):
                while "last words" not in await host.where("d"):
                    await asyncio.sleep(0.05)

    run(work())


def test_what_is_deleted_or_cleared_is_withdrawn(root: str, server: NatsServer) -> None:
    """A delete takes its entry with it, a local clear all of the DAG's; other DAGs stay."""

    async def work() -> None:
        async with publishing(server, root) as host:
            store = host.store
            for dag_id in ("d", "e"):
                store.put_many(dag_id, {f"k{n}": n for n in range(20)})
            await host.synced()
            store.delete_many("d", [f"k{n}" for n in range(19)])
            store.clear("e")
            store.put("e", "again", 1)
            await host.synced()
            assert await host.where("d") == {"k19": "a"}
            assert await host.where("e") == {"again": "a"}
            store.delete("d", "k19")
            store.put("d", "k19", 2)  # the last word
            await host.synced()
            assert await host.where("d") == {"k19": "a"}

    run(work())


def test_the_latest_put_tells_where_a_value_is(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Across hosts the last put wins; deleting the older value leaves the newer one's entry."""

    async def work() -> None:
        async with publishing(server, root, "a") as a, publishing(server, other_root, "b") as b:
            a.store.put("d", "v", 1)
            await a.synced()
            assert await a.where("d") == {"v": "a"}
            b.store.put("d", "v", 2)
            await b.synced()
            assert await a.where("d") == {"v": "b"}
            a.store.delete("d", "v")
            await a.synced()
            assert await a.where("d") == {"v": "b"}
        # Whoever comes back does not take the place of what was put later elsewhere.
        shmstore.Store(root).put("d", "w", 1)
        async with publishing(server, other_root, "b") as b:
            b.store.put("d", "w", 2)
            await b.synced()
            async with publishing(server, root, "a") as a:
                assert (await a.where("d"))["w"] == "b"

    run(work())


def test_nothing_is_registered_under_a_name_that_was_taken(root: str, server: NatsServer) -> None:
    """A node that comes back asks first whether its name is its own, and then registers."""
    taken = False

    async def still_ours() -> None:
        if taken:
            raise shmstore.RegistryUnavailable("the name was taken")

    async def work() -> None:
        nonlocal taken
        async with publishing(server, root, still_ours=still_ours) as host:
            host.store.put("d", "before", 1)
            await host.synced()
            taken = True
            host.publisher.compare_again()
            await until(lambda: host.publisher.fault == "the name was taken", "it asks")
            host.store.put("d", "after", 1)
            await asyncio.sleep(0.5)
            assert await host.where("d") == {"before": "a"}
            taken = False
            await host.synced()
            assert await host.where("d") == {"before": "a", "after": "a"}

    run(work())


def test_copies_are_never_registered(root: str, server: NatsServer) -> None:
    """What was fetched belongs to where it came from; a put over it is registered."""
    from shmstore import codecs, stored

    async def work() -> None:
        async with publishing(server, root) as host:
            encoded = codecs.encode(1)
            item = ("copy", b"copy", 1, encoded, ())
            stored.store(host.store._dags, "d", [item], origin="elsewhere")
            host.store.put("d", "own", 1)
            await host.synced()
            assert await host.where("d") == {"own": "a"}
            host.store.delete("d", "copy")
            stored.store(host.store._dags, "d", [item], origin="elsewhere")
            host.store.put("d", "copy", 2)
            await host.synced()
            assert await host.where("d") == {"own": "a", "copy": "a"}

    run(work())


def test_what_changed_while_no_node_ran_is_put_right(root: str, server: NatsServer) -> None:
    """Puts, deletes and clears of the time between two nodes of a host come out the same."""

    async def work() -> None:
        store = shmstore.Store(root)
        for dag_id in ("kept", "cleared", "made anew"):
            store.put_many(dag_id, {f"k{n}": n for n in range(10)})
        async with publishing(server, root) as host:
            assert len(await host.where("cleared")) == 10
        store.delete_many("kept", ["k0", "k1"])
        store.put("kept", "new", 1)
        store.clear("cleared")
        store.clear("made anew")
        store.put("made anew", "k3", 1)
        async with publishing(server, root) as host:
            await host.synced()
            kept = [f"k{n}" for n in range(2, 10)] + ["new"]
            assert await host.where("kept") == dict.fromkeys(kept, "a")
            assert await host.where("cleared") == {}
            assert await host.where("made anew") == {"k3": "a"}

    run(work())


def test_a_host_whose_node_has_another_name_now(root: str, server: NatsServer) -> None:
    """Values that are registered under the name that a host's node had before get the new one."""

    async def work() -> None:
        shmstore.Store(root).put_many("d", {"one": 1, "two": 2})
        async with publishing(server, root, "a", "1") as host:
            assert await host.where("d") == {"one": "a", "two": "a"}
        async with publishing(server, root, "b", "1") as host:
            await host.synced()
            assert await host.where("d") == {"one": "b", "two": "b"}

    run(work())


def test_entries_of_an_earlier_life_of_the_host_are_put_right(
    root: str, other_root: str, server: NatsServer
) -> None:
    """After a restart of the machine memory is empty: what the registry had of it goes."""

    async def work() -> None:
        shmstore.Store(root).put_many("d", {"gone": 1, "again": 2})
        async with publishing(server, root, "a", "1") as host:
            assert len(await host.where("d")) == 2
        shmstore.Store(other_root).put("d", "again", 3)
        async with publishing(server, other_root, "a", "2") as host:
            await host.synced()
            assert await host.where("d") == {"again": "a"}
            entry = await host.registry.lookup("d", "again")
            assert entry is not None
            assert entry.incarnation == "2"

    run(work())


@pytest.mark.parametrize("wiped", [False, True], ids=["kept", "wiped"])
def test_the_registry_is_whole_again_after_the_server_was_away(
    root: str, server: NatsServer, wiped: bool
) -> None:
    """A killed server, and one that lost all it had: what is registered is what is here."""

    async def work() -> None:
        async with publishing(server, root) as host:
            host.store.put_many("d", {f"k{n}": n for n in range(100)})
            await host.synced()
            server.kill()
            host.store.put("d", "meanwhile", 1)
            host.store.delete("d", "k0")
            if wiped:
                server.wipe()
            server.start()
            await host.synced()
            expected = {f"k{n}": "a" for n in range(1, 100)} | {"meanwhile": "a"}
            async with asyncio.timeout(DEADLINE_S):
                while await _eventually(host, "d") != expected:
                    await asyncio.sleep(0.05)

    run(work())


async def _eventually(host: Publishing, dag_id: str) -> dict[str, str]:
    try:
        return await host.where(dag_id)
    except shmstore.RegistryUnavailable:
        return {}


def test_a_stream_that_is_removed_is_filled_again(root: str, server: NatsServer) -> None:
    """The bucket deleted under a living connection, which shows by no reconnect."""

    async def work() -> None:
        async with publishing(server, root) as host:
            host.store.put_many("d", {f"k{n}": n for n in range(10)})
            await host.synced()
            async with connected(server.url, "killer", "default") as connection:
                await connection.control.jetstream().delete_stream("KV_shmstore_default")
            host.store.put("d", "late", 1)  # whose acknowledgement tells
            expected = {f"k{n}": "a" for n in range(10)} | {"late": "a"}
            async with asyncio.timeout(DEADLINE_S):
                while await _eventually(host, "d") != expected:
                    await asyncio.sleep(0.05)

    run(work())


def test_clearing_everywhere_clears_every_host(
    root: str, other_root: str, server: NatsServer
) -> None:
    """Values and entries are gone on both hosts; what is put afterwards stays."""

    async def work() -> None:
        async with publishing(server, root, "a") as a, publishing(server, other_root, "b") as b:
            a.store.put("d", "of a", 1)
            b.store.put("d", "of b", 2)
            b.store.put("e", "other", 3)
            await a.synced()
            await b.synced()
            assert await a.clear("d", 5.0) == (True, [])
            assert [*a.store.ids("d"), *b.store.ids("d")] == []
            assert await a.where("d") == {}
            b.store.put("d", "after", 1)
            await b.synced()
            assert await a.where("d") == {"after": "b"}
            assert await a.where("e") == {"other": "b"}
            assert await b.clear("unknown", 5.0) == (False, [])

    run(work())


def test_old_values_of_a_node_that_was_away_do_not_come_back(
    root: str, other_root: str, server: NatsServer
) -> None:
    """It clears them before it registers anything, and it is named as one that did not answer."""

    async def work() -> None:
        async with publishing(server, other_root, "away") as away:
            away.store.put("d", "old", 1)
            away.store.put("e", "kept", 1)
            await away.synced()
        async with publishing(server, root, "a") as a:
            a.store.put("d", "of a", 1)
            await a.synced()
            cleared, unreachable = await a.clear("d", 0.5)
            assert (cleared, unreachable) == (True, ["away"])
            assert await a.where("d") == {}
            async with publishing(server, other_root, "away") as away:
                assert list(away.store.ids("d")) == []
                assert await a.where("d") == {}
                assert await a.where("e") == {"kept": "away"}
                away.store.put("d", "new", 1)
                await away.synced()
                assert await a.where("d") == {"new": "away"}

    run(work())


def test_a_request_to_clear_counts_only_if_the_registry_says_so(
    root: str, server: NatsServer
) -> None:
    """Whoever may send requests may not clear a DAG without raising its epoch."""

    async def work() -> None:
        async with publishing(server, root, "a") as a:
            a.store.put("d", "v", 1)
            await a.synced()
            async with connected(server.url, "stranger", "default") as connection:
                for epoch in (1, 5, 1 << 40):
                    subject = subjects.call_subject("default", "a", "clear")
                    request = protocol.pack({"dag": "d", "epoch": epoch})
                    reply = await connection.request(subject, request, DEADLINE_S)
                    assert protocol.unpack(reply)[0] == {"cleared": False}
            assert a.store.get("d", "v") == 1

    run(work())


def test_an_epoch_survives_a_wiped_registry(root: str, other_root: str, server: NatsServer) -> None:
    """As long as one node lives that knows of a clearing, old values stay dead."""

    async def work() -> None:
        async with publishing(server, other_root, "away") as away:
            away.store.put("d", "old", 1)
            await away.synced()
        async with publishing(server, root, "a") as a:
            await a.clear("d", 0.2)
            a.store.put("d", "new", 1)
            await a.synced()
        server.restart(wipe=True)
        async with publishing(server, root, "a") as a, publishing(server, other_root, "away") as b:
            await b.synced()
            assert list(b.store.ids("d")) == []
            assert await a.where("d") == {"new": "a"}

    run(work())


def test_a_dag_is_noted_with_the_epoch_that_it_began_in(root: str, server: NatsServer) -> None:
    """One that no node had seen when the DAG was cleared elsewhere is new, and stays."""

    async def work() -> None:
        async with publishing(server, root) as host:
            host.store.put("d", "v", 1)
            await host.synced()
            await host.clear("d", 1.0)
            host.store.put("d", "v", 2)
            await host.synced()
            manifest = lookup.find_dag(host.store._dags.space, "d")
            assert manifest is not None
            assert manifest.control[EPOCH] == 2
        assert names.parse_dag_token("d") == "d"

    run(work())


def test_random_changes_and_outages_end_in_the_same_state(root: str, server: NatsServer) -> None:
    """Seeded: puts, deletes, clears, with the server killed and wiped; at the end both agree."""
    chance = random.Random(_SEED)
    dags = ["d1", "d.2", "d 3"]

    async def work() -> None:
        async with publishing(server, root) as host:
            store = host.store
            for step in range(300):
                dag_id = chance.choice(dags)
                choice = chance.random()
                if choice < 0.6:
                    many = {f"k{chance.randrange(40)}": step for _ in range(chance.randrange(1, 9))}
                    store.put_many(dag_id, many)
                elif choice < 0.85:
                    try:
                        store.delete(dag_id, f"k{chance.randrange(40)}")
                    except shmstore.NotFound:
                        pass
                elif choice < 0.93:
                    store.clear(dag_id)
                elif choice < 0.96:
                    await asyncio.sleep(chance.random() * 0.05)
                elif choice < 0.975:
                    server.restart(wipe=chance.random() < 0.5)
                else:
                    await asyncio.sleep(0)
            await host.synced()
            async with asyncio.timeout(DEADLINE_S):
                for dag_id in dags:
                    expected = dict.fromkeys(store.ids(dag_id), "a")
                    while await _eventually(host, dag_id) != expected:
                        await asyncio.sleep(0.05)

    run(work())
