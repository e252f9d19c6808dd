from __future__ import annotations

import asyncio
import pickle

import pytest

from shmstore.demo.server import NatsServer
from shmstore.node import subjects
from shmstore.node.claims import HOLDS_S, NameTaken
from shmstore.node.connection import Connection
from shmstore.node.registry import Registry
from tests.cluster.nodes import DEADLINE_S, connected, registered, until


def connection_of(registry: Registry) -> Connection:
    return registry._connection


def test_a_living_name_is_refused_to_another_store(server: NatsServer) -> None:
    """A twin, of another store but the same name, is told who has the name."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url) as twin:
            claim = await mine.claim("store 1")
            with pytest.raises(NameTaken, match="name of its own") as caught:
                await twin.claim("store 2")
            assert (caught.value.host, caught.value.pid) == (claim.host, claim.pid)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
            await mine.renew()
            assert await twin.nodes() == [claim]

    asyncio.run(scenario())


def test_two_who_want_a_name_at_once_do_not_both_get_it(server: NatsServer) -> None:
    """Of racing claims of different stores exactly one is granted."""

    async def scenario() -> None:
        async with registered(server.url) as one, registered(server.url) as two:
            for number in range(30):
                got = await asyncio.gather(
                    one.claim("store 1"), two.claim("store 2"), return_exceptions=True
                )
                refused = [isinstance(each, NameTaken) for each in got]
                assert sorted(refused) == [False, True], (number, got)
                await (two if refused[0] else one).release()
                assert await one.nodes() == []

    asyncio.run(scenario())


def test_the_same_store_takes_its_name_over_at_once(server: NatsServer) -> None:
    """A successor in the same store has the name at once; the predecessor is told to stop."""

    async def scenario() -> None:
        async with registered(server.url) as old, registered(server.url) as new:
            await old.claim("store")
            claim = await new.claim("store")
            await new.renew()
            with pytest.raises(NameTaken):
                await old.renew()
            await old.release()
            assert await new.nodes() == [claim]
            assert await new.claim_of("a") == claim

    asyncio.run(scenario())


def test_the_name_of_a_dead_node_becomes_free(server: NatsServer) -> None:
    """A claim that is not renewed is gone after a while, and another store may have the name."""

    async def scenario() -> None:
        async with registered(server.url) as twin, registered(server.url, "b") as alive:
            async with registered(server.url) as dying:
                await dying.claim("store 1")
            await alive.claim("store 3")

            async def taken() -> bool:
                await alive.renew()
                try:
                    await twin.claim("store 2")
                except NameTaken:
                    return False
                return True

            loop = asyncio.get_running_loop()
            began = loop.time()
            await until(taken, "the name is free")
            assert loop.time() - began > HOLDS_S / 2
            assert [claim.node for claim in await alive.nodes()] == ["a", "b"]
            assert await alive.claim_of("a") is not None

    asyncio.run(scenario())


def test_a_released_name_is_free_at_once(server: NatsServer) -> None:
    """After release another store gets the name without waiting."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url) as twin:
            await mine.claim("store 1")
            await mine.release()
            assert await twin.nodes() == []
            assert await twin.claim_of("a") is None
            await twin.claim("store 2")
            await mine.release()
            assert [claim.store_id for claim in await mine.nodes()] == ["store 2"]

    asyncio.run(scenario())


def test_a_claim_that_was_lost_is_made_again_and_said(server: NatsServer) -> None:
    """Claims are in the server's memory: after its restart a renewal makes them again."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            claim = await mine.claim("store")
            told = asyncio.Event()
            mine.on_recreated(told.set)
            before = connection_of(mine).generation
            server.restart()
            await until(lambda: connection_of(mine).generation > before, "connected again")
            await mine.prepare()
            assert not told.is_set()
            await mine.renew()
            assert told.is_set()
            (again,) = await mine.nodes()
            assert (again.node, again.store_id) == (claim.node, claim.store_id)
            await mine.renew()

    asyncio.run(scenario())


def test_a_renewal_whose_acknowledgement_was_lost_costs_nothing(server: NatsServer) -> None:
    """A renewal that was stored but not acknowledged is recognised by the next one."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            claim = await mine.claim("store")
            subject = subjects.key_subject(subjects.nodes_bucket("test"), "a")
            await connection_of(mine).request(subject, claim.packed(), DEADLINE_S)
            told = asyncio.Event()
            mine.on_recreated(told.set)
            await mine.renew()
            assert not told.is_set()
            assert await mine.nodes() == [claim]

    asyncio.run(scenario())


def test_what_is_no_claim_is_disregarded(server: NatsServer) -> None:
    """Junk under a node's name is no living node, and does not keep a node from its name."""

    async def scenario() -> None:
        async with registered(server.url) as mine, connected(server.url, "other") as other:
            for name, value in (("a", b"junk"), ("b", b"[1]"), ("c", b'{"node":"a"}')):
                subject = subjects.key_subject(subjects.nodes_bucket("test"), name)
                await other.request(subject, value, DEADLINE_S)
            assert await mine.nodes() == []
            claim = await mine.claim("store")
            assert await mine.nodes() == [claim]

    asyncio.run(scenario())


def test_renewals_look_after_the_bucket_of_entries(server: NatsServer) -> None:
    """A bucket of entries that was made anew is noticed by renewals alone."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.claim("store")
            told = asyncio.Event()
            mine.on_recreated(told.set)
            for _ in range(10):
                await mine.renew()
            assert not told.is_set()
            stream = subjects.stream(subjects.bucket("test"))
            await connection_of(others).request(f"$JS.API.STREAM.DELETE.{stream}", b"", DEADLINE_S)
            await others.prepare()
            for _ in range(5):
                await mine.renew()
            assert told.is_set()

    asyncio.run(scenario())
