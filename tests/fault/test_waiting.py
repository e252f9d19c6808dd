"""Deaths around a wait: of the committer before it rings, of the clearer, of the waiter."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import crashpoints, doorbell, reading
from tests import reading_files
from tests.fault.killing import Child, Parent, kill_at
from tests.process.sleepers import only_bells, until, until_asleep

_SMALL = ("commit:tail", "commit:slot", "commit:indexed", "commit:counted", "commit:unlocked")


def _wait(root: str) -> Any:
    return shmstore.Store(root).wait("d", "x")


def _wait_many(root: str) -> Any:
    return shmstore.Store(root).wait_many("d", ["x", "before"])["x"]


def _watch(root: str) -> Any:
    store = shmstore.Store(root)
    return store.get("d", next(store.watch("d")).id)


def _wait_async(root: str) -> Any:
    import asyncio

    return asyncio.run(shmstore.Store(root).wait_async("d", "x"))


WAYS = {"wait": _wait, "wait_many": _wait_many, "watch": _watch, "wait_async": _wait_async}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", _SMALL)
@pytest.mark.parametrize("opened", [False, True])
def test_a_writer_killed_before_it_rings(
    store: shmstore.Store, way: str, point: str, opened: bool
) -> None:
    """A committed value ends a wait within about a second, although nobody has rung for it."""
    store.put("d", "before", 0)

    def put() -> None:
        mine = shmstore.Store(store.root)
        if opened:
            mine.count("d")
        mine.put("d", "x", "committed")

    with Child(WAYS[way], store.root) as child:
        until_asleep(child.pid)
        kill_at(point, 1, put)
        assert child.receive(10) == "committed"
        assert child.join() == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_next_writer_rings_for_a_dead_one(store: shmstore.Store, way: str) -> None:
    """Whoever redoes a dead writer's records wakes its waiters, even if its own call fails."""
    store.put("d", "before", 0)

    def waiter() -> Any:
        only_bells()
        return WAYS[way](store.root)

    with Child(waiter) as child:
        until_asleep(child.pid)
        kill_at("commit:tail", 1, lambda: shmstore.Store(store.root).put("d", "x", "committed"))
        assert child.silent(0.05), "somebody has rung"
        with pytest.raises(shmstore.NotFound):
            store.delete("d", "never")  # refused, but it redoes what it meets
        assert child.receive() == "committed"
    reading_files.check(store.root)


def test_a_look_under_the_lock_rings_for_a_dead_writer(store: shmstore.Store) -> None:
    """A reader that redoes a dead writer's records wakes its waiters, too."""
    store.put("d", "before", 0)

    def waiter() -> Any:
        only_bells()
        return _wait(store.root)

    with Child(waiter) as child:
        until_asleep(child.pid)
        kill_at("commit:tail", 1, lambda: shmstore.Store(store.root).put("d", "x", "committed"))
        manifest = store._dags.manifests["d"]
        assert manifest.guarded(reading.find_settled, manifest, b"before") is not None
        assert child.receive() == "committed"


@pytest.mark.parametrize("way", ["wait", "watch", "wait_async"])
@pytest.mark.parametrize("point", ["clear:marked", "clear:counted", "clear:renamed"])
def test_a_clearer_killed_before_it_rings(store: shmstore.Store, way: str, point: str) -> None:
    """Waiters of a DAG whose clearer died go on in the successor, which they make."""
    store.put("d", "before", 0)
    cleared = _place(store)
    with Child(WAYS[way], store.root) as child:
        until_asleep(child.pid)
        kill_at(point, 1, lambda: shmstore.Store(store.root).clear("d"))
        until(lambda: _place(store) not in (None, cleared))  # by the waiter: nobody else is there
        assert shmstore.Store(store.root).put("d", "x", "of the successor")
        assert child.receive(10) == "of the successor"
    reading_files.check(store.root)


def _place(store: shmstore.Store) -> int | None:
    """The inode of the DAG's directory, if there is one."""
    try:
        return (Path(store.root) / "default" / "dags" / "d").stat().st_ino
    except FileNotFoundError:
        return None


def test_a_killed_waiter_leaves_nothing_but_its_deadline(store: shmstore.Store) -> None:
    """Killed where it has asked to be rung for, or asleep, it costs committers seconds at most."""
    store.put("d", "before", 0)
    kill_at("wait:announced", 1, _wait, store.root)
    with Child(_wait, store.root) as child:
        until_asleep(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        assert child.join() == -signal.SIGKILL
    manifest = store._dags.manifests["d"]
    left = manifest.control[11]
    store.put("d", "x", 1)
    assert manifest.control[11] == left
    manifest.control[11] = 1  # as if the seconds had passed
    calls: list[Any] = []
    before = doorbell._futex
    doorbell._futex = lambda *args: (calls.append(args), 0)[1]
    try:
        store.put("d", "x", 2)
    finally:
        doorbell._futex = before
    assert calls == []
    reading_files.check(store.root)


def test_a_stopped_writer_holds_up_no_waiter(store: shmstore.Store) -> None:
    """Stopped right behind the commit point, still holding the lock: what it put is found."""
    store.put("d", "before", 0)

    def stopped(parent: Parent) -> None:
        def hold(name: str) -> None:
            if name == "commit:tail":
                crashpoints.hook = None
                parent.send("inside")
                parent.receive()

        crashpoints.hook = hold
        shmstore.Store(store.root).put("d", "x", "committed")

    waiters: list[Callable[[str], Any]] = [_wait, _wait_many, _watch, _wait_async]
    children = [Child(one, store.root) for one in waiters]
    try:
        for child in children:
            until_asleep(child.pid)
        with Child(stopped, Parent) as writer:
            assert writer.receive() == "inside"
            assert [child.receive(10) for child in children] == ["committed"] * 4
            writer.send()
            assert writer.receive() is None
    finally:
        for child in children:
            child.kill()
