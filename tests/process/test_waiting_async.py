"""``wait_async``, ``wait_many_async`` and ``watch_async``: many tasks, one thread."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

import shmstore
from shmstore import doorbell, hub
from tests.fault.killing import DEADLINE_S, Child, call
from tests.process.errands import large
from tests.process.sleepers import until

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sleeps is woken by a bell, or not within the test."""
    monkeypatch.setattr(doorbell, "LONGEST_S", 3600.0)
    monkeypatch.setattr(doorbell, "AHEAD_NS", 7200 * 10**9)


def run(main: Coroutine[Any, Any, Any], workers: int = 4) -> Any:
    """Runs a coroutine in a loop with a small pool of threads, for a bounded time."""

    async def bounded() -> Any:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(workers))
        async with asyncio.timeout(60):
            return await main

    return asyncio.run(bounded())


def hub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "shmstore waiting" in thread.name]


async def comes_true(condition: Callable[[], Any]) -> None:
    """Lets the loop run until a condition holds, for a bounded time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def waiters(store: shmstore.Store, dag_id: str = "d") -> int:
    """How many tasks are on the list of a DAG's hub and have looked in vain."""
    found = store._hubs._hubs.get(dag_id)
    if found is None:
        return 0
    with found._lock:
        return sum(
            waiter.missing is not None or waiter.keys is None for waiter in found._everyone()
        )


async def until_waiting(store: shmstore.Store, count: int = 1) -> None:
    await comes_true(lambda: waiters(store) == count)


def test_a_put_of_another_process_ends_a_wait(store: shmstore.Store, bells: None) -> None:
    """A task that waits gets what another process puts; the loop goes on meanwhile."""

    async def main() -> None:
        task = asyncio.create_task(store.wait_async("d", "x", mode="cow"))
        await until_waiting(store)
        call(lambda: shmstore.Store(store.root).put("d", "x", large(4)).id)
        found = await task
        found[0] = 5
        assert found[1] == 4
        assert await store.wait_async("d", "x", 0) is not None

    run(main())


def test_thousands_of_waits_share_one_thread(store: shmstore.Store, bells: None) -> None:
    """Three thousand tasks that wait in one DAG take one thread, and each gets its value."""

    async def main() -> None:
        tasks = [asyncio.create_task(store.wait_async("d", f"{n}")) for n in range(3000)]
        await until_waiting(store, 3000)
        assert len(hub_threads()) == 1
        store.put_many("d", {f"{n}": n for n in range(3000)})
        assert await asyncio.gather(*tasks) == list(range(3000))

    run(main())


def test_waits_leave_the_pool_to_the_puts(store: shmstore.Store, bells: None) -> None:
    """With a single thread in the pool and 500 waits, puts of the same loop get through."""

    async def main() -> None:
        tasks = [asyncio.create_task(store.wait_async("d", f"{n}")) for n in range(500)]
        watching = asyncio.create_task(store.watch_async("d").__anext__())
        await until_waiting(store, 501)
        for n in range(500):
            await store.put_async("d", f"{n}", n)
        assert await asyncio.gather(*tasks) == list(range(500))
        assert (await watching).id == "0"

    run(main(), workers=1)


def test_wait_many_async(store: shmstore.Store, bells: None) -> None:
    """All of them, as they are when the last one comes; what was deleted is waited for again."""

    async def main() -> None:
        store.put("d", "b", "old")
        task = asyncio.create_task(store.wait_many_async("d", ["c", "a", "b", "a"]))
        await until_waiting(store)
        store.put_many("d", {"a": "first", "b": "new"})
        store.delete("d", "a")
        store.put("d", "c", 3)
        await comes_true(lambda: waiters(store) == 1)
        assert not task.done()
        store.put("d", "a", "again")
        found = await task
        assert found == {"c": 3, "a": "again", "b": "new"}
        assert list(found) == ["c", "a", "b"]
        assert await store.wait_many_async("d", []) == {}

    run(main())


def test_a_put_between_the_looks_is_seen(
    store: shmstore.Store, bells: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is put, and put and deleted, at any step of a wait is not missed."""
    there = store._there
    steps: list[Callable[[], Any]] = [
        lambda: store.put("d", "a", 1),  # after the first look, before joining
        lambda: (store.delete("d", "a"), store.put("d", "b", 1)),  # after the second look
    ]

    def look(*args: Any) -> Any:
        try:
            return there(*args)
        finally:
            if steps:
                steps.pop(0)()

    monkeypatch.setattr(store, "_there", look)

    async def main() -> None:
        task = asyncio.create_task(store.wait_many_async("d", ["a", "b"]))
        await comes_true(lambda: not steps and waiters(store) == 1)
        assert not task.done()
        store.put("d", "a", 2)
        assert await task == {"a": 2, "b": 1}

    run(main())


def test_the_time_is_over(store: shmstore.Store) -> None:
    """WaitTimeout as of the twins, also for one look, and for a watch, which goes on."""

    async def main() -> None:
        store.put("d", "b", 1)
        for timeout in (0, 0.02):
            with pytest.raises(shmstore.WaitTimeout) as caught:
                await store.wait_many_async("d", ["a", "b", "c"], timeout)
            assert caught.value.ids == ("a", "c")
            with pytest.raises(shmstore.WaitTimeout):
                await store.wait_async("d", "a", timeout)
        watch = store.watch_async("d", timeout=0.02)
        with pytest.raises(shmstore.WaitTimeout):
            await anext(watch)
        store.put("d", "a", 1)
        assert (await anext(watch)).id == "a"
        await watch.aclose()
        for bad in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await store.wait_async("d", "b", bad)
        with pytest.raises(ValueError, match="mode"):
            await store.wait_async("d", "b", mode="write")

    run(main())


def test_cancelling_leaves_nothing(store: shmstore.Store, bells: None) -> None:
    """A cancelled wait is off the list at once, wherever it was; others go on."""

    async def main() -> None:
        tasks = [asyncio.create_task(store.wait_async("d", f"{n}")) for n in range(100)]
        early = [asyncio.create_task(store.wait_async("d", "early")) for _ in range(50)]
        for number, task in enumerate(early):
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
        await until_waiting(store, 100)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], *early, return_exceptions=True)
        assert all(task.cancelled() for task in tasks[1:])
        await comes_true(lambda: waiters(store) == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.wait_async("d", "never"), 0.02)
        assert waiters(store) == 1
        store.put("d", "0", "still")
        assert await tasks[0] == "still"
        assert waiters(store) == 0

    run(main())


def test_the_thread_ends_soon_after_the_last_waiter(store: shmstore.Store) -> None:
    """Nobody waits any more: its thread is gone within seconds, and a new wait has a new one."""

    async def main() -> None:
        for _ in range(2):
            task = asyncio.create_task(store.wait_async("d", "never"))
            await until_waiting(store)
            assert len(hub_threads()) == 1
            task.cancel()
            await comes_true(lambda: not hub_threads())

    run(main())


def test_one_after_the_other_meets_the_same_thread(store: shmstore.Store) -> None:
    """Waits that follow each other closely do not start a thread each."""
    names = set()

    async def main() -> None:
        for number in range(50):
            task = asyncio.create_task(store.wait_async("d", f"{number}"))
            await until_waiting(store)
            names.update(thread.ident for thread in hub_threads())
            store.put("d", f"{number}", number)
            assert await task == number

    run(main())
    assert len(names) <= 5


def test_a_loop_that_was_closed_does_no_harm(store: shmstore.Store) -> None:
    """A loop that was closed with waits in it is forgotten; other loops' waits go on."""
    lost = asyncio.new_event_loop()
    tasks = [lost.create_task(store.wait_async("d", "x")) for _ in range(3)]

    async def waiting() -> None:
        await comes_true(lambda: waiters(store) == 3)

    lost.run_until_complete(waiting())
    lost.run_until_complete(lost.shutdown_default_executor())
    lost.close()
    other = threading.Thread(target=lambda: results.append(run(store.wait_async("d", "x"))))
    results: list[Any] = []
    other.start()
    until(lambda: waiters(store) == 4)
    store.put("d", "x", 1)
    other.join(DEADLINE_S)
    assert results == [1]
    # The tasks of the closed loop are on the list for good, and keep nothing running.
    until(lambda: not hub_threads())
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()  # type: ignore[union-attr]
    del tasks
    gc.collect()


def test_close_ends_the_waits(store: shmstore.Store, bells: None) -> None:
    """A store that is closed ends the waits of its tasks."""

    async def main() -> None:
        tasks = [
            asyncio.create_task(store.wait_async("d", "x")),
            asyncio.create_task(store.wait_many_async("d", ["x", "y"])),
            asyncio.create_task(anext(store.watch_async("d"))),
        ]
        await until_waiting(store, 3)
        store.close()
        for task in tasks:
            with pytest.raises(shmstore.StoreClosed):
                await task
        with pytest.raises(shmstore.StoreClosed):
            await store.wait_async("d", "x")
        await comes_true(lambda: not hub_threads())

    run(main())


def test_a_removed_root(root: str) -> None:
    """Tasks that wait are told within a second or so that the root is gone."""
    store = shmstore.Store(root)

    async def main() -> None:
        tasks = [
            asyncio.create_task(store.wait_async("d", "x")),
            asyncio.create_task(store.wait_many_async("d", ["x", "y"])),
            asyncio.create_task(anext(store.watch_async("d"))),
        ]
        await until_waiting(store, 3)
        shutil.rmtree(root)
        for task in tasks:
            with pytest.raises(shmstore.UnusableRoot):
                await task

    run(main())


def test_a_clear_in_between(store: shmstore.Store, bells: None) -> None:
    """Waits and watches go on in the successor of a cleared DAG."""

    async def main() -> None:
        task = asyncio.create_task(store.wait_async("d", "x"))
        watch = store.watch_async("d")
        first = asyncio.create_task(anext(watch))
        await until_waiting(store, 2)
        store.clear("d")
        store.put("d", "y", 1)
        assert (await first).id == "y"
        store.put("d", "x", "of the successor")
        assert await task == "of the successor"
        assert (await anext(watch)).id == "x"

    run(main())


def test_watch_async(store: shmstore.Store, bells: None) -> None:
    """Begins where it is told, gives each put once, and closes what waits."""

    async def main() -> None:
        store.put_many("d", {"a": 1, "b": 2})
        now = store.watch_async("d")
        store.put("d", "c", 3)
        stored, recent = (
            store.watch_async("d", since=since) for since in (0, datetime(2020, 1, 1, tzinfo=UTC))
        )
        assert [(await anext(stored)).id for _ in range(3)] == ["a", "b", "c"]
        assert [(await anext(recent)).id for _ in range(3)] == ["a", "b", "c"]
        assert (await anext(now)).id == "c"
        assert now.position == stored.position
        resumed = store.watch_async("d", since=stored.position)
        assert resumed.position == stored.position

        async def all_of(watch: shmstore.AsyncWatch) -> list[str]:
            return [entry.id async for entry in watch]

        tasks = [asyncio.create_task(all_of(watch)) for watch in (now, stored, recent, resumed)]
        await until_waiting(store, 4)
        for n in range(300):
            await store.put_async("d", f"{n}", n)
        store.put("d", "end", 0)
        await comes_true(lambda: all(w.position.sequence == 304 for w in (now, stored, resumed)))
        await comes_true(lambda: recent.position.sequence == 304)
        await until_waiting(store, 4)
        for watch in (now, stored, recent, resumed):
            await watch.aclose()
        expected = [*(f"{n}" for n in range(300)), "end"]
        assert await asyncio.gather(*tasks) == [expected] * 4
        async with store.watch_async("d") as watch:
            store.put("d", "z", 1)
            assert (await anext(watch)).id == "z"
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    run(main())


@pytest.mark.parametrize("since", [1, "now"])
def test_watch_async_refuses_what_is_no_beginning(store: shmstore.Store, since: Any) -> None:
    """Mistakes show at the call, not at the first entry."""
    with pytest.raises((TypeError, ValueError), match="since"):
        store.watch_async("d", since=since)
    with pytest.raises(TypeError):
        store.watch_async("d", timeout="1")  # type: ignore[arg-type]


def test_a_child_waits_in_a_loop_of_its_own(store: shmstore.Store, bells: None) -> None:
    """After a fork with tasks that wait, the child's tasks wait by a thread of the child."""

    async def main() -> None:
        task = asyncio.create_task(store.wait_async("d", "x"))
        await until_waiting(store)
        with Child(_in_the_child, store) as child:
            await asyncio.to_thread(_put_when_waiting, store, child)
            assert await task == "for both"

    run(main())


def _in_the_child(store: shmstore.Store) -> Any:
    # A new loop in a new thread: this one is, to asyncio, inside the parent's loop still.
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(store.wait_async("d", "x"))))
    thread.start()
    thread.join(DEADLINE_S)
    return results[0]


def _put_when_waiting(store: shmstore.Store, child: Child) -> None:
    from tests.process.sleepers import until_asleep

    until_asleep(child.pid)
    store.put("d", "x", "for both")
    assert child.receive() == "for both"


def test_a_hub_that_cannot_follow_says_why(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the thread meets reaches the tasks that wait, and the next wait begins anew."""

    class Broken:
        def __init__(self, *_: object) -> None:
            raise shmstore.StoreFull("file descriptors of this process")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(hub, "Feed", Broken)
            for _ in range(2):
                with pytest.raises(shmstore.StoreFull):
                    await store.wait_async("d", "x")
        task = asyncio.create_task(store.wait_async("d", "x"))
        await until_waiting(store)
        store.put("d", "x", 1)
        assert await task == 1

    run(main())


def test_no_thread_can_be_started(store: shmstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait whose thread cannot be started fails at once; a later one works."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        await store.put_async("d", "a", 1)  # the pool has its thread
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await store.wait_async("d", "x", 5)
        task = asyncio.create_task(store.wait_async("d", "x"))
        await until_waiting(store)
        store.put("d", "x", 1)
        assert await task == 1

    run(main(), workers=1)
