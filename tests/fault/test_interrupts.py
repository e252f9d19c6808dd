"""Signals, finalizers and interrupts in the middle of a change."""

from __future__ import annotations

import dis
import fcntl
import gc
import os
import random
import signal
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lookup, reading, relief
from tests import reading_files
from tests.fault.killing import call

_FILES = tuple(
    f"/shmstore/{name}.py"
    for name in ("lock", "commit", "recovery", "view", "segment", "descriptor", "files", "log")
)
_MEMORY_FILES = tuple(
    f"/shmstore/{name}.py"
    for name in (
        *("commit", "descriptor", "files", "ledger", "pool", "relief", "retired"),
        *("segment", "spill", "warm", "writing"),
    )
)
# Where the interpreter looks for signals: after a call into C, at a jump back, at a
# function's start. Not when a Python function returns.
_LOOKS = ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME")


class _Interrupt:
    """Raises KeyboardInterrupt at the n-th place where a signal could be handled.

    An interrupt after a call belongs to the call, one that is raised here to the next
    instruction: where another handler covers that one, nothing is raised.
    """

    def __init__(self, at: int, files: tuple[str, ...] = _FILES) -> None:
        self.left = at
        self.files = files
        self.where = ""
        self._before: dict[FrameType, int | None] = {}
        self._names: dict[CodeType, dict[int, str]] = {}
        self._handlers: dict[CodeType, dict[int, int]] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call" and frame.f_back is not None:
            self._before[frame.f_back] = None
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._count(frame, "its start")
        if event == "opcode":
            self._opcode(frame)
        return self

    def forget(self) -> None:
        """Lets go of the frames, and of what is open in them."""
        self._before.clear()

    def _opcode(self, frame: FrameType) -> None:
        code, now = frame.f_code, frame.f_lasti
        if code not in self._names:
            self._names[code] = {one.offset: one.opname for one in dis.get_instructions(code)}
            self._handlers[code] = {
                offset: entry.target
                for entry in dis._parse_exception_table(code)  # type: ignore[attr-defined]
                for offset in range(entry.start, entry.end, 2)
            }
        before = self._before.get(frame)
        self._before[frame] = now
        handlers = self._handlers[code]
        if before is None or self._names[code][before] not in _LOOKS:
            return
        if handlers.get(before) != handlers.get(now):
            return
        self._count(frame, self._names[code][before])

    def _count(self, frame: FrameType, place: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}, {place}"
            raise KeyboardInterrupt


def _is_free(path: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _interrupt_everywhere(root: str, large: bool) -> int:
    store = shmstore.Store(root)
    store.put("dag", "a", 0)
    path = str(reading_files.read(root, "dag").path / "lock")
    acknowledged: Any = 0
    for at in range(1, 2000):
        value = np.full(5000, at) if large else at
        interrupt = _Interrupt(at)
        sys.settrace(interrupt)
        try:
            store.put("dag", "a", value)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        assert _is_free(path), f"the lock is held after interrupt {at}: {interrupt.where}"
        got = store.get("dag", "a")
        allowed = (acknowledged, value) if interrupted else (value,)
        assert any(np.array_equal(got, one) for one in allowed), f"interrupt {at}: {got}"
        store.put("dag", "b", at)
        acknowledged = got if isinstance(got, int) else np.array(got)
        if not interrupted:
            break
    else:
        raise AssertionError("no put came through")
    reading_files.check(root, orphans=at)
    store.put("dag", "a", 1)
    return at


@pytest.mark.parametrize("large", [False, True])
def test_an_interrupt_at_any_place_leaves_no_lock(root: str, large: bool) -> None:
    """Wherever Ctrl-C comes in a put, the lock is free afterwards and the value old or new."""
    assert call(_interrupt_everywhere, root, large) > 8, "hardly any place was tried"
    assert call(lambda: shmstore.Store(root).put("dag", "c", 1)).id == "c"


def _interrupt_reuses(root: str, kib: int) -> set[str]:
    store = shmstore.Store(root, capacity="64 MiB", pool="4 MiB")
    store.put("dag", "a", np.full(kib * 128, 0))
    acknowledged = 0
    places = set()
    for at in range(1, 3000):
        store.gc()
        store.put("dag", "b", np.full(1 << 17, 0))
        store.delete("dag", "b")
        (pooled,) = reading_files.pool(root)
        interrupt = _Interrupt(at, _MEMORY_FILES)
        sys.settrace(interrupt)
        try:
            store.put("dag", "a", np.full(kib * 128, at))
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        interrupt.forget()
        places.add(interrupt.where.split(",")[0])
        for entry in os.scandir(f"{root}/default/pool"):
            assert _is_free(entry.path), f"a claim is held after {at}: {interrupt.where}"
        assert _is_free(f"{root}/default/ledger.lock"), f"interrupt {at}: {interrupt.where}"
        account = reading_files.account(root)
        assert account.allocated <= account.used, f"interrupt {at}: {interrupt.where}, {account}"
        got = store.get("dag", "a", mode="copy")
        assert (got == got[0]).all(), f"interrupt {at}: {interrupt.where}"
        assert got[0] in ((acknowledged, at) if interrupted else (at,))
        acknowledged = int(got[0])
        if not interrupted:
            break
    else:
        raise AssertionError("no put came through")
    assert pooled not in reading_files.pool(root), "it was not reused"
    store.gc()
    space = store._dags.space
    space.ledger.recount()
    account = reading_files.account(root)
    assert account.used == account.allocated
    reading_files.check(root)
    return places


@pytest.mark.parametrize("kib", [1024, 900, 1200])
def test_an_interrupt_at_any_place_of_a_reuse_leaves_no_claim(root: str, kib: int) -> None:
    """Wherever Ctrl-C comes, no segment stays claimed, the account holds, the value is whole."""
    places = call(_interrupt_reuses, root, kib, timeout_s=100.0)
    expected = {"claim", "_take", "_reuse", "name", "retire", "end"}
    expected |= {1024: {"fill"}, 900: {"give_back"}, 1200: {"_reserve", "settle"}}[kib]
    assert expected <= places


def _interrupt_moves(root: str) -> int:
    store = shmstore.Store(root, spill=f"{root}/disk")
    value = np.full(1 << 15, 7)
    for at in range(1, 3000):
        store.put("dag", "a", value)
        manifest = lookup.find_dag(store._dags.space, "dag")
        assert manifest is not None
        record = reading.find(manifest, b"a")
        assert record is not None
        interrupt = _Interrupt(at, _MEMORY_FILES)
        sys.settrace(interrupt)
        try:
            relief.spill_one(manifest, record)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        interrupt.forget()
        path = str(reading_files.read(root, "dag").path / "lock")
        assert _is_free(path), f"the lock is held after interrupt {at}: {interrupt.where}"
        got = store.get("dag", "a")
        assert np.array_equal(got, value), f"interrupt {at}: {interrupt.where}"
        moved = store.entry("dag", "a").location.startswith("spill-")
        assert moved or interrupted
        del got
        if not interrupted:
            break
        if at % 20 == 0:
            store.gc()
    else:
        raise AssertionError("nothing was moved")
    store.gc()
    reading_files.check(root)
    assert len(reading_files.spilled(root)) == 1
    return at


def test_an_interrupt_at_any_place_of_a_move_loses_nothing(root: str) -> None:
    """Wherever Ctrl-C comes, the value is in memory or on disk, and a sweep finds the rest."""
    assert call(_interrupt_moves, root, timeout_s=100.0) > 100, "hardly any place was tried"


def _interrupt_forks(root: str) -> int:
    store = shmstore.Store(root)
    store.put("dag", "a", 0)
    sys.unraisablehook = lambda _: None
    for at in range(1, 500):
        interrupt = _Interrupt(at)
        sys.settrace(interrupt)
        try:
            pid = os.fork()
        finally:
            sys.settrace(None)
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        putting = threading.Thread(target=store.put, args=("dag", "a", at))
        putting.start()
        putting.join()
        assert store.get("dag", "a") == at, f"interrupt {at} of a fork: {interrupt.where}"
        if interrupt.left > 0:
            return at
    raise AssertionError("no fork came through")


def test_an_interrupted_fork_stops_no_thread(root: str) -> None:
    """Python drops what is raised in a callback of a fork; other threads put on all the same."""
    assert call(_interrupt_forks, root) > 4, "hardly any place was tried"


def _real_signals(root: str) -> tuple[int, int]:
    store = shmstore.Store(root)
    store.put("dag", "a", 0)
    path = str(reading_files.read(root, "dag").path / "lock")

    # Another thread may take the signal late, when the put has long ended.
    armed: list[int] = []

    def stop(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    rng = random.Random(1)
    interrupted = passed = 0
    acknowledged = 0
    deadline = time.monotonic() + 8
    for n in range(1, 4001):
        try:
            try:
                armed.append(n)
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 120e-6))
                store.put("dag", "a", n)
                passed += 1
            finally:
                armed.clear()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert _is_free(path), f"the lock is held after attempt {n}"
        got = store.get("dag", "a")
        assert got in (acknowledged, n)
        acknowledged = got
        if time.monotonic() > deadline:
            break
    reading_files.check(root)
    return interrupted, passed


def test_real_signals_leave_no_lock(root: str) -> None:
    """Thousands of puts interrupted by a real signal at random never leave the lock held."""
    interrupted, _ = call(_real_signals, root)
    assert interrupted > 100, "hardly any put was interrupted"


_UNDER_LOCK = [
    "commit:locked",
    "commit:written",
    "commit:named",
    "commit:tail",
    "commit:slot-hash",
    "commit:slot",
    "commit:indexed",
    "commit:counted",
]


class _Finalized:
    """Calls the store while it is collected, as a careless ``__del__`` does."""

    def __init__(self, reenter: Any) -> None:
        self.reenter = reenter
        self.itself = self

    def __del__(self) -> None:
        self.reenter()


def _reentered(root: str, point: str, way: str) -> list[str]:
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    store.put("other", "a", 1)
    outcomes: list[str] = []

    def reenter(*_: object) -> None:
        for action in (
            lambda: store.put("dag", "a", "from within"),
            lambda: store.put("dag", "large", np.arange(9000)),
            lambda: store.put("other", "a", "from within"),
            lambda: store.delete("dag", "a"),
            lambda: store.clear("dag"),
        ):
            start = time.monotonic()
            try:
                action()
                outcomes.append("done")
            except shmstore.StoreBusy as busy:
                assert "this very thread" in str(busy)
                outcomes.append("busy")
            assert time.monotonic() - start < 1, "it waited for itself"
        assert store.get("dag", "a") == 1

    def hook(name: str) -> None:
        if name == point and not outcomes:
            if way == "signal":
                signal.raise_signal(signal.SIGUSR1)
            else:
                _Finalized(reenter)
                gc.collect()

    signal.signal(signal.SIGUSR1, reenter)
    crashpoints.hook = hook
    store.put("dag", "new", np.arange(9000))
    crashpoints.hook = None
    assert np.array_equal(store.get("dag", "new"), np.arange(9000))
    assert store.get("dag", "a") == store.get("other", "a") == 1
    store.put("dag", "a", 2)
    assert store.get("dag", "a") == 2
    reading_files.check(root)
    return outcomes


@pytest.mark.parametrize("way", ["signal", "finalizer"])
@pytest.mark.parametrize("point", _UNDER_LOCK)
def test_a_call_from_within_a_change_is_refused_at_once(root: str, point: str, way: str) -> None:
    """A signal handler or finalizer that calls the store inside a put gets StoreBusy at once."""
    assert call(_reentered, root, point, way) == ["busy"] * 5
