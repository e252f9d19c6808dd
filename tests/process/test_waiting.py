"""``wait`` and ``wait_many``: woken by what is waited for, and by nothing else for long."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, doorbell, reading, store_waiting, stored, waiting
from tests import reading_files
from tests.fault.killing import DEADLINE_S, Child, Parent, call
from tests.process.errands import large
from tests.process.sleepers import asleep, only_bells, until, until_asleep

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """``only_bells``, for the test's own process and the children it forks."""
    monkeypatch.setattr(doorbell, "LONGEST_S", 3600.0)
    monkeypatch.setattr(doorbell, "AHEAD_NS", 7200 * 10**9)


class Waiting(threading.Thread):
    """A thread that waits; ``result`` gives what it returned or raises what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: function(*args, **options)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(DEADLINE_S)
        assert not self.is_alive(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._value


def deadline_of(store: shmstore.Store, dag_id: str = "d") -> int:
    """The word in which waiters leave their deadline, from the file."""
    page = reading_files.read(store.root, dag_id).manifest.read_bytes()
    return int.from_bytes(page[88:96], "little")


# --- Woken ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"small": 1}, large(7)], ids=["inline", "segment"])
@pytest.mark.parametrize("open_before", [True, False])
def test_a_put_wakes_a_waiting_process(
    store: shmstore.Store, bells: None, value: Any, open_before: bool
) -> None:
    """A wait in another process returns the value that is put here, woken by that put."""
    if open_before:
        store.put("d", "before", 0)
    with Child(lambda: shmstore.Store(store.root).wait("d", "x")) as child:
        until_asleep(child.pid)
        assert child.silent(0.05)
        store.put("d", "x", value)
        assert np.array_equal(child.receive(), value)


def test_a_put_wakes_a_waiting_thread(store: shmstore.Store, bells: None) -> None:
    """A thread that waits is woken by a put of another thread, of other ids it only looks."""
    thread = Waiting(store.wait, "d", "x")
    until_asleep()
    for number in range(20):
        store.put("d", f"other-{number}", number)
    until_asleep()
    store.put("d", "x", "here")
    assert thread.result() == "here"


@pytest.mark.parametrize("mode", ["read", "cow", "copy"])
def test_the_mode_is_that_of_get(store: shmstore.Store, mode: str) -> None:
    """What a wait returns is mapped or copied as its mode says, waited for or not."""
    thread = Waiting(store.wait, "d", "x", mode=mode)
    until_asleep()
    store.put("d", "x", large(3))
    for found in (thread.result(), store.wait("d", "x", mode=mode)):
        assert np.array_equal(found, large(3))
        assert found.flags.writeable == (mode != "read")


def test_every_way_to_commit_wakes(store: shmstore.Store, bells: None) -> None:
    """put, put_many, a put through a Dag, of whatever size: each rings."""
    puts: dict[str, Callable[[str], Any]] = {
        "small": lambda x: store.put("d", x, 1),
        "with deps": lambda x: store.put("d", x, 1, deps=["small"]),
        "large": lambda x: store.put("d", x, large(1)),
        "many": lambda x: store.put_many("d", {"p": 0, x: 1, "q": large(2)}),
        "if absent": lambda x: store.put("d", x, 1, overwrite=False),
        "dag": lambda x: store.dag("d").__setitem__(x, 1),
        "another store": lambda x: shmstore.Store(store.root).put("d", x, 1),
    }
    for id, put in puts.items():
        thread = Waiting(store.wait, "d", id)
        until_asleep()
        put(id)
        assert thread.result() is not None


def test_a_value_that_is_there_is_returned_at_once(store: shmstore.Store) -> None:
    """A wait for what is there does not announce itself, so nobody has to pay for it."""
    store.put("d", "x", 1)
    assert store.wait("d", "x") == store.wait("d", "x", 0) == 1
    assert store.wait_many("d", ["x"], 0) == {"x": 1}
    assert deadline_of(store) == 0


def test_waiting_creates_the_dag(store: shmstore.Store, bells: None) -> None:
    """A DAG that does not exist is made by who waits for it; one look at it makes nothing."""
    for look in (lambda: store.wait("d", "x", 0), lambda: store.wait_many("d", ["x"], 0)):
        with pytest.raises(shmstore.WaitTimeout):
            look()
    assert store.dags() == []
    thread = Waiting(store.wait, "d", "x")
    until_asleep()
    assert [dag.dag_id for dag in store.dags()] == ["d"]
    assert call(lambda: shmstore.Store(store.root).put("d", "x", 5).id) == "x"
    assert thread.result() == 5


def test_a_ref_waits_anywhere(store: shmstore.Store, bells: None) -> None:
    """A reference to a value that is yet to come is waited for where it was sent."""
    ref = pickle.loads(pickle.dumps(store.ref("d", "x")))
    with Child(ref.wait) as child:
        until_asleep(child.pid)
        store.put("d", "x", "by ref")
        assert child.receive() == "by ref"
    with pytest.raises(shmstore.WaitTimeout):
        store.ref("d", "never").wait(0.01)
    assert store.ref("d", "x").wait(0, mode="copy") == "by ref"


# --- Not woken -----------------------------------------------------------------------


def test_the_time_is_over(store: shmstore.Store) -> None:
    """WaitTimeout tells what was waited for and how long, and is a TimeoutError."""
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        store.wait("d", "never", 0.05)
    error = caught.value
    assert isinstance(error, shmstore.WaitTimeout)
    assert (error.dag_id, error.ids) == ("d", ("never",))
    assert 0.05 <= error.waited_s <= time.monotonic() - began
    store.put("d", "b", 1)
    with pytest.raises(shmstore.WaitTimeout) as caught_many:
        store.wait_many("d", ["a", "b", "c"], 0.05)
    assert caught_many.value.ids == ("a", "c")
    with pytest.raises(shmstore.WaitTimeout) as caught_once:
        store.wait_many("d", ["a", "b", "c"], 0)
    assert caught_once.value.ids == ("a", "c")


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-1, ValueError),
        (-0.001, ValueError),
        (float("nan"), ValueError),
        (np.float32("nan"), ValueError),
        (-(10**400), ValueError),
        (float("-inf"), ValueError),
        ("1", TypeError),
        (True, TypeError),
        ([1], TypeError),
        (1j, TypeError),
    ],
)
def test_a_timeout_that_is_none(store: shmstore.Store, timeout: Any, error: type) -> None:
    """What is no length of time is refused, whether or not the value is there."""
    store.put("d", "x", 1)
    for look in (
        lambda: store.wait("d", "x", timeout),
        lambda: store.wait_many("d", ["x"], timeout),
        lambda: store.watch("d", timeout=timeout),
    ):
        with pytest.raises(error):
            look()


@pytest.mark.parametrize(
    "timeout", [0.001, Decimal("0.001"), Fraction(1, 1000), np.float64(0.001), 0, -0.0]
)
def test_any_number_is_a_timeout(store: shmstore.Store, timeout: Any) -> None:
    """Seconds may be of any type of number, and there may be very many."""
    with pytest.raises(shmstore.WaitTimeout):
        store.wait("d", "x", timeout)
    store.put("d", "x", 1)
    assert store.wait("d", "x", 10**400) == store.wait("d", "x", float("inf")) == 1


def test_mistakes_of_the_caller(store: shmstore.Store) -> None:
    """Wrong ids, modes and lists of ids are refused before anything is waited for."""
    with pytest.raises(TypeError):
        store.wait("d", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.wait(b"d", "x", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        store.wait("d", "x", mode="write")
    with pytest.raises(ValueError, match="mode"):
        store.wait_many("d", ["x"], mode="write")
    with pytest.raises(TypeError):
        store.wait_many("d", "x")
    with pytest.raises(ValueError, match="empty"):
        store.wait_many("d", ["x", ""])
    assert store.wait_many("d", []) == {}
    store.close()
    for look in (
        lambda: store.wait("d", "x"),
        lambda: store.wait_many("d", []),
        lambda: store.watch("d"),
    ):
        with pytest.raises(shmstore.StoreClosed):
            look()


# --- Several -------------------------------------------------------------------------


def test_wait_many_returns_when_all_are_there(store: shmstore.Store, bells: None) -> None:
    """All of them, in the order asked for, each as it is when the last one comes."""
    store.put("d", "a", "old")
    with Child(lambda: shmstore.Store(store.root).wait_many("d", ["c", "a", "b", "c"])) as child:
        until_asleep(child.pid)
        store.put("d", "b", large(2))
        store.put("d", "a", "new")
        until_asleep(child.pid)
        assert child.silent(0.05)
        store.put("d", "c", 3)
        found = child.receive()
    assert list(found) == ["c", "a", "b"]
    assert found["a"] == "new"
    assert found["b"][0] == 2


def test_wait_many_counts_only_what_is_there_still(store: shmstore.Store, bells: None) -> None:
    """A value that was deleted again before the last one came is waited for again."""
    thread = Waiting(store.wait_many, "d", ["a", "b"])
    until_asleep()
    store.put("d", "a", "first")
    store.delete("d", "a")
    store.put("d", "b", 2)
    until_asleep()
    assert thread.is_alive()
    store.put("d", "a", "again")
    assert thread.result() == {"a": "again", "b": 2}


def test_wait_many_across_a_clear(store: shmstore.Store, bells: None) -> None:
    """What was there before a clear is not there: all of them must come to the successor."""
    thread = Waiting(store.wait_many, "d", ["a", "b"])
    until_asleep()
    store.put("d", "a", "of the first")
    store.clear("d")
    until_asleep()
    store.put("d", "b", 2)
    until_asleep()
    assert thread.is_alive()
    store.put("d", "a", "of the second")
    assert thread.result() == {"a": "of the second", "b": 2}


def test_wait_many_across_compaction(store: shmstore.Store, bells: None) -> None:
    """Compactions while it waits, whose logs it never had open, hide nothing."""
    thread = Waiting(store.wait_many, "d", ["a", "b", "c"])
    until_asleep()
    for number, id in enumerate("abc"):
        store.put("d", id, id)
        before = reading_files.read(store.root, "d").log_number
        while number < 2 and reading_files.read(store.root, "d").log_number < before + 2:
            store.put("d", "filler", "f" * 15_000)
    assert thread.result() == {"a": "a", "b": "b", "c": "c"}


def test_wait_many_looks_up_each_value_once(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand values that come one by one cost a thousand looks, not half a million."""
    looks: list[bytes] = []
    find = reading.find
    monkeypatch.setattr(
        reading, "find", lambda manifest, key: (looks.append(key), find(manifest, key))[1]
    )
    ids = [f"id-{number}" for number in range(1000)]
    thread = Waiting(store.wait_many, "d", ids)
    until_asleep()
    for number, id in enumerate(ids):
        store.put("d", id, number)
    assert thread.result() == {id: number for number, id in enumerate(ids)}
    assert len(looks) <= 3 * len(ids)


# --- What else may happen meanwhile --------------------------------------------------


@pytest.mark.parametrize(("mode", "where"), [("read", store_waiting), ("cow", stored)])
def test_deleted_between_waking_and_reading(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch, bells: None, mode: str, where: Any
) -> None:
    """Who is woken by a value that is gone when it reads goes on waiting for the next one."""
    name = "find_quickly" if mode == "read" else "find"
    find = getattr(where, name)
    deleted = []

    def late(*args: Any) -> Any:
        if armed.is_set():
            armed.clear()
            store.delete("d", "x")
            deleted.append(mode)
        return find(*args)

    armed = threading.Event()
    monkeypatch.setattr(where, name, late)
    thread = Waiting(store.wait, "d", "x", mode=mode)
    until_asleep()
    armed.set()
    store.put("d", "x", b"first")
    until(lambda: deleted)
    until_asleep()
    store.put("d", "x", b"second")
    assert thread.result() == b"second"


def test_a_clear_wakes_waiters_who_go_on_in_the_successor(
    store: shmstore.Store, bells: None
) -> None:
    """A cleared DAG's waiters make its successor and wait there."""
    store.put("d", "y", 1)
    with Child(lambda: shmstore.Store(store.root).wait("d", "x")) as child:
        until_asleep(child.pid)
        generation = reading_files.read(store.root, "d").generation
        store.clear("d")
        until(lambda: [dag.dag_id for dag in store.dags()] == ["d"])
        assert reading_files.read(store.root, "d").generation != generation
        until_asleep(child.pid)
        store.put("d", "x", "of the successor")
        assert child.receive() == "of the successor"
    reading_files.check(store.root)


@pytest.mark.parametrize("made_again", [False, True])
def test_a_removed_root_ends_a_wait(root: str, made_again: bool) -> None:
    """When the root goes away, a waiter says so instead of waiting for ever."""
    threads = [
        Waiting(shmstore.Store(root).wait, "d", "x"),
        Waiting(shmstore.Store(root).wait_many, "d", ["x"]),
        Waiting(next, shmstore.Store(root).watch("d")),
    ]
    until_asleep(count=3)
    shutil.rmtree(root)
    if made_again:
        shmstore.Store(root).put("d", "x", "of another store")
    for thread in threads:
        with pytest.raises(shmstore.UnusableRoot, match="removed"):
            thread.result()


def test_close_ends_the_waits_of_a_store(store: shmstore.Store) -> None:
    """A store that is closed in another thread ends its waits, and nobody else's."""
    other = shmstore.Store(store.root)
    threads = [
        Waiting(store.wait, "d", "x"),
        Waiting(store.wait_many, "d", ["x", "y"]),
        Waiting(next, store.watch("d")),
    ]
    bystander = Waiting(other.wait, "d", "x")
    until_asleep(count=4)
    store.close()
    for thread in threads:
        with pytest.raises(shmstore.StoreClosed):
            thread.result()
    other.put("d", "x", "still")
    assert bystander.result() == "still"


def test_close_rings(store: shmstore.Store, bells: None) -> None:
    """A wait does not sleep on until its next look when its store is closed."""
    thread = Waiting(store.wait, "d", "x")
    until_asleep()
    store.close()
    with pytest.raises(shmstore.StoreClosed):
        thread.result()


def test_an_interrupt_ends_a_wait(store: shmstore.Store, bells: None) -> None:
    """Ctrl-C ends a wait by itself: no bell rings and no look is due."""

    def waiter() -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            shmstore.Store(store.root).wait("d", "x")
        except KeyboardInterrupt:
            return "interrupted"
        return "not interrupted"

    with Child(waiter) as child:
        until_asleep(child.pid)
        os.kill(child.pid, signal.SIGINT)
        assert child.receive() == "interrupted"


def test_a_handler_that_returns_does_not_end_a_wait(store: shmstore.Store, bells: None) -> None:
    """After a signal whose handler returns, the wait goes on, and its time with it."""

    def waiter(parent: Parent) -> Any:
        signal.signal(signal.SIGUSR1, lambda *_: parent.send("handled"))
        return shmstore.Store(store.root).wait("d", "x")

    with Child(waiter, Parent) as child:
        for _ in range(5):
            until_asleep(child.pid)
            os.kill(child.pid, signal.SIGUSR1)
            assert child.receive() == "handled"
        until_asleep(child.pid)
        store.put("d", "x", "at last")
        assert child.receive() == "at last"


def test_a_stopped_waiter_is_woken_when_it_goes_on(store: shmstore.Store, bells: None) -> None:
    """SIGSTOP in the middle of a wait loses nothing that was put meanwhile."""
    with Child(lambda: shmstore.Store(store.root).wait("d", "x")) as child:
        until_asleep(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        store.put("d", "x", 1)
        os.kill(child.pid, signal.SIGCONT)
        assert child.receive() == 1


# --- Forks ---------------------------------------------------------------------------


def test_a_fork_while_a_thread_waits(store: shmstore.Store, bells: None) -> None:
    """A fork is not held up by a waiting thread; the child waits itself, with the same store."""
    thread = Waiting(store.wait, "d", "x")
    until_asleep()
    with Child(lambda: store.wait("d", "x")) as child:
        until_asleep(child.pid)
        assert asleep() == 1
        store.put("d", "x", "for both")
        assert child.receive() == "for both"
        assert thread.result() == "for both"


@pytest.fixture
def hook() -> Iterator[Callable[[Callable[[str], None] | None], None]]:
    """Sets the crash points' hook, and unsets it afterwards."""

    def set_hook(function: Callable[[str], None] | None) -> None:
        crashpoints.hook = function

    yield set_hook
    crashpoints.hook = None


@pytest.mark.parametrize("point", ["commit:locked", "commit:tail", "commit:unlocked"])
def test_a_child_forked_by_a_handler_waits(
    store: shmstore.Store, bells: None, hook: Any, point: str
) -> None:
    """A child that was forked in the middle of a commit may wait before it leaves that."""
    store.put("d", "a", 1)
    reader, writer = os.pipe()
    pids = []

    def fork(name: str) -> None:
        if name != point:
            return
        crashpoints.hook = None
        pid = os.fork()
        if pid:
            pids.append(pid)
            return
        status = 1
        try:
            os.write(writer, pickle.dumps(store.wait("d", "x", DEADLINE_S)))
            status = 0
        finally:
            os._exit(status)

    hook(fork)
    store.put("d", "a", 2)
    try:
        (pid,) = pids
        until_asleep(pid)
        store.put("d", "x", "for the child")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pickle.loads(os.read(reader, 1000)) == "for the child"
    finally:
        os.close(reader)
        os.close(writer)
    reading_files.check(store.root)


def test_a_handler_inside_a_commit_does_not_wait_for_itself(
    store: shmstore.Store, bells: None, hook: Any
) -> None:
    """A wait that comes up inside a locked section is refused: it would wait for ever."""
    store.put("d", "a", 1)
    caught: list[BaseException] = []

    def wait_inside(name: str) -> None:
        if name == "commit:locked":
            crashpoints.hook = None
            assert store.wait("d", "a") == 1  # what is there needs no waiting
            for look in (
                lambda: store.wait("d", "x"),
                lambda: store.wait_many("d", ["x"]),
                lambda: next(store.watch("d")),
            ):
                try:
                    look()
                except shmstore.StoreError as error:
                    caught.append(error)

    hook(wait_inside)
    store.put("d", "a", 2)
    assert [type(error) for error in caught] == [shmstore.StoreBusy] * 3
    assert store.get("d", "a") == 2


# --- What it costs -------------------------------------------------------------------


def test_waiting_takes_no_processor_time(store: shmstore.Store) -> None:
    """A process that waits for two seconds, in three ways, hardly runs meanwhile."""

    def waiter(parent: Parent) -> float:
        mine = shmstore.Store(store.root)
        threads = [
            Waiting(mine.wait, "d", "x"),
            Waiting(mine.wait_many, "d", ["x", "y"]),
            Waiting(next, mine.watch("d")),
        ]
        until_asleep(count=3)
        before = resource.getrusage(resource.RUSAGE_SELF)
        parent.send("asleep")
        parent.receive()
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert all(thread.is_alive() for thread in threads)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with Child(waiter, Parent) as child:
        assert child.receive() == "asleep"
        assert child.silent(2.0)
        child.send("enough")
        spent_s = child.receive()
    assert spent_s < 0.05, f"{spent_s * 1000:.1f} ms of processor time in 2 s"


def test_a_put_that_nobody_waits_for_makes_no_call(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody ever waited a put does not even ask the time; later it does not wake."""
    rung: list[str] = []
    wake, futex = doorbell.wake, doorbell._call
    monkeypatch.setattr(doorbell, "wake", lambda m: (rung.append("asked"), wake(m)))
    monkeypatch.setattr(doorbell, "_call", lambda *args: (rung.append("woke"), futex(*args))[1])

    def puts() -> None:
        store.put("d", "x", 1)
        store.put("d", "x", 2)
        store.put("d", "y", large(1))
        store.put_many("d", {"x": 1, "z": 2})
        store.delete("d", "z")

    puts()
    assert rung == []
    # Somebody waited, and the deadline is over.
    manifest = store._dags.manifests["d"]
    manifest.control[11] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    puts()
    assert rung == ["asked"] * 5
    rung.clear()
    doorbell.listen(manifest)
    puts()
    assert rung == ["asked", "woke"] * 5


def test_500_waiters_at_once(store: shmstore.Store) -> None:
    """Fifty processes of ten waiting threads each all get what one put brings, and end."""

    def waiters(number: int) -> int:
        only_bells()
        mine = shmstore.Store(store.root)
        threads = [
            Waiting(mine.wait, "d", "all")
            if each % 2
            else Waiting(mine.wait_many, "d", ["all", f"{number}/{each}"])
            for each in range(10)
        ]
        return sum(
            found["all"] if isinstance(found, dict) else found
            for found in (thread.result() for thread in threads)
        )

    children = [Child(waiters, number) for number in range(50)]
    try:
        for child in children:
            until_asleep(child.pid, 10)
        store.put("d", "all", 1)
        for number in range(50):
            store.put_many("d", {f"{number}/{each}": number for each in range(0, 10, 2)})
        assert [child.receive(90) for child in children] == [10] * 50
        assert [child.join() for child in children] == [0] * 50
    finally:
        for child in children:
            child.kill()
    reading_files.check(store.root)


def test_the_deadline_is_only_ever_raised(store: shmstore.Store) -> None:
    """A waiter leaves a deadline some seconds ahead, renews it in time, and never lowers it."""
    store.put("d", "a", 1)
    manifest = store._dags.manifests["d"]

    def now() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    began = now()
    doorbell.listen(manifest)
    left = deadline_of(store)
    assert began + doorbell.AHEAD_NS <= left <= now() + doorbell.AHEAD_NS
    # Far enough ahead still: left alone, as each store costs every committer a cache miss.
    doorbell.listen(manifest)
    assert deadline_of(store) == left
    # Too near: raised, in time for the longest sleep.
    manifest.control[11] = now() + int(doorbell.LONGEST_S * 1e9)
    doorbell.listen(manifest)
    assert deadline_of(store) > left
    manifest.control[11] = 1 << 63
    doorbell.listen(manifest)
    assert deadline_of(store) == 1 << 63


# --- Where there is no futex ---------------------------------------------------------


@pytest.mark.parametrize("why", ["machine", "ctypes", "kernel"])
def test_without_a_futex_a_waiter_naps(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """On an unknown machine, without ctypes, or where the kernel refuses, waits end, too."""
    monkeypatch.setattr(doorbell, "_futex", None)
    if why == "machine":
        monkeypatch.setattr(doorbell, "FUTEX", {})
    elif why == "ctypes":
        monkeypatch.setitem(__import__("sys").modules, "ctypes", None)
    else:
        # A system call that no kernel knows.
        monkeypatch.setattr(doorbell, "FUTEX", {os.uname().machine: 100_000})
    looked = threading.Event()
    monkeypatch.setattr(
        doorbell.time, "sleep", lambda s, sleep=time.sleep: (looked.set(), sleep(s))[1]
    )
    thread = Waiting(store.wait, "d", "x")
    assert looked.wait(DEADLINE_S)
    assert thread.is_alive()
    store.put("d", "x", "all the same")
    assert thread.result() == "all the same"
    with pytest.raises(shmstore.WaitTimeout):
        store.wait("d", "y", 0.02)


def test_a_position_and_a_timeout_can_be_pickled() -> None:
    """What goes between processes: where a watch was, and that a wait was in vain."""
    position = waiting.Position(1 << 127, 5)
    assert pickle.loads(pickle.dumps(position)) == position
    assert shmstore.Position is waiting.Position


def test_a_clear_between_the_look_and_the_sleep(
    store: shmstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear that rings just before a waiter falls asleep does not let it sleep on."""
    monkeypatch.setattr(doorbell, "LONGEST_S", 3600.0)
    monkeypatch.setattr(doorbell, "AHEAD_NS", 7200 * 10**9)
    store.put("d", "y", 1)
    wait = doorbell.wait
    cleared: list[bool] = []

    def late(*args: Any) -> None:
        if not cleared:
            cleared.append(store.clear("d").cleared)
        wait(*args)

    monkeypatch.setattr(doorbell, "wait", late)
    waiting = Waiting(store.wait, "d", "x", 20)
    until_asleep()
    store.put("d", "x", "of the successor")
    waiting.join(8)
    assert not waiting.is_alive(), "sleeps on"
    assert waiting.result() == "of the successor"
