"""A capacity is kept by all processes, filled to its end, and never exceeded."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import codecs, crashpoints, ledger, lookup, pool, relief, stored, warm, writing
from shmstore.ledger import CAPACITY, USED, Ledger
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at
from tests.fault.scenarios import set_word
from tests.process.test_moved_values import move, on_disk
from tests.process.test_pool_claims import big, segment_of

_MIB = 1 << 20


def control(root: str) -> Path:
    return Path(root, "default", "control")


def holds(root: str) -> reading_files.Account:
    """The account is at least the truth, and at most the capacity."""
    account = reading_files.account(root)
    assert account.allocated <= account.used, account
    assert not account.capacity or account.used <= account.capacity, account
    return account


def is_exact(root: str) -> None:
    """A recount with nobody at work finds exactly what is taken."""
    shmstore.Store(root)._dags.space.ledger.recount()
    account = reading_files.account(root)
    assert account.used == account.allocated, account


def fetched(store: shmstore.Store, id: str, value: Any, dag_id: str = "d") -> None:
    """Stores a value as one that was fetched from another node."""
    item = (id, id.encode(), value, codecs.encode(value), ())
    stored.store(store._dags, dag_id, [item], origin="other-node")


def _obeys(parent: Parent, root: str) -> list[str]:
    """A process that runs before the capacity is given, and goes on."""
    store = shmstore.Store(root)
    store.put("d", "a", big(1))
    outcomes = []
    while (kib := parent.receive()) is not None:
        try:
            store.put("d", "b", big(2, kib))
            outcomes.append("stored")
        except shmstore.StoreFull as full:
            assert "the capacity of namespace 'default'" in str(full)
            outcomes.append(f"full: {full.limit}")
        parent.send()
    return outcomes


def test_the_capacity_is_the_namespaces(root: str) -> None:
    """Processes that already run obey it, too; the last one given holds, also none."""
    with Child(_obeys, Parent, root) as other:

        def tries(kib: int) -> None:
            other.send(kib)
            other.receive()

        tries(2048)
        shmstore.Store(root, capacity="3 MiB")
        tries(3000)
        assert shmstore.Store(root)._dags.space.ledger.capacity == 3 * _MIB, "None changes nothing"
        shmstore.Store(root, capacity=4_000_000)
        tries(3900)
        shmstore.Store(root, capacity=0)
        tries(5000)
        other.send(None)
        assert other.receive() == ["stored", f"full: {3 * _MIB}", "full: 4000000", "stored"]
        assert other.join() == 0
    reading_files.check(root)


def test_the_same_capacity_again_counts_nothing(root: str) -> None:
    """Every worker may give it: opening a store stays cheap."""
    shmstore.Store(root, capacity="3 MiB")
    before = reading_files.account(root).recounts
    shmstore.Store(root, capacity=3 * _MIB)
    assert reading_files.account(root).recounts == before


def _small(n: int) -> tuple[str, str, Any]:
    return "d", f"small-{n}", "x" * 4000


def _large(n: int) -> tuple[str, str, Any]:
    return "d", f"large-{n}", np.full(6000, n)


def _huge(n: int) -> tuple[str, str, Any]:
    return "d", f"huge-{n}", big(n)


def _dag(n: int) -> tuple[str, str, Any]:
    return f"dag-{n}", "small", n


@pytest.mark.parametrize("make", [_small, _large, _huge, _dag])
def test_filled_to_its_end(root: str, make: Callable[[int], tuple[str, str, Any]]) -> None:
    """StoreFull names the capacity, all is readable, and deletes and clears make room."""
    store = shmstore.Store(root, capacity="3 MiB")
    kept: dict[tuple[str, str], Any] = {}
    while True:
        dag_id, id, value = make(len(kept))
        try:
            store.put(dag_id, id, value)
        except shmstore.StoreFull as full:
            assert "the capacity of namespace 'default'" in str(full)
            assert full.limit == 3 * _MIB
            assert not store.has_value(dag_id, id)
            break
        kept[dag_id, id] = value
        holds(root)
    # A log of small values leaves as much free as compacting it would take.
    expected = 1.4 if make is _small else 2.5
    assert reading_files.account(root).allocated > expected * _MIB, "it was not nearly full"

    def all_there() -> None:
        for (dag_id, id), value in kept.items():
            assert np.array_equal(store.get(dag_id, id), value)
        holds(root)
        reading_files.check(root)

    all_there()
    for n in range(3):
        dag_id, id, value = make(1000 + n)
        with pytest.raises(shmstore.StoreFull):
            shmstore.Store(root).put(dag_id, id, value)
    all_there()
    if make is _dag:
        for key in list(kept)[:3]:
            store.clear(key[0])
            del kept[key]
    else:
        gone = list(kept)[: max(len(kept) // 3, 2)]
        store.delete_many("d", [id for _, id in gone])
        for key in gone:
            del kept[key]
    dag_id, id, value = make(2000)
    store.put(dag_id, id, value)
    kept[dag_id, id] = value
    all_there()
    is_exact(root)
    for dag_id in {dag_id for dag_id, _ in kept}:
        store.clear(dag_id)
    store.put("d", "whole", big(3, 2048))
    assert (store.get("d", "whole") == 3).all()
    holds(root)


def _random_work(root: str, seed: int, steps: int) -> int:
    """Does everything that changes what is taken, and may be told that there is no room."""
    rng = random.Random(seed)
    store = shmstore.Store(root)
    views: list[Any] = []
    full = 0
    for _ in range(steps):
        dag_id, id = f"dag-{rng.randrange(3)}", f"v{rng.randrange(6)}"
        try:
            match rng.randrange(12):
                case 0 | 1 | 2 | 3:
                    store.put(dag_id, id, big(rng.randrange(99), rng.choice((20, 128, 200, 400))))
                case 4 | 5:
                    store.put(dag_id, id, "x" * rng.randrange(16000))
                case 6:
                    store.put_many(dag_id, {f"m{n}": big(n, 130) for n in range(3)})
                case 7 | 8:
                    store.delete(dag_id, id)
                case 9:
                    views = [store.get(dag_id, id, default=None), *views[:1]]
                case 10:
                    store.clear(dag_id)
                case 11:
                    store.gc()
        except shmstore.StoreFull:
            full += 1
        except shmstore.NotFound:
            pass
    return full


_POINTS = (
    *("segment:written", "commit:written", "commit:named", "commit:tail", "ledger:reserved"),
    *("pool:claimed", "pool:written", "pool:retired", "clear:marked", "clear:renamed"),
)


@pytest.mark.parametrize("seed", range(3))
def test_the_account_is_never_too_low(root: str, seed: int) -> None:
    """Beside random work, after kills at random steps, and with a capacity given meanwhile."""
    shmstore.Store(root, capacity="3 MiB", pool="1 MiB").put("dag-0", "v0", 1)
    for turn in range(4):
        call(_random_work, root, seed * 10 + turn, 40)
        holds(root)
        rng = random.Random(seed * 100 + turn)
        point = rng.choice(_POINTS)
        try:
            kill_at(point, rng.randrange(1, 4), _random_work, root, seed * 10 + turn + 5, 200)
        except AssertionError as error:
            assert "was not reached" in str(error)
        holds(root)
    children = [Child(_random_work, root, seed * 50 + n, 60) for n in range(2)]
    try:
        for child in children:
            child.receive(60)
    finally:
        for child in children:
            child.kill()
    holds(root)
    is_exact(root)
    reading_files.check(root, orphans=20)
    store = shmstore.Store(root)
    store.gc()
    for n in range(3):
        store.clear(f"dag-{n}")
    holds(root)
    store.put("d", "a", big(1, 2048))


@pytest.mark.parametrize("kib", [200, 300])
@pytest.mark.parametrize("point", ["pool:claimed", "pool:written", "commit:written"])
def test_a_reuse_that_fails_leaves_the_account_right(root: str, kib: int, point: str) -> None:
    """A segment that was cut or made longer for a put that fails is counted as it is."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "a", big(1))
    store.delete("d", "a")

    def fail(name: str) -> None:
        if name == point:
            raise OSError("as if")

    def put() -> None:
        crashpoints.hook = fail
        with pytest.raises((shmstore.StoreError, OSError)):
            shmstore.Store(root).put("d", "b", big(2, kib))

    call(put)
    holds(root)
    is_exact(root)


@pytest.mark.parametrize("then", ["freed", "cut", "kept"])
def test_an_emptied_segment_with_holes_is_counted_as_it_is(root: str, then: str) -> None:
    """Whoever wrote it piece by piece, in any order, has died: it takes less than its size."""
    store = shmstore.Store(root, capacity="8 MiB", pool="8 MiB")
    store.put("d", "a", big(1, 1024))
    store.put("d", "other", big(2, 1024))
    store.delete("d", "a")
    space = store._dags.space
    (hollow,) = reading_files.pool(root)

    def begin() -> None:
        written = writing.begin(space, 2 * _MIB)
        written.write_at(2 * _MIB - 4096, bytes(4096))

    call(begin)
    space.ledger.recount()
    holds(root)
    if then == "freed":
        assert pool.trim(space, 0) == _MIB + 4096
    else:
        store.put("d", "b", big(3, {"cut": 1536, "kept": 2048}[then]))
        # Where the file system is full, storing into a hole ends the process.
        inode = segment_of(store, "b").stat().st_ino
        assert inode == hollow
        assert inode not in {kept for _, kept in warm._kept}
    holds(root)
    assert space.ledger.missing() == 0
    is_exact(root)


def test_a_recount_comes_before_anyone_is_told_that_it_is_full(root: str) -> None:
    """An account that is too high costs a count, not a put."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "a", big(1))
    set_word(control(root), USED, 3 * _MIB)
    store.put("d", "b", big(2))
    assert (store.get("d", "b") == 2).all()
    holds(root)
    set_word(control(root), USED, 1 << 50)
    call(lambda: bool(shmstore.Store(root).put("new", "small", 1)))
    holds(root)
    is_exact(root)


def _reserve_and_wait(parent: Parent, root: str) -> None:
    def wait(name: str) -> None:
        if name == "segment:written":
            crashpoints.hook = None
            parent.send("has written")
            parent.receive()

    store = shmstore.Store(root)
    store.put("d", "small", 1)
    crashpoints.hook = wait
    store.put("d", "theirs", big(1, 1024))


@pytest.mark.parametrize("killed", [False, True])
def test_a_recount_sees_what_is_reserved_and_has_no_name(root: str, killed: bool) -> None:
    """What a living process is about to store counts, what a dead one was does not."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "mine", 1)
    with Child(_reserve_and_wait, Parent, root) as other:
        assert other.receive() == "has written"
        store._dags.space.ledger.recount()
        account = reading_files.account(root)
        assert account.used == account.allocated + _MIB
        with pytest.raises(shmstore.StoreFull):
            store.put("d", "too much", big(2, 2000))
        if killed:
            other.kill()
            store.put("d", "fits now", big(2, 2000))
        else:
            other.send()
            other.receive()
            assert other.join() == 0
            assert (store.get("d", "theirs") == 1).all()
    holds(root)
    is_exact(root)
    assert store.has_value("d", "theirs") is not killed


def test_notes_of_processes_that_have_gone_do_not_pile_up(root: str) -> None:
    """Each process that reserves removes what dead ones left."""
    store = shmstore.Store(root, capacity="3 MiB")
    for n in range(4):
        call(lambda n=n: bool(shmstore.Store(root).put("d", "a", big(n, 20))))
        holds(root)
    names = [entry.name for entry in Path(root, "default", "reservations").iterdir()]
    assert len(names) == 1
    store.gc()
    assert not list(Path(root, "default", "reservations").iterdir())
    holds(root)
    is_exact(root)


@pytest.mark.parametrize("point", ["ledger:limited", "ledger:counting"])
def test_a_capacity_whose_giver_died_holds(root: str, point: str) -> None:
    """With an account that is too high rather than one that nobody has kept."""
    store = shmstore.Store(root)
    store.put("d", "a", big(1, 2048))
    kill_at(point, 1, lambda: shmstore.Store(root, capacity="3 MiB"))
    account = reading_files.account(root)
    assert account.capacity == 3 * _MIB
    assert account.used >= account.allocated
    with pytest.raises(shmstore.StoreFull, match="capacity"):
        store.put("d", "b", big(2, 1024))
    store.put("d", "b", big(2, 256))
    holds(root)


@pytest.mark.parametrize("point", ["segment:written", "create:index-written", "extend:allocated"])
def test_a_capacity_given_during_a_put_counts_it(root: str, point: str) -> None:
    """What was begun without a limit is in the account once it is there."""
    store = shmstore.Store(root)
    store.put("d", "a", 1)

    def give(parent: Parent) -> bool:
        parent.receive()
        return shmstore.Store(root, capacity="64 MiB") is not None

    with Child(give, Parent) as giver:

        def ask(name: str) -> None:
            if name == point:
                crashpoints.hook = None
                giver.send()
                assert giver.receive()

        crashpoints.hook = ask
        try:
            store.put("d", "large", big(1, 1024))
            store.put("new", "large", big(1, 1024))
            store.put_many("d", {f"small-{n}": "x" * 9000 for n in range(20)})
        finally:
            crashpoints.hook = None
        assert giver.join() == 0
    assert reading_files.account(root).capacity == 64 * _MIB
    holds(root)
    is_exact(root)


def test_two_who_free_the_same_file_give_it_back_once(root: str) -> None:
    """Also if the second looked at it before the first removed it."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "a", 1)
    space = store._dags.space
    Path(root, "default", "trash", "scrap").write_bytes(bytes(8192))
    space.ledger.recount()

    def late(parent: Parent) -> None:
        ours = shmstore.Store(root)._dags.space
        look = ledger.os.stat

        def wait(*args: Any, **kwargs: Any) -> Any:
            status = look(*args, **kwargs)
            if args[0] == "scrap":
                parent.send("has looked")
                parent.receive()
            return status

        ledger.os.stat = wait
        ours.ledger.unlink(ours.trash, "scrap")

    with Child(late, Parent) as other:
        assert other.receive() == "has looked"
        space.ledger.unlink(space.trash, "scrap")
        other.send()
        other.receive()
        assert other.join() == 0
    holds(root)
    is_exact(root)


def test_what_was_freed_before_a_recount_is_not_given_back_after_it(root: str) -> None:
    """Who frees something while others count finds that it no longer counts."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "a", big(1))
    store.delete("d", "a")

    def late(parent: Parent) -> None:
        def wait(name: str) -> None:
            if name == "pool:emptied":
                parent.send("has emptied")
                parent.receive()

        crashpoints.hook = wait
        pool.trim(shmstore.Store(root)._dags.space, 0)

    with Child(late, Parent) as other:
        assert other.receive() == "has emptied"
        store._dags.space.ledger.recount()
        other.send()
        other.receive()
        assert other.join() == 0
    holds(root)
    is_exact(root)


def test_an_interrupt_behind_the_allocation_of_a_log_is_counted(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is longer then, whatever becomes of the put."""
    store = shmstore.Store(root, capacity="3 MiB")
    store.put("d", "a", 1)
    allocate = os.posix_fallocate

    def interrupted(*args: Any) -> None:
        allocate(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put_many("d", {f"v{n}": "x" * 9000 for n in range(20)})
    monkeypatch.undo()
    holds(root)
    store.put("d", "b", 2)
    is_exact(root)


def test_fetched_copies_go_first_the_oldest_first(root: str) -> None:
    """Before any value of this host is moved, and those that are viewed stay."""
    store = shmstore.Store(root, capacity="3 MiB", spill=f"{root}/disk")
    store.put("d", "old original", big(1))
    for n in range(6):
        fetched(store, f"copy-{n}", big(n))
    view = store.get("d", "copy-1")
    store.put("d", "new original", big(2))
    copies = [f"copy-{n}" for n in range(6) if store.has_value("d", f"copy-{n}")]
    assert len(copies) == 6, "nothing was short yet"
    store.put("d", "large", big(3, 1024))
    left = [n for n in range(6) if store.has_value("d", f"copy-{n}")]
    assert 1 in left
    assert 5 in left
    assert not {0, 2} & set(left)
    assert on_disk(store) == [], "an original was moved while there were copies"
    store.put("d", "larger", big(4, 1400))
    assert [n for n in range(6) if store.has_value("d", f"copy-{n}")] == [1]
    assert (view == 1).all()
    assert store.entry("d", "copy-1").origin == "other-node"
    for id, seed in {"old original": 1, "new original": 2, "large": 3, "larger": 4}.items():
        assert (store.get("d", id) == seed).all()
    holds(root)
    reading_files.check(root)


def _evict_late(parent: Parent, root: str) -> None:
    store = shmstore.Store(root)
    store.put("other", "a", 1)
    before = relief._commits

    def late(*args: Any) -> bool:
        relief._commits = before
        parent.send("has judged")
        parent.receive()
        return before(*args)

    relief._commits = late
    store.put("other", "large", big(1, 1700))


@pytest.mark.parametrize("way", ["put", "fetched again", "deleted"])
def test_a_copy_that_was_replaced_since_it_was_judged_stays(root: str, way: str) -> None:
    """A newer put of the same id is not what was decided about."""
    store = shmstore.Store(root, capacity="3 MiB")
    fetched(store, "copy", big(1))
    fetched(store, "another", big(2, 1024))
    with Child(_evict_late, Parent, root) as other:
        assert other.receive() == "has judged"
        if way == "put":
            store.put("d", "copy", big(7))
        elif way == "fetched again":
            fetched(store, "copy", big(7))
        else:
            store.delete("d", "copy")
        other.send()
        other.receive()
        assert other.join() == 0
    got = store.get("d", "copy", default=None)
    assert got is None if way == "deleted" else bool((got == 7).all())
    assert (store.get("other", "large") == 1).all()
    assert not store.has_value("d", "another"), "nothing was evicted: this shows nothing"
    reading_files.check(root)


def test_lifting_the_capacity_lifts_it(root: str) -> None:
    """Without a limit puts go on, and one that is given again counts what came meanwhile."""
    store = shmstore.Store(root, capacity="1 MiB")
    with pytest.raises(shmstore.StoreFull):
        store.put("d", "a", big(1, 2048))
    shmstore.Store(root, capacity=0)
    store.put("d", "a", big(1, 2048))
    store.delete("d", "a")
    store.put("d", "b", big(1, 3000))
    shmstore.Store(root, capacity="4 MiB")
    holds(root)
    is_exact(root)
    with pytest.raises(shmstore.StoreFull):
        store.put("d", "c", big(1, 1024))


def test_a_capacity_below_what_is_taken_loses_nothing(root: str) -> None:
    """No more is stored until less is taken; what is there stays, or moves to disk."""
    store = shmstore.Store(root)
    store.put_many("d", {f"v{n}": big(n) for n in range(8)})
    shmstore.Store(root, capacity="1 MiB")
    with pytest.raises(shmstore.StoreFull):
        store.put("d", "more", big(9))
    assert all((store.get("d", f"v{n}") == n).all() for n in range(8))
    gc.collect()
    before = reading_files.account(root)
    shmstore.Store(root, spill=f"{root}/disk")
    store.put("d", "more", big(9))
    assert len(on_disk(store)) >= 4
    assert all((store.get("d", f"v{n}") == n).all() for n in range(8))
    gc.collect()
    for n in range(8):
        store.put("d", f"more-{n}", big(n))
    assert reading_files.account(root).used < before.used
    holds(root)


def test_what_others_free_meanwhile_does_not_keep_values_from_being_moved(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts that gain a little each time do not stand for the room that is needed."""
    store = shmstore.Store(root, capacity="3 MiB", spill=f"{root}/disk")
    store.put_many("d", {f"v{n}": big(n) for n in range(8)})
    count = Ledger.recount
    monkeypatch.setattr(Ledger, "recount", lambda self: count(self) or 4096)
    store.put("d", "more", big(9, 1024))
    assert on_disk(store)


def test_a_value_on_disk_takes_nothing_of_the_capacity(root: str) -> None:
    """Nor does the directory, which is reached by a link."""
    store = shmstore.Store(root, capacity="3 MiB", pool=0, spill=f"{root}/disk")
    store.put("d", "small", 1)
    is_exact(root)
    before = reading_files.account(root).used
    store.put("d", "a", big(1, 1024))
    assert move(store, "a")
    is_exact(root)
    assert reading_files.account(root).used == before
    assert lookup.find_dag(store._dags.space, "d") is not None
    assert store._dags.space.control[CAPACITY] == 3 * _MIB
