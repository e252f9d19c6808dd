from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer
from shmstore.errors import RegistryUnavailable
from shmstore.node import subjects
from shmstore.node.bucket import Bucket
from shmstore.node.connection import Connection, Message
from shmstore.node.entries import Entry
from shmstore.node.epochs import Epochs
from shmstore.node.registry import Registry
from tests.cluster.nodes import DEADLINE_S, connected, entry, registered, until

ODD_IDS = [
    "a.b.c",
    "*",
    ">",
    "a.*.>",
    " ",
    "line\nbreak\r\nPUB x 1",
    "../../etc/passwd",
    "=epoch",
    "\x00",
    "😀" * 256,
    "n" * 1024,
    "$KV.x",
]


def connection_of(registry: Registry) -> Connection:
    return registry._connection


async def all_of(registry: Registry, dag_id: str) -> dict[str, Entry]:
    """What the registry lists, by id."""
    return {found.id: found async for found in registry.get_all(dag_id)}


def test_any_id_can_be_registered_looked_up_and_listed(server: NatsServer) -> None:
    """Dots, stars, newlines and 1,024 bytes of emoji are told apart, as id and as dag_id."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            entries = [entry(dag_id, id) for dag_id in ODD_IDS for id in ODD_IDS]
            assert await mine.put_many(entries) == []
            for one in entries:
                assert await others.lookup(one.dag_id, one.id) == one
            for dag_id in ODD_IDS:
                assert set(await all_of(others, dag_id)) == set(ODD_IDS)
            assert await others.lookup("*", "another") is None
            assert await others.lookup("another", "*") is None

    asyncio.run(scenario())


def test_a_hundred_thousand_entries_are_registered_and_listed(
    server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A burst of 100,000 entries is acknowledged one by one, and get_all lists them all."""
    count = 100_001

    async def scenario() -> tuple[float, float]:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            entries = [entry("big", f"part-{number}") for number in range(count)]
            began = time.perf_counter()
            assert await mine.put_many(entries) == []
            put = time.perf_counter() - began
            began = time.perf_counter()
            assert await all_of(others, "big") == {one.id: one for one in entries}
            return put, time.perf_counter() - began

    put, listed = asyncio.run(scenario())
    assert server.monitor("jsz")["messages"] == count
    with capsys.disabled():
        print(f"\n{count:,} entries: registered in {put:.1f} s, listed in {listed:.1f} s")


def test_an_overwrite_elsewhere_moves_the_entry(server: NatsServer) -> None:
    """The last registration of an id says where it is."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.put_many([entry("d", "x", "a")])
            await others.put_many([entry("d", "x", "b")])
            assert await mine.lookup("d", "x") == entry("d", "x", "b")

    asyncio.run(scenario())


def test_what_is_no_entry_of_its_key_is_disregarded(server: NatsServer) -> None:
    """Whatever somebody publishes under a key: no wrong entry comes of it, and no error."""
    good = json.loads(entry("d", "x").packed())
    wrong = [
        b"",
        b"nonsense",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        json.dumps(good | {"id": "another"}).encode(),
        json.dumps(good | {"dag_id": 7}).encode(),
        json.dumps(good | {"node": "a.>"}).encode(),
        json.dumps(good | {"epoch": -1}).encode(),
        json.dumps(good | {"nbytes": 1 << 70}).encode(),
        json.dumps(good | {"codec": "c" * 1000}).encode(),
        json.dumps({"dag_id": "d", "id": "x"}).encode(),
    ]

    async def scenario() -> None:
        async with connected(server.url) as connection:
            registry = Registry(connection, "test", "a", "1")
            await registry.prepare()
            subject = subjects.key_subject(subjects.bucket("test"), subjects.entry_key("d", "x"))
            for value in wrong:
                await connection.request(subject, value, 5)
                assert await registry.lookup("d", "x") is None, value
                assert await all_of(registry, "d") == {}
                assert not await registry.withdraw("d", "x")
            await registry.put_many([entry("d", "x")])
            assert await registry.lookup("d", "x") == entry("d", "x")

    asyncio.run(scenario())


def test_withdrawing_removes_ones_own_entry_only(server: NatsServer) -> None:
    """A withdrawal removes an entry of this node, and never another node's."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.put_many([entry("d", "x"), entry("d", "y"), entry("d", "z")])
            await others.put_many([entry("d", "y", "b")])
            assert await mine.withdraw("d", "x")
            assert not await mine.withdraw("d", "y")
            assert not await mine.withdraw("d", "never")
            assert await others.lookup("d", "x") is None
            assert set(await all_of(others, "d")) == {"y", "z"}
            assert await mine.withdraw_many("d", ["x", "y", "z", "never"]) == 1
            assert set(await all_of(others, "d")) == {"y"}
            # What was removed can be registered again.
            await mine.put_many([entry("d", "x")])
            assert await others.lookup("d", "x") == entry("d", "x")

    asyncio.run(scenario())


def test_a_newer_entry_that_comes_between_outlives_a_withdrawal(server: NatsServer) -> None:
    """Racing withdrawals and registrations of another node never cost the other's entry."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            for number in range(100):
                id = f"x{number}"
                await mine.put_many([entry("d", id)])
                await asyncio.gather(
                    mine.withdraw("d", id),
                    others.put_many([entry("d", id, "b")]),
                )
                assert await mine.lookup("d", id) == entry("d", id, "b")

    asyncio.run(scenario())


def test_entries_of_an_older_epoch_are_dead(server: NatsServer) -> None:
    """After raise_epoch no older entry is found or listed by any node, also one that comes late."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.put_many([entry("d", "x"), entry("d", "y"), entry("e", "x")])
            assert await mine.raise_epoch("d") == 1
            await until(lambda: others.epoch("d") == 1, "the epoch reaches the other node")
            await others.put_many([entry("d", "late", "b", epoch=0)])
            for registry in (mine, others):
                for id in ("x", "y", "late"):
                    assert await registry.lookup("d", id) is None
                assert await all_of(registry, "d") == {}
                assert await registry.lookup("e", "x") == entry("e", "x")
            await mine.put_many([entry("d", "x", epoch=1)])
            assert await others.lookup("d", "x") == entry("d", "x", epoch=1)
            async with registered(server.url, "c") as newcomer:
                assert newcomer.epoch("d") == 1
                assert set(await all_of(newcomer, "d")) == {"x"}

    asyncio.run(scenario())


def test_a_notice_that_comes_before_its_epoch_is_stored_is_not_lost(server: NatsServer) -> None:
    """Subscribers hear of an epoch before JetStream has stored it: they look again."""

    async def scenario() -> None:
        async with connected(server.url) as connection, registered(server.url, "b") as others:
            bucket = Bucket(connection, subjects.bucket("test"))
            deaf = Epochs(connection, bucket)  # it does not hear of the raise by itself
            received = connection.control.stats["in_msgs"]
            notice = Message(
                _client=connection.control,
                subject=subjects.key_subject(bucket.name, subjects.epoch_key("d")),
                data=json.dumps({"dag_id": "d", "epoch": 1}).encode(),
            )
            await deaf._told(notice)
            looked = connection.control.stats
            await until(lambda: looked["in_msgs"] > received, "it has looked, and found nothing")
            assert deaf.of("d") == 0
            await others.raise_epoch("d")
            await until(lambda: deaf.of("d") == 1, "it has looked again")

    asyncio.run(scenario())


def test_a_raise_that_lost_its_race_raises_nothing(server: NatsServer) -> None:
    """An epoch that was published but refused by JetStream makes no entry dead, anywhere."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.raise_epoch("d")
            await mine.put_many([entry("d", "x", epoch=1)])
            bucket = subjects.bucket("test")
            value = json.dumps({"dag_id": "d", "epoch": 9}).encode()
            answer = await connection_of(mine).call(
                subjects.key_subject(bucket, subjects.epoch_key("d")),
                value,
                5,
                headers={"Nats-Expected-Last-Subject-Sequence": "0"},
            )
            assert b"wrong last sequence" in answer.data
            await others.raise_epoch("e")
            await until(lambda: mine.epoch("e") == 1, "a later one reaches us")
            for registry in (mine, others):
                assert await registry.lookup("d", "x") == entry("d", "x", epoch=1)

    asyncio.run(scenario())


def test_purging_frees_what_is_dead_and_nothing_else(server: NatsServer) -> None:
    """A purge removes entries of before the epoch was raised, not those of after."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            await mine.put_many([entry("d", f"x{number}") for number in range(50)])
            await mine.put_many([entry("e", "x")])
            assert await mine.purge("d") == 0
            epoch = await mine.raise_epoch("d")
            await mine.put_many([entry("d", "new", epoch=epoch)])
            assert await mine.purge("d") == 50
            assert server.monitor("jsz")["messages"] == 3  # two entries and the epoch
            assert set(await all_of(mine, "d")) == {"new"}
            assert set(await all_of(mine, "e")) == {"x"}

    asyncio.run(scenario())


def test_two_who_raise_an_epoch_raise_it_twice(server: NatsServer) -> None:
    """Racing clears get epochs of their own, none twice and none left out."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            got = await asyncio.gather(
                *(registry.raise_epoch("d") for _ in range(15) for registry in (mine, others))
            )
            assert sorted(got) == list(range(1, 31))
            assert await mine.raise_epoch("d", 100) == 100
            assert await mine.ensure_epoch("d", 50) == 100

    asyncio.run(scenario())


def test_epochs_survive_a_wipe_in_the_nodes(server: NatsServer) -> None:
    """After JetStream lost everything, prepare says so and writes the epochs that it knows."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            await mine.raise_epoch("d", 3)
            before = connection_of(mine).generation
            server.restart(wipe=True)
            await until(lambda: connection_of(mine).generation > before, "connected again")
            assert await mine.prepare() is True
            assert await mine.prepare() is False
            async with registered(server.url, "b") as newcomer:
                assert newcomer.epoch("d") == 3
                assert await newcomer.ensure_epoch("d", 7) == 7
                assert await mine.raise_epoch("d") == 8

    asyncio.run(scenario())


def test_a_restart_that_loses_nothing_is_no_recreation(server: NatsServer) -> None:
    """To prepare tells a server that was killed and came back from one that lost the registry."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            await mine.put_many([entry("d", f"x{number}") for number in range(1000)])
            before = connection_of(mine).generation
            server.restart()
            await until(lambda: connection_of(mine).generation > before, "connected again")
            assert await mine.prepare() is False
            assert len(await all_of(mine, "d")) == 1000

    asyncio.run(scenario())


@pytest.mark.parametrize("act", ["put_many", "lookup", "raise_epoch", "renew"])
def test_a_bucket_deleted_behind_our_back_is_noticed(server: NatsServer, act: str) -> None:
    """A bucket that is gone, without any reconnect, shows at the next use, and is said."""

    async def scenario() -> None:
        async with registered(server.url) as mine, connected(server.url, "admin") as admin:
            await mine.claim("store")
            await mine.put_many([entry("d", "x")])
            told = asyncio.Event()
            mine.on_recreated(told.set)
            for name in (subjects.bucket("test"), subjects.nodes_bucket("test")):
                await admin.request(f"$JS.API.STREAM.DELETE.{subjects.stream(name)}", b"", 5)
            try:
                if act == "put_many":
                    assert await mine.put_many([entry("d", "x")]) == [entry("d", "x")]
                elif act == "lookup":
                    await mine.lookup("d", "x")
                elif act == "raise_epoch":
                    await mine.raise_epoch("d")
                else:
                    await mine.renew()
            except RegistryUnavailable:
                assert act != "put_many"
            await asyncio.wait_for(told.wait(), DEADLINE_S)
            assert await mine.prepare() is True
            assert await mine.put_many([entry("d", "x")]) == []

    asyncio.run(scenario())


def test_a_bucket_made_anew_by_another_is_noticed(server: NatsServer) -> None:
    """A bucket that was deleted and made again takes puts as ever; revisions give it away."""

    async def scenario() -> None:
        async with registered(server.url) as mine, connected(server.url, "admin") as admin:
            await mine.put_many([entry("d", f"x{number}") for number in range(10)])
            told = asyncio.Event()
            mine.on_recreated(told.set)
            stream = subjects.stream(subjects.bucket("test"))
            await admin.request(f"$JS.API.STREAM.DELETE.{stream}", b"", 5)
            async with registered(server.url, "b"):
                pass
            assert not told.is_set()
            assert await mine.put_many([entry("d", "y")]) == []
            assert told.is_set()
            assert await mine.prepare() is True

    asyncio.run(scenario())


def test_a_registry_that_was_set_back_is_noticed(server: NatsServer, tmp_path: Path) -> None:
    """A server that comes back with an older state is told from one that lost nothing."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            await mine.put_many([entry("d", "old")])
            before = connection_of(mine).generation
            server.stop()
            kept = server.directory / "jetstream"
            shutil.copytree(kept, tmp_path / "copy")
            server.start()
            await until(lambda: connection_of(mine).generation > before, "connected again")
            assert await mine.prepare() is False
            await mine.put_many([entry("d", "new")])
            before = connection_of(mine).generation
            server.stop()
            server.wipe()
            shutil.copytree(tmp_path / "copy", kept)
            server.start()
            await until(lambda: connection_of(mine).generation > before, "connected again")
            assert await mine.prepare() is True
            assert await mine.lookup("d", "new") is None

    asyncio.run(scenario())


def test_a_listing_that_is_cut_off_goes_on_where_it_was(server: NatsServer) -> None:
    """A consumer that is gone in the middle of get_all is made again; nothing is left out."""

    async def scenario() -> None:
        async with registered(server.url) as mine, connected(server.url, "admin") as admin:
            stream = subjects.stream(subjects.bucket("test"))
            ids = [f"x{number}" for number in range(5000)]
            await mine.put_many([entry("d", id) for id in ids])
            found: list[str] = []
            async for one in mine.get_all("d"):
                found.append(one.id)
                if len(found) in (500, 2500):
                    answer = await admin.request(f"$JS.API.CONSUMER.NAMES.{stream}", b"", 5)
                    for name in json.loads(answer)["consumers"]:
                        gone = f"$JS.API.CONSUMER.DELETE.{stream}.{name}"
                        await admin.request(gone, b"", 5)
            assert found == ids

    asyncio.run(scenario())


def test_a_listing_ends_though_entries_are_removed_meanwhile(server: NatsServer) -> None:
    """What is purged while get_all runs is left out, and is not waited for."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            await mine.put_many([entry("d", f"x{number}") for number in range(5000)])
            found = 0
            async with asyncio.timeout(DEADLINE_S):
                async for _ in mine.get_all("d"):
                    found += 1
                    if found == 500:
                        await others.raise_epoch("d")
                        assert await others.purge("d") == 5000
            assert 500 <= found <= 1000

    asyncio.run(scenario())


def test_entries_that_the_server_has_no_room_for_are_told(tmp_path: Path) -> None:
    """A stream that refuses some of a burst costs the refused ones only, and another try."""
    kept = f'jetstream {{ store_dir: "{tmp_path / "kept"}", max_buffered_msgs: 50 }}'

    async def scenario(url: str) -> None:
        async with registered(url) as mine:
            left = entries = [entry("d", f"x{number}") for number in range(5000)]
            rounds = 0
            async with asyncio.timeout(DEADLINE_S):
                while left:
                    left = await mine.put_many(left)
                    rounds += 1
            assert await all_of(mine, "d") == {one.id: one for one in entries}
            assert rounds > 1

    with NatsServer(tmp_path / "nats", jetstream=False, config=kept) as server:
        asyncio.run(scenario(server.url))


def test_a_server_that_was_slow_is_not_flooded(tmp_path: Path) -> None:
    """A burst does not run ahead of what a stream takes, however long that is not read."""
    kept = f'jetstream {{ store_dir: "{tmp_path / "kept"}", max_buffered_msgs: 2500 }}'

    async def scenario(server: NatsServer) -> None:
        async with registered(server.url) as mine:
            entries = [entry("d", f"x{number}") for number in range(20_000)]
            await mine.put_many(entries[:1])
            server.pause()
            burst = asyncio.ensure_future(mine.put_many(entries))
            sent = connection_of(mine).control.stats
            await until(lambda: bool(mine._entries._bursts._running), "it has begun")
            await asyncio.wait([burst], timeout=1)
            server.resume()
            assert await burst == []
            assert sent["in_msgs"] > len(entries)

    with NatsServer(tmp_path / "nats", jetstream=False, config=kept) as server:
        asyncio.run(scenario(server))


def test_waiters_hear_of_entries_as_they_come(server: NatsServer) -> None:
    """A subscription to a DAG tells of its entries, of withdrawals, and of reconnects."""

    async def scenario() -> None:
        async with registered(server.url) as mine, registered(server.url, "b") as others:
            heard: asyncio.Queue[Entry | None] = asyncio.Queue()

            async def next_heard() -> Entry | None:
                return await asyncio.wait_for(heard.get(), DEADLINE_S)

            watched = await others.subscribe_dag("d.*", heard.put_nowait)
            await mine.put_many([entry("another", "x"), entry("d.*", "x.y")])
            assert await next_heard() == entry("d.*", "x.y")
            await mine.withdraw("d.*", "x.y")
            assert await next_heard() is None
            server.restart()
            assert await next_heard() is None
            await until(lambda: connection_of(mine).connected, "connected again")
            await mine.put_many([entry("d.*", "z")])
            assert await next_heard() == entry("d.*", "z")
            await watched.stop()
            await mine.put_many([entry("d.*", "z")])
            await mine.lookup("d.*", "z")
            assert heard.empty()

    asyncio.run(scenario())


def test_a_burst_into_a_dying_server_ends(server: NatsServer) -> None:
    """A burst while the server is killed says what was not acknowledged, or that NATS is away."""

    async def scenario() -> None:
        async with registered(server.url) as mine:
            entries = [entry("d", f"x{number}") for number in range(30_000)]
            burst = asyncio.ensure_future(mine.put_many(entries))
            await until(lambda: bool(mine._entries._bursts._running), "it has begun")
            server.kill()
            async with asyncio.timeout(DEADLINE_S):
                try:
                    assert await burst
                except RegistryUnavailable:
                    pass
            with pytest.raises(RegistryUnavailable):
                await mine.put_many(entries)
            server.start()
            await until(lambda: connection_of(mine).connected, "connected again")
            await mine.prepare()
            assert await mine.put_many(entries) == []
            assert len(await all_of(mine, "d")) == 30_000

    asyncio.run(scenario())


def test_without_jetstream_there_is_no_registry(tmp_path: Path) -> None:
    """A server without JetStream is reached, and a sentence says what is missing."""

    async def scenario(url: str) -> None:
        async with connected(url) as connection:
            with pytest.raises(RegistryUnavailable, match="JetStream") as caught:
                await Registry(connection, "test", "a", "1").prepare()
            assert caught.value.server == url

    with NatsServer(tmp_path, jetstream=False) as bare:
        asyncio.run(scenario(bare.url))


def test_what_is_overwritten_all_the_time_is_never_missing_from_a_list(
    server: NatsServer,
) -> None:
    """A key that changes while the keys are listed comes, once or twice, but it comes."""
    ids = [f"k{n}" for n in range(20)]

    async def scenario() -> None:
        async with registered(server.url, "a") as writer, registered(server.url, "b") as reader:
            await writer.put_many([entry("d", id) for id in ids])
            over = False

            async def overwrite() -> None:
                n = 0
                while not over:
                    n += 1
                    for id in ids:
                        await writer.put_many([entry("d", id, nbytes=n)])

            writing = asyncio.create_task(overwrite())
            try:
                for _ in range(100):
                    found = {one.id async for one in reader.get_all("d")}
                    assert found == set(ids)
            finally:
                over = True
                await writing

    asyncio.run(asyncio.wait_for(scenario(), 4 * DEADLINE_S))
