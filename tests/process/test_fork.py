"""Forks: before use, after it, from threads, in the middle of a put, and twice."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lock, lookup, reading, relief
from tests import reading_files
from tests.fault.killing import DEADLINE_S, Child, Parent, call
from tests.process.errands import large

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def use(store: shmstore.Store, name: str) -> list[str]:
    """Stores a small and a large value, reads them and what was there, deletes one."""
    store.put("d", f"{name}/small", name)
    store.put("d", f"{name}/large", large(len(name)))
    store.put("d", f"{name}/gone", 0)
    store.delete("d", f"{name}/gone")
    assert store.get("d", f"{name}/small") == name
    assert np.array_equal(store.get("d", f"{name}/large"), large(len(name)))
    return sorted(store.ids("d"))


def until(condition: Callable[[], Any]) -> None:
    """Looks at a condition until it holds, for a bounded time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture
def hook() -> Any:
    """Sets the crash points' hook, and unsets it afterwards."""

    def set_hook(function: Callable[[str], None] | None) -> None:
        crashpoints.hook = function

    yield set_hook
    crashpoints.hook = None


def test_fork_before_first_use(store: shmstore.Store) -> None:
    """A store that was made before a fork and not used yet works in both."""
    assert call(use, store, "child") == ["child/large", "child/small"]
    assert len(use(store, "parent")) == 4
    reading_files.check(store.root)


def test_fork_after_first_use(store: shmstore.Store) -> None:
    """A store with open files and held views works in the child, and the views keep."""
    use(store, "parent")
    view = store.get("d", "parent/large")

    def child() -> tuple[list[str], int]:
        ids = use(store, "child")
        store.put("d", "parent/large", large(99))
        return ids, int(view.sum())

    assert call(child) == (
        ["child/large", "child/small", "parent/large", "parent/small"],
        int(large(len("parent")).sum()),
    )
    assert view[0] == len("parent")
    assert store.get("d", "parent/large")[0] == 99
    use(store, "parent again")
    reading_files.check(store.root)


def test_fork_twice(store: shmstore.Store) -> None:
    """A grandchild, and a child after its own fork, go on as the parent does."""
    use(store, "parent")

    def child() -> Any:
        use(store, "child")
        ids = call(use, store, "grandchild")
        use(store, "child again")
        return ids

    assert "grandchild/small" in call(child)
    assert len(use(store, "parent")) == 8
    reading_files.check(store.root)


def test_fork_from_a_thread(store: shmstore.Store) -> None:
    """A child forked by a thread other than the main one uses the store at once."""
    use(store, "parent")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(call(use, store, "child")))
    thread.start()
    thread.join(DEADLINE_S)
    assert got == [["child/large", "child/small", "parent/large", "parent/small"]]
    reading_files.check(store.root)


def test_many_forks_while_threads_put(store: shmstore.Store) -> None:
    """Children forked at any moment of four busy threads find a store they can use."""
    stop = threading.Event()
    counts = [0] * 4

    def busy(number: int) -> None:
        while not stop.is_set():
            counts[number] += 1
            store.put("d", f"busy/{number}", counts[number])
            store.put("d", f"busy/{number}/large", large(counts[number]))

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):
            assert f"child/{number}/small" in call(use, store, f"child/{number}")
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert [store.get("d", f"busy/{number}") for number in range(4)] == counts
    reading_files.check(store.root)


def test_a_fork_waits_for_another_threads_locked_section(store: shmstore.Store, hook: Any) -> None:
    """A fork never falls into another thread's commit; child and parent then go on at once."""
    store.put("d", "before", 1)
    events: list[str] = []
    inside, forked = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if threading.current_thread() is putting:
            if point == "commit:locked":
                inside.set()
                until(lambda: lock._forking)
                # The fork has begun; it must not get through as long as we are in here.
                events.append("through" if forked.wait(0.2) else "held up")
            elif point == "commit:counted":
                events.append("committed")

    def fork() -> None:
        assert inside.wait(DEADLINE_S)
        with Child(use, store, "child") as child:
            events.append("forked")
            forked.set()
            ids.extend(child.receive())

    ids: list[str] = []
    putting = threading.Thread(target=store.put, args=("d", "held", large(3)))
    forking = threading.Thread(target=fork)
    hook(hold)
    putting.start()
    forking.start()
    for thread in (putting, forking):
        thread.join(DEADLINE_S)
    hook(None)
    assert events == ["held up", "committed", "forked"]
    assert ids == ["before", "child/large", "child/small", "held"]
    use(store, "parent")
    reading_files.check(store.root)


def test_a_fork_does_not_wait_for_other_processes(store: shmstore.Store) -> None:
    """A lock held elsewhere holds up no fork, only those who put into that DAG."""
    store.put("d", "a", 1)
    store.put("e", "a", 1)

    def holder(parent: Parent) -> None:
        def hold(point: str) -> None:
            if point == "commit:locked":
                crashpoints.hook = None
                parent.send("inside")
                parent.receive()

        crashpoints.hook = hold
        store.put("d", "a", 2)

    with Child(holder, Parent) as child:
        assert child.receive() == "inside"
        waiting = threading.Thread(target=store.put, args=("d", "b", 3))
        waiting.start()
        # Its thread is polling for the lock now, or soon; the fork goes through either way.
        assert call(lambda: (store.get("d", "a"), store.put("e", "b", 2).id)) == (1, "b")
        assert waiting.is_alive()
        child.send()
        waiting.join(DEADLINE_S)
        assert child.join() == 0
    assert store.get_many("d", ["a", "b"]) == {"a": 2, "b": 3}


def test_a_child_keeps_no_half_written_segment(store: shmstore.Store, hook: Any) -> None:
    """A fork in the middle of another thread's write: the child holds nothing of that value."""
    store.put("d", "before", 1)
    writing, checked = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "segment:written" and threading.current_thread() is putting:
            writing.set()
            assert checked.wait(DEADLINE_S)

    def nameless() -> list[str]:
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue
        return [link for link in links if link.startswith(store.root) and "(deleted)" in link]

    putting = threading.Thread(target=store.put, args=("d", "half", large(3)))
    hook(hold)
    putting.start()
    assert writing.wait(DEADLINE_S)
    assert len(nameless()) == 1  # ours: what the child must not have
    with Child(nameless) as child:
        assert child.receive() == []
        checked.set()
    putting.join(DEADLINE_S)
    assert store.get("d", "half")[0] == 3


def test_a_child_holds_no_lock_of_its_parent(store: shmstore.Store) -> None:
    """A child that lives on does not keep the commit lock of its killed parent."""
    store.put("d", "a", 1)

    def parent(above: Parent) -> None:
        def hold(point: str) -> None:
            if point == "commit:written":
                crashpoints.hook = None
                pid = os.fork()
                if not pid:
                    signal.pause()
                    os._exit(0)
                above.send(pid)
                above.receive()

        crashpoints.hook = hold
        store.put("d", "a", 2)

    with Child(parent, Parent) as child:
        grandchild = child.receive()
        try:
            child.kill()
            assert store.put("d", "b", 3).id == "b"
            assert call(use, store, "other")
        finally:
            os.kill(grandchild, signal.SIGKILL)
    assert store.get("d", "a") == 1


def mega(seed: int) -> list[np.ndarray[Any, Any]]:
    """2 MiB in two buffers."""
    return [np.full(1 << 17, seed), np.full(1 << 17, seed)]


def reuse(store: shmstore.Store) -> None:
    """Writes into an emptied segment, through a mapping."""
    store.put("d", "spare", mega(1))
    store.delete("d", "spare")
    store.put("d", "reused", mega(8))


def move(store: shmstore.Store) -> None:
    """Moves a value to disk."""
    store.put("d", "moved", mega(8))
    manifest = lookup.find_dag(store._dags.space, "d")
    assert manifest is not None
    record = reading.find(manifest, b"moved")
    assert record is not None
    # Its log has been allocated, so from here on only the move reaches the points.
    relief.spill_one(manifest, record)


OPERATIONS: dict[str, Callable[[shmstore.Store], Any]] = {
    "reuse": reuse,
    "drain": lambda store: (
        reuse(store),
        store.delete("d", "reused"),
        shmstore.Store(store.root, pool=0),
    ),
    "put under a capacity": lambda store: store.put("d", "new/large", mega(8)),
    "count": lambda store: store._dags.space.ledger.recount(),
    "move": move,
    "choose a disk": lambda store: shmstore.Store(store.root, spill=f"{store.root}/another disk"),
    "put a small one": lambda store: store.put("d", "new", "small"),
    "put a large one": lambda store: store.put("d", "old", large(8)),
    "put many": lambda store: store.put_many("d", dict.fromkeys(map(str, range(200)), "x" * 999)),
    "compact": lambda store: [store.put("d", "churn", "x" * 16000) for _ in range(75)],
    "create": lambda store: store.put("e", "new", "small"),
    "clear": lambda store: store.clear("d"),
}
# Past the commit point no signal handler can run, as commit.py says.
_NO_HANDLER_RUNS = ("commit:tail", "commit:slot-hash", "commit:slot", "commit:indexed")
HANDLERS = [
    (operation, point)
    for operation, points in {
        "put a small one": ("commit:locked", "commit:written", "commit:unlocked"),
        "put a large one": ("segment:opened", "segment:written", "commit:written", "commit:named"),
        "put many": (
            "commit:locked",
            "extend:allocated",
            "extend:mapped",
            "grow:index-created",
            "grow:index-written",
            "grow:switched",
        ),
        "compact": (
            "compact:begin",
            "compact:log-created",
            "compact:log-written",
            "compact:index-created",
            "compact:index-written",
            "compact:switched",
        ),
        "create": (
            "create:directory",
            "create:log-created",
            "create:log-written",
            "create:index-created",
            "create:index-written",
            "create:whole",
            "create:renamed",
        ),
        "clear": ("clear:locked", "clear:marked", "clear:renamed"),
        "reuse": ("pool:claimed", "pool:filling", "pool:written", "pool:retired"),
        "drain": ("pool:emptied",),
        "put under a capacity": ("ledger:reserved", "segment:written"),
        "count": ("ledger:counting",),
        "move": ("segment:written", "commit:named"),
        "choose a disk": ("spill:owned", "spill:made", "spill:linked"),
    }.items()
    for point in points
]


@pytest.mark.parametrize("first", ["the parent", "the child"])
@pytest.mark.parametrize(("operation", "point"), HANDLERS)
def test_a_child_forked_by_a_signal_handler_harms_nothing(
    root: str, hook: Any, monkeypatch: pytest.MonkeyPatch, operation: str, point: str, first: str
) -> None:
    """A handler forks in the middle of a change: the child fails or passes, all values stay.

    The child returns from the handler into the very step, without the lock. Whichever
    of the two goes on first, the parent's change succeeds, and what others store
    meanwhile is kept.
    """
    assert point not in _NO_HANDLER_RUNS
    capacity = "64 MiB" if operation in ("put under a capacity", "count") else None
    store = shmstore.Store(root, capacity=capacity, spill=f"{root}/disk")
    store.put("d", "old", large(5))
    store.put_many("d", {f"old/{number}": number for number in range(100)})
    parent = os.getpid()
    go_on, let_go = os.pipe()
    pids: list[int] = []

    def fork(*_: object) -> None:
        pids.append(os.fork())
        if pids[0] == 0 and first == "the parent":
            os.read(go_on, 1)
        elif pids[0] and first == "the child":
            os.waitpid(pids[0], 0)

    def interrupt(name: str) -> None:
        if name == point and not pids:
            signal.raise_signal(signal.SIGUSR1)

    copy = np.copyto

    def copy_and_interrupt(*args: Any) -> None:
        copy(*args)
        interrupt("pool:filling")

    if point == "pool:filling":
        monkeypatch.setattr(np, "copyto", copy_and_interrupt)
    before = signal.signal(signal.SIGUSR1, fork)
    hook(interrupt)
    try:
        OPERATIONS[operation](store)
    finally:
        if os.getpid() != parent:
            os._exit(0)
        hook(None)
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, before)
        assert pids, "the point was not reached"
        other = shmstore.Store(root)
        if operation == "reuse":
            # What the child goes on writing to is another's then.
            assert all((part == 8).all() for part in other.take("d", "reused"))
            gc.collect()
        other.put("d", "reused by others", mega(9))
        for dag_id in ("d", "e"):
            other.put(dag_id, "later", "kept")
            other.put(dag_id, "later/large", large(6))
        if first == "the parent":
            os.write(let_go, b"!")
            os.waitpid(pids[0], 0)
        os.close(go_on)
        os.close(let_go)
    other = shmstore.Store(root)
    for seen in (store, other):
        for dag_id in ("d", "e"):
            assert seen.get(dag_id, "later") == "kept"
            assert seen.get(dag_id, "later/large")[0] == 6
        if operation != "clear":
            assert seen.get("d", "old")[0] == (8 if operation == "put a large one" else 5)
            assert seen.get("d", "old/99") == 99
    for written, dag_id in (("put a small one", "d"), ("create", "e")):
        if operation == written:
            assert other.get(dag_id, "new") == "small"
    if operation == "put many":
        assert other.get("d", "199") == "x" * 999
    mine = {"put under a capacity": "new/large", "move": "moved"}
    for id, seed in ((mine.get(operation), 8), ("reused by others", 9)):
        if id is not None:
            assert all((part == seed).all() for part in other.get("d", id)), id
    if operation == "choose a disk":
        assert len(os.listdir(f"{root}/another disk")) == 2, "a directory and whose it is"
    if capacity:
        account = reading_files.account(root)
        assert account.allocated <= account.used
    use(store, "afterwards")
    reading_files.check(root)
