"""A full file system is an exception: nothing is lost, and deleting helps."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.fault.enclosed import mount_tmpfs, with_mounts
from tests.fault.killing import kill_at

_SIZE = 2 << 20
_LARGER = 64 << 20
_DEADLINE_S = 100.0


def _enclosed(root: str, function: Callable[..., Any], *args: Any, size: int = _SIZE) -> Any:
    """Runs a function, given the path of a small tmpfs, in a process that alone has it."""
    return with_mounts(
        lambda: function(mount_tmpfs(f"{root}/small", size), *args), timeout_s=_DEADLINE_S
    )


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _total(path: str) -> int:
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def _fill(
    store: shmstore.Store, put: Callable[[int], tuple[str, str, Any]]
) -> dict[tuple[str, str], Any]:
    """Puts one after another until no more fits; returns what was acknowledged."""
    kept: dict[tuple[str, str], Any] = {}
    while True:
        dag_id, id, value = put(len(kept))
        try:
            store.put(dag_id, id, value)
        except shmstore.StoreFull as full:
            assert full.what == "shared memory"
            assert full.limit == _total(store.root)
            assert "nothing was changed" in str(full)
            assert not store.has_value(dag_id, id)
            return kept
        kept[dag_id, id] = value


def _all_there(store: shmstore.Store, kept: dict[tuple[str, str], Any]) -> None:
    for (dag_id, id), value in kept.items():
        got = store.get(dag_id, id)
        assert np.array_equal(got, value) if isinstance(value, np.ndarray) else got == value


def _large(n: int) -> tuple[str, str, Any]:
    return "dag", f"large-{n}", np.full(6000, n)


def _huge(n: int) -> tuple[str, str, Any]:
    return "dag", f"huge-{n}", np.full(1 << 17, n)  # 1 MiB: held against what is free first


def _inline(n: int) -> tuple[str, str, Any]:
    return "dag", f"small-{n}", {"n": n, "text": "x" * 900}


def _tiny(n: int) -> tuple[str, str, Any]:
    return "dag", f"tiny-{n}", n


def _dags(n: int) -> tuple[str, str, Any]:
    return f"dag-{n}", "small", n


def _fill_and_delete(root: str, put: Callable[[int], tuple[str, str, Any]], again: int) -> None:
    store = shmstore.Store(root)
    kept = _fill(store, put)
    assert kept
    _all_there(store, kept)
    _all_there(shmstore.Store(root), kept)
    # And so it stays when others try, too.
    for n in range(3):
        dag_id, id, value = put(len(kept) + n)
        with pytest.raises(shmstore.StoreFull):
            shmstore.Store(root).put(dag_id, id, value)
        with pytest.raises(shmstore.StoreFull):
            store.put_many(dag_id, {id: value, f"{id}-too": value})
    _all_there(store, kept)
    reading_files.check(root)
    keys = list(kept)
    while len(keys) > again:
        store.delete(*keys.pop())
        kept.popitem()
    _all_there(store, kept)
    reading_files.check(root)
    dag_id, id, value = put(0)
    store.put(dag_id, "again", value)
    kept[dag_id, "again"] = value
    _all_there(store, kept)
    reading_files.check(root)


@pytest.mark.parametrize("put", [_large, _huge])
def test_full_of_large_values(root: str, put: Callable[[int], tuple[str, str, Any]]) -> None:
    """Full of segments: StoreFull, all kept, one delete makes room for one put; no SIGBUS."""
    _enclosed(root, _fill_and_delete, put, 0)


@pytest.mark.parametrize("put", [_inline, _tiny])
def test_full_of_small_values(root: str, put: Callable[[int], tuple[str, str, Any]]) -> None:
    """Full of inline values: StoreFull, all kept, all can be deleted and others put again."""
    _enclosed(root, _fill_and_delete, put, 0)


def _fill_with_dags(root: str) -> None:
    store = shmstore.Store(root)
    kept = _fill(store, _dags)
    assert len(kept) > 5
    _all_there(store, kept)
    for n in range(3):
        with pytest.raises(shmstore.StoreFull):
            store.put(f"another-{n}", "small", 1)
    assert not reading_files.trash(root), "what could not be built is left"
    # A DAG that is there still takes a small value, and gives one up.
    store.put("dag-0", "more", 2)
    store.delete("dag-0", "more")
    assert store.clear("dag-1").cleared
    del kept["dag-1", "small"]
    store.put("another", "small", 1)
    kept["another", "small"] = 1
    _all_there(store, kept)
    assert {dag.dag_id for dag in store.dags()} == {dag_id for dag_id, _ in kept}
    reading_files.check(root)


def test_full_of_dags(root: str) -> None:
    """Full of DAGs: StoreFull for a new one, the others work, one clear makes room for one."""
    _enclosed(root, _fill_with_dags)


def _written_to_the_last_page(root: str) -> None:
    """Fills the file system itself, then reads and writes what is there."""
    store = shmstore.Store(root)
    for n in range(20):
        store.put("dag", f"id-{n}", n)
    with open(f"{root}/ballast", "wb", buffering=0) as ballast:
        while _free(root):
            try:
                ballast.write(bytes(min(_free(root), 4096)))
            except OSError:
                break
    assert _free(root) == 0
    for n in range(20):
        assert store.get("dag", f"id-{n}") == n
    outcomes = set()
    for n in range(3000):
        try:
            store.put("dag", f"id-{n % 20}", {"n": n, "text": "x" * 50})
            assert store.get("dag", f"id-{n % 20}")["n"] == n
            outcomes.add("stored")
        except shmstore.StoreFull:
            outcomes.add("full")
    assert outcomes == {"stored", "full"}, "the log was not filled to its end"
    with pytest.raises(shmstore.StoreFull):
        store.put("dag", "large", np.arange(9000))
    with pytest.raises(shmstore.StoreFull):
        store.put("other", "small", 1)
    for n in range(20):
        store.delete("dag", f"id-{n}")
    assert list(store.ids("dag")) == []
    os.unlink(f"{root}/ballast")
    store.put("dag", "large", np.arange(9000))
    reading_files.check(root)


def test_a_file_system_without_one_free_page(root: str) -> None:
    """With no page left, gets and deletes work, puts work while the log has room; no SIGBUS."""
    _enclosed(root, _written_to_the_last_page)


def _kill_at(root: str, point: str) -> None:
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    before = _free(root)
    kill_at(point, 1, lambda: shmstore.Store(root).put("dag", "large", np.zeros(100_000)))
    assert _free(root) == before
    reading_files.check(root)


@pytest.mark.parametrize("point", ["segment:opened", "segment:written", "commit:written"])
def test_a_killed_writers_memory_comes_back(root: str, point: str) -> None:
    """What a writer had written of a large value is free once it is killed."""
    _enclosed(root, _kill_at, point)


# --- 64 MB, as a container has by default ------------------------------------------


def _numbers(n: int) -> tuple[str, Any]:
    return f"n-{n}", n


def _texts(n: int) -> tuple[str, Any]:
    return f"text-{n}", f"{n}-" * 150


def _inlines(n: int) -> tuple[str, Any]:
    return f"inline-{n}", {"n": n, "text": "x" * 9000}


def _arrays(n: int) -> tuple[str, Any]:
    return f"array-{n}", np.full(2500, n)


def _larger(n: int) -> tuple[str, Any]:
    return f"larger-{n}", np.full(3 << 17, n)


def _mixed(n: int) -> tuple[str, Any]:
    return (_numbers, _texts, _inlines, _arrays, _larger)[n % 5 if n % 50 else 4](n)


_KINDS = {
    "small, which grow the index": (_numbers, 20_000),
    "texts": (_texts, 4000),
    "inline": (_inlines, 500),
    "arrays": (_arrays, 300),
    "large": (_larger, 7),
    "mixed": (_mixed, 60),
}


def _equal(got: Any, value: Any) -> bool:
    return np.array_equal(got, value) if isinstance(value, np.ndarray) else bool(got == value)


def _check(root: str, store: shmstore.Store, kept: dict[str, Any]) -> None:
    """What was acknowledged is there, by the files and by the store, and nothing else."""
    found = reading_files.check(root).get("dag")
    assert set(found.records if found else ()) == set(kept)
    sample = list(kept) if len(kept) < 2000 else random.Random(1).sample([*kept], 2000)
    for id in sample:
        assert _equal(store.get("dag", id), kept[id]), id


def _fill_in_batches(
    store: shmstore.Store, make: Callable[[int], tuple[str, Any]], batch: int
) -> dict[str, Any]:
    """Puts many at a time, then fewer and fewer, until not even one more fits."""
    kept: dict[str, Any] = {}
    while batch:
        values = dict(make(len(kept) + n) for n in range(batch))
        try:
            store.put_many("dag", values)
        except shmstore.StoreFull as full:
            assert full.what == "shared memory"
            assert "nothing was changed" in str(full)
            assert not any(store.has_value("dag", id) for id in values)
            batch = batch // 8 if batch > 1 else 0
        else:
            kept |= values
    return kept


def _fill_larger(root: str, kind: str) -> int:
    make, batch = _KINDS[kind]
    store = shmstore.Store(root)
    if make is _numbers:  # so that it does not take a million of them
        for n in range(14):
            store.put("beside", *_larger(n))
    kept = _fill_in_batches(store, make, batch)
    _check(root, store, kept)
    stored = sum(getattr(value, "nbytes", 0) for value in kept.values())
    # Others find it full, too, and can neither add nor make DAGs for ever.
    other = shmstore.Store(root)
    with pytest.raises(shmstore.StoreFull):
        for n in range(2000):
            other.put(f"other-{n}", "id", "x" * 5000)
    for dag in other.dags():
        if dag.dag_id.startswith("other-"):
            other.clear(dag.dag_id)
    # Views are held while room is made under them.
    views = {id: store.get("dag", id) for id in list(kept)[:3]}
    gone = list(kept)[: max(len(kept) // 4, 1)]
    expected = {id: kept[id] for id in views}
    for id in reversed(gone[-20:]):  # one by one a delete always fits
        store.delete("dag", id)
    store.delete_many("dag", gone[:-20])
    for id in gone:
        del kept[id]
    assert all(_equal(view, expected[id]) for id, view in views.items())
    del views, expected
    again = dict(make(1_000_000 + n) for n in range(max(len(gone) // 8, 1)))
    for id, value in again.items():
        store.put("dag", id, value)
    kept |= again
    _check(root, other, kept)
    assert store.clear("dag").cleared
    store.put("dag", *make(1))
    return stored


@pytest.mark.parametrize("kind", _KINDS)
def test_64_mb_are_filled(root: str, kind: str) -> None:
    """Filled by values of any kind: StoreFull, all kept and right, room by deletes; no SIGBUS."""
    stored = _enclosed(root, _fill_larger, kind, size=_LARGER)
    if kind in ("arrays", "large"):
        assert stored > _LARGER * 0.8, "full long before it was"


def _overwrite_until_full(root: str) -> tuple[int, int]:
    """The log fills with what is dead; compaction then has to do with what is left."""
    store = shmstore.Store(root)
    kept: dict[str, Any] = {}
    while _free(root) > 40 << 20:
        more = {f"live-{len(kept) + n}": f"{n}" * 2000 for n in range(100)}
        store.put_many("dag", more)
        kept |= more
    ids = list(kept)
    compacted = 0
    size = store.stats().log_bytes
    rng = random.Random(3)
    for n in range(100_000):
        id = rng.choice(ids)
        value = f"{n}-" * rng.randrange(500, 1500 + 2 * n)
        try:
            store.put("dag", id, value[:15_000])
        except shmstore.StoreFull:
            break
        kept[id] = value[:15_000]
        if not n % 50:  # a compaction is the only thing that makes a log shorter
            now = store.stats().log_bytes
            compacted += now < size
            size = now
    else:
        raise AssertionError("it was never full")
    _check(root, store, kept)
    for id in ids[: len(ids) // 2]:
        store.delete("dag", id)
        del kept[id]
    for n in range(100):
        store.put("dag", f"again-{n}", "y" * 5000)
        kept[f"again-{n}"] = "y" * 5000
    _check(root, store, kept)
    return compacted, n


def test_64_mb_are_filled_by_overwriting(root: str) -> None:
    """With no room for a compaction puts are StoreFull, deletes make room, nothing is lost."""
    compacted, _ = _enclosed(root, _overwrite_until_full, size=_LARGER)
    assert compacted


def _fill_by_dags(root: str) -> int:
    store = shmstore.Store(root)
    kept: dict[str, int] = {}
    with pytest.raises(shmstore.StoreFull):
        while True:
            store.put(f"dag-{len(kept)}", "id", len(kept))
            kept[f"dag-{len(kept)}"] = len(kept)
    assert {dag_id: store.get(dag_id, "id") for dag_id in kept} == kept
    files = reading_files.check(root)
    assert {dag_id for dag_id, dag in files.items() if dag.records} == set(kept)
    assert not reading_files.trash(root)
    for n in range(0, len(kept), 2):
        store.clear(f"dag-{n}")
        del kept[f"dag-{n}"]
    store.put_many("new", {f"array-{n}": np.full(50_000, n) for n in range(20)})
    assert {dag_id: store.get(dag_id, "id") for dag_id in kept} == kept
    reading_files.check(root)
    return len(kept)


def test_64_mb_are_filled_by_dags(root: str) -> None:
    """Hundreds of DAGs until no more can be made: each is whole, clearing makes room."""
    assert _enclosed(root, _fill_by_dags, size=_LARGER) > 200
