"""DAGs that are kept for a time only: what counts as use, and when they go."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, namespace, record, upkeep
from tests import reading_files
from tests.fault.killing import Child, Parent
from tests.fault.scenarios import age, set_word


def _large(n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.full(3000, n)


def _word(root: str, dag_id: str, word: int) -> int:
    raw = reading_files.read(root, dag_id).manifest.read_bytes()
    return int.from_bytes(raw[word * 8 : word * 8 + 8], "little")


def _dag_ids(store: shmstore.Store) -> list[str]:
    return [dag.dag_id for dag in store.dags()]


def test_a_dag_goes_once_it_has_been_unused_for_its_time(root: str) -> None:
    """Neither before, nor without a time of its own; what is viewed stays as it is."""
    store = shmstore.Store(root)
    for dag_id in ("kept", "short", "long"):
        store.put(dag_id, "a", _large(5))
    store.set_ttl("short", 10)
    store.set_ttl("long", 1000)
    view = store.get("short", "a")
    for dag_id in ("kept", "short", "long"):
        age(root, dag_id, 9)
    assert store.gc().actions == ()
    for dag_id in ("kept", "short", "long"):
        age(root, dag_id, 11)
    (would,) = store.gc(dry_run=True).actions
    assert _dag_ids(store) == ["kept", "long", "short"]
    (action,) = store.gc().actions
    assert (action.kind, action.dag_id, action.nbytes) == ("expired", "short", would.nbytes)
    assert "kept for 10" in action.why
    assert _dag_ids(store) == ["kept", "long"]
    assert np.array_equal(view, _large(5))
    assert not store.has_value("short", "a")
    assert reading_files.trash(root) == []


def test_a_time_to_live_can_be_taken_back(root: str) -> None:
    """None or 0 keeps a DAG for ever, and a cleared DAG begins without a time to live."""
    store = shmstore.Store(root)
    for forever in (None, 0):
        store.put("dag", "a", 1)
        store.set_ttl("dag", 1)
        store.set_ttl("dag", forever)
        age(root, "dag", 20)
        assert store.gc().actions == ()
    store.set_ttl("dag", 1)
    store.clear("dag")
    store.put("dag", "a", 1)
    age(root, "dag", 20)
    assert store.gc().actions == ()


def test_a_time_to_live_may_come_before_the_first_value(root: str) -> None:
    """An unknown DAG is created, and its time counts from then."""
    store = shmstore.Store(root)
    store.set_ttl("new", 2.2)
    assert _word(root, "new", record.TTL) == 3, "seconds are rounded up"
    assert _dag_ids(store) == ["new"]
    age(root, "new", 4)
    assert [one.kind for one in store.gc().actions] == ["expired"]


@pytest.mark.parametrize("seconds", ["5", b"5", True, [5], 5j])
def test_seconds_that_are_no_number(root: str, seconds: object) -> None:
    """What is no number of seconds is a TypeError, and nothing is created."""
    store = shmstore.Store(root)
    with pytest.raises(TypeError):
        store.set_ttl("dag", seconds)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.gc(older_than=seconds)  # type: ignore[arg-type]
    assert _dag_ids(store) == []


@pytest.mark.parametrize("seconds", [-1, -0.5, float("nan"), float("inf"), 1 << 60])
def test_seconds_that_cannot_be(root: str, seconds: float) -> None:
    """Times that cannot be are a ValueError, and nothing is created."""
    store = shmstore.Store(root)
    with pytest.raises(ValueError, match="seconds"):
        store.set_ttl("dag", seconds)
    with pytest.raises(ValueError, match="seconds"):
        store.gc(older_than=seconds)
    assert _dag_ids(store) == []


def test_older_than_is_for_dags_without_a_time_of_their_own(root: str) -> None:
    """``gc(older_than=...)`` holds for one call, and not for DAGs that have a ttl."""
    store = shmstore.Store(root)
    for dag_id in ("long", "none", "used"):
        store.put(dag_id, "a", 1)
    store.set_ttl("long", 1000)
    for dag_id in ("long", "none"):
        age(root, dag_id, 10)
    assert store.gc(older_than=20).actions == ()
    assert [one.dag_id for one in store.gc(older_than=5).actions] == ["none"]
    assert _dag_ids(store) == ["long", "used"]
    assert [one.dag_id for one in store.gc(older_than=0).actions] == ["used"]


def test_opening_and_writing_count_as_use_and_looking_does_not(root: str) -> None:
    """A DAG is used by who opens it to read or write, not by who looks after it."""
    with shmstore.Store(root) as store:
        store.put("dag", "a", 1)
    age(root, "dag", 20)
    before = _word(root, "dag", record.TOUCHED)
    with shmstore.Store(root) as store:
        store.dags()
        store.stats()
        store.gc(dry_run=True)
        store.gc()
        store.check()
        store.check(fix=True)
        assert _word(root, "dag", record.TOUCHED) == before
        assert store.get("dag", "a") == 1
        opened = _word(root, "dag", record.TOUCHED)
        assert opened > before
        age(root, "dag", 20)
        store.get("dag", "a")
        assert _word(root, "dag", record.TOUCHED) < opened, "it was open already"
        deadline = time.monotonic() + 10
        while _word(root, "dag", record.TOUCHED) < opened:  # noted once a millisecond
            assert time.monotonic() < deadline
            store.put("dag", "a", 2)


def test_who_comes_at_the_last_moment_keeps_the_dag(root: str) -> None:
    """Opened after gc has judged it, the DAG stays, as it is judged again under the lock."""
    with shmstore.Store(root) as store:
        store.put("dag", "a", 5)
        store.set_ttl("dag", 1)
    age(root, "dag", 5)

    def come(parent: Parent) -> None:
        parent.receive()
        parent.send(shmstore.Store(root).get("dag", "a"))

    with Child(come, Parent) as child:
        came: list[int] = []

        def hook(name: str) -> None:
            if name == "clear:locked":
                child.send()
                came.append(child.receive())

        store = shmstore.Store(root)
        crashpoints.hook = hook
        try:
            assert store.gc().actions == ()
        finally:
            crashpoints.hook = None
        assert came == [5]
        assert store.get("dag", "a") == 5


def test_a_writer_whose_dag_expires_writes_to_a_new_one(root: str) -> None:
    """Whoever has an expired DAG open goes on with a fresh one, and loses nothing new."""
    store = shmstore.Store(root)
    store.put("dag", "old", 1)
    store.set_ttl("dag", 1)
    age(root, "dag", 5)
    assert [one.kind for one in shmstore.Store(root).gc().actions] == ["expired"]
    store.put("dag", "new", 2)
    assert list(store.ids("dag")) == ["new"]
    assert list(shmstore.Store(root).ids("dag")) == ["new"]


def test_expired_dags_go_by_themselves(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening any DAG clears the expired ones, once a minute."""
    monkeypatch.setattr(upkeep, "BUDGET_S", 60.0)
    with shmstore.Store(root) as store:
        store.put("expired", "a", _large(1))
        store.put("other", "a", 1)
        store.set_ttl("expired", 1)
    age(root, "expired", 5)
    set_word(reading_files.read(root, "expired").manifest, record.SWEPT, 0)
    assert shmstore.Store(root).get("other", "a") == 1
    assert set(reading_files.read_namespace(root)) == {"expired", "other"}
    set_word(Path(root) / "default" / "control", namespace.SWEPT, 0)
    assert shmstore.Store(root).get("other", "a") == 1
    assert set(reading_files.read_namespace(root)) == {"other"}
    assert reading_files.trash(root) == []
