"""Ten seconds of everything at once, held against ledgers that the store knows nothing of."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.fault.killing import Child

PROCESSES = 4
SECONDS = 10.0
DAGS = ("one", "two", "three")
KEYS = 30


def value_of(owner: int, step: int, chance: random.Random) -> Any:
    """A value that tells its owner and step in every part, small or large."""
    kind = chance.random()
    if kind < 0.5:
        return {"owner": owner, "step": step}
    if kind < 0.75:
        return [owner, step, "x" * chance.randrange(12_000), owner, step]
    return np.full((chance.randrange(1500, 20_000), 2), (owner, step))


def origin_of(value: Any) -> tuple[int, int]:
    """Owner and step of a value, all parts of which must agree."""
    if isinstance(value, dict):
        return value["owner"], value["step"]
    if isinstance(value, list):
        assert value[:2] == value[3:]
        return value[0], value[1]
    assert (value == value[0]).all()
    return int(value[0, 0]), int(value[0, 1])


def soak(root: str, owner: int, seed: int) -> dict[tuple[str, str], int]:
    """Changes its own values, reads everybody's; returns the steps that must stand at the end."""
    chance = random.Random(seed * 1000 + owner)
    store = shmstore.Store(root)
    mine: dict[tuple[str, str], int] = {}
    seen: dict[tuple[str, str], int] = {}
    held: list[tuple[tuple[int, int], Any]] = []
    deadline = time.monotonic() + SECONDS
    step = 0
    while time.monotonic() < deadline:
        step += 1
        dag_id = chance.choice(DAGS)
        place = dag_id, f"{owner}/{chance.randrange(KEYS)}"
        what = chance.random()
        if what < 0.35:
            store.put(*place, value_of(owner, step, chance))
            mine[place] = step
        elif what < 0.45:
            keys = [f"{owner}/{n}" for n in range(chance.randrange(9))]
            new = {id: value_of(owner, step, chance) for id in keys}
            store.put_many(dag_id, new)
            mine.update({(dag_id, id): step for id in new})
        elif what < 0.55:
            if place in mine:
                store.delete(*place)
                del mine[place]
            else:
                with pytest.raises(shmstore.NotFound):
                    store.delete(*place)
        elif what < 0.6:
            with pytest.raises(shmstore.EntryExists) if place in mine else contextlib.nullcontext():
                store.put(*place, {"owner": owner, "step": step}, overwrite=False)
                mine[place] = step
        elif what < 0.75:
            got = store.get(*place, default=None)
            expected = mine.get(place)
            assert (got is None) if expected is None else origin_of(got) == (owner, expected)
        elif what < 0.95:
            other = chance.randrange(PROCESSES)
            theirs = dag_id, f"{other}/{chance.randrange(KEYS)}"
            got = store.get(*theirs, default=None)
            if got is not None:
                whose, when = origin_of(got)
                assert whose == other
                assert when >= seen.get(theirs, 0), "an older value came back"
                seen[theirs] = when
                if isinstance(got, np.ndarray):
                    held.append(((whose, when), got))
                    del held[:-50]
        elif what < 0.98:
            own = set(store.ids(dag_id, f"{owner}/"))
            assert own == {id for dag, id in mine if dag == dag_id}
            assert store.count(dag_id) >= len(own)
        elif what < 0.995:
            assert all(origin_of(view) == told for told, view in held)
        else:
            store.close()
            store = shmstore.Store(root)
    assert step > 100
    return mine


@pytest.mark.parametrize("seed", [20])
def test_soak(root: str, seed: int) -> None:
    """Four processes at random: every owner finds their own values, nobody half or older ones."""
    children = [Child(soak, root, owner, seed) for owner in range(PROCESSES)]
    try:
        ledgers = [child.receive(SECONDS + 60) for child in children]
    finally:
        for child in children:
            child.kill()
    expected = {
        place: (owner, step) for owner, mine in enumerate(ledgers) for place, step in mine.items()
    }
    store = shmstore.Store(root)
    assert {place: origin_of(store.get(*place)) for place in expected} == expected
    files = reading_files.check(root)
    assert {(dag.dag_id, id) for dag in files.values() for id in dag.records} == set(expected)
    for dag in files.values():
        assert store.count(dag.dag_id) == len(dag.records)
        assert dag.leftovers == set()
