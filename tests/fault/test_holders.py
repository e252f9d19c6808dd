"""Holders of the lock that are dead, stopped, forked or late."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lock
from shmstore.lock import Lock
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at


def _hooked(point: str, action: Any) -> None:
    """Does ``action`` once, when this process reaches ``point``."""

    def hook(name: str) -> None:
        if name == point:
            crashpoints.hook = None
            action()

    crashpoints.hook = hook


def _hold_mappings_and_die(parent: Parent, root: str, inside: bool, point: str) -> None:
    """Forks a child that inherits all mappings and stays, then dies under the lock."""
    store = shmstore.Store(root)
    store.put("dag", "mine", 1)
    views = [store.get("dag", "large"), store.get_buffer("dag", "large")]

    def fork() -> None:
        child = os.fork()
        if child:
            parent.send(child)
            return
        crashpoints.hook = None
        try:
            parent.receive()  # stays until it is told to go on
            assert views[0][5] == 5
            lock.TIMEOUT_S = 5.0
            if inside:  # what its parent was doing is still on its own stack
                with pytest.raises(shmstore.StoreBusy):
                    store.put("dag", "heir", 1)
            else:
                store.put("dag", "heir", 1)
            parent.send("heir goes on")
        finally:
            os._exit(0)

    def die() -> None:
        if inside:
            fork()
        os.kill(os.getpid(), signal.SIGKILL)

    if not inside:
        fork()
    _hooked(point, die)
    store.put("dag", "new", 1)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("point", ["commit:written", "commit:tail"])
def test_an_inherited_mapping_does_not_keep_a_dead_holders_lock(
    root: str, inside: bool, point: str
) -> None:
    """A writer killed under the lock lets go of it though its child, with all it mapped, lives."""
    store = shmstore.Store(root)
    store.put("dag", "large", np.arange(9000))
    with Child(_hold_mappings_and_die, Parent, root, inside, point) as holder:
        heir = holder.receive()
        pidfd = os.pidfd_open(heir)
        try:
            assert holder.join() == -signal.SIGKILL
            path = reading_files.read(root, "dag").path / "lock"
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            store.put("dag", "other", 2)
            assert store.has_value("dag", "new") == (point == "commit:tail")
            holder.send()
            assert holder.receive() == "heir goes on"
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    records = set(reading_files.check(root)["dag"].records)
    assert {"mine", "large", "other"} <= records
    assert ("heir" in records) != inside


def _stop_at(root: str, point: str, *what: Any) -> None:
    store = shmstore.Store(root)
    _hooked(point, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    store.put("dag", *what)


@pytest.mark.parametrize("point", ["commit:written", "commit:tail", "commit:slot-hash"])
def test_a_stopped_writer_stops_no_reader(
    root: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a writer is stopped under the lock, gets go on and puts name it after the timeout."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    store.put("dag", "large", np.arange(9000))
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.2)
    with Child(_stop_at, root, point, "new", {"v": 7}) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for reader in (store, shmstore.Store(root)):
            assert reader.get("dag", "a") == 1
            assert np.array_equal(reader.get("dag", "large"), np.arange(9000))
            # Committed means visible, at once: the reader waits for nobody.
            expected = None if point == "commit:written" else {"v": 7}
            assert reader.get("dag", "new", default=None) == expected
            assert ("new" in set(reader.ids("dag"))) == (expected is not None)
        for write in (
            lambda: store.put("dag", "a", 2),
            lambda: store.delete("dag", "a"),
            lambda: store.clear("dag"),
        ):
            start = time.monotonic()
            with pytest.raises(shmstore.StoreBusy, match=f"process {stopped.pid}") as busy:
                write()
            assert 0.2 <= busy.value.waited_s < 5 > time.monotonic() - start
        store.put("other", "a", 3)
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.receive()
        assert stopped.join() == 0
    assert store.get("dag", "new") == {"v": 7}
    store.put("dag", "a", 2)
    reading_files.check(root)


def _read_all(root: str) -> list[Any]:
    lock.TIMEOUT_S = 0.1
    store = shmstore.Store(root)
    got = [store.get("dag", "new"), store.get("dag", "a"), store.get("dag", "gone", default=None)]
    return [*got, sorted(store.ids("dag")), store.count("dag"), store.entry("dag", "new").id]


def test_what_a_dead_writer_committed_is_seen_without_the_lock(root: str) -> None:
    """A reader sees a dead writer's committed values though it cannot have the lock."""
    store = shmstore.Store(root)
    store.put_many("dag", {"a": 1, "gone": 2})
    kill_at("commit:tail", 1, lambda: shmstore.Store(root).put_many("dag", {"new": 5, "a": 6}))
    with open(reading_files.read(root, "dag").path / "lock", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert call(_read_all, root) == [5, 6, 2, ["a", "gone", "new"], 3, "new"]
    store.delete("dag", "gone")
    reading_files.check(root)


def test_a_dead_writers_delete_is_seen_without_the_lock(root: str) -> None:
    """A delete that was committed but not finished counts for readers at once."""
    store = shmstore.Store(root)
    store.put_many("dag", {"a": 1, "gone": np.arange(9000)})
    kill_at("commit:tail", 1, lambda: shmstore.Store(root).delete("dag", "gone"))
    with open(reading_files.read(root, "dag").path / "lock", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not store.has_value("dag", "gone")
        assert list(store.ids("dag")) == ["a"]
    store.put("dag", "b", 1)
    assert not reading_files.check(root)["dag"].orphans


def _wait_and_put(parent: Parent, root: str) -> float:
    store = shmstore.Store(root)
    store.put("dag", "b", 1)
    parent.send("has put")
    parent.receive()
    start = time.monotonic()
    store.put("dag", "b", 2)
    return time.monotonic() - start


def test_a_long_wait_for_the_lock_is_no_error(root: str) -> None:
    """A put waits for a lock held for seconds, and goes on the moment it is free."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    with Child(_wait_and_put, Parent, root) as waiting:
        assert waiting.receive() == "has put"
        with open(reading_files.read(root, "dag").path / "lock", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            waiting.send()
            assert waiting.silent(4)
        assert 3.5 < waiting.receive() < 5
        assert waiting.join() == 0
    assert store.get("dag", "b") == 2


def _late(parent: Parent, root: str, action: Any) -> Any:
    """Does ``action``, but waits before it takes the lifecycle lock for the first time."""
    store = shmstore.Store(root)
    run = Lock.run

    def late(self: Lock, body: Any, argument: Any) -> Any:
        if self.rank == 0:
            Lock.run = run  # type: ignore[method-assign]
            parent.send("is about to lock")
            parent.receive()
        return run(self, body, argument)

    Lock.run = late  # type: ignore[method-assign]
    return action(store)


def _put_late(store: shmstore.Store) -> None:
    store.put("dag", "late", 1)


@pytest.mark.parametrize("point", ["clear:marked", "clear:renamed"])
def test_a_late_finisher_spares_the_successor(root: str, point: str) -> None:
    """Who goes on with a dead clearer's work after others have done it leaves the new DAG alone."""
    store = shmstore.Store(root)
    store.put("dag", "old", 1)
    kill_at(point, 1, lambda: shmstore.Store(root).clear("dag"))
    if point == "clear:renamed":
        # Nothing is left at the place: nobody has to finish, but a clear still begins.
        assert list(store.ids("dag")) == []
        store.put("dag", "old", 1)
        kill_at("clear:marked", 1, lambda: shmstore.Store(root).clear("dag"))
    with Child(_late, Parent, root, _put_late) as late:
        assert late.receive() == "is about to lock"
        store.put("dag", "successor", 2)  # finishes the clearing and creates the DAG anew
        late.send()
        late.receive()
        assert late.join() == 0
    assert store.get("dag", "successor") == 2
    assert store.get("dag", "late") == 1
    assert set(reading_files.check(root)["dag"].records) == {"late", "successor"}


def _put_after_clear(parent: Parent, root: str) -> None:
    store = shmstore.Store(root)
    store.put("dag", "first", 1)

    def wait() -> None:
        parent.send("has written")
        parent.receive()

    _hooked("segment:written", wait)
    store.put("dag", "large", np.arange(9000))


@pytest.mark.parametrize("successor", [False, True])
def test_a_put_that_outlives_a_clear_lands_whole(root: str, successor: bool) -> None:
    """A put under way while the DAG is cleared is kept in the DAG that stands there afterwards."""
    store = shmstore.Store(root)
    with Child(_put_after_clear, Parent, root) as writer:
        assert writer.receive() == "has written"
        assert store.clear("dag").cleared
        if successor:
            store.put("dag", "successor", 2)
        writer.send()
        writer.receive()
        assert writer.join() == 0
    assert np.array_equal(store.get("dag", "large"), np.arange(9000))
    expected = {"large", "successor"} if successor else {"large"}
    assert set(reading_files.check(root)["dag"].records) == expected
    assert not reading_files.trash(root)


@pytest.mark.parametrize("point", ["clear:marked", "clear:renamed"])
@pytest.mark.parametrize("value", [2, np.arange(9000)], ids=["small", "large"])
def test_a_put_after_a_dead_clearer_is_kept(root: str, point: str, value: Any) -> None:
    """A store that has the DAG open never writes into what a dead process has cleared."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    kill_at(point, 1, lambda: shmstore.Store(root).clear("dag"))
    store.put("dag", "b", value)
    for reader in (store, shmstore.Store(root)):
        assert list(reader.ids("dag")) == ["b"]
        assert np.array_equal(reader.get("dag", "b"), value)
        with pytest.raises(shmstore.NotFound):
            reader.delete("dag", "a")
    assert set(reading_files.check(root)["dag"].records) == {"b"}
