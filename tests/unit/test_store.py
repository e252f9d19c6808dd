"""The contract of Store, call by call."""

from __future__ import annotations

import asyncio
import datetime
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore import compaction, crashpoints, index, lookup, names, record, view
from shmstore.log import Log
from shmstore.store import Store
from tests import reading_files
from tests.fault.killing import call

LARGE = np.arange(5000.0)
IDS = ["a", "a/b", "/", "..", ".", "*", ">", "sp ace", "🙂", "new\nline", "\0", "%2E", "x" * 1024]
BAD: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    ("x" * 1025, ValueError),
    ("\ud800", ValueError),
    (None, TypeError),
    (5, TypeError),
    (b"bytes", TypeError),
    (["list"], TypeError),
]


def unserializable() -> Any:
    return (number for number in range(3))


# --- Values -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"a": 1}, LARGE], ids=["inline", "segment"])
def test_put_returns_the_entry_that_everybody_sees(store: Store, value: Any) -> None:
    """The entry from put is the one that ``entry`` and ``entries`` tell of later."""
    before = datetime.datetime.now(datetime.UTC)
    entry = store.put("d", "a", value, deps=["x", "y/z"])
    assert store.entry("d", "a") == entry
    assert list(Store(store.root).entries("d")) == [entry]
    assert (entry.dag_id, entry.id, entry.deps) == ("d", "a", ("x", "y/z"))
    assert entry.producer == (socket.gethostname(), os.getpid())
    assert entry.origin is None
    assert entry.created_at.utcoffset() == datetime.timedelta(0)
    after = datetime.datetime.now(datetime.UTC)
    slack = datetime.timedelta(milliseconds=1)
    assert before - slack <= entry.created_at <= after + slack
    assert pickle.loads(pickle.dumps(entry)) == entry
    with pytest.raises(AttributeError):
        entry.id = "b"  # type: ignore[misc]
    if isinstance(value, dict):
        assert (entry.type_name, entry.location) == ("dict", "inline")
    else:
        assert entry.type_name == "numpy.ndarray"
        segment = Path(store.root) / "default" / "dags" / "d" / entry.location
        assert segment.stat().st_size == entry.nbytes >= value.nbytes


@pytest.mark.parametrize("id", IDS)
def test_ids_and_dag_ids_of_every_kind(store: Store, id: str) -> None:
    """Any text is an id and a dag_id, and comes back as it was."""
    store.put(id, id, LARGE)
    store.put(id, "other", id)
    again = Store(store.root)
    assert np.array_equal(again.get(id, id), LARGE)
    assert again.get(id, "other") == id
    assert list(again.ids(id)) == [id, "other"]
    assert [info.dag_id for info in again.dags()] == [id]
    assert again.entry(id, id).dag_id == id
    tokens = os.listdir(Path(store.root) / "default" / "dags")
    assert tokens == [names.dag_token(id)]
    assert set(reading_files.check(store.root)[id].records) == {id, "other"}
    store.delete(id, id)
    store.clear(id)
    assert os.listdir(Path(store.root) / "default" / "dags") == []


def test_long_dag_ids_with_one_prefix_are_two_dags(store: Store) -> None:
    """Where their tokens had to be cut, they still do not meet."""
    one, other = "x" * 1000 + "1", "x" * 1000 + "2"
    store.put(one, "a", 1)
    store.put(other, "a", 2)
    assert (store.get(one, "a"), store.get(other, "a")) == (1, 2)
    assert sorted(info.dag_id for info in store.dags()) == [one, other]


CALLS = {
    "put": lambda store, dag_id, key: store.put(dag_id, key, LARGE),
    "put_many": lambda store, dag_id, key: store.put_many(dag_id, {"ok": 1, _key(key): LARGE}),
    "get": lambda store, dag_id, key: store.get(dag_id, key, default=None),
    "get_buffer": lambda store, dag_id, key: store.get_buffer(dag_id, key),
    "get_many": lambda store, dag_id, key: store.get_many(dag_id, ["ok", _key(key)], default=None),
    "has_value": lambda store, dag_id, key: store.has_value(dag_id, key),
    "delete": lambda store, dag_id, key: store.delete(dag_id, key),
    "delete_many": lambda store, dag_id, key: store.delete_many(dag_id, [key]),
    "entry": lambda store, dag_id, key: store.entry(dag_id, key),
    "explain": lambda store, dag_id, key: store.explain(dag_id, key),
    "ref": lambda store, dag_id, key: store.ref(dag_id, key),
}
DAG_CALLS = {
    "clear": lambda store, dag_id: store.clear(dag_id),
    "ids": lambda store, dag_id: store.ids(dag_id),
    "entries": lambda store, dag_id: store.entries(dag_id),
    "count": lambda store, dag_id: store.count(dag_id),
    "dag": lambda store, dag_id: store.dag(dag_id),
}


def _key(id: Any) -> Any:
    return tuple(id) if isinstance(id, list) else id


@pytest.mark.parametrize(("bad", "error"), BAD)
@pytest.mark.parametrize("name", CALLS)
def test_bad_ids_change_nothing(store: Store, name: str, bad: Any, error: type) -> None:
    """A wrong id or dag_id is a TypeError or ValueError at once, and leaves no trace."""
    store.put("d", "a", 1)
    before = reading_files.check(store.root)
    open_before = sorted(os.listdir("/proc/self/fd"))
    for dag_id, id in (("d", bad), (bad, "a"), ("unknown", bad)):
        with pytest.raises(error) as caught:
            CALLS[name](store, dag_id, id)
        assert not isinstance(caught.value, shmstore.StoreError)
    assert reading_files.check(store.root) == before
    assert sorted(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize(("bad", "error"), BAD)
@pytest.mark.parametrize("name", DAG_CALLS)
def test_bad_dag_ids_are_refused_at_once(store: Store, name: str, bad: Any, error: type) -> None:
    """Calls about a whole DAG refuse a wrong dag_id when called, not when iterated over."""
    with pytest.raises(error) as caught:
        DAG_CALLS[name](store, bad)
    assert not isinstance(caught.value, shmstore.StoreError)


def test_a_wrong_prefix_is_a_type_error(store: Store) -> None:
    """A prefix is text."""
    store.put("d", "a", 1)
    with pytest.raises(TypeError):
        list(store.ids("d", prefix=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["", "READ", "write", None, 1])
def test_an_unknown_mode(store: Store, mode: Any) -> None:
    """A mode that does not exist is a ValueError that names those that do."""
    store.put("d", "a", 1)
    with pytest.raises(ValueError, match="'read', 'cow' or 'copy'"):
        store.get("d", "a", mode=mode)


def test_absent_values(store: Store) -> None:
    """What is not there is NotFound, with its names, or the default; asking creates nothing."""
    store.put("d", "there", 1)
    for dag_id in ("d", "unknown"):
        for read in (store.get, store.get_buffer, store.entry, store.explain, store.delete):
            with pytest.raises(shmstore.NotFound) as caught:
                read(dag_id, "a")
            assert (caught.value.dag_id, caught.value.id) == (dag_id, "a")
        assert store.get(dag_id, "a", default=None) is None
        assert store.has_value(dag_id, "a") is False
        assert store.get_many(dag_id, ["a", "b"], default=7) == {"a": 7, "b": 7}
        with pytest.raises(shmstore.NotFound):
            store.get_many(dag_id, ["a"])
    assert (store.count("unknown"), list(store.ids("unknown"))) == (0, [])
    assert store.clear("unknown") == shmstore.ClearReport(cleared=False)
    assert [info.dag_id for info in store.dags()] == ["d"]


def test_put_without_overwrite(store: Store) -> None:
    """overwrite=False keeps what is there, says so, and stores what is not."""
    store.put("d", "a", "first", overwrite=False)
    for value in ("second", LARGE):
        with pytest.raises(shmstore.EntryExists) as caught:
            store.put("d", "a", value, overwrite=False)
        assert (caught.value.dag_id, caught.value.id) == ("d", "a")
    with pytest.raises(shmstore.EntryExists) as caught:
        store.put_many("d", {"b": LARGE, "a": LARGE, "c": 1}, overwrite=False)
    assert caught.value.id == "a"
    assert dict(store.dag("d")) == {"a": "first"}
    reading_files.check(store.root)
    store.delete("d", "a")
    store.put("d", "a", "third", overwrite=False)
    assert store.get("d", "a") == "third"


def test_an_unserializable_value_leaves_nothing(store: Store) -> None:
    """Neither a DAG nor a segment nor a descriptor comes of a value that cannot be stored."""
    open_before = sorted(os.listdir("/proc/self/fd"))
    for put in (
        lambda: store.put("d", "a", unserializable()),
        lambda: store.put("d", "a", {"deep": [LARGE, unserializable()]}),
        lambda: store.put_many("d", {"a": LARGE, "b": unserializable(), "c": 1}),
    ):
        with pytest.raises(shmstore.Unserializable, match="generator"):
            put()
    assert sorted(os.listdir("/proc/self/fd")) == open_before
    assert store.dags() == []
    assert reading_files.trash(store.root) == []
    store.put("d", "a", 1)
    with pytest.raises(shmstore.Unserializable):
        store.put("d", "a", unserializable())
    assert store.get("d", "a") == 1
    reading_files.check(store.root)


def test_put_many_and_delete_many(store: Store) -> None:
    """Both take effect as a whole, in the order given; nothing is a fine amount, too."""
    store.put("d", "b", "old")
    entries = store.put_many("d", {"a": 1, "b": LARGE, "c": None})
    assert [entry.id for entry in entries] == ["a", "b", "c"] == list(store.ids("d"))
    assert entries == list(store.entries("d"))
    with pytest.raises(shmstore.NotFound) as caught:
        store.delete_many("d", ["a", "missing", "c"])
    assert caught.value.id == "missing"
    assert store.count("d") == 3
    store.delete_many("d", iter(["c", "a", "c"]))
    assert list(store.ids("d")) == ["b"]
    assert store.put_many("e", {}) == []
    store.delete_many("e", [])
    assert [info.dag_id for info in store.dags()] == ["d"]


def test_ids_by_prefix_and_order(store: Store) -> None:
    """In the order in which they were last stored, either way round, by prefix if wanted."""
    for id in ("a/1", "b/1", "a/2", "b/2", "a/1"):
        store.put("d", id, 0)
    assert list(store.ids("d")) == ["b/1", "a/2", "b/2", "a/1"]
    assert list(store.ids("d", newest_first=True)) == ["a/1", "b/2", "a/2", "b/1"]
    assert list(store.ids("d", "a/")) == ["a/2", "a/1"]
    assert list(store.ids("d", prefix="c")) == []


def test_ids_are_those_of_the_call(store: Store) -> None:
    """What is stored or deleted after the call does not change what it gives."""
    store.put_many("d", {"a": 1, "b": 2})
    ids, entries = store.ids("d"), store.entries("d")
    store.put("d", "c", 3)
    store.delete("d", "a")
    assert list(ids) == ["a", "b"]
    assert [entry.id for entry in entries] == ["a", "b"]


def test_get_buffer_is_what_is_stored(store: Store) -> None:
    """The bytes as they lie there: for bytes the value, above the inline limit without a copy."""
    store.put_many("d", {"small": b"abc", "large": b"x" * 100_000})
    assert store.get_buffer("d", "small").to_pybytes() == b"abc"
    buffers = [store.get_buffer("d", "large") for _ in range(2)]
    assert isinstance(buffers[0], pa.Buffer)
    assert buffers[0].to_pybytes() == b"x" * 100_000
    assert buffers[0].address == buffers[1].address


@pytest.mark.parametrize(
    "value", [1, b"x" * 50_000, LARGE, {"a": LARGE}, pa.table({"a": LARGE})], ids=repr
)
def test_explain_tells_what_get_does(store: Store, value: Any) -> None:
    """What it says is viewed lies in the segment's mapping, what is copied does not."""
    entry = store.put("d", "a", value)
    told = store.explain("d", "a")
    assert (told.dag_id, told.id, told.nbytes) == ("d", "a", entry.nbytes)
    assert (told.codec, told.location) == (entry.codec, entry.location)
    assert told.copied_bytes == sum(note.nbytes for note in told.buffers if note.copied)
    assert "copied" in str(told) or "viewed" in str(told)
    got = store.get("d", "a")
    buffer = store.get_buffer("d", "a")
    addresses = []
    if isinstance(got, pa.Table):
        addresses = [chunk.buffers()[1].address for chunk in got["a"].chunks]
    elif isinstance(got, (np.ndarray, dict)):
        addresses = [(got["a"] if isinstance(got, dict) else got).ctypes.data]
    viewed = [note for note in told.buffers if not note.copied]
    assert bool(viewed) == bool(addresses)
    for address in addresses:
        assert buffer.address <= address < buffer.address + buffer.size


def test_dags_and_stats(store: Store) -> None:
    """Both count what was stored, for each DAG and in all."""
    store.put_many("b", {"x": b"12345", "y": b"x" * 50_000})
    store.put("a", "x", b"1")
    store.put("a", "x", b"12")
    infos = store.dags()
    assert [(info.dag_id, info.entries, info.nbytes) for info in infos] == [
        ("a", 1, 2),
        ("b", 2, 50_005),
    ]
    assert infos[0].dead_bytes > 0 == infos[1].dead_bytes
    for info in infos:
        files = reading_files.read(store.root, info.dag_id)
        assert info.log_bytes == files.log.stat().st_size
        assert info.index_bytes == files.index.stat().st_size
        assert info.created_at is not None
        assert info.created_at.tzinfo is datetime.UTC
        assert info.fault is None
    stats = store.stats()
    assert (stats.dags, stats.entries, stats.nbytes, stats.damaged) == (2, 3, 50_007, ())
    assert (stats.root, stats.namespace) == (store.root, "default")
    assert stats.log_bytes == sum(info.log_bytes for info in infos)
    assert 0 < stats.free_bytes <= stats.file_system_bytes


# --- What others do meanwhile -----------------------------------------------------


def test_counting_while_another_extends_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that grows beyond what is mapped, between two looks at it, does no harm."""
    other = Store(store.root)
    store.put("d", "x", 1)
    assert (store.count("d"), other.count("d")) == (1, 1)
    cover = view.View.cover
    grown: list[int] = []

    def grow(self: view.View, end: int) -> Log:
        covered = cover(self, end)
        if not grown:
            grown.append(1)
            other.put_many("d", {f"k{number}": "x" * 2000 for number in range(100)})
        return covered

    monkeypatch.setattr(view.View, "cover", grow)
    assert store.count("d") in (1, 101)
    assert grown


def test_listing_while_another_extends_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that lies across the end of what is mapped is not taken for a damaged one."""
    other = Store(store.root)
    store.put("d", "x", 1)
    assert list(store.ids("d")) == ["x"]
    while (files := reading_files.read(store.root, "d")).log_size - files.tail > 12_000:
        store.put("d", f"{files.tail}", "y" * 1000)
    before = list(store.ids("d"))
    entries = index.Index.entries
    grown: list[int] = []

    def grow(self: index.Index) -> Any:
        if not grown:
            grown.append(1)
            other.put("d", "across", "z" * 15_000)
        return entries(self)

    monkeypatch.setattr(index.Index, "entries", grow)
    assert list(store.ids("d")) in (before, [*before, "across"])
    assert grown


def test_listing_while_another_puts_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of ids holds all of what a put_many stored, or none of it."""
    other = Store(store.root)
    store.put("d", "x", 1)
    assert list(store.ids("d")) == ["x"]
    entries = index.Index.entries
    copied: list[Any] = []

    def copy_in_the_middle(self: index.Index) -> Any:
        if copied:
            return entries(self)
        slots: list[str] = []

        def reach(point: str) -> None:
            if point == "commit:slot":
                slots.append(point)
                if len(slots) == 2:
                    copied.append(entries(self))

        monkeypatch.setattr(crashpoints, "hook", reach)
        other.put_many("d", {"a": 1, "b": 2, "c": 3})
        monkeypatch.setattr(crashpoints, "hook", None)
        return copied[0]

    monkeypatch.setattr(index.Index, "entries", copy_in_the_middle)
    assert list(store.ids("d")) in (["x"], ["x", "a", "b", "c"])
    assert copied


def test_a_reader_that_remaps_does_not_shorten_the_log_of_a_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that maps the log, late, while another extends and compacts it disturbs no put."""
    store.put("d", "x", 1)
    manifest = store._dags.manifests["d"]
    assert manifest.view is not None
    short = manifest.view.log
    other = Store(store.root)
    other.put_many("d", {f"k{number}": "x" * 2000 for number in range(80)})
    other.delete_many("d", [f"k{number}" for number in range(80)])
    before = reading_files.read(store.root, "d").log_number

    def remap(point: str) -> None:
        # What the assignment in ``View.cover`` does when its thread was held up before it.
        if point == "commit:counted":
            assert manifest.view is not None
            manifest.view.log = short

    monkeypatch.setattr(compaction, "FLOOR", -1)
    monkeypatch.setattr(crashpoints, "hook", remap)
    store.put("d", "x", 2)
    monkeypatch.undo()
    assert (store.get("d", "x"), store.count("d")) == (2, 1)
    assert reading_files.check(store.root)["d"].log_number > before


# --- The object itself ------------------------------------------------------------

USES = {
    "put": lambda store: store.put("d", "a", LARGE),
    "put_many": lambda store: store.put_many("d", {}),
    "get": lambda store: store.get("d", "a", default=None),
    "get_buffer": lambda store: store.get_buffer("d", "a"),
    "has_value": lambda store: store.has_value("d", "a"),
    "delete": lambda store: store.delete("d", "a"),
    "delete_many": lambda store: store.delete_many("d", []),
    "clear": lambda store: store.clear("d"),
    "entry": lambda store: store.entry("d", "a"),
    "entries": lambda store: list(store.entries("d")),
    "ids": lambda store: list(store.ids("d")),
    "count": lambda store: store.count("d"),
    "dags": lambda store: store.dags(),
    "explain": lambda store: store.explain("d", "a"),
    "stats": lambda store: store.stats(),
    "enter": lambda store: store.__enter__(),
    "len": lambda store: len(store.dag("d")),
}


@pytest.mark.parametrize("name", USES)
def test_use_after_close(store: Store, name: str) -> None:
    """Every call raises StoreClosed and changes nothing; other objects go on."""
    store.put("d", "a", LARGE)
    closed = Store(store.root)
    held = closed.get("d", "a")
    closed.close()
    closed.close()
    with pytest.raises(shmstore.StoreClosed, match="it was closed"):
        USES[name](closed)
    assert np.array_equal(held, LARGE)
    assert np.array_equal(store.get("d", "a"), LARGE)
    assert "shmstore.Store" in repr(closed)


def test_close_lets_go_of_all_files(root: str) -> None:
    """A closed store has no file of its own open, even while the object lives on."""

    def ours() -> list[str]:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.exists(link)]

    closed = Store(root)
    closed.put("d", "a", LARGE)
    closed.get("d", "a")
    assert any(path.startswith(root) for path in ours())
    closed.close()
    assert [path for path in ours() if path.startswith(root)] == []


def test_a_context_manager_closes(root: str) -> None:
    """``with`` gives the store itself and closes it, also after an error, which it lets pass."""
    with Store(root) as opened:
        opened.put("d", "a", 1)
    with pytest.raises(shmstore.StoreClosed):
        opened.get("d", "a")
    failing = Store(root)
    with pytest.raises(ZeroDivisionError), failing:
        1 / 0
    with pytest.raises(shmstore.StoreClosed):
        failing.get("d", "a")


def test_a_pickled_store_opens_the_same_place(root: str) -> None:
    """Root and namespace go along, nothing else; the copy is open even if the original is not."""
    original = Store(root, "ns")
    original.put("d", "a", 1)
    original.close()
    raw = pickle.dumps(original)
    assert len(raw) < 200
    again = pickle.loads(raw)
    assert (again.root, again.namespace) == (root, "ns")
    assert again.get("d", "a") == 1
    assert root in repr(again)
    assert "ns" in repr(again)


def test_defaults_come_from_the_environment(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root and namespace that are not given are those of the environment."""
    monkeypatch.setenv("SHMSTORE_ROOT", root)
    monkeypatch.setenv("SHMSTORE_NAMESPACE", "env")
    opened = Store()
    assert (opened.root, opened.namespace) == (root, "env")
    opened.put("d", "a", 1)
    ref = opened.ref("d", "a")
    assert ref.root is None
    assert ref.get() == 1
    assert Store(Path(root), "env").get("d", "a") == 1
    monkeypatch.delenv("SHMSTORE_NAMESPACE")
    assert Store().namespace == "default"


@pytest.mark.parametrize("namespace", ["", "a/b", "..", "x" * 33, "ü"])
def test_a_wrong_namespace_creates_nothing(root: str, namespace: str) -> None:
    """A namespace that cannot be is a ValueError, before anything is created."""
    with pytest.raises(ValueError, match="namespace"):
        Store(root, namespace)
    assert os.listdir(root) == []


def test_references(store: Store) -> None:
    """A Ref is small, equal and hashable by its names, survives pickling, and gets in any mode."""
    ref = store.ref("d", "a")
    with pytest.raises(shmstore.NotFound):
        ref.get()
    store.put("d", "a", LARGE)
    again = pickle.loads(pickle.dumps(ref))
    assert again == ref
    assert len({ref, again, store.ref("d", "b")}) == 2
    assert len(pickle.dumps(ref)) < 250
    assert np.array_equal(again.get(), LARGE)
    private = ref.get(mode="copy")
    private[0] = 7
    assert ref.get()[0] == 0
    assert (ref.root, ref.namespace, ref.dag_id, ref.id) == (store.root, "default", "d", "a")


def test_a_reference_follows_a_root_that_was_made_anew(root: str) -> None:
    """A Ref names a place: when it was removed and filled again, it gets what is there now."""
    import shutil

    place = os.path.join(root, "inner")
    ref = Store(place).ref("d", "a")
    Store(place).put("d", "a", 1)
    assert ref.get() == 1
    shutil.rmtree(place)
    Store(place).put("d", "a", 2)
    assert ref.get() == 2


AT_EXIT = """
import sys, shmstore
store = shmstore.Store(sys.argv[1])
store.put("d", "a", 1)
class Late:
    def __init__(self):
        self.store, self.write = store, sys.stdout.write
    def __del__(self):
        try:
            self.store.put("d", "late", 1)
            self.write("stored")
        except Exception as error:
            self.write(type(error).__name__ + ": " + str(error))
sys.modules["keeps it until the very end"] = Late()
"""


def test_a_put_while_the_interpreter_ends(store: Store) -> None:
    """A finalizer that runs too late gets StoreClosed, and the lock is free."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, store.root],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == (
        "StoreClosed: The store cannot be used: the interpreter is shutting down."
    )
    store.put("d", "b", 2)
    assert list(store.ids("d")) == ["a", "b"]


# --- Async ------------------------------------------------------------------------


def test_async_twins(store: Store) -> None:
    """Each does in a thread what its sync twin does, with its arguments and errors."""

    async def work() -> None:
        entry = await store.put_async("d", "a", LARGE, deps=["x"])
        assert entry.deps == ("x",)
        with pytest.raises(shmstore.EntryExists):
            await store.put_async("d", "a", 1, overwrite=False)
        await store.put_many_async("d", {"b": 1, "c": 2})
        got = await asyncio.gather(*(store.get_async("d", id) for id in ("b", "c")))
        assert got == [1, 2]
        assert await store.get_async("d", "z", default=9) == 9
        writable = await store.get_async("d", "a", mode="copy")
        writable[0] = 3
        assert await store.get_many_async("d", ["b", "z"], default=0) == {"b": 1, "z": 0}
        assert (await store.get_buffer_async("d", "a")).size >= LARGE.nbytes
        await store.delete_async("d", "a")
        await store.delete_many_async("d", ["b"])
        with pytest.raises(shmstore.NotFound):
            await store.get_async("d", "a")
        assert (await store.clear_async("d")).cleared

    asyncio.run(work())
    assert store.dags() == []


def test_a_cancelled_put_happens_whole_or_not_at_all(store: Store) -> None:
    """Cancelling the task does not break the store: what its thread began, it ends."""
    inside, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "commit:locked":
            inside.set()
            assert cancelled.wait(30)
        elif point == "commit:counted":
            ended.set()

    async def work() -> None:
        task = asyncio.create_task(store.put_async("d", "a", LARGE))
        assert await asyncio.to_thread(inside.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    crashpoints.hook = hold
    try:
        asyncio.run(work())
        assert ended.wait(30)
    finally:
        crashpoints.hook = None
    assert np.array_equal(store.get("d", "a"), LARGE)
    store.put("d", "b", 1)
    reading_files.check(store.root)


# --- Waiting for the lock ---------------------------------------------------------


def test_a_long_wait_for_the_lock_ends_in_the_lock_or_in_store_busy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a writer has to look whether the lock is free, it goes on looking."""
    from shmstore import lock

    store.put("d", "a", 1)
    inside, go_on = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "commit:locked" and threading.current_thread() is holder:
            inside.set()
            assert go_on.wait(30)

    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 5000:
            go_on.set()
            os.sched_yield()

    holder = threading.Thread(target=store.put, args=("d", "held", 1))
    crashpoints.hook = hold
    holder.start()
    try:
        assert inside.wait(30)
        monkeypatch.setattr(lock.time, "sleep", sleep)
        Store(store.root).put("d", "b", 2)
    finally:
        monkeypatch.undo()
        go_on.set()
        holder.join(30)
        crashpoints.hook = None
    assert looks > 5000
    assert list(store.ids("d")) == ["a", "held", "b"]


class Unreadable(ValueError):
    """Pickles well, and cannot be rebuilt: its __init__ wants more than its args."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} {other}")


def test_a_value_that_would_not_load_is_refused_at_put(store: Store) -> None:
    """A class whose pickles do not load is found out by put, and the old value stays."""
    store.put("d", "a", "old")
    with pytest.raises(shmstore.Unserializable, match="cannot be read back"):
        store.put("d", "a", Unreadable(1, 2))
    with pytest.raises(shmstore.Unserializable, match="cannot be read back"):
        store.put("d", "a", {"deep": [Unreadable(1, 2), LARGE]})
    assert store.get("d", "a") == "old"


@pytest.mark.parametrize("name", ["put", "get", "has_value", "delete", "entry", "count", "clear"])
def test_a_dag_id_that_cannot_be_hashed_is_refused_by_name(store: Store, name: str) -> None:
    """A list for a dag_id is a TypeError that says dag_id, in every call."""
    args = {"put": ("x", 1), "count": (), "clear": ()}.get(name, ("x",))
    with pytest.raises(TypeError, match="dag_id must be a str, not list"):
        getattr(store, name)(["d"], *args)


@pytest.mark.parametrize(("root", "error"), [("", ValueError), (5, TypeError), (b"/x", TypeError)])
def test_a_root_that_is_no_path_is_refused(root: Any, error: type[Exception]) -> None:
    """An empty root or one of another type is refused by name, and nothing is made."""
    with pytest.raises(error, match="root must"):
        Store(root=root)


def test_many_dags_with_few_descriptors(root: str) -> None:
    """A process with 64 descriptors works on any number of DAGs and leaves some to others."""

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        store = Store(root)
        for number in range(60):
            store.put(f"dag-{number}", "x", number)
        with open("/dev/null"):
            return sum(store.get(f"dag-{number}", "x") for number in range(60))

    assert call(work) == sum(range(60))


@pytest.mark.parametrize("opened", [False, True])
def test_deps_of_a_wrong_type_are_refused_at_every_put(store: Store, opened: bool) -> None:
    """None or a number for deps is a TypeError, for the first put of a DAG and later ones."""
    if opened:
        store.put("d", "a", 1)
    for wrong in (None, 5, "abc"):
        with pytest.raises(TypeError, match="deps must be"):
            store.put("d", "x", 1, deps=wrong)  # type: ignore[arg-type]
    assert not store.has_value("d", "x")


def test_a_store_closed_while_it_opens_a_dag_stays_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that comes between opening a DAG and keeping it ends that call and all later ones."""
    Store(store.root).put("d", "a", 1)
    find = lookup.find_dag

    def closing(*args: Any) -> Any:
        found = find(*args)
        store.close()
        return found

    monkeypatch.setattr(lookup, "find_dag", closing)
    for _ in range(2):
        with pytest.raises(shmstore.StoreClosed):
            store.get("d", "a")


def test_compaction_keeps_a_damaged_record_to_be_seen(store: Store) -> None:
    """A record whose op is flipped is reported by get before and after many overwrites."""
    store.put_many("d", {f"k{n}": n for n in range(10)})
    files = reading_files.read(store.root, "d")
    raw = bytearray(files.log.read_bytes())
    at = raw.index(b"k3", 4096) - record.HEAD_SIZE
    raw[at + 12] ^= 2  # PUT becomes CHECKPOINT
    files.log.write_bytes(raw)
    reader = Store(store.root)
    with pytest.raises(shmstore.CorruptValue):
        reader.get("d", "k3")
    for n in range(200):
        reader.put("d", "churn", f"{n:03}" * 5000)
    with pytest.raises(shmstore.CorruptValue):
        Store(store.root).get("d", "k3")
    assert reader.get("d", "k4") == 4
