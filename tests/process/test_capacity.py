"""A capacity bounds a namespace for all processes, and its account never runs low."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import codecs, crashpoints, ledger, stored
from shmstore.sizes import parse_size
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at

_MIB = 1 << 20


def _taken(root: str, namespace: str = "default") -> int:
    """Bytes of memory that the namespace's files take: the truth."""
    return sum(
        Path(place, name).lstat().st_blocks * 512
        for place, _, names in os.walk(Path(root, namespace))
        for name in names
    )


def _used(store: shmstore.Store) -> int:
    return store._dags.space.ledger.used


def _value(seed: int, nbytes: int = _MIB) -> np.ndarray[Any, Any]:
    return np.arange(nbytes // 8, dtype=np.int64) + seed


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (5, 5),
        ("5", 5),
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("500 MB", 500_000_000),
        ("1.5kib", 1536),
        ("2 tb", 2 * 10**12),
        (" 7 b ", 7),
    ],
)
def test_sizes_are_what_people_write(text: object, nbytes: int) -> None:
    """A number, or a number and a unit of 1024 or 1000."""
    assert parse_size(text, "capacity") == nbytes


@pytest.mark.parametrize("text", ["", "much", "8 GiB more", "-1", "GiB", -1, "9 EiB", 1 << 70])
def test_what_is_no_size_is_refused(text: object) -> None:
    """The error names the argument and shows what would be a size."""
    with pytest.raises(ValueError, match="capacity must"):
        parse_size(text, "capacity")


@pytest.mark.parametrize("value", [None, 1.5, True, b"8GiB"])
def test_what_is_neither_is_a_type_error(value: object) -> None:
    """Neither a float nor bytes is taken for a size."""
    with pytest.raises(TypeError, match="pool must be bytes"):
        parse_size(value, "pool")


def test_every_process_obeys_the_capacity_given_last(root: str) -> None:
    """Also one that was at work before it was given; None changes nothing, 0 lifts it."""
    early = shmstore.Store(root)
    early.put("d", "x", _value(1))
    call(lambda: shmstore.Store(root, capacity="4MiB"))
    assert early.stats().capacity == 4 * _MIB
    shmstore.Store(root)
    with pytest.raises(shmstore.StoreFull, match="capacity of namespace 'default'") as caught:
        early.put("d", "large", _value(2, 5 * _MIB))
    assert caught.value.limit == 4 * _MIB
    assert np.array_equal(early.get("d", "x"), _value(1))
    call(lambda: shmstore.Store(root, capacity=0))
    early.put("d", "large", _value(2, 5 * _MIB))
    assert early.stats().capacity is None


def _small(n: int) -> tuple[str, str, Any]:
    return "d", f"{n}", "s" * 9000


def _large(n: int) -> tuple[str, str, Any]:
    return "d", f"{n}", _value(n, 300 << 10)


def _dags(n: int) -> tuple[str, str, Any]:
    return f"d{n}", "x", n


@pytest.mark.parametrize("item", [_small, _large, _dags])
def test_full_is_an_exception_and_a_delete_helps(root: str, item: Any) -> None:
    """Filled in any way, all stays readable and a put works again after deletes and clears."""
    store = shmstore.Store(root, capacity=4 * _MIB)
    kept: list[tuple[str, str, Any]] = []
    with pytest.raises(shmstore.StoreFull, match="capacity"):
        while True:
            store.put(*item(len(kept)))
            kept.append(item(len(kept)))
            assert _taken(root) <= _used(store) <= 4 * _MIB
    assert len(kept) > 5
    for dag_id, id, value in kept:
        assert np.array_equal(store.get(dag_id, id), value)
    for dag_id, id, _ in kept[: len(kept) // 2]:
        if item is _dags:
            store.clear(dag_id)
        else:
            store.delete(dag_id, id)
    store.put(*item(len(kept)))
    for dag_id, id, value in kept[len(kept) // 2 :]:
        assert np.array_equal(store.get(dag_id, id), value)
    store._dags.space.ledger.recount()
    assert _used(store) == _taken(root)


def test_the_account_is_never_too_low(root: str) -> None:
    """Beside random work and kills it is at least the truth; a recount makes it the truth."""
    store = shmstore.Store(root, capacity=64 * _MIB, pool=2 * _MIB)
    chance = random.Random(4)

    def work(seed: int) -> None:
        own, chance = shmstore.Store(root), random.Random(seed)
        for n in range(40):
            dag_id, id = f"d{chance.randrange(3)}", f"{chance.randrange(6)}"
            if (what := chance.random()) < 0.7:
                own.put(dag_id, id, _value(n, chance.choice((800, 70_000, 300_000, 900_000))))
            elif what < 0.9:
                if own.has_value(dag_id, id):
                    own.delete(dag_id, id)
            else:
                own.clear(dag_id)

    for seed in range(12):
        point = chance.choice(
            ("segment:written", "commit:named", "commit:unlocked", "ledger:reserved", "")
        )
        if point:
            kill_at(point, chance.randrange(1, 4), work, seed)
        else:
            call(work, seed)
        assert _used(store) >= _taken(root)
    store._dags.space.ledger.recount()
    assert _used(store) == _taken(root)
    store.gc()
    assert store.check() == []
    assert _used(store) == _taken(root)


def test_a_recount_comes_before_store_full(root: str) -> None:
    """An account that dead processes left too high tells nobody that the store is full."""
    store = shmstore.Store(root, capacity=16 * _MIB)
    store.put("d", "x", 1)
    store._dags.space.control[ledger.USED] = 16 * _MIB
    store.put("d", "y", _value(1))
    assert _used(store) < 4 * _MIB


def test_what_others_are_writing_counts(root: str) -> None:
    """A recount knows what a living process has reserved and not named; a dead one's is free."""
    store = shmstore.Store(root, capacity=16 * _MIB)
    store.put("d", "x", 1)

    def writes(parent: Parent) -> None:
        def hook(name: str) -> None:
            if name == "segment:written":
                parent.send("written")
                parent.receive()

        crashpoints.hook = hook
        shmstore.Store(root).put("d", "large", _value(1, 8 * _MIB))

    account = store._dags.space.ledger
    with Child(writes, Parent) as child:
        assert child.receive() == "written"
        account.recount()
        assert account.used >= _taken(root) + 8 * _MIB
        with pytest.raises(shmstore.StoreFull):
            store.put("d", "other", _value(2, 9 * _MIB))
        child.kill()
    store.put("d", "other", _value(2, 9 * _MIB))
    account.recount()
    assert account.used == _taken(root)


def _fetched(store: shmstore.Store, id: str, value: Any) -> None:
    item = (id, id.encode(), value, codecs.encode(value), ())
    stored.store(store._dags, "d", [item], origin="elsewhere")


def _there(store: shmstore.Store, ids: Sequence[str]) -> list[str]:
    return [id for id in ids if store.has_value("d", id)]


def test_copies_go_first_the_oldest_and_unviewed(root: str) -> None:
    """Short of room, fetched copies that nobody views go, the oldest first; originals stay."""
    store = shmstore.Store(root, capacity=8 * _MIB, pool=0)
    store.put("d", "original", _value(0))
    for n in range(4):
        _fetched(store, f"copy-{n}", _value(n))
    assert store.entry("d", "copy-1").origin == "elsewhere"
    assert store.entry("d", "original").origin is None
    view = store.get("d", "copy-0")
    store.put("d", "new", _value(9, 3 * _MIB + (_MIB >> 1)))
    left = _there(store, ["original", "copy-0", "copy-1", "copy-2", "copy-3"])
    assert left == ["original", "copy-0", "copy-2", "copy-3"]
    assert np.array_equal(view, _value(0))
    reading_files.check(root)


@pytest.mark.parametrize("kib", [20, 100, 200])
def test_what_is_viewed_counts_until_its_last_view_goes(root: str, kib: int) -> None:
    """Dead values that are viewed take memory: a capacity bounds them, too, whatever their size."""
    limit = 4 << 20
    store = shmstore.Store(root, capacity=limit, pool=1 << 20)
    views = []
    with pytest.raises(shmstore.StoreFull):
        for n in range(2 * limit // (kib << 10)):
            store.put("d", "a", np.full(kib << 7, n))
            views.append(store.get("d", "a"))
    assert [int(view[0]) for view in views] == list(range(len(views)))
    taken = sum(path.stat().st_blocks * 512 for path in Path(root).rglob("*") if path.is_file())
    assert sum(view.nbytes for view in views) <= taken <= limit
    del views
    store.put("d", "a", np.full(kib << 7, -1))
    store.gc()
    assert reading_files.trash(root) == []
    account = reading_files.account(root)
    assert account.allocated <= account.used
    reading_files.check(root)


def test_what_is_viewed_and_swept_counts_until_its_last_view_goes(root: str) -> None:
    """Also what a dead process has left: gc may take its name, and not forget its memory."""
    store = shmstore.Store(root, capacity="4MiB", pool=0)
    for id in ("orphan", "cleared"):
        store.put(id, "a", np.full(1 << 17, 7))
    views = [store.get(dag_id, "a") for dag_id in ("orphan", "cleared")]
    other = np.full(10_000, 8)
    kill_at("commit:unlocked", 1, lambda: shmstore.Store(root).put("orphan", "a", other))
    kill_at("clear:renamed", 1, lambda: shmstore.Store(root).clear("cleared"))
    store.gc()
    assert store._dags.space.ledger.used >= 2 << 20
    assert [int(view[-1]) for view in views] == [7, 7]
    del views
    assert [one.kind for one in store.gc(dry_run=True).actions] == ["viewed", "viewed"]
    assert [one.nbytes for one in store.gc().actions] == [1 << 20, 1 << 20]
    assert store._dags.space.ledger.used < 1 << 20
    assert reading_files.trash(root) == []


def test_a_damaged_index_is_rebuilt_where_the_capacity_is_used_up(root: str) -> None:
    """Values stay readable at the limit: what can be freed makes room for the new index."""
    store = shmstore.Store(root, pool="1MiB")
    store.put_many("d", {f"{n}": n for n in range(5)})
    store.put("d", "spare", np.zeros(1 << 15))
    store.delete("d", "spare")
    assert reading_files.pool(root)
    shmstore.Store(root, capacity=_taken(root))
    index = reading_files.read(root, "d").index
    raw = bytearray(index.read_bytes())
    for at in range(128, len(raw), 16):
        if any(raw[at + 8 : at + 16]):
            raw[at + 8] ^= 0x10  # a tag
    with index.open("r+b") as file:
        file.write(raw)
    assert shmstore.Store(root).get("d", "3") == 3
    assert sorted(shmstore.Store(root).ids("d")) == list("01234")
    assert not reading_files.pool(root)
    reading_files.check(root)
