"""Emptied segments are written again, by one writer at a time, and never under a view."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lookup, names, pool, warm
from shmstore.descriptor import Descriptor
from shmstore.ledger import SWEPT
from shmstore.namespace import Namespace
from tests import reading_files
from tests.fault.enclosed import mount_tmpfs, with_mounts
from tests.fault.killing import DEADLINE_S, Child, Parent, call, kill_at
from tests.fault.scenarios import set_word

_MIB = 1 << 20


def big(seed: int, kib: int = 256) -> np.ndarray[Any, Any]:
    """An array of so many KiB, every element of which tells the seed."""
    return np.full(kib * 128, seed, dtype=np.int64)


def segment_of(store: shmstore.Store, id: str, dag_id: str = "d") -> Path:
    return reading_files.read(store.root, dag_id).path / store.entry(dag_id, id).location


def inode_of(store: shmstore.Store, id: str, dag_id: str = "d") -> int:
    return segment_of(store, id, dag_id).stat().st_ino


def empty_one(store: shmstore.Store, kib: int = 256) -> int:
    """Leaves one more emptied segment; its inode."""
    store.put("d", "emptied", big(0, kib))
    inode = inode_of(store, "emptied")
    store.delete("d", "emptied")
    assert inode in reading_files.pool(store.root)
    return inode


def has(store: shmstore.Store, id: str, seed: int) -> bool:
    return bool((store.get("d", id) == seed).all())


def overwrite(store: shmstore.Store) -> None:
    store.put("d", "a", "small now")


def delete(store: shmstore.Store) -> None:
    store.delete("d", "a")


def clear(store: shmstore.Store) -> None:
    assert store.clear("d").cleared


def take(store: shmstore.Store) -> None:
    taken = store.take("d", "a")
    del taken


@pytest.mark.parametrize("act", [overwrite, delete, clear, take])
def test_the_segment_of_a_dead_value_is_written_again(
    store: shmstore.Store, act: Callable[[shmstore.Store], None]
) -> None:
    """Whatever ended a value, by whatever process, the next large put uses its memory."""
    store.put("d", "a", big(1))
    inode = inode_of(store, "a")
    act(store)
    assert reading_files.pool(store.root) == {inode: 256 << 10}
    call(lambda: bool(shmstore.Store(store.root).put("d", "b", big(2))))
    assert inode_of(store, "b") == inode
    assert reading_files.pool(store.root) == {}
    assert has(store, "b", 2)
    reading_files.check(store.root)


@pytest.mark.parametrize(("kib", "fits"), [(200, True), (300, True), (120, False), (600, False)])
def test_a_segment_is_cut_or_made_longer(store: shmstore.Store, kib: int, fits: bool) -> None:
    """One of up to twice the size is cut, one of at least half is made longer, others wait."""
    inode = empty_one(store)
    store.put("d", "b", big(2, kib))
    assert (inode_of(store, "b") == inode) is fits
    assert (reading_files.pool(store.root) == {}) is fits
    assert has(store, "b", 2)
    reading_files.check(store.root)


def _hold(parent: Parent, root: str, mode: str) -> bool:
    view = shmstore.Store(root).get("d", "a", mode=mode)
    parent.send("holds")
    parent.receive()
    return bool((view == 1).all())


@pytest.mark.parametrize("mode", ["read", "cow"])
@pytest.mark.parametrize("kib", [256, 2048])
def test_a_segment_that_another_process_views_is_not_written(
    store: shmstore.Store, mode: str, kib: int
) -> None:
    """While a view lives anywhere, its memory stays as it is; when it goes, it is reused."""
    store.put("d", "a", big(1, kib))
    inode = inode_of(store, "a")
    with Child(_hold, Parent, store.root, mode) as holder:
        assert holder.receive() == "holds"
        store.delete("d", "a")
        for n in range(3):
            store.put("d", f"b{n}", big(2 + n, kib))
            assert inode_of(store, f"b{n}") != inode
        assert inode in reading_files.pool(store.root)
        holder.send()
        assert holder.receive() is True
        assert holder.join() == 0
    store.put("d", "c", big(9, kib))
    assert inode_of(store, "c") == inode
    assert all(has(store, f"b{n}", 2 + n) for n in range(3))


def test_a_segment_that_a_forked_child_still_views_is_not_written(store: shmstore.Store) -> None:
    """A view that a child has inherited keeps the memory when its parent has dropped it."""
    store.put("d", "a", big(1))
    inode = inode_of(store, "a")
    views = [store.get("d", "a")]

    def child(parent: Parent) -> bool:
        parent.send("holds")
        parent.receive()
        return bool((views[0] == 1).all())

    with Child(child, Parent) as holder:
        assert holder.receive() == "holds"
        views.clear()
        gc.collect()
        store.delete("d", "a")
        store.put("d", "b", big(2))
        assert inode_of(store, "b") != inode
        holder.send()
        assert holder.receive() is True
        assert holder.join() == 0
    store.put("d", "c", big(3))
    assert inode_of(store, "c") == inode


def _put_paused(parent: Parent, root: str, point: str) -> int:
    def pause(name: str) -> None:
        if name == point:
            crashpoints.hook = None
            parent.send("paused")
            parent.receive()

    crashpoints.hook = pause
    store = shmstore.Store(root)
    store.put("d", "first", big(1, 1024))
    return inode_of(store, "first")


@pytest.mark.parametrize("point", ["pool:claimed", "pool:written", "commit:written"])
def test_two_writers_never_claim_the_same_segment(store: shmstore.Store, point: str) -> None:
    """While one writer has a segment, another process and another thread take new memory."""
    inode = empty_one(store, 1024)
    with Child(_put_paused, Parent, store.root, point) as first:
        assert first.receive() == "paused"
        store.put("other", "second", big(2, 1024))  # the first may hold the lock of "d"
        assert inode_of(store, "second", "other") != inode
        first.send()
        assert first.receive() == inode
        assert first.join() == 0
    assert has(store, "first", 1)
    assert (store.get("other", "second") == 2).all()

    inode = empty_one(store, 1024)
    claimed, go_on = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == "pool:claimed" and threading.current_thread() is putting:
            claimed.set()
            assert go_on.wait(DEADLINE_S)

    putting = threading.Thread(target=store.put, args=("d", "third", big(3, 1024)))
    crashpoints.hook = hold
    try:
        putting.start()
        assert claimed.wait(DEADLINE_S)
        store.put("other", "fourth", big(4, 1024))
        assert inode_of(store, "fourth", "other") != inode
    finally:
        go_on.set()
        putting.join(DEADLINE_S)
        crashpoints.hook = None
    assert inode_of(store, "third") == inode
    assert has(store, "third", 3)
    assert (store.get("other", "fourth") == 4).all()


def _churn(root: str, number: int) -> int:
    store = shmstore.Store(root)
    wrong = []

    def one(thread: int) -> None:
        id = f"{number}-{thread}"
        for n in range(25):
            seed = number * 1000 + thread * 100 + n
            # Both ways of filling, and segments that are cut and made longer.
            store.put("d", id, big(seed, (900, 1024, 1300)[n % 3]))
            view = store.get("d", id)
            if not (view == seed).all():
                wrong.append(seed)
            if n % 5 == 4:
                store.delete("d", id)

    threads = [threading.Thread(target=one, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(wrong)


def test_many_writers_share_a_pool(root: str) -> None:
    """Processes and threads that empty and fill at once never meet in one segment."""
    shmstore.Store(root, pool="16 MiB").put("d", "here", 1)
    children = [Child(_churn, root, number) for number in range(3)]
    try:
        assert [child.receive(60) for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
    reading_files.check(root)
    assert sum(reading_files.pool(root).values()) <= 16 * _MIB


@pytest.mark.parametrize("point", ["pool:claimed", "pool:written", "commit:written"])
def test_a_killed_claimers_segment_is_claimed_again(store: shmstore.Store, point: str) -> None:
    """A writer that dies with a segment leaves it in the pool, whatever it wrote into it."""
    inode = empty_one(store, 1024)
    kill_at(point, 1, lambda: shmstore.Store(store.root).put("d", "lost", big(1, 1024)))
    assert not store.has_value("d", "lost")
    assert inode in reading_files.pool(store.root)
    store.put("d", "a", big(2, 1024))
    assert inode_of(store, "a") == inode
    assert has(store, "a", 2)
    reading_files.check(store.root)


def test_a_warm_mapping_gives_no_right_to_the_segment(store: shmstore.Store) -> None:
    """What another process has stored in a segment that ours keeps mapped stays whole."""
    inode = empty_one(store, 2048)
    store.put("d", "a", big(1, 2048))
    assert inode_of(store, "a") == inode
    assert inode in {key[1] for key in warm._kept}, "it is not mapped: this test shows nothing"
    store.delete("d", "a")
    call(lambda: bool(shmstore.Store(store.root).put("d", "theirs", big(2, 2048))))
    assert inode_of(store, "theirs") == inode
    store.put("d", "b", big(3, 2048))
    assert inode_of(store, "b") != inode
    assert has(store, "theirs", 2)
    assert has(store, "b", 3)
    # And when it is emptied again, the old mapping serves.
    store.delete("d", "theirs")
    store.put("d", "c", big(4, 2048))
    assert inode_of(store, "c") == inode
    assert call(lambda: int(shmstore.Store(store.root).get("d", "c").min())) == 4


def _wait_after_opening(parent: Parent, name: str) -> None:
    """Makes this process wait between opening a file and whatever it does with it next."""
    opened = Descriptor.open.__func__  # type: ignore[attr-defined]

    def late(cls: type[Descriptor], path: str, *args: Any, **kwargs: Any) -> Descriptor:
        file: Descriptor = opened(cls, path, *args, **kwargs)
        if path == name:
            Descriptor.open = classmethod(opened)  # type: ignore[method-assign, assignment]
            parent.send("has opened")
            parent.receive()
        return file

    Descriptor.open = classmethod(late)  # type: ignore[method-assign, assignment]


def _free_late(parent: Parent, root: str, name: str) -> None:
    _wait_after_opening(parent, name)
    pool.free(Namespace(root, "default"), name)


def _claim_late(parent: Parent, root: str, name: str) -> None:
    _wait_after_opening(parent, name)
    shmstore.Store(root).put("d", "late", big(7, 1024))


@pytest.mark.parametrize("late", [_free_late, _claim_late])
def test_who_opens_first_and_locks_late_harms_nothing(
    store: shmstore.Store, late: Callable[..., None]
) -> None:
    """A segment that was claimed and stored since it was opened is neither freed nor written."""
    inode = empty_one(store, 1024)
    (name,) = os.listdir(Path(store.root, "default", "pool"))
    with Child(late, Parent, store.root, name) as other:
        assert other.receive() == "has opened"
        store.put("d", "a", big(1, 1024))
        assert inode_of(store, "a") == inode
        other.send()
        other.receive()
        assert other.join() == 0
    assert has(store, "a", 1)
    assert late is _free_late or has(store, "late", 7)
    reading_files.check(store.root)


def _discard_late(parent: Parent, root: str, name: str) -> None:
    space = Namespace(root, "default")
    manifest = lookup.find_dag(space, "d")
    assert manifest is not None
    _wait_after_opening(parent, name)
    pool.discard(space, manifest.directory, name, _MIB)


def test_who_discards_late_harms_nothing(store: shmstore.Store) -> None:
    """A dead value's segment that others have pooled, claimed and stored anew is not emptied."""
    store.put("d", "a", big(1, 1024))
    path = segment_of(store, "a")
    inode = path.stat().st_ino
    with Child(_discard_late, Parent, store.root, path.name) as other:
        assert other.receive() == "has opened"
        store.delete("d", "a")
        store.put("d", "b", big(2, 1024))
        assert inode_of(store, "b") == inode
        other.send()
        other.receive()
        assert other.join() == 0
    assert has(store, "b", 2)
    reading_files.check(store.root)


def empty_several(store: shmstore.Store, count: int, kib: int = 256) -> None:
    ids = [f"emptied-{n}" for n in range(count)]
    store.put_many("d", {id: big(n, kib) for n, id in enumerate(ids)})
    store.delete_many("d", ids)


def test_the_pool_is_bounded(root: str) -> None:
    """By ``pool=``, for all processes, also those that run already; by default by a share."""
    store = shmstore.Store(root, capacity="6 MiB")
    assert store._dags.space.pool_limit == 6 * _MIB // 4
    empty_several(store, 12)
    assert 0 < sum(reading_files.pool(root).values()) <= 6 * _MIB // 4
    shmstore.Store(root, pool="512 KiB")
    assert sum(reading_files.pool(root).values()) == 512 << 10, "what is too much goes at once"
    empty_several(store, 6)
    assert sum(reading_files.pool(root).values()) == 512 << 10
    shmstore.Store(root, pool=0)
    assert reading_files.pool(root) == {}
    empty_several(store, 3)
    assert reading_files.pool(root) == {}
    shmstore.Store(root, capacity="1 TiB", namespace="wide")
    assert Namespace(root, "wide").pool_limit == 1 << 30
    reading_files.check(root)


def test_viewed_segments_count_and_stay(root: str) -> None:
    """A pool that is full of viewed segments frees the others, and those only once they can."""
    store = shmstore.Store(root, pool="512 KiB")
    store.put_many("d", {"a": big(1), "b": big(2), "c": big(3)})
    views = store.get_many("d", ["a", "b"])
    inodes = {inode_of(store, "a"), inode_of(store, "b")}
    store.delete_many("d", ["a", "b"])
    store.delete("d", "c")
    assert reading_files.pool(root).keys() <= inodes | {0}
    assert len(reading_files.pool(root)) == 2
    assert (views["a"] == 1).all()
    assert (views["b"] == 2).all()
    shmstore.Store(root, pool=0)
    assert reading_files.pool(root).keys() == inodes
    views.clear()
    gc.collect()
    shmstore.Store(root, pool=0)
    assert reading_files.pool(root) == {}


def test_old_emptied_segments_are_freed(store: shmstore.Store) -> None:
    """Opening a DAG frees what was emptied long ago, and leaves what may soon be used."""
    empty_several(store, 2)
    place = Path(store.root, "default", "pool")
    old = sorted(os.listdir(place))[0]
    facts = names.parse_pooled_name(old)
    assert facts is not None
    size, emptied_s = facts
    aged = names.pooled_name(size, emptied_s - pool.KEPT_S - 1)
    os.rename(place / old, place / aged)
    set_word(Path(store.root, "default", "control"), SWEPT, 0)  # long unswept
    shmstore.Store(store.root).count("d")
    assert aged not in os.listdir(place)
    assert len(reading_files.pool(store.root)) == 1
    store.gc()
    assert reading_files.pool(store.root) == {}


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _drain(root: str) -> None:
    root = mount_tmpfs(f"{root}/small", 7 * _MIB)
    store = shmstore.Store(root, pool="6 MiB")
    empty_several(store, 5, 1024)
    assert sum(reading_files.pool(root).values()) == 5 * _MIB
    store.put("d", "whole", big(1, 4096))  # none of them fits
    assert has(store, "whole", 1)
    assert sum(reading_files.pool(root).values()) == 0
    with pytest.raises(shmstore.StoreFull):
        store.put("d", "more", big(2, 3 * 1024))
    assert has(store, "whole", 1)
    reading_files.check(root)


def test_the_pool_is_drained_before_anyone_is_told_store_full(root: str) -> None:
    """On a full tmpfs emptied segments make room for a value that none of them fits."""
    with_mounts(_drain, root)


def _freed_though_mapped(root: str, viewed: bool) -> None:
    root = mount_tmpfs(f"{root}/small", 16 * _MIB)
    store = shmstore.Store(root, pool="8 MiB")
    store.put("d", "small", 1)
    before = _free(root)
    empty_one(store, 2048)
    store.put("d", "a", big(1, 2048))
    view = store.get("d", "a") if viewed else None
    mapped = {key[1] for key in warm._kept}
    assert inode_of(store, "a") in mapped
    if viewed:
        shmstore.Store(root, pool=0)  # nothing is kept, but this is viewed
    store.delete("d", "a")
    del view
    gc.collect()
    shmstore.Store(root, pool=0)
    assert {key[1] for key in warm._kept} == mapped, "the mapping is gone: this shows nothing"
    assert _free(root) == before


@pytest.mark.parametrize("viewed", [False, True])
def test_freed_memory_is_free_though_a_process_keeps_it_mapped(root: str, viewed: bool) -> None:
    """A warm mapping keeps no memory of a segment that was freed, viewed before or not."""
    with_mounts(_freed_though_mapped, root, viewed)


def _close_under_a_reuse(root: str, place: str, point: str) -> None:
    store = shmstore.Store(root)
    empty_one(store, 1024)
    path = Path(place, "user")
    path.write_bytes(b"the user's" * 1000)
    pooled = f"{root}/default/pool/"

    def steal(name: str) -> None:
        if name != point:
            return
        crashpoints.hook = None
        # Not those that ``mmap`` keeps of its own.
        ours = {one.fd for one in gc.get_objects() if isinstance(one, Descriptor) and one.fd >= 0}
        (fd,) = [fd for fd in ours if os.readlink(f"/proc/self/fd/{fd}").startswith(pooled)]
        user = os.open(path, os.O_RDWR)
        os.dup2(user, fd)
        os.close(user)

    crashpoints.hook = steal
    with pytest.raises(shmstore.StoreError):
        store.put("d", "a", big(1, 1024))
    assert crashpoints.hook is None
    assert not store.has_value("d", "a")
    assert path.read_bytes() == b"the user's" * 1000
    store.put("d", "b", big(2, 1024))
    assert has(store, "b", 2)


def _close_during_the_copy(root: str) -> None:
    store = shmstore.Store(root)
    space = store._dags.space
    empty_one(store, 1024)
    ((name, _, _),) = pool.listed(space)
    copy, looked = np.copyto, []

    def close_and_copy(target: Any, source: Any) -> None:
        ours = [one for one in gc.get_objects() if isinstance(one, Descriptor) and one.fd >= 0]
        (fd,) = [o.fd for o in ours if os.readlink(f"/proc/self/fd/{o.fd}").endswith(name)]
        os.close(fd)
        looked.append(pool.take(space.pool, name))
        copy(target, source)

    np.copyto = close_and_copy
    try:
        with pytest.raises(shmstore.StoreError):
            store.put("d", "a", big(1, 1024))
    finally:
        np.copyto = copy
    assert looked == [None], "another writer may have it while this one writes"
    assert not store.has_value("d", "a")
    store.put("d", "b", big(2, 1024))
    assert has(store, "b", 2)


def test_a_claim_lasts_as_long_as_the_copy(root: str) -> None:
    """User code that closes the claimed file in the middle of a copy lets nobody else in."""
    call(_close_during_the_copy, root)
    reading_files.check(root)


@pytest.mark.parametrize("point", ["pool:claimed", "pool:written"])
def test_a_claim_that_user_code_closes_stores_nothing(root: str, point: str) -> None:
    """With the claimed file's number closed and reused, the put fails and harms no file."""
    os.mkdir(f"{root}/user")
    call(_close_under_a_reuse, f"{root}/store", f"{root}/user", point)
    reading_files.check(f"{root}/store")
