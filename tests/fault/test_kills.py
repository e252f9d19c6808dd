"""A process may be killed at every step of every operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lock
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at, recorded
from tests.fault.scenarios import BYSTANDER, KILLS, SCENARIOS, WORK, Scenario, begin, large

_BYSTANDERS = {"inline": {"is": "here"}, "segment": large(99)}


def _prepared(root: str, scenario: Scenario) -> dict[str, Any]:
    values = begin(root)
    if scenario.prepare is not None:
        scenario.prepare(root, values)
    return {id: value for id, value in values.items() if value is not None}


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _assert_has(store: shmstore.Store, dag_id: str, values: dict[str, Any]) -> None:
    """The DAG has these values, whichever way one asks, and no others."""
    for id, value in values.items():
        assert _same(store.get(dag_id, id), value), f"{id} is wrong"
        assert store.has_value(dag_id, id)
    for id in ("new", "never", "large-0", "second-0", "second-9"):
        if id not in values:
            with pytest.raises(shmstore.NotFound):
                store.get(dag_id, id)
    assert set(store.ids(dag_id)) == set(values)
    assert store.count(dag_id) == len(values)


def _goes_on(store: shmstore.Store, dag_id: str, values: dict[str, Any], who: str) -> None:
    """Writing works as if nothing had happened; leaves the DAG's values as they were."""
    mine = {f"{who}-small": who, f"{who}-large": large(11)}
    store.put_many(dag_id, mine)
    store.put(dag_id, f"{who}-large", large(12))
    assert _same(store.get(dag_id, f"{who}-large"), large(12))
    _assert_has(store, dag_id, {**values, **mine, f"{who}-large": large(12)})
    store.delete_many(dag_id, mine)
    _assert_has(store, dag_id, values)
    _assert_has(store, BYSTANDER, _BYSTANDERS)


def _witness(
    parent: Parent, root: str, dag_id: str, before: dict[str, Any], unviewed: tuple[str, ...]
) -> None:
    """A process from before the kill, holding a view of everything else."""
    lock.TIMEOUT_S = 5.0
    store = shmstore.Store(root)
    views = store.get_many(dag_id, [id for id in before if id not in unviewed])
    store.get_many(BYSTANDER, _BYSTANDERS)
    parent.send("has its views")
    after = parent.receive()
    _assert_has(store, dag_id, after)
    parent.send("has looked")
    parent.receive()
    _goes_on(store, dag_id, after, "witness")
    parent.send("has written")
    parent.receive()
    for id, view in views.items():
        assert _same(view, before[id]), f"the view of {id} has changed"
    _assert_has(store, dag_id, {"anew": 1})


def _look(root: str, dag_id: str, after: dict[str, Any]) -> None:
    lock.TIMEOUT_S = 5.0
    _assert_has(shmstore.Store(root), dag_id, after)


def _go_on(root: str, dag_id: str, after: dict[str, Any]) -> None:
    lock.TIMEOUT_S = 5.0
    _goes_on(shmstore.Store(root), dag_id, after, "fresh")


def _clear(root: str, dag_id: str) -> None:
    store = shmstore.Store(root)
    assert store.clear(dag_id).cleared
    _assert_has(store, dag_id, {})
    store.put(dag_id, "anew", 1)


@pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(n, s, id=f"{n}-{s}-{SCENARIOS[n].steps[s]}") for n, s in KILLS],
)
def test_a_kill_loses_nothing_and_stops_nobody(root: str, name: str, step: int) -> None:
    """After a SIGKILL at any step all others find the values whole and go on writing."""
    scenario = SCENARIOS[name]
    dag_id = scenario.dag_id
    before = call(_prepared, root, scenario)
    point = scenario.steps[step]
    occurrence = scenario.steps[: step + 1].count(point)
    after = scenario.values_after(before) if step >= scenario.commits_at else before

    with Child(_witness, Parent, root, dag_id, before, scenario.unviewed) as witness:
        assert witness.receive() == "has its views"
        if scenario.just_before is not None:
            scenario.just_before(root)
        kill_at(point, occurrence, lambda: scenario.act(shmstore.Store(root)))
        witness.send(after)
        assert witness.receive() == "has looked"
        call(_look, root, dag_id, after)
        witness.send()
        assert witness.receive() == "has written"
        files = reading_files.check(root, orphans=scenario.orphans)[dag_id]
        assert set(files.records) == set(after)
        assert len(files.leftovers) <= 2, f"more than one log and one index: {files.leftovers}"
        call(_go_on, root, dag_id, after)
        reading_files.check(root, orphans=scenario.orphans)
        call(_clear, root, dag_id)
        witness.send()
        witness.receive()
        assert witness.join() == 0
    reading_files.check(root)
    assert len(reading_files.half_done(root)) <= 1, (
        "what a killed creator was building, and no more"
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_through_the_steps_it_names(root: str, name: str) -> None:
    """Each operation reaches exactly the crash points at which its victims are killed."""
    scenario = SCENARIOS[name]
    before = call(_prepared, root, scenario)
    if scenario.just_before is not None:
        scenario.just_before(root)

    def act() -> list[str]:
        with recorded() as reached:
            scenario.act(shmstore.Store(root))
        return reached

    assert tuple(call(act)) == scenario.steps
    call(_look, root, scenario.dag_id, scenario.values_after(before))
    # What earlier victims left is theirs; an operation that ends leaves nothing.
    reading_files.check(root, orphans=scenario.orphans - 1 if scenario.prepare else 0)


@pytest.mark.parametrize("drift", [1, -1])
def test_a_slot_that_was_half_counted_is_counted_once(root: str, drift: int) -> None:
    """A writer killed between a slot and the count of slots leaves no wrong count."""
    begin(root)
    kill_at("commit:tail", 1, lambda: shmstore.Store(root).put(WORK, "new", 1))
    path = reading_files.read(root, WORK).index
    with path.open("r+b") as file:
        file.seek(64)
        used = int.from_bytes(file.read(8), "little")
        file.seek(64)
        file.write((used + drift).to_bytes(8, "little"))
    call(lambda: bool(shmstore.Store(root).put(WORK, "newer", 2)))
    reading_files.check(root)


def test_every_crash_point_has_its_kill() -> None:
    """No crash point exists at which no test kills a process, and none is unknown."""
    killed_at = {SCENARIOS[name].steps[step] for name, step in KILLS}
    assert killed_at == set(crashpoints.POINTS)
    assert len(crashpoints.POINTS) == len(set(crashpoints.POINTS))


def test_a_kill_test_notices_that_nobody_was_killed(root: str) -> None:
    """A victim that passes its crash point makes the kill tests fail, not succeed."""
    begin(root)
    with pytest.raises(AssertionError, match="not reached"):
        kill_at("grow:done", 1, lambda: shmstore.Store(root).put(WORK, "new", 1))
    with pytest.raises(AssertionError, match="no crash point"):
        kill_at("commit:invented", 1, lambda: None)
