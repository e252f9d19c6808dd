"""Two pid namespaces that share one root, as containers with a common /dev/shm do."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import crashpoints, holder, lock
from tests import reading_files
from tests.fault.enclosed import contained, container, pid_within
from tests.fault.killing import Parent, kill_at
from tests.process.errands import large

_ROUNDS = 200


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _write(parent: Parent, root: str, name: str) -> tuple[int, str]:
    """Puts values of its own and fights for common ones, beside another."""
    store = shmstore.Store(root)
    parent.send("ready")
    parent.receive()
    for n in range(_ROUNDS):
        store.put("dag", f"{name}-{n}", n)
        store.put("dag", "common", {"by": name, "n": n})
        if not n % 10:
            store.put("dag", f"{name}-large", large(n))
            store.put_many("dag", {"pair-a": large(n), "pair-b": large(n), "pair-c": [name, n]})
            assert (store.get("dag", f"{name}-large") == n).all()
    view = store.get("dag", f"{name}-large")
    parent.send("has put")
    parent.receive()
    assert (view == _ROUNDS - 10).all()
    return os.getpid(), _namespace()


def test_two_namespaces_write_one_dag(root: str) -> None:
    """Processes with the same pid in two namespaces write, read and view as any two do."""
    with (
        container(_write, Parent, root, "one") as one,
        container(_write, Parent, root, "two") as two,
    ):
        for child in (one, two):
            assert child.receive() == "ready"
        for child in (one, two):
            child.send()
        for child in (one, two):
            assert child.receive() == "has put"
        store = shmstore.Store(root)
        for name in ("one", "two"):
            assert [store.get("dag", f"{name}-{n}") for n in range(_ROUNDS)] == [*range(_ROUNDS)]
            store.put("dag", f"{name}-large", large(77))  # under their views
        for child in (one, two):
            child.send()
        (first_pid, first), (second_pid, second) = one.receive(), two.receive()
        assert one.join() == two.join() == 0
    assert first_pid == second_pid == 2
    assert len({first, second, _namespace()}) == 3
    producers = {store.entry("dag", f"{name}-5").producer.pid for name in ("one", "two")}
    assert producers == {2}, "same pids in both: nothing may be told from them"
    _, n = store.get("dag", "pair-c")
    assert (store.get("dag", "pair-a") == store.get("dag", "pair-b")).all()
    assert (store.get("dag", "pair-a") == n).all()
    reading_files.check(root)


def _killed_at(root: str, point: str, act: Any) -> None:
    kill_at(point, 1, lambda: act(shmstore.Store(root)))


def _go_on(root: str) -> list[str]:
    lock.TIMEOUT_S = 5.0
    store = shmstore.Store(root)
    assert store.get("dag", "old") == 1
    assert (store.get("dag", "large") == 5).all()
    new = store.get("dag", "new", default=None)
    assert new is None or (new == 6).all()
    store.put("dag", "other", 2)
    store.put("dag", "more", large(8))
    store.delete("dag", "old")
    return sorted(store.ids("dag"))


def _put_new(store: shmstore.Store) -> None:
    store.put("dag", "new", large(6))


_PUT_POINTS = [name for name in crashpoints.POINTS if name.startswith(("segment:", "commit:"))]


@pytest.mark.parametrize("point", _PUT_POINTS)
def test_what_is_killed_in_one_is_gone_on_with_in_the_other(root: str, point: str) -> None:
    """A writer killed in one namespace holds up nobody in the other, which mends its leavings."""
    store = shmstore.Store(root)
    store.put_many("dag", {"old": 1, "large": large(5)})
    contained(_killed_at, root, point, _put_new)
    there = contained(_go_on, root)
    assert set(there) - {"new"} == {"large", "more", "other"}
    after = crashpoints.POINTS.index("commit:tail")
    assert ("new" in there) == (crashpoints.POINTS.index(point) >= after)
    assert sorted(store.ids("dag")) == there
    reading_files.check(root, orphans=1)


def _clear(store: shmstore.Store) -> None:
    store.clear("dag")


def _begin_anew(root: str) -> list[str]:
    lock.TIMEOUT_S = 5.0
    store = shmstore.Store(root)
    store.put("dag", "anew", 1)
    return sorted(store.ids("dag"))


@pytest.mark.parametrize("point", ["clear:locked", "clear:marked", "clear:renamed"])
def test_a_clear_that_is_killed_is_finished_in_the_other(root: str, point: str) -> None:
    """A clearer that is killed in one namespace leaves no lock behind for the other."""
    store = shmstore.Store(root)
    store.put_many("dag", {"old": 1, "large": large(5)})
    view = store.get("dag", "large")
    contained(_killed_at, root, point, _clear)
    expected = ["anew", "large", "old"] if point == "clear:locked" else ["anew"]
    assert contained(_begin_anew, root) == expected
    assert sorted(store.ids("dag")) == expected
    assert (view == 5).all()
    reading_files.check(root)


def _hold(parent: Parent, root: str) -> None:
    """Stays under the commit lock until it is told to go on."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)

    def stay(name: str) -> None:
        if name == "commit:written":
            crashpoints.hook = None
            parent.send("holds the lock")
            parent.receive()

    crashpoints.hook = stay
    store.put("dag", "b", 2)


def _refused(root: str) -> tuple[str | None, int, int]:
    lock.TIMEOUT_S = 0.2
    store = shmstore.Store(root)
    got = store.get("dag", "a")
    with pytest.raises(shmstore.StoreBusy) as busy:
        store.put("dag", "a", 3)
    return busy.value.holder, got, os.getpid()


def test_a_holder_is_named_where_its_pid_means_something(root: str) -> None:
    """The host names a container's process by its own number; another container names none."""
    with container(_hold, Parent, root) as holding:
        assert holding.receive() == "holds the lock"
        assert contained(_refused, root) == (holder.OUTSIDE, 1, 2)
        here = pid_within(holding)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lock, "TIMEOUT_S", 0.2)
            with pytest.raises(shmstore.StoreBusy) as busy:
                shmstore.Store(root).put("dag", "a", 3)
        assert busy.value.holder == f"process {here}"
        assert re.search(r"\nNSpid:.*\t2\n", Path(f"/proc/{here}/status").read_text())
        holding.send()
        holding.receive()
        assert holding.join() == 0
    assert shmstore.Store(root).get("dag", "b") == 2


def test_the_host_is_not_named_in_a_container(root: str) -> None:
    """A holder on the host, which has no pid in the container, is said to be outside."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    with (reading_files.read(root, "dag").path / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert contained(_refused, root) == (holder.OUTSIDE, 1, 2)
    store.put("dag", "a", 2)


def _view_and_wait(parent: Parent, root: str) -> int:
    store = shmstore.Store(root)
    view = store.get("dag", "large")
    parent.send("has a view")
    parent.receive()
    return int(view.sum())


def test_a_view_in_a_container_is_a_lease_for_all(root: str) -> None:
    """What a process of one namespace views, a process of another sees to be in use."""
    store = shmstore.Store(root)
    store.put("dag", "large", large(5))
    path = reading_files.read(root, "dag").path / store.entry("dag", "large").location
    with container(_view_and_wait, Parent, root) as viewer:
        assert viewer.receive() == "has a view"
        with path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store.put("dag", "large", large(6))
        store.clear("dag")
        viewer.send()
        assert viewer.receive() == large(5).sum()
        assert viewer.join() == 0


def _killed_viewer(parent: Parent, root: str) -> None:
    view = shmstore.Store(root).get("dag", "large")
    parent.send("has a view")
    parent.receive()
    del view


def test_a_container_that_is_killed_lets_go_of_all(root: str) -> None:
    """A container stopped from outside, with its views and the lock, keeps nothing."""
    store = shmstore.Store(root)
    store.put("dag", "large", large(5))
    path = reading_files.read(root, "dag").path / store.entry("dag", "large").location
    with (
        container(_killed_viewer, Parent, root) as viewer,
        container(_hold, Parent, root) as writer,
    ):
        assert viewer.receive() == "has a view"
        assert writer.receive() == "holds the lock"
        for child in (viewer, writer):
            pidfd = os.pidfd_open(pid_within(child))
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            assert child.join() == -signal.SIGKILL
        store.put("dag", "after", 1)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert sorted(store.ids("dag")) == ["a", "after", "large"]
    reading_files.check(root)


def _pids_in(source: str) -> list[str]:
    return re.findall(r"\bos\.(?:getpid|getppid|pidfd_open|kill|killpg|waitpid)\b", source)


def test_no_decision_is_taken_by_a_pid() -> None:
    """A pid is noted as the producer's, and tells a forked child from its parent; no more."""
    package = Path(shmstore.__file__).parent
    found = {path.name: _pids_in(path.read_text()) for path in package.glob("*.py")}
    assert {name: uses for name, uses in found.items() if uses} == {
        "provenance.py": ["os.getpid"],
        "hub.py": ["os.getpid", "os.getpid"],
    }
