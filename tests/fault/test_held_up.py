"""A writer stopped while it holds a lock: readers go on, writers are told by whom."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

import shmstore
from shmstore import crashpoints, lock
from tests import reading_files
from tests.fault.killing import Child
from tests.fault.scenarios import SCENARIOS, WORK, begin, large

_DEADLINE_S = 10.0

# Stopped outside of any lock, an operation holds up nobody.
_OUTSIDE = ("segment:", "create:", "commit:unlocked", "clear:freed")


def _stop_at_each(root: str, name: str) -> None:
    """Stops itself at every step of an operation."""
    store = shmstore.Store(root)
    crashpoints.hook = lambda _: os.kill(os.getpid(), signal.SIGSTOP)
    SCENARIOS[name].act(store)
    crashpoints.hook = None


def _looks(store: shmstore.Store, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Reads in every way; each value is the one from before, or the one from afterwards."""
    for id in {**before, **after, "never": None, "nor this": None}:
        got = store.get(WORK, id, default=None)
        assert any(_same(got, values.get(id)) for values in (before, after)), f"{id}: {got!r}"
        assert store.has_value(WORK, id) in (id in before, id in after)
    ids = set(store.ids(WORK))
    assert ids in (set(before), set(after))
    assert {entry.id for entry in store.entries(WORK)} in (set(before), set(after))
    assert store.count(WORK) in (len(before), len(after))
    assert (store.get("bystander", "segment") == large(99)).all()


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray) or isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


_STOPPED = [
    "put-new-large",
    "overwrite-large",
    "open-put-new",
    "delete-large",
    "put-many",
    "grow",
    "extend",
    "compact",
    "clear",
    "redo-half-slot",
]


@pytest.mark.parametrize("name", _STOPPED)
def test_a_writer_stopped_at_any_step_stops_no_reader(
    root: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gets, misses, ids, entries and counts answer without the lock, whoever holds it."""
    scenario = SCENARIOS[name]
    before = begin(root)
    if scenario.prepare is not None:
        scenario.prepare(root, before)
    before = {id: value for id, value in before.items() if value is not None}
    after = scenario.values_after(before)
    warm = shmstore.Store(root)
    _looks(warm, before, before)
    # Whoever wants the lock is refused at once: a reader that did would fail.
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.0)
    with Child(_stop_at_each, root, name) as stopped:
        for point in scenario.steps:
            _, status = os.waitpid(stopped.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"{point}: {status}"
            for reader in (warm, shmstore.Store(root)):
                _looks(reader, before, after)
            if not point.startswith(_OUTSIDE) and point.startswith("commit:"):
                with pytest.raises(shmstore.StoreBusy, match=f"process {stopped.pid}"):
                    warm.put(WORK, "mine", 1)
            warm.put("beside", "mine", point)
            os.kill(stopped.pid, signal.SIGCONT)
        stopped.receive()
        assert stopped.join() == 0
    _looks(warm, after, after)
    warm.put(WORK, "mine", 1)
    reading_files.check(root, orphans=scenario.orphans)


def _timed(call: Callable[[], Any]) -> float:
    start = time.monotonic()
    with pytest.raises(shmstore.StoreBusy):
        call()
    return time.monotonic() - start


def _stop_clearing(root: str, point: str) -> None:
    store = shmstore.Store(root)

    def stop(name: str) -> None:
        if name == point:
            crashpoints.hook = None
            os.kill(os.getpid(), signal.SIGSTOP)

    crashpoints.hook = stop
    store.clear(WORK)


@pytest.mark.parametrize("point", ["clear:locked", "clear:marked", "clear:renamed"])
def test_a_stopped_clear_holds_up_no_one_for_ever(
    root: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clears, and puts that need the lifecycle lock, are refused by name; the rest goes on."""
    begin(root)
    store = shmstore.Store(root)
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.2)
    with Child(_stop_clearing, root, point) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        calls = [lambda: store.clear("bystander")]
        if point != "clear:renamed":  # else nothing is there to be cleared
            calls.append(lambda: store.clear(WORK))
        for call in calls:
            with pytest.raises(shmstore.StoreBusy, match=f"process {stopped.pid}"):
                call()
        # Other DAGs are written and made as ever.
        store.put("another", "a", 1)
        assert store.get("another", "a") == 1
        if point == "clear:renamed":
            store.put(WORK, "anew", 1)
            assert list(store.ids(WORK)) == ["anew"]
        elif point == "clear:marked":
            assert list(store.ids(WORK)) == []
            assert 0.2 <= _timed(lambda: store.put(WORK, "anew", 1)) < _DEADLINE_S
        else:
            assert "small-1" in set(store.ids(WORK))
            assert 0.2 <= _timed(lambda: store.put(WORK, "anew", 1)) < _DEADLINE_S
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.receive()
        assert stopped.join() == 0
    store.put(WORK, "anew", 2)
    assert dict(store.dag(WORK)) == {"anew": 2}
    assert store.clear(WORK).cleared
    reading_files.check(root)


def _stop_at(root: str, point: str, act: Callable[[shmstore.Store], Any], **options: Any) -> None:
    store = shmstore.Store(root, **options)

    def stop(name: str) -> None:
        if name == point:
            crashpoints.hook = None
            os.kill(os.getpid(), signal.SIGSTOP)

    crashpoints.hook = stop
    act(store)


def test_a_miss_beside_a_slot_being_written_waits_for_nobody(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that would come to lie where a stopped writer is at work is known to be absent."""
    begin(root)
    files = reading_files.read(root, WORK)
    homes = files.limit * 3 // 2 + 1
    homes = 1 << (homes - 1).bit_length()
    where = xxh3_64_intdigest(b"new") % homes
    crowd = [
        f"c-{n}" for n in range(60_000) if xxh3_64_intdigest(f"c-{n}".encode()) % homes == where
    ]
    assert len(crowd) > 50
    store = shmstore.Store(root)
    store.get(WORK, "small-1")
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.0)
    with Child(_stop_at, root, "commit:slot-hash", lambda one: one.put(WORK, "new", 1)) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for id in crowd:
            assert not store.has_value(WORK, id)
            assert store.get(WORK, id, default=None) is None
        assert store.get(WORK, "new") == 1
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.receive()
        assert stopped.join() == 0


def test_a_writer_stopped_in_the_account(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while it keeps the account of a capacity: large puts are refused, gets go on."""
    store = shmstore.Store(root, capacity="64MiB")
    store.put("dag", "large", large(1))
    store.put("dag", "small", 1)
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.2)

    def put(one: shmstore.Store) -> None:
        one.put("dag", "other", large(2))

    with Child(_stop_at, root, "ledger:reserved", put) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with pytest.raises(shmstore.StoreBusy, match=f"account.*process {stopped.pid}"):
            store.put("dag", "mine", large(3))
        assert (store.get("dag", "large") == large(1)).all()
        assert sorted(store.ids("dag")) == ["large", "small"]
        store.put("dag", "small", 2)
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.receive()
        assert stopped.join() == 0
    store.put("dag", "mine", large(3))
    assert sorted(store.ids("dag")) == ["large", "mine", "other", "small"]
    reading_files.check(root)
