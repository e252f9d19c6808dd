"""What goes wrong in the middle of a fetch, and what is left of it: nothing, or the value."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import errors
from shmstore.demo.server import NatsServer
from shmstore.node.landing import Cleared, Original
from tests import reading_files
from tests.cluster.host_process import started
from tests.cluster.hosts import Host, host, hosts

_MIB = 1 << 20
_OLD = np.random.default_rng(1).integers(0, 255, 32 * _MIB, dtype=np.uint8)
_NEW = np.random.default_rng(2).integers(0, 255, 32 * _MIB, dtype=np.uint8)


def _once(call: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress that calls once, in the middle."""
    calls = [call]

    def progress(done: int, total: int) -> None:
        if 0 < done < total and done > _MIB and calls:
            calls.pop()()

    return progress


def _nothing_left(root: str, *, pooled: bool = False) -> None:
    """No value, no segment, and no bytes in the account but what the files take."""
    with shmstore.Store(root) as store:
        store.gc()
        assert not store.check()
        used = store._dags.space.ledger.used
    files = reading_files.check(root)
    assert all(not dag.records for dag in files.values())
    assert pooled or not reading_files.pool(root)
    if store_capacity(root):
        assert used == reading_files.account(root).allocated


def store_capacity(root: str) -> int:
    """The capacity of the namespace."""
    with shmstore.Store(root) as store:
        return store.stats().capacity or 0


def _changes(a: Host) -> dict[str, Callable[[], object]]:
    store = a.store
    return {
        "overwritten": lambda: store.put("dag", "id", _NEW),
        "overwritten by a small one": lambda: store.put("dag", "id", "small"),
        "deleted": lambda: store.delete("dag", "id"),
        "deleted and its memory written again": lambda: (
            store.delete("dag", "id"),
            store.put("dag", "other", _NEW),
        ),
        "cleared": lambda: store.clear("dag"),
    }


_CHANGES = [
    "overwritten",
    "overwritten by a small one",
    "deleted",
    "deleted and its memory written again",
    "cleared",
]


@pytest.mark.parametrize("change", _CHANGES)
def test_the_version_that_was_begun_comes_whole(server: NatsServer, root: str, change: str) -> None:
    """Whatever becomes of the value at its owner, what was begun is fetched to its end."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            await b.fetch("a", "id", progress=_once(_changes(a)[change]))
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    asyncio.run(run())
    reading_files.check(f"{root}/b")


@pytest.mark.parametrize("change", _CHANGES)
def test_a_version_that_is_gone_is_fetched_anew(server: NatsServer, root: str, change: str) -> None:
    """If the owner has lost the version, too, the whole new value comes, or NotFound."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)

            def change_and_forget() -> None:
                _changes(a)[change]()
                a.owner._leases.clear()

            if change.startswith("overwritten"):
                await b.fetch("a", "id", progress=_once(change_and_forget))
                assert np.array_equal(b.store.get("dag", "id"), a.store.get("dag", "id"))
            else:
                with pytest.raises(errors.NotFound):
                    await b.fetch("a", "id", progress=_once(change_and_forget))
                assert not b.store.has_value("dag", "id")

    asyncio.run(run())
    reading_files.check(f"{root}/b")


def test_an_owner_that_has_lost_its_leases_goes_on(server: NatsServer, root: str) -> None:
    """Another node of the owner's host that takes over finds the same version again."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            fetched = await b.fetch("a", "id", progress=_once(a.owner._leases.clear))
            assert fetched.nbytes < _OLD.nbytes + _MIB
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    asyncio.run(run())


def test_a_killed_owner_is_unreachable(server: NatsServer, root: str) -> None:
    """A fetch whose owner is killed in the middle ends so, and leaves nothing."""
    with shmstore.Store(f"{root}/a") as store:
        store.put("dag", "id", _OLD)

    async def run(pid: int) -> None:
        async with host(server.url, root, "b", 1 << 30) as b:
            with pytest.raises(errors.NodeUnreachable) as caught:
                await b.fetch("a", "id", progress=_once(lambda: os.kill(pid, signal.SIGKILL)))
            assert caught.value.node == "a"
            assert (caught.value.dag_id, caught.value.id) == ("dag", "id")

    with started("serve", server.url, root, "a") as owner:
        asyncio.run(run(owner.pid))
    _nothing_left(f"{root}/b")


def test_a_stopped_owner_is_unreachable(server: NatsServer, root: str) -> None:
    """So does one whose owner says nothing any more; once it goes on, the value can be had."""
    with shmstore.Store(f"{root}/a") as store:
        store.put("dag", "id", _OLD)

    async def run(pid: int) -> None:
        async with host(server.url, root, "b") as b:
            stop = _once(lambda: os.kill(pid, signal.SIGSTOP))
            with pytest.raises(errors.NodeUnreachable):
                await b.fetch("a", "id", progress=stop, patience_s=1.0)
            assert not b.store.has_value("dag", "id")
            os.kill(pid, signal.SIGCONT)
            await b.fetch("a", "id")
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    with started("serve", server.url, root, "a") as owner:
        asyncio.run(run(owner.pid))


def test_a_killed_receiver_leaves_nothing(server: NatsServer, root: str) -> None:
    """A receiver that is killed in the middle leaves no value, no segment and no bytes."""

    async def run() -> None:
        async with host(server.url, root, "a") as a:
            a.store.put("dag", "id", _OLD)
            with shmstore.Store(f"{root}/b", capacity=1 << 30):
                pass
            with started("fetch-and-die", server.url, root, "b") as receiver:
                assert await asyncio.to_thread(receiver.wait, 60) == -signal.SIGKILL

    asyncio.run(run())
    _nothing_left(f"{root}/b")


def test_a_receiver_killed_while_it_reuses_memory_leaves_it_in_the_pool(
    server: NatsServer, root: str
) -> None:
    """Memory of the pool that it was writing into is in the pool again."""

    async def run() -> None:
        async with host(server.url, root, "a") as a:
            a.store.put("dag", "id", _OLD)
            with shmstore.Store(f"{root}/b", capacity=1 << 30) as store:
                store.put("dag", "other", _NEW)
                store.delete("dag", "other")
                assert len(reading_files.pool(f"{root}/b")) == 1
            with started("fetch-and-die", server.url, root, "b") as receiver:
                assert await asyncio.to_thread(receiver.wait, 60) == -signal.SIGKILL

    asyncio.run(run())
    assert len(reading_files.pool(f"{root}/b")) == 1
    _nothing_left(f"{root}/b", pooled=True)


def test_a_server_that_is_restarted_is_waited_for(server: NatsServer, root: str) -> None:
    """A fetch goes on when NATS is killed in the middle and started again."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            await b.fetch("a", "id", progress=_once(server.restart), patience_s=30.0)
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    asyncio.run(run())


def test_a_server_that_stays_away_is_an_answer(server: NatsServer, root: str) -> None:
    """Without NATS a fetch ends, saying so, within its patience, and leaves nothing."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            with pytest.raises(errors.RegistryUnavailable):
                await b.fetch("a", "id", progress=_once(server.kill), patience_s=1.0)
            with pytest.raises(errors.RegistryUnavailable):
                await b.fetch("a", "id", patience_s=0.3)
        server.start()

    asyncio.run(run())
    _nothing_left(f"{root}/b")


def test_the_largest_message_may_shrink(server: NatsServer, root: str) -> None:
    """A fetch goes on when NATS comes back with a smaller max_payload."""

    def shrink() -> None:
        server.kill()
        server.config = "max_payload: 65536"
        server.start()

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            await b.fetch("a", "id", progress=_once(shrink), patience_s=30.0)
            assert b.connection.max_payload == 65536
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    asyncio.run(run())


def test_a_dag_that_is_cleared_meanwhile_stays_cleared(server: NatsServer, root: str) -> None:
    """What was being fetched into a DAG that is cleared here is not stored."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            with pytest.raises(Cleared):
                await b.fetch("a", "id", progress=_once(lambda: b.store.clear("dag")))
            assert not b.store.dags()

            def clear_and_use() -> None:
                b.store.clear("dag")
                b.store.put("dag", "other", 1)

            with pytest.raises(Cleared):
                await b.fetch("a", "id", progress=_once(clear_and_use))
            assert list(b.store.ids("dag")) == ["other"]

    asyncio.run(run())
    reading_files.check(f"{root}/b")


def test_a_put_meanwhile_is_kept(server: NatsServer, root: str) -> None:
    """A value that this host stores under the id during the fetch is not replaced."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            for _ in range(2):  # at first into nothing, then over a copy
                with pytest.raises(Original):
                    put = _once(lambda: b.store.put("dag", "id", "mine"))
                    await b.fetch("a", "id", progress=put)
                assert b.store.get("dag", "id") == "mine"
                b.store.delete("dag", "id")
                await b.fetch("a", "id")

    asyncio.run(run())
    reading_files.check(f"{root}/b")


@pytest.mark.parametrize("fate", ["deleted", "moved to disk", "fetched by another"])
def test_a_copy_may_change_while_it_is_refreshed(
    server: NatsServer, root: str, tmp_path: Path, fate: str
) -> None:
    """What becomes of the old copy meanwhile does not keep the new one from being stored."""
    from shmstore import reading, relief

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", _OLD)
            await b.fetch("a", "id")
            a.store.put("dag", "id", _NEW)
            again: list[asyncio.Task[Any]] = []

            def change() -> None:
                if fate == "deleted":
                    b.store.delete("dag", "id")
                elif fate == "moved to disk":
                    shmstore.Store(b.root, spill=tmp_path / "spill").close()
                    manifest = b.store._dags.manifests["dag"]
                    record = reading.find(manifest, b"id")
                    assert record is not None
                    assert relief.spill_one(manifest, record)
                else:
                    again.append(asyncio.create_task(b.fetch("a", "id")))

            await b.fetch("a", "id", progress=_once(change))
            for task in again:
                await task
            assert np.array_equal(b.store.get("dag", "id"), _NEW)
            assert not b.store.check()

    asyncio.run(run())


def test_no_room_is_store_full(server: NatsServer, root: str) -> None:
    """A value that does not fit is StoreFull; copies that nobody views make room for others."""

    async def run() -> None:
        async with (
            host(server.url, root, "a") as a,
            host(server.url, root, "b", 12 * _MIB) as b,
        ):
            a.store.put("dag", "id", _OLD)
            b.store.put("dag", "mine", 1)
            with pytest.raises(errors.StoreFull):
                await b.fetch("a", "id")
            for number in range(4):
                a.store.put("dag", str(number), _OLD[: 5 * _MIB])
                await b.fetch("a", str(number))
                assert b.store.has_value("dag", str(number))
            assert not b.store.has_value("dag", "0")
            assert b.store.get("dag", "mine") == 1
            assert not b.store.check()

    asyncio.run(run())
    reading_files.check(f"{root}/b")


def test_a_cancelled_fetch_leaves_nothing(server: NatsServer, root: str) -> None:
    """Whoever gives up a fetch in the middle leaves nothing; it can be begun again at once."""

    async def run() -> None:
        async with host(server.url, root, "a") as a, host(server.url, root, "b", 1 << 30) as b:
            a.store.put("dag", "id", _OLD)
            came = asyncio.Event()
            task = asyncio.create_task(b.fetch("a", "id", progress=_once(came.set)))
            await came.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            _nothing_left(f"{root}/b")
            await b.fetch("a", "id")
            assert np.array_equal(b.store.get("dag", "id"), _OLD)

    asyncio.run(run())
