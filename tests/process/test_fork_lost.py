"""A child forked in the middle of a change, which goes on long after: it takes nothing along."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, files, pool, record
from shmstore.descriptor import Descriptor
from tests import reading_files
from tests.fault.killing import DEADLINE_S, kill_at
from tests.fault.scenarios import set_word
from tests.process.errands import large

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@contextmanager
def forked_at(point: str, change: Callable[[], Any]) -> Iterator[Callable[[], str]]:
    """Makes a change; at a crash point of it a child is forked that stands still there.

    Yields:
        Lets the child go on, waits for its end, and gives what it was told.
    """
    go_on, let_go = os.pipe()
    told, tell = os.pipe()
    parent = os.getpid()
    pids: list[int] = []

    def fork(name: str) -> None:
        if name == point and not pids:
            pids.append(os.fork())
            if not pids[0]:
                crashpoints.hook = None
                signal.alarm(int(DEADLINE_S))  # should the parent fail
                os.close(let_go)
                os.read(go_on, 1)

    def go() -> str:
        os.write(let_go, b"!")
        os.waitpid(pids.pop(), 0)
        return os.read(told, 999).decode()

    crashpoints.hook = fork
    outcome = "done"
    try:
        change()
    except BaseException as error:
        outcome = repr(error)
        if os.getpid() == parent:
            raise
    finally:
        crashpoints.hook = None
        if os.getpid() != parent:
            os.write(tell, outcome.encode())
            os._exit(0)
    assert pids, f"{point} was not reached"
    try:
        yield go
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (go_on, let_go, told, tell):
            os.close(fd)


def test_a_child_that_redoes_late_frees_no_newer_value(root: str) -> None:
    """What a child sees replaced, without the lock, may be the newest: it frees nothing."""
    dead = shmstore.Store(root)
    dead.put_many("d", {"a": large(1), "b": large(2)})
    kill_at("commit:tail", 1, dead.put_many, "d", {"a": large(3), "b": large(4)})
    store = shmstore.Store(root)
    with forked_at("redo:slot", lambda: store.put("d", "c", large(5))) as go:
        store.put("d", "b", large(6))
        told = go()
    assert "StoreBusy" in told
    assert np.array_equal(shmstore.Store(root).get("d", "b"), large(6))
    reading_files.check(root)


def clear(store: shmstore.Store) -> None:
    """Ends the DAG; another comes after it."""
    store.clear("d")


def lengthen(store: shmstore.Store) -> None:
    """Makes the log longer than whoever has it mapped knows, and the index anew."""
    store.put_many("d", {f"more/{number}": "x" * 9000 for number in range(300)})


CHANGES: dict[str, Callable[[shmstore.Store], Any]] = {
    "put": lambda store: store.put("d", "a", "old"),
    "put_many": lambda store: store.put_many("d", {"a": "old", "b": "old"}),
    "delete": lambda store: store.delete("d", "a"),
}


@pytest.mark.parametrize("meanwhile", [clear, lengthen])
@pytest.mark.parametrize("change", CHANGES)
def test_a_child_makes_no_change_of_its_parent_again(
    root: str, change: str, meanwhile: Callable[[shmstore.Store], None]
) -> None:
    """Whatever a child finds on coming back into a change, it is refused, and changes nothing."""
    store = shmstore.Store(root)
    store.put_many("d", {"a": "first", "b": "first"})
    with forked_at("commit:locked", lambda: CHANGES[change](store)) as go:
        meanwhile(store)
        store.put("d", "a", "new")
        told = go()
    assert "StoreBusy" in told
    other = shmstore.Store(root)
    assert other.get("d", "a") == "new"
    reading_files.check(root)


def test_a_child_forked_as_the_dag_is_opened_leaves_the_put_to_its_parent(root: str) -> None:
    """What a call was asked for in the parent is done once, wherever the fork fell."""
    store = shmstore.Store(root)
    store.put_many("d", {"a": 1, "b": 2})
    kill_at("commit:tail", 1, store.put_many, "d", {"a": 3, "b": 4})
    set_word(reading_files.read(root, "d").manifest, record.SWEPT, 0)
    store = shmstore.Store(root)
    with forked_at("redo:slot", lambda: store.put("d", "c", "old")) as go:
        store.put("d", "c", "new")
        told = go()
    assert "StoreBusy" in told
    assert shmstore.Store(root).get("d", "c") == "new"


def test_a_child_forked_as_room_is_made_leaves_the_put_to_its_parent(root: str) -> None:
    """The put that was short of room is made once, by the process that was asked for it."""
    store = shmstore.Store(root, capacity="4MiB", pool="4MiB")
    store.put("d", "spare", b"x" * (5 << 19))
    store.delete("d", "spare")
    several = {"a": b"a" * (1 << 20), "b": b"b" * (1 << 20)}
    with forked_at("pool:emptied", lambda: store.put_many("d", several)) as go:
        store.put("d", "a", "new")
        told = go()
    assert "StoreBusy" in told
    assert shmstore.Store(root).get("d", "a") == "new"
    reading_files.check(root)


def _viewed_when_its_value_died(store: shmstore.Store) -> None:
    """Leaves a segment in the trash that was viewed when its value died."""
    store.put("d", "a", large(1))
    view = store.get("d", "a")
    store.delete("d", "a")
    del view
    gc.collect()


def _emptied(store: shmstore.Store) -> None:
    """Leaves an emptied segment in the pool."""
    store.put("d", "a", large(1, 1 << 16))
    store.delete("d", "a")


def _cut_for_a_smaller_value(store: shmstore.Store) -> None:
    """Puts into an emptied segment, and reaches a point of its own when that has been cut."""
    cut = False

    def profile(frame: FrameType, event: str, what: object) -> None:
        nonlocal cut
        if event == "c_return" and cut and what is os.fstat:
            sys.setprofile(None)
            crashpoints.reach("cut")
        cut = cut or (event == "c_return" and what is os.ftruncate)

    sys.setprofile(profile)
    try:
        store.put("d", "b", large(2, 1 << 15))
    finally:
        sys.setprofile(None)


FREEING: dict[str, tuple[Callable[[shmstore.Store], None], str, Callable[[shmstore.Store], Any]]]
FREEING = {
    "trim": (_emptied, "pool:emptied", lambda store: pool.trim(store._dags.space, 0)),
    "gc": (_viewed_when_its_value_died, "pool:emptied", lambda store: store.gc()),
    "put": (_emptied, "cut", _cut_for_a_smaller_value),
}


@pytest.mark.parametrize("way", FREEING)
def test_a_child_gives_back_nothing_that_its_parent_frees(root: str, way: str) -> None:
    """What is freed as a child is forked is given back once: no account is ever too low."""
    prepare, point, free = FREEING[way]
    store = shmstore.Store(root, capacity="8 MiB")
    prepare(store)
    store._dags.space.ledger.recount()
    with forked_at(point, lambda: free(store)) as go:
        told = go()
    assert "StoreBusy" in told or way == "put"
    assert store._dags.space.ledger.missing() == 0
    assert store.check() == []


def test_a_child_leaves_the_account_alone_of_which_its_parent_has_the_lock(root: str) -> None:
    """What others have reserved since then stays reserved."""
    store = shmstore.Store(root, capacity="8 MiB")
    store.put("d", "a", 1)
    store = shmstore.Store(root)  # which has no note of reservations yet
    with forked_at("ledger:reserved", lambda: store.put("d", "b", large(1))) as go:
        before = reading_files.account(root).used
        told = go()
        assert reading_files.account(root).used == before
    assert "StoreBusy" in told


class _Forking(bytearray):
    """Bytes that fork when they are first measured, as a signal handler might just then."""

    fork: Callable[[], None] | None = None

    def __len__(self) -> int:
        fork, self.fork = self.fork, None
        if fork is not None:
            fork()
        return super().__len__()


def test_a_child_writes_no_payload_into_a_file_of_its_own(root: str) -> None:
    """The number of a file that a child closed may be another file's: that is not written."""
    file = Descriptor.open(root, os.O_TMPFILE | os.O_RDWR, inherit=False)
    pids: list[int] = []

    def fork() -> None:
        number = file.fd
        pids.append(os.fork())
        if not pids[0]:
            own = os.open(f"{root}/own", os.O_RDWR | os.O_CREAT)
            if own != number:
                os.dup2(own, number)

    payload = _Forking(b"x" * 100)
    payload.fork = fork
    parent = os.getpid()
    try:
        assert files.write_all(file, [payload]) == 100
    finally:
        if os.getpid() != parent:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 4
    assert os.path.getsize(f"{root}/own") == 0
