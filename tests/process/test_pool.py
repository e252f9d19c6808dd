"""Emptied segments are written again, and only those that nobody views."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, pool, warm
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at

_SIZE = 1 << 20


def _value(seed: int, nbytes: int = _SIZE) -> np.ndarray[Any, Any]:
    return np.arange(nbytes // 8, dtype=np.int64) * 5 + seed


def _inode(root: str, dag_id: str = "d", id: str = "x") -> int:
    dag = reading_files.read(root, dag_id)
    return (dag.path / str(dag.records[id].segment)).stat().st_ino


def _pooled(root: str) -> dict[int, int]:
    """Size by inode of what is in the pool."""
    found = (path.stat() for path in Path(root, "default", "pool").iterdir())
    return {status.st_ino: status.st_size for status in found}


@pytest.mark.parametrize("end", ["overwrite", "delete", "clear"])
def test_an_emptied_segment_is_written_again(root: str, end: str) -> None:
    """What an overwrite, a delete or a clear empties holds the next value of that size."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    first = _inode(root)
    if end == "overwrite":
        store.put("d", "x", _value(2))
    elif end == "delete":
        store.delete("d", "x")
    else:
        store.clear("d")
    assert _pooled(root) == {first: _SIZE}
    store.put("d", "y", _value(3))
    assert _inode(root, id="y") == first
    assert _pooled(root) == {}
    assert np.array_equal(store.get("d", "y"), _value(3))
    reading_files.check(root)


@pytest.mark.parametrize("nbytes", [_SIZE * 3 // 4, _SIZE + _SIZE // 2])
def test_a_segment_is_cut_or_grown_to_its_new_value(root: str, nbytes: int) -> None:
    """A segment of about the right size is taken, and has the value's size then."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    first = _inode(root)
    store.delete("d", "x")
    store.put("d", "x", _value(2, nbytes))
    assert _inode(root) == first
    assert np.array_equal(store.get("d", "x"), _value(2, nbytes))
    reading_files.check(root)


def _hold(parent: Parent, root: str, mode: str) -> None:
    view = shmstore.Store(root).get("d", "x", mode=mode)
    parent.send("holds it")
    parent.receive()
    assert np.array_equal(view, _value(1))


@pytest.mark.parametrize("mode", ["read", "cow"])
def test_a_segment_that_is_viewed_is_never_written(root: str, mode: str) -> None:
    """It stays in the pool, unchanged, until its viewer in another process has gone."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    first = _inode(root)
    with Child(_hold, Parent, root, mode) as child:
        assert child.receive() == "holds it"
        for seed in range(2, 12):
            store.put("d", "x", _value(seed))
            assert _inode(root) != first
        assert first in _pooled(root)
        assert pool.trim(store._dags.space, 0)
        assert list(_pooled(root)) == [first], "freed although it is viewed"
        child.send()
        child.receive()
        assert child.join() == 0
    store.delete("d", "x")
    for id in ("x", "y"):
        store.put("d", id, _value(20))
    assert first in (_inode(root), _inode(root, id="y"))


def test_a_childs_inherited_view_counts(root: str) -> None:
    """A forked child goes on viewing what its parent no longer holds."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    held = [store.get("d", "x")]

    def child(parent: Parent) -> bool:
        parent.receive()
        return np.array_equal(held[0], _value(1))

    with Child(child, Parent) as other:
        held.clear()
        for seed in range(2, 8):
            store.put("d", "x", _value(seed))
        other.send()
        assert other.receive()
    assert np.array_equal(store.get("d", "x"), _value(7))


def test_a_warm_mapping_is_a_cache_and_no_claim(root: str) -> None:
    """What another process stored in a segment that is mapped here is not overwritten."""
    store = shmstore.Store(root)
    for seed in range(4):
        store.put("d", "x", _value(seed))  # both segments are warm by now
    store.delete("d", "x")
    warmed = set(warm._kept)
    assert len(warmed) >= 2

    def others() -> set[int]:
        other = shmstore.Store(root)
        for n in range(2):
            other.put("d", f"other-{n}", _value(100 + n))
        return {_inode(root, id=f"other-{n}") for n in range(2)}

    taken = call(others)
    assert taken <= {inode for _, inode in warmed}
    for seed in range(4):
        store.put("d", "x", _value(seed))
        assert _inode(root) not in taken
    for n in range(2):
        assert np.array_equal(store.get("d", f"other-{n}"), _value(100 + n))


def test_a_discard_does_not_cut_what_was_stored_meanwhile(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening a dead segment and locking it, it may have become a value again."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    name = reading_files.read(root, "d").records["x"].segment
    assert name is not None
    directory = store._dags.manifests["d"].directory
    flock = pool.fcntl.flock
    stored = []

    def late(fd: int, operation: int) -> None:
        if not stored:
            stored.append("first, others retire, claim and store it")
            store.delete("d", "x")
            store.put("d", "y", _value(2))
        flock(fd, operation)

    monkeypatch.setattr(pool.fcntl, "flock", late)
    pool.discard(store._dags.space, directory, name, _SIZE)
    monkeypatch.setattr(pool.fcntl, "flock", flock)
    assert np.array_equal(store.get("d", "y"), _value(2))
    reading_files.check(root)


def test_a_killed_writers_claim_ends_with_it(root: str) -> None:
    """A segment half written by a dead process is an emptied one again."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    store.delete("d", "x")
    (first,) = _pooled(root)
    kill_at("pool:written", 1, lambda: shmstore.Store(root).put("d", "y", _value(2)))
    assert not store.has_value("d", "y")
    store.put("d", "z", _value(3))
    assert _inode(root, id="z") == first


def test_two_writers_never_claim_the_same(root: str) -> None:
    """While one has it, the next writer takes new memory."""
    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    store.delete("d", "x")
    (first,) = _pooled(root)

    def claims(parent: Parent) -> None:
        def hook(name: str) -> None:
            if name == "pool:claimed":
                parent.send("claimed")
                parent.receive()

        crashpoints.hook = hook
        shmstore.Store(root).put("d", "one", _value(2))

    with Child(claims, Parent) as child:
        assert child.receive() == "claimed"
        store.put("d", "two", _value(3))
        assert _inode(root, id="two") != first
        child.send()
        child.receive()
    assert _inode(root, id="one") == first
    for id, seed in (("one", 2), ("two", 3)):
        assert np.array_equal(store.get("d", id), _value(seed))


def test_the_pool_is_bounded(root: str) -> None:
    """``pool`` bounds what is kept; 0 keeps nothing; a quarter of a capacity if not given."""
    store = shmstore.Store(root, pool="3 MiB")
    for n in range(8):
        store.put("d", f"{n}", _value(n))
    store.delete_many("d", [f"{n}" for n in range(8)])
    assert sum(_pooled(root).values()) == 3 << 20
    assert store.stats().pool_bytes == 3 << 20
    other = shmstore.Store(root, pool=0)
    other.put("d", "x", _value(1))
    store.delete("d", "x")
    assert _pooled(root) == {}, "what one process sets holds for all"
    aside = shmstore.Store(root, "aside", capacity="8 MiB")
    assert aside._dags.space.pool_limit == 2 << 20
    assert shmstore.Store(root, "another")._dags.space.pool_limit == 1 << 30


def test_what_was_emptied_long_ago_is_freed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep by itself frees aged ones only, an explicit gc all that nobody views."""
    from shmstore import sweep

    store = shmstore.Store(root)
    store.put("d", "x", _value(1))
    store.delete("d", "x")
    space = store._dags.space
    assert list(sweep.emptied(space, sweep.Order())) == []
    assert len(list(sweep.emptied(space, sweep.Order(pool_kept_s=0.0)))) == 1
    assert _pooled(root) == {}


def test_freed_memory_is_free_although_it_is_mapped_warm(root: str) -> None:
    """A mapping that a process keeps to write again does not hold what others have freed."""
    store = shmstore.Store(root)
    for seed in range(6):
        store.put("d", "x", _value(seed, 8 << 20))
    assert warm._kept
    store.delete("d", "x")
    kept = [(path, path.stat()) for path in Path(root, "default", "pool").iterdir()]
    held = [os.open(path, os.O_RDONLY) for path, _ in kept]
    try:
        assert call(lambda: shmstore.Store(root).gc().freed_bytes) >= 16 << 20
        assert [os.fstat(fd).st_blocks for fd in held] == [0] * len(held)
    finally:
        for fd in held:
            os.close(fd)
