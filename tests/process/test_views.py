"""A view never changes: views in several processes, whatever others do to the store."""

from __future__ import annotations

import collections
import fcntl
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shmstore
from tests import reading_files
from tests.fault.killing import DEADLINE_S, Child, Parent, call
from tests.process.errands import large

TABLE = pa.table({"a": np.arange(20_000.0), "b": [f"text {n}" for n in range(20_000)]})
VALUES: dict[str, Any] = {
    "array": np.arange(50_000),
    "table": TABLE,
    "pickled": {"inner": [np.arange(9_000.0), {"deep": np.arange(9_000)}]},
}


def same(one: Any, other: Any) -> bool:
    """Whether a view still is what was stored."""
    if isinstance(one, pa.Table):
        one.validate(full=True)
        return bool(one.equals(other))
    if isinstance(one, dict):
        (first, rest), (other_first, other_rest) = one["inner"], other["inner"]
        return np.array_equal(first, other_first) and np.array_equal(
            rest["deep"], other_rest["deep"]
        )
    return np.array_equal(one, other)


def hold_views(store: shmstore.Store, parent: Parent) -> int:
    """Takes a view of each value, then says on each request whether they are the same."""
    views = {id: store.get("d", id) for id in VALUES}
    parent.send(True)
    checks = 0
    while parent.receive() == "check":
        parent.send([id for id, view in views.items() if not same(view, VALUES[id])])
        checks += 1
    return checks


def overwrite(store: shmstore.Store) -> None:
    for _ in range(3):
        for id in VALUES:
            store.put("d", id, large(1, 50_000))


def delete(store: shmstore.Store) -> None:
    store.delete_many("d", VALUES)
    store.put_many("d", {f"other/{id}": large(2, 50_000) for id in VALUES})


def clear(store: shmstore.Store) -> None:
    assert store.clear("d").cleared


def create_again(store: shmstore.Store) -> None:
    store.clear("d")
    store.put_many("d", dict.fromkeys(VALUES, large(3, 50_000)))


def compact(store: shmstore.Store) -> None:
    store.put("d", "array", "small now")
    log = reading_files.read(store.root, "d").log_number
    for number in range(200):
        store.put("d", "churn", f"{number}" + "x" * 16_000)
    assert reading_files.read(store.root, "d").log_number > log


def close(store: shmstore.Store) -> None:
    overwrite(store)
    store.close()


@pytest.mark.parametrize("act", [overwrite, delete, clear, create_again, compact, close])
def test_views_of_several_processes_keep_their_bytes(
    root: str, act: Callable[[shmstore.Store], None]
) -> None:
    """Arrays, tables and out-of-band buffers stay as they were, in three processes."""
    store = shmstore.Store(root)
    store.put_many("d", VALUES)
    mine = {id: store.get("d", id) for id in VALUES}
    with (
        Child(hold_views, store, Parent) as first,
        Child(hold_views, shmstore.Store(root), Parent) as second,
    ):
        for child in (first, second):
            assert child.receive() is True
        act(store)
        del store
        gc.collect()
        call(lambda: shmstore.Store(root).put_many("e", dict.fromkeys(VALUES, large(4, 50_000))))
        assert [id for id, view in mine.items() if not same(view, VALUES[id])] == []
        for child in (first, second):
            child.send("check")
            assert child.receive() == []
            child.send("end")
            assert child.receive() == 1
    reading_files.check(root)


def test_views_keep_while_many_change_everything(root: str) -> None:
    """Three readers hold the views of their last gets while two writers do all they can."""

    def write(seed: int) -> int:
        store = shmstore.Store(root)
        for number in range(250):
            id = f"v{number % 3}"
            store.put("d", id, large(seed * 1000 + number))
            if number % 7 == 0:
                try:
                    store.delete("d", id)
                except shmstore.NotFound:
                    pass  # the other writer did, or cleared
            if number % 50 == 49:
                store.clear("d")
        return seed

    def read(parent: Parent) -> int:
        store = shmstore.Store(root)
        held: collections.deque[tuple[int, Any]] = collections.deque(maxlen=40)
        stopped = threading.Event()
        threading.Thread(target=lambda: (parent.receive(), stopped.set()), daemon=True).start()
        seen = 0
        while not stopped.is_set():
            for id in ("v0", "v1", "v2"):
                view = store.get("d", id, default=None)
                if view is None:
                    continue
                first = int(view[0])
                assert (view == first).all(), "half a value"
                held.append((first, view))
                seen += 1
            for first, view in held:
                assert (view == first).all(), "a view changed"
        return seen

    readers = [Child(read, Parent) for _ in range(3)]
    writers = [Child(write, seed) for seed in (1, 2)]
    try:
        assert [writer.receive(60) for writer in writers] == [1, 2]
        for reader in readers:
            reader.send("stop")
        assert min(reader.receive() for reader in readers) > 0
    finally:
        for child in readers + writers:
            child.kill()
    reading_files.check(root)


def test_a_view_outlives_its_store_object(root: str) -> None:
    """Nothing but the view itself is needed to keep it."""
    array = large(5)
    shmstore.Store(root).put("d", "a", array)
    view = shmstore.Store(root).get("d", "a")
    part = view[100:200]
    del view
    shmstore.Store(root).clear("d")
    gc.collect()
    assert np.array_equal(part, array[100:200])


def test_read_views_cannot_be_written_to(root: str) -> None:
    """Neither by assignment nor by asking numpy for leave."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    view = store.get("d", "a")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    assert store.get_buffer("d", "a").is_mutable is False


@pytest.mark.parametrize("mode", ["cow", "copy"])
def test_private_modes_are_writable_and_nobody_else_sees_it(root: str, mode: str) -> None:
    """What is written to a "cow" or "copy" value shows up nowhere else, in any process."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    store.put("d", "nested", {"x": [large(5)]})
    shared = store.get("d", "a")
    mine, nested = store.get("d", "a", mode=mode), store.get("d", "nested", mode=mode)
    mine[:] = 6
    nested["x"][0][:] = 6
    mine_too = store.get("d", "a", mode=mode)
    assert (shared == 5).all()
    assert (mine_too == 5).all()
    assert (store.get("d", "nested")["x"][0] == 5).all()
    assert call(lambda: int(shmstore.Store(root).get("d", "a").sum())) == 25_000
    store.put("d", "a", large(7))
    assert (mine == 6).all()

    def child() -> int:
        mine[:] = 8
        return int(mine[0])

    assert call(child) == 8
    assert (mine == 6).all()


def segment_path(root: str, id: str) -> Path:
    return Path(root) / "default" / "dags" / "d" / shmstore.Store(root).entry("d", id).location


def maps_of(path: Path) -> int:
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_process_maps_a_segment_once(root: str) -> None:
    """All views of a value share one mapping, which goes with the last of them."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    path = segment_path(root, "a")
    views = [store.get("d", "a") for _ in range(5)] + [shmstore.Store(root).get("d", "a")]
    assert maps_of(path) == 1
    assert store.stats().mapped_segments == 1
    assert len({view.ctypes.data for view in views}) == 1
    del views
    gc.collect()
    assert maps_of(path) == 0
    assert store.stats().mapped_segments == 0


def test_threads_that_attach_at_once_map_a_segment_once(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that both find a segment unmapped still end up with one mapping."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    path = segment_path(root, "a")
    barrier = threading.Barrier(2)
    look = os.stat

    def meet(*args: Any, **kwargs: Any) -> os.stat_result:
        if args and args[0] == path.name and not barrier.broken:
            try:
                barrier.wait(0.5)
            except threading.BrokenBarrierError:
                pass  # they are kept apart: just as good
        return look(*args, **kwargs)

    monkeypatch.setattr(os, "stat", meet)
    views: list[Any] = []
    threads = [threading.Thread(target=lambda: views.append(store.get("d", "a"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    monkeypatch.undo()
    assert len(views) == 2
    assert maps_of(path) == 1


def granted(path: Path) -> bool:
    """Whether a writer could claim the segment's file for itself now."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.parametrize("mode", ["read", "cow"])
def test_a_lease_lasts_as_long_as_the_view(root: str, mode: str) -> None:
    """While any process holds a view nobody can claim the file, and afterwards anybody can."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    path = segment_path(root, "a")
    assert granted(path)
    view = store.get("d", "a", mode=mode)
    assert not granted(path)
    part = view[1:2]
    del view
    store.close()
    del store
    gc.collect()
    assert not granted(path)
    del part
    gc.collect()
    assert granted(path)


def test_a_killed_holder_holds_no_lease(root: str) -> None:
    """A view in another process is a lease, and its death by SIGKILL ends it."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    path = segment_path(root, "a")

    def hold(parent: Parent) -> int:
        view = shmstore.Store(root).get("d", "a")
        parent.send()
        parent.receive()
        return int(view[0])

    with Child(hold, Parent) as child:
        child.receive()
        assert not granted(path)
        child.kill()
        assert granted(path)


def test_a_forked_child_shares_the_lease(root: str) -> None:
    """A view that the parent has dropped is still a lease while its child has it."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    path = segment_path(root, "a")
    held = [store.get("d", "a")]

    def hold(parent: Parent) -> int:
        parent.send()
        parent.receive()
        return int(held[0][0])

    with Child(hold, Parent) as child:
        child.receive()
        held.clear()
        gc.collect()
        assert maps_of(path) == 0
        assert not granted(path)
        child.send()
        assert child.receive() == 5
        assert child.join() == 0
    assert granted(path)
