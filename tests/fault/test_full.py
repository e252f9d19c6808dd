"""A full file system is an exception: nothing is lost, and deleting helps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.fault.killing import call, kill_at

_SIZE = 2 << 20


@pytest.fixture
def small(root: str) -> Iterator[str]:
    """A root on a tmpfs of 2 MiB of its own; needs to be root."""
    path = f"{root}/small"
    os.mkdir(path)
    options = f"size={_SIZE},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


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
            assert full.limit == _SIZE
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
def test_full_of_large_values(small: str, put: Callable[[int], tuple[str, str, Any]]) -> None:
    """Full of segments: StoreFull, all kept, one delete makes room for one put; no SIGBUS."""
    call(_fill_and_delete, small, put, 0)


@pytest.mark.parametrize("put", [_inline, _tiny])
def test_full_of_small_values(small: str, put: Callable[[int], tuple[str, str, Any]]) -> None:
    """Full of inline values: StoreFull, all kept, all can be deleted and others put again."""
    call(_fill_and_delete, small, put, 0)


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


def test_full_of_dags(small: str) -> None:
    """Full of DAGs: StoreFull for a new one, the others work, one clear makes room for one."""
    call(_fill_with_dags, small)


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


def test_a_file_system_without_one_free_page(small: str) -> None:
    """With no page left, gets and deletes work, puts work while the log has room; no SIGBUS."""
    call(_written_to_the_last_page, small)


@pytest.mark.parametrize("point", ["segment:opened", "segment:written", "commit:written"])
def test_a_killed_writers_memory_comes_back(small: str, point: str) -> None:
    """What a writer had written of a large value is free once it is killed."""
    store = shmstore.Store(small)
    store.put("dag", "a", 1)
    before = _free(small)
    kill_at(point, 1, lambda: shmstore.Store(small).put("dag", "large", np.zeros(100_000)))
    assert _free(small) == before
    reading_files.check(small)
