"""What killed processes left is freed by gc, and nothing else ever is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import check, lock
from tests import reading_files
from tests.fault.killing import call, kill_at
from tests.fault.scenarios import KILLS, SCENARIOS, Scenario, begin


def footprint(root: str) -> int:
    """The bytes that a namespace's files take, those that have names."""
    return sum(
        Path(place, name).lstat().st_blocks * 512
        for place, _, names in os.walk(root)
        for name in names
    )


def needed(root: str) -> int:
    """The bytes that its live values need: control pages, logs, indexes and segments."""
    total = (Path(root) / "default" / "control").stat().st_blocks * 512
    for dag in reading_files.read_namespace(root).values():
        segments = [dag.path / str(one.segment) for one in dag.records.values() if one.segment]
        total += sum(
            path.stat().st_blocks * 512 for path in (dag.manifest, dag.log, dag.index, *segments)
        )
    return total


def only_what_is_needed(root: str) -> None:
    """No orphan, no leftover, no gap, nothing in the trash: by the files themselves."""
    for dag in reading_files.check(root).values():
        assert dag.leftovers == set(), dag.dag_id
        assert dag.indexed == dag.tail, dag.dag_id
        assert dag.state == reading_files.LIVE, dag.dag_id
    assert reading_files.trash(root) == []
    assert footprint(root) == needed(root)


def _victim(root: str, scenario: Scenario, point: str, occurrence: int) -> dict[str, Any]:
    values = begin(root)
    if scenario.prepare is not None:
        scenario.prepare(root, values)
    if scenario.just_before is not None:
        scenario.just_before(root)
    kill_at(point, occurrence, lambda: scenario.act(shmstore.Store(root)))
    return {id: value for id, value in values.items() if value is not None}


def _gc(root: str) -> tuple[shmstore.GcReport, shmstore.GcReport, shmstore.GcReport]:
    lock.TIMEOUT_S = 5.0
    store = shmstore.Store(root)
    reports = store.gc(dry_run=True), store.gc(), store.gc()
    assert store.check() == []
    return reports


#: What a killed process may leave; all of it is derived or garbage.
_LEFT = {"gap", "index", "orphan", "leftover", "trash", "abandoned", "cleared"}


def _check_and_fix(root: str) -> None:
    lock.TIMEOUT_S = 5.0
    check.PATIENCE_S = 0.0  # nobody else is at work
    store = shmstore.Store(root)
    found = store.check()
    assert {one.kind for one in found} <= _LEFT
    fixed = store.check(fix=True)
    assert [one.kind for one in fixed] == [one.kind for one in found]
    assert all(one.fixed for one in fixed), fixed
    assert store.check() == []


@pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(n, s, id=f"{n}-{s}-{SCENARIOS[n].steps[s]}") for n, s in KILLS],
)
def test_after_a_kill_gc_leaves_what_live_values_need(root: str, name: str, step: int) -> None:
    """Wherever a process is killed, the next gc frees what it left, all of it and no more.

    A check tells what it is, and repairs it as well.
    """
    scenario = SCENARIOS[name]
    point = scenario.steps[step]
    before = call(_victim, root, scenario, point, scenario.steps[: step + 1].count(point))
    twin = f"{root}/twin"
    shutil.copytree(f"{root}/default", f"{twin}/default")
    call(_check_and_fix, twin)
    only_what_is_needed(twin)
    shutil.rmtree(twin)
    took = footprint(root)
    would, did, again = call(_gc, root)
    only_what_is_needed(root)
    assert not did.failed
    # What a dead writer has not finished is redone by gc, never by a dry run.
    assert [(a.kind, a.name) for a in would.actions] == [(a.kind, a.name) for a in did.actions]
    assert would.freed_bytes == did.freed_bytes
    grown = footprint(root) + did.freed_bytes - took
    assert grown >= 0, "more was freed than was said"
    assert again.actions == ()
    after = scenario.values_after(before) if step >= scenario.commits_at else before
    if name == "gc-expired":
        after = {}  # if its victim had not come to that
    dags = reading_files.read_namespace(root)
    found = dags[scenario.dag_id].records if scenario.dag_id in dags else {}
    assert set(found) == set(after)
