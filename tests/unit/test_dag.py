"""Dag: a dict's manners over what all processes share."""

from __future__ import annotations

import pickle
import threading
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import shmstore
from shmstore import store as store_module
from shmstore.dag import Dag
from shmstore.store import Store
from tests.fault.killing import Child, call

LARGE = np.arange(5000.0)


@pytest.fixture
def dag(store: Store) -> Dag:
    """A DAG with three values."""
    store.put_many("d", {"a": 1, "b": "two", "c": [3]})
    return store.dag("d")


def test_what_a_dict_can(dag: Dag) -> None:
    """Each operation does what it does on a dict of the same content."""
    twin: dict[str, Any] = {"a": 1, "b": "two", "c": [3]}
    for mapping in (dag, twin):
        mapping["d"] = 4
        del mapping["a"]
        mapping.update({"e": 5}, f=6)
        mapping.update([("g", 7)])
        mapping.update(h=8)
        assert mapping.pop("e") == 5
        assert mapping.pop("nothing", "default") == "default"
        assert mapping.setdefault("f", 0) == 6
        assert mapping.setdefault("i") is None
        assert mapping.popitem() == ("i", None)
        assert mapping.get("nothing") is None
        assert mapping.get("b", 0) == "two"
    assert isinstance(dag, MutableMapping)
    assert dict(dag) == twin == dag.copy()
    assert type(dag.copy()) is dict
    assert list(dag) == list(twin) == list(dag.keys())
    assert list(reversed(dag)) == list(reversed(twin))
    assert list(dag.items()) == list(twin.items())
    assert list(dag.values()) == list(twin.values())
    assert len(dag) == len(twin) == len(dag.items())
    assert bool(dag)
    assert dag | {"z": 1, "b": 2} == twin | {"z": 1, "b": 2}
    assert {"z": 1, "b": 2} | dag == {"z": 1, "b": 2} | twin
    same = dag
    same |= {"z": 26}
    assert same is dag
    assert dag["z"] == 26
    assert dag.keys() & {"z", "y"} == {"z"}
    assert ("z", 26) in dag.items()
    assert 26 in dag.values()
    dag.clear()
    assert (len(dag), list(dag), bool(dag)) == (0, [], False)


def test_views_can_be_reversed_as_those_of_a_dict(dag: Dag) -> None:
    """``reversed`` works on keys, items and values, too."""
    twin = dict(dag)
    assert list(reversed(dag.keys())) == list(reversed(twin.keys()))
    assert list(reversed(dag.items())) == list(reversed(twin.items()))
    assert list(reversed(dag.values())) == list(reversed(twin.values()))


def test_missing_keys(dag: Dag) -> None:
    """A missing key is a KeyError, which says more than a dict's."""
    for call_it in (
        lambda: dag["z"],
        lambda: dag.__delitem__("z"),
        lambda: dag.pop("z"),
    ):
        with pytest.raises(KeyError) as caught:
            call_it()
        assert isinstance(caught.value, shmstore.NotFound)
        assert caught.value.id == "z"
    dag.clear()
    with pytest.raises(KeyError, match="empty"):
        dag.popitem()
    with pytest.raises(TypeError, match="at most 2"):
        dag.pop("a", 1, 2)


@pytest.mark.parametrize("key", ["", 5, None, b"a", ("a",), "x" * 2000, "\ud800"])
def test_what_cannot_be_a_key_is_not_in_it(dag: Dag, key: Any) -> None:
    """``in`` answers False for a key that no DAG can have, as a dict does."""
    assert key not in dag


@pytest.mark.parametrize("key", [5, None, b"a", ("a",)])
def test_keys_are_text(dag: Dag, key: Any) -> None:
    """Storing or asking under anything but a str is a TypeError, and changes nothing."""
    for call_it in (
        lambda: dag.__setitem__(key, 1),
        lambda: dag[key],
        lambda: dag.update({"ok": 1, key: 1}),
    ):
        with pytest.raises(TypeError):
            call_it()
    assert list(dag) == ["a", "b", "c"]


def test_an_unknown_dag_is_an_empty_mapping(store: Store) -> None:
    """It comes into being with its first value, not by being looked at."""
    dag = store.dag("new")
    assert (len(dag), list(dag), dag.copy(), dag == {}) == (0, [], {}, True)
    dag.clear()
    assert store.dags() == []
    dag["a"] = 1
    assert [info.dag_id for info in store.dags()] == ["new"]


def test_update_is_all_or_nothing(dag: Dag) -> None:
    """One value that cannot be stored keeps all of them out."""
    with pytest.raises(shmstore.Unserializable):
        dag.update({"a": 2, "z": (n for n in range(3))})
    assert dict(dag) == {"a": 1, "b": "two", "c": [3]}


def test_iteration_while_others_write(dag: Dag) -> None:
    """An iteration goes over the ids of its start; items and values leave out what has gone."""
    ids, items, values = iter(dag), iter(dag.items()), iter(dag.values())
    assert (next(ids), next(items), next(values)) == ("a", ("a", 1), 1)
    other = Store(dag.store.root).dag("d")
    del other["b"]
    other["later"] = 1
    other["c"] = "new"
    assert list(ids) == ["b", "c"]
    assert list(items) == [("c", "new")]
    assert list(values) == ["new"]
    assert list(dag) == ["a", "later", "c"]


def test_an_iterator_is_one_of_the_moment_it_was_made(dag: Dag) -> None:
    """``iter`` fixes what is iterated over, not the first ``next``."""
    ids = iter(dag)
    dag["later"] = 1
    assert list(ids) == ["a", "b", "c"]


FRAME = pd.DataFrame({"x": [1.0, 2.0], "y": ["a", None]})
EQUAL: list[tuple[Any, Any, bool]] = [
    (LARGE, LARGE.copy(), True),
    (LARGE, LARGE + 1, False),
    (LARGE, LARGE[:-1], False),
    (np.array([1, 2, 3]), np.array([[1, 2, 3], [1, 2, 3]]), False),
    (np.array([1, 1, 1]), np.array([1]), False),
    (np.array([1, 2]), [1, 2], False),
    (np.float64(2.5), np.float64(2.5), True),
    (1, 1.0, True),
    (FRAME, FRAME.copy(), True),
    (FRAME, FRAME.rename(columns={"x": "z"}), False),
    (FRAME["x"], FRAME["x"].copy(), True),
    (pa.table({"x": [1, 2]}), pa.table({"x": [1, 2]}), True),
    (pa.table({"x": [1, 2]}), pa.table({"x": [1, 3]}), False),
    ([1, {"x": (2,)}], [1, {"x": (2,)}], True),
    ([1, 2], (1, 2), False),
    (None, None, True),
    (None, 0, False),
]


@pytest.mark.parametrize(("one", "other", "equal"), EQUAL)
def test_equality(store: Store, one: Any, other: Any, equal: bool) -> None:
    """Equal to a mapping with equal keys and values, arrays and frames compared as wholes."""
    store.put("d", "a", one)
    store.put("e", "a", other)
    dag = store.dag("d")
    assert (dag == {"a": other}) is equal
    assert (dag == store.dag("e")) is equal
    assert (dag != {"a": other}) is not equal
    assert dag == Store(store.root).dag("d")
    assert dag != {"a": other, "b": 1}
    assert dag != {"b": other}
    assert dag != "something else"
    with pytest.raises(TypeError, match="unhashable"):
        hash(dag)


def test_repr_and_pickle(dag: Dag) -> None:
    """It tells its DAG, size and store, and names the same DAG in another process."""
    assert repr(dag).startswith("<shmstore.Dag 'd' in <shmstore.Store '")
    again = pickle.loads(pickle.dumps(dag))
    assert again == dag
    assert again["b"] == "two"
    again.store.close()


def test_popitem_of_several_processes_takes_each_item_once(store: Store) -> None:
    """Four processes that empty a DAG together get every item, and none twice."""
    dag = store.dag("d")
    dag.update({f"k{number}": number for number in range(200)})

    def take() -> list[tuple[str, int]]:
        taken = []
        mine = Store(store.root).dag("d")
        while True:
            try:
                taken.append(mine.popitem())
            except KeyError:
                return taken

    children = [Child(take) for _ in range(4)]
    try:
        taken = [child.receive() for child in children]
    finally:
        for child in children:
            child.kill()
    all_taken = sorted(item for items in taken for item in items)
    assert all_taken == sorted((f"k{number}", number) for number in range(200))
    assert len(dag) == 0


def test_setdefault_of_several_processes(store: Store) -> None:
    """All get the value of the one who was first."""
    children = [
        Child(lambda mine: Store(store.root).dag("d").setdefault("a", mine), number)
        for number in range(4)
    ]
    try:
        got = {child.receive() for child in children}
    finally:
        for child in children:
            child.kill()
    assert got == {store.get("d", "a")}


def test_setdefault_that_comes_second(dag: Dag, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value stored between the look and the put is the one returned."""
    put = dag.store.put

    def late(dag_id: str, id: str, value: Any, **options: Any) -> Any:
        call(lambda: Store(dag.store.root).put(dag_id, id, "first").id)
        return put(dag_id, id, value, **options)

    monkeypatch.setattr(dag.store, "put", late)
    assert dag.setdefault("z", "second") == "first"
    assert dag["z"] == "first"


def test_pop_removes_the_value_that_it_returns(dag: Dag, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value stored between the look and the removal is not lost: it is returned, or stays."""
    decoded = store_module.decoded_record
    puts: list[int] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        value = decoded(*args, **options)
        if not puts:
            puts.append(1)
            call(lambda: Store(dag.store.root).put("d", "a", "new").id)
        return value

    monkeypatch.setattr(store_module, "decoded_record", interrupted)
    popped = dag.pop("a")
    monkeypatch.undo()
    assert puts
    assert popped == "new"
    assert "a" not in dag


def test_threads_pop_each_item_once(store: Store) -> None:
    """Threads of one process do not take an item twice, either."""
    dag = store.dag("d")
    dag.update({f"k{number}": number for number in range(100)})
    taken: list[tuple[str, int]] = []

    def take() -> None:
        while True:
            try:
                taken.append(dag.popitem())
            except KeyError:
                return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == sorted((f"k{number}", number) for number in range(100))
