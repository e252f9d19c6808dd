"""The torture runner finds nothing in the store, and finds each mechanism that is broken."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import crashpoints, index, lock, recovery
from shmstore.record import COUNTER, INDEXED, TAIL
from tests.fault.killing import Child
from tools import torture, torture_steps
from tools import torture_evidence as evidence

_CHECKOUT = Path(__file__).parents[2]
_TIMEOUT_S = 100.0


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/torture.py", *options],
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )


def test_it_runs_from_a_checkout_and_leaves_nothing(root: str) -> None:
    """A short run kills, judges what was read, says that all is well and cleans up."""
    done = _run("--seconds", "60", "--kills", "60", "--seed", "11", "--root", root, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.partition("\n")[2])
    assert sum(told["kills"].values()) >= 60
    assert set(told["kills"]) <= {*crashpoints.POINTS, "at random"}
    assert told["seed"] == 11
    assert told["looks"] > 0 < told["values"]
    assert told["views"] > 0
    assert not told["faults"]
    assert os.listdir(root) == []


def test_an_interrupted_run_ends_its_processes_and_leaves_nothing(root: str) -> None:
    """SIGTERM in the middle ends every process that the run has started."""
    running = subprocess.Popen(
        [sys.executable, "tools/torture.py", "--seconds", "60", "--seed", "1", "--root", root],
        cwd=_CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert "seed 1" in running.stdout.readline()
        while not list(Path(root).glob("*/default/dags/own-*")):
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(_TIMEOUT_S) == 130
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()
    assert os.listdir(root) == []


def test_every_crash_point_has_what_leads_to_it() -> None:
    """No crash point is left to chance: each has a step that its victims begin with."""
    assert [point for point in crashpoints.POINTS if not torture_steps.leading_to(point)] == []


def test_a_value_that_cannot_be_read_is_told_with_the_state_of_its_files(root: str) -> None:
    """What is found at the moment of a fault tells a value that was lost from a false alarm."""
    store = shmstore.Store(root)
    location = store.put("d", "lost", b"x" * 50_000).location
    os.unlink(f"{root}/default/dags/d/{location}")
    with pytest.raises(shmstore.CorruptValue, match=location) as raised:
        store.get("d", "lost")
    told = evidence.told(raised.value, store)
    assert f"50000 bytes in {location}" in told
    assert f"{location!r}" not in told, "the directory's names"
    assert "with 2 links" in told


# --- What is broken on purpose -----------------------------------------------------


def _drop_puts() -> None:
    """One put in fifty is acknowledged and never done."""
    put, turn = shmstore.Store.put, iter(range(10**9))

    def dropping(self: shmstore.Store, dag_id: str, id: str, value: Any, **options: Any) -> Any:
        if next(turn) % 50 == 49 and self.has_value(dag_id, id):
            return self.entry(dag_id, id)
        return put(self, dag_id, id, value, **options)

    shmstore.Store.put = dropping  # type: ignore[method-assign]


def _put_one_by_one() -> None:
    """put_many is several commits."""

    def one_by_one(self: shmstore.Store, dag_id: str, values: dict[str, Any]) -> Any:
        return [self.put(dag_id, id, value) for id, value in values.items()]

    shmstore.Store.put_many = one_by_one  # type: ignore[method-assign, assignment]


class _Deaf:
    """Slots that take no new value for one key in eight."""

    def __init__(self, slots: memoryview) -> None:
        self._slots = slots

    def __getitem__(self, at: int) -> int:
        return int(self._slots[at])

    def __setitem__(self, at: int, value: int) -> None:
        if not at & 1 or self._slots[at - 1] % 8:
            self._slots[at] = value

    def __array__(self, *options: Any, **more: Any) -> Any:
        import numpy as np

        return np.array(self._slots)


def _skip_the_index() -> None:
    """What was committed does not get into the index."""
    begin = index.Index.__init__

    def deaf(self: index.Index, *arguments: Any) -> None:
        begin(self, *arguments)
        self.slots = _Deaf(self.slots)  # type: ignore[assignment]

    index.Index.__init__ = deaf  # type: ignore[method-assign]


def _skip_the_redo() -> None:
    """What a dead writer left is taken for done."""

    def skip(manifest: Any, view: Any, freed: list[int]) -> Any:
        crashpoints.reach("redo:begin")
        view.log.words[INDEXED] = view.log.words[TAIL]
        manifest.control[COUNTER] += 1
        crashpoints.reach("redo:done")
        return view

    recovery._redo = skip


def _share_the_lock() -> None:
    """Several writers are in the commit at once."""
    lock._TAKE = fcntl.LOCK_SH | fcntl.LOCK_NB


def _tear_values() -> None:
    """A get gives the first half of a value twice."""
    get = shmstore.Store.get

    def tearing(self: shmstore.Store, *place: str, **options: Any) -> Any:
        value = get(self, *place, **options)
        return value[: len(value) // 2] * 2 if isinstance(value, bytes) else value

    shmstore.Store.get = tearing  # type: ignore[method-assign, assignment]


def _remember_old_values() -> None:
    """A get may give what it gave a while ago."""
    get, before = shmstore.Store.get, dict[Any, Any]()

    def remembering(self: shmstore.Store, *place: str, **options: Any) -> Any:
        if options.get("mode", "read") != "read":
            return get(self, *place, **options)
        if len(before) > 20:
            before.clear()
        if place not in before:
            before[place] = get(self, *place, **options)
        return before[place]

    shmstore.Store.get = remembering  # type: ignore[method-assign, assignment]


def _die_with_a_traceback() -> None:
    """A delete fails in a way that it must not."""

    def failing(self: shmstore.Store, dag_id: str, id: str) -> None:
        raise RuntimeError("from the depths")

    shmstore.Store.delete = failing  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("mechanism", "complaint"),
    [
        (_drop_puts, "which was replaced before"),
        (_put_one_by_one, "put_many"),
        (_skip_the_index, ""),
        (_skip_the_redo, ""),
        (_share_the_lock, ""),
        (_tear_values, "half a value"),
        (_remember_old_values, "which was replaced before"),
        (_die_with_a_traceback, "from the depths"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[1:],
)
def test_a_broken_mechanism_is_found(
    root: str, mechanism: Callable[[], None], complaint: str
) -> None:
    """With one mechanism of the store broken, the run fails, and says with which seed."""

    def run() -> tuple[int, str]:
        mechanism()
        with contextlib.redirect_stdout(io.StringIO()) as told:
            status = torture.main(["--seconds", "80", "--seed", "5", "--root", root])
        return status, told.getvalue()

    with Child(run) as child:
        status, told = child.receive(_TIMEOUT_S)
    assert status == 1, told
    assert complaint in told
    assert "--seed 5" in told
    (kept,) = os.listdir(root)
    assert (Path(root) / kept / "default" / "control").exists(), "for a post-mortem"
    shutil.rmtree(Path(root) / kept)
