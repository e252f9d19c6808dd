"""Any sequence of calls leaves the store as a plain dict would be, and its files sound."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import shmstore
from tests import reading_files
from tests.fault.killing import call

DAGS = ("one", "two/../x", "🙂")
IDS = ("a", "b", "c/d", "..", "e f")

dags = st.sampled_from(DAGS)
ids = st.sampled_from(IDS)
many_ids = st.lists(ids, max_size=4)
small = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=20),
    st.binary(max_size=50),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False), max_size=3),
)
large = st.builds(np.full, st.sampled_from([3000, 5000]), st.integers(0, 9))
values = st.one_of(small, small, large)
who = st.sampled_from(["first", "first", "second", "child"])
modes = st.sampled_from(["read", "cow", "copy"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def outcome(call_it: Callable[[], Any]) -> Any:
    """What a call answers, or the kind of its refusal."""
    try:
        return call_it()
    except (shmstore.NotFound, shmstore.EntryExists) as error:
        return type(error).__name__


class StoreMachine(RuleBasedStateMachine):
    """A store used by two objects and forked children, beside a dict of dicts.

    The dicts keep the order of the last put, which is the order of ids.
    """

    @initialize()
    def open(self) -> None:
        self.root = tempfile.mkdtemp(dir="/dev/shm")
        shmstore.Store(self.root, **self.limits())
        self.stores = {name: shmstore.Store(self.root) for name in ("first", "second")}
        self.model: dict[str, dict[str, Any]] = {dag_id: {} for dag_id in DAGS}
        self.held: list[tuple[Any, Any]] = []

    def teardown(self) -> None:
        stores = getattr(self, "stores", {})
        found = [] if not stores else stores["second"].check()
        for one in stores.values():
            one.close()
        self.stores, self.held = {}, []
        gc.collect()
        shutil.rmtree(self.root, ignore_errors=True)
        assert found == []

    def limits(self) -> dict[str, Any]:
        """The arguments with which the namespace is made."""
        return {}

    def by(self, name: str, use: Callable[[shmstore.Store], Any]) -> Any:
        """What a use of the store answers, by one of the objects or in a forked child."""
        if name == "child":
            return call(lambda: outcome(lambda: use(self.stores["first"])))
        return outcome(lambda: use(self.stores[name]))

    def remember(self, dag_id: str, id: str, value: Any) -> None:
        self.model[dag_id].pop(id, None)
        self.model[dag_id][id] = value

    @rule(dag_id=dags, id=ids, value=values, overwrite=st.booleans(), name=who)
    def put(self, dag_id: str, id: str, value: Any, overwrite: bool, name: str) -> None:
        got = self.by(name, lambda s: s.put(dag_id, id, value, overwrite=overwrite))
        if not overwrite and id in self.model[dag_id]:
            assert got == "EntryExists"
        else:
            assert (got.dag_id, got.id) == (dag_id, id)
            self.remember(dag_id, id, value)

    @rule(
        dag_id=dags,
        new=st.dictionaries(ids, values, max_size=4),
        overwrite=st.booleans(),
        name=who,
    )
    def put_many(self, dag_id: str, new: dict[str, Any], overwrite: bool, name: str) -> None:
        got = self.by(name, lambda s: s.put_many(dag_id, new, overwrite=overwrite))
        if not overwrite and new.keys() & self.model[dag_id].keys():
            assert got == "EntryExists"
        else:
            assert [entry.id for entry in got] == list(new)
            for id, value in new.items():
                self.remember(dag_id, id, value)

    @rule(dag_id=dags, id=ids, name=who)
    def delete(self, dag_id: str, id: str, name: str) -> None:
        got = self.by(name, lambda s: s.delete(dag_id, id))
        assert got == (None if id in self.model[dag_id] else "NotFound")
        self.model[dag_id].pop(id, None)

    @rule(dag_id=dags, gone=many_ids, name=who)
    def delete_many(self, dag_id: str, gone: list[str], name: str) -> None:
        got = self.by(name, lambda s: s.delete_many(dag_id, gone))
        if set(gone) <= self.model[dag_id].keys():
            assert got is None
            for id in gone:
                self.model[dag_id].pop(id, None)
        else:
            assert got == "NotFound"

    @rule(dag_id=dags, name=who)
    def clear(self, dag_id: str, name: str) -> None:
        got = self.by(name, lambda s: s.clear(dag_id).cleared)
        assert got or not self.model[dag_id]
        self.model[dag_id].clear()

    @rule(dag_id=dags, id=ids, mode=modes, name=who)
    def get(self, dag_id: str, id: str, mode: str, name: str) -> None:
        expected = self.model[dag_id].get(id, "NotFound")
        got = self.by(name, lambda s: s.get(dag_id, id, mode=mode))
        assert same(got, expected)
        if isinstance(got, np.ndarray) and name != "child":
            assert got.flags.writeable is (mode != "read")
            if mode == "read":
                self.held.append((got, expected))
            else:
                got[:] = 77  # private: nobody may see it

    @rule(dag_id=dags, wanted=many_ids, name=who)
    def get_many(self, dag_id: str, wanted: list[str], name: str) -> None:
        got = self.by(name, lambda s: s.get_many(dag_id, wanted, default="default"))
        assert list(got) == list(dict.fromkeys(wanted))
        for id, value in got.items():
            assert same(value, self.model[dag_id].get(id, "default"))

    @rule(dag_id=dags, id=ids, name=who)
    def look(self, dag_id: str, id: str, name: str) -> None:
        assert self.by(name, lambda s: s.has_value(dag_id, id)) is (id in self.model[dag_id])
        entry = self.by(name, lambda s: s.entry(dag_id, id))
        if id in self.model[dag_id]:
            kind = type(self.model[dag_id][id])
            expected = kind.__name__ if kind.__module__ == "builtins" else "numpy.ndarray"
            assert (entry.id, entry.type_name) == (id, expected)
        else:
            assert entry == "NotFound"

    @rule(dag_id=dags, id=ids, value=values, name=who)
    def use_as_a_mapping(self, dag_id: str, id: str, value: Any, name: str) -> None:
        model = self.model[dag_id]
        assert same(
            self.by(name, lambda s: s.dag(dag_id).setdefault(id, value)), model.get(id, value)
        )
        model.setdefault(id, value)
        got_id, got = self.by(name, lambda s: s.dag(dag_id).popitem())
        expected_id, expected = model.popitem()
        assert got_id == expected_id
        assert same(got, expected)
        assert same(self.by(name, lambda s: s.dag(dag_id).pop(id, 5)), model.pop(id, 5))

    @rule(name=who, dry_run=st.booleans())
    def collect(self, name: str, dry_run: bool) -> None:
        report = self.by(name, lambda s: s.gc(dry_run))
        assert [one for one in report.actions if one.kind not in ("pool", "note", "viewed")] == []

    @rule(dag_id=dags, name=who, seconds=st.sampled_from([None, 0, 1000]))
    def keep(self, dag_id: str, name: str, seconds: int | None) -> None:
        assert self.by(name, lambda s: s.set_ttl(dag_id, seconds)) is None

    @rule(name=st.sampled_from(["first", "second"]))
    def open_again(self, name: str) -> None:
        self.stores[name].close()
        self.stores[name] = shmstore.Store(self.root)

    @invariant()
    def the_store_is_as_the_dict(self) -> None:
        if not hasattr(self, "stores"):
            return
        for one in self.stores.values():
            for dag_id, model in self.model.items():
                assert list(one.ids(dag_id)) == list(model)
                assert [entry.id for entry in one.entries(dag_id)] == list(model)
                assert one.count(dag_id) == len(model)
                got = one.get_many(dag_id, model)
                assert all(same(got[id], value) for id, value in model.items())
        assert all(same(view, value) for view, value in self.held)

    @invariant()
    def the_files_are_sound(self) -> None:
        if not hasattr(self, "stores"):
            return
        files = reading_files.check(self.root)
        for dag_id, model in self.model.items():
            assert (files[dag_id].records.keys() if dag_id in files else set()) == model.keys()
        assert reading_files.half_done(self.root) == []


class TightStoreMachine(StoreMachine):
    """The same where memory is short: values are moved to disk all the time.

    What is viewed stays in memory, so only the last two views are held.
    """

    larger = st.builds(np.full, st.sampled_from([3000, 6000, 9000]), st.integers(0, 9))

    def limits(self) -> dict[str, Any]:
        return {"capacity": "860 KiB", "pool": "300 KiB", "spill": f"{self.root}/disk"}

    @initialize()
    def open(self) -> None:
        super().open()
        for dag_id in DAGS:  # more than fits
            self.put_many_large(dag_id, {id: np.full(9000, 1) for id in IDS}, "first")

    @rule(dag_id=dags, id=ids, value=larger, name=who)
    def put_large(self, dag_id: str, id: str, value: Any, name: str) -> None:
        assert self.by(name, lambda s: s.put(dag_id, id, value)).id == id
        self.remember(dag_id, id, value)

    @rule(dag_id=dags, new=st.dictionaries(ids, larger, min_size=3), name=who)
    def put_many_large(self, dag_id: str, new: dict[str, Any], name: str) -> None:
        got = self.by(name, lambda s: s.put_many(dag_id, new))
        assert [entry.id for entry in got] == list(new)
        for id, value in new.items():
            self.remember(dag_id, id, value)

    @invariant()
    def the_account_holds(self) -> None:
        if not hasattr(self, "stores"):
            return
        self.held = self.held[-2:]
        account = reading_files.account(self.root)
        assert account.allocated <= account.used <= account.capacity == 860 << 10
        found = reading_files.read_namespace(self.root).values()
        moved = sum(one.spilled for dag in found for one in dag.records.values())
        assert len(reading_files.spilled(self.root)) == moved
        self.moved = getattr(self, "moved", False) or moved > 0

    def teardown(self) -> None:
        event(f"values were moved: {getattr(self, 'moved', False)}")
        super().teardown()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

TestTightStoreMachine = TightStoreMachine.TestCase
TestTightStoreMachine.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
