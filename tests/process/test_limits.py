"""Descriptors and memory maps at their limit: a copy or StoreFull, never harm."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import maps, segment
from tests import reading_files
from tests.fault.killing import call
from tests.process.errands import large


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """All of the process's descriptors but ``count`` in use. In a child only."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, hard))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for fd in taken[len(taken) - count :]:
        os.close(fd)
    try:
        yield
    finally:
        for fd in taken[: len(taken) - count]:
            os.close(fd)


CALLS: dict[str, Callable[[shmstore.Store], Any]] = {
    "get": lambda store: int(store.get("d", "large")[0]),
    "get cow": lambda store: int(store.get("d", "large", mode="cow")[0]),
    "get copy": lambda store: int(store.get("d", "large", mode="copy")[0]),
    "get small": lambda store: store.get("d", "small"),
    "get elsewhere": lambda store: store.get("e", "small"),
    "put small": lambda store: store.put("d", "small", 5).nbytes,
    "put large": lambda store: store.put("d", "large", large(5)).nbytes,
    "put many": lambda store: len(store.put_many("d", {"small": 5, "large": large(5)})),
    "create": lambda store: store.put("f", "small", 5).nbytes,
    "clear": lambda store: store.clear("e").cleared,
    "delete": lambda store: store.delete("d", "gone"),
    "count": lambda store: store.count("e"),
    "ids": lambda store: list(store.ids("e")),
    "dags": lambda store: len(store.dags()),
    "stats": lambda store: store.stats().dags,
    "open": lambda store: repr(shmstore.Store(store.root)),
}


@pytest.mark.parametrize("left", range(6))
@pytest.mark.parametrize("name", CALLS)
def test_out_of_descriptors(root: str, name: str, left: int) -> None:
    """With any number of descriptors left, a call does its work or raises StoreFull."""
    store = shmstore.Store(root)
    store.put_many("d", {"large": large(5), "small": 5, "gone": 0})
    store.put("e", "small", 5)
    store.get("d", "large")  # so that what is needed has been imported

    def child() -> str:
        # The fork closed the lock's descriptor; it is opened again at the next put.
        with descriptors_left(left):
            try:
                CALLS[name](store)
            except shmstore.StoreFull as error:
                assert "descriptors" in error.what
        # With descriptors again, all is as it was.
        assert store.get("d", "large")[0] == 5
        store.put("d", "afterwards", large(left))
        return "done"

    assert call(child) == "done"
    assert np.array_equal(store.get("d", "afterwards"), large(left))
    reading_files.check(root)


def test_a_get_that_cannot_map_copies(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses a mapping, a get returns private memory with the same bytes."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no more maps")

    monkeypatch.setattr(segment.mmap, "mmap", refuse)
    view, writable = store.get("d", "a"), store.get("d", "a", mode="cow")
    monkeypatch.undo()
    assert (view == 5).all()
    assert not view.flags.writeable
    writable[:] = 6
    assert store.stats().mapped_segments == 0
    assert (store.get("d", "a") == 5).all()


def test_out_of_memory_maps(root: str) -> None:
    """At vm.max_map_count, a get returns the right value or raises StoreFull; later all is well."""
    store = shmstore.Store(root)
    count = 60
    store.put_many("d", {f"v{number}": large(number) for number in range(count)})
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 200_000:
        pytest.fail(f"vm.max_map_count is {most}: this test would take too long")

    def child() -> tuple[int, int]:
        store.get("d", "v0")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # Neighbours that differ are never joined into one.
        differing = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
        more = most - len(Path("/proc/self/maps").read_text().splitlines()) - 30
        maps = [mmap.mmap(-1, 4096, flags, differing[number % 2]) for number in range(more)]
        views, full = {}, 0
        for number in range(count):
            try:
                views[number] = store.get("d", f"v{number}")
            except shmstore.StoreFull:
                full += 1
        assert all((view == number).all() for number, view in views.items())
        assert full or store.stats().mapped_segments < count
        del maps
        views = {number: store.get("d", f"v{number}") for number in range(count)}
        assert all((view == number).all() for number, view in views.items())
        return len(views), full

    assert call(child)[0] == count


_VIEWS = 20_000
_WORDS = 2100  # a little above what lies in the log


def _many(root: str, count: int) -> shmstore.Store:
    store = shmstore.Store(root)
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        store.put_many("d", {f"v{number}": large(number, _WORDS) for number in numbers})
    return store


def _all_right(views: list[np.ndarray[Any, Any]]) -> bool:
    return all(view[0] == view[-1] == number for number, view in enumerate(views))


@pytest.mark.parametrize("hard", [256, None])
def test_20_000_live_views_with_256_descriptors(root: str, hard: int | None) -> None:
    """The soft limit is raised, then gets copy; the process keeps descriptors for the rest."""
    store = _many(root, _VIEWS)

    def child() -> int:
        most = hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
        views = [store.get("d", f"v{number}") for number in range(_VIEWS)]
        assert _all_right(views)
        # Whatever takes descriptors still works, the store's and the process's own.
        own = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
        store.put("e", "new", large(5))
        assert store.get("e", "new")[0] == 5
        assert (store.get("d", "v7", mode="cow") == 7).all()
        store.put("d", "v7", 7)
        for fd in own:
            os.close(fd)
        assert _all_right(views)
        mapped = store.stats().mapped_segments
        del views
        return mapped

    mapped = call(child)
    assert mapped < 256 if hard and not segment.UNTRACKED else mapped > 256
    # As many as there are maps or descriptors for, and not a few by accident.
    if not hard:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert mapped > min(_VIEWS, most) * 0.8
    reading_files.check(root)


def _fill_maps(count: int) -> list[mmap.mmap]:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    # Neighbours that differ are never joined into one.
    differing = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
    return [mmap.mmap(-1, 4096, flags, differing[number % 2]) for number in range(count)]


def test_views_leave_mappings_to_the_process(root: str) -> None:
    """Before vm.max_map_count is reached, gets copy: malloc and threads go on; later they map."""
    count = 3000
    store = _many(root, count)
    most = maps._limit()
    if most > 200_000:
        pytest.fail(f"vm.max_map_count is {most}: this test would take too long")

    def child() -> tuple[int, int]:
        maps._left = 0  # what the parent knew of its own
        taken = _fill_maps(most - maps.margin(most) - maps.counted() - 1000)
        views = [store.get("d", f"v{number}") for number in range(count)]
        views += [store.get("d", f"v{number}", mode="cow") for number in range(count)]
        assert _all_right(views[:count])
        assert _all_right(views[count:])
        assert maps.counted() <= most - maps.margin(most) + 100  # the process took some, too
        first = store.stats().mapped_segments
        # What is not the store's still gets its own.
        threads = [threading.Thread(target=bytes, args=(1 << 24,)) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        more = [bytes(1 << 20) for _ in range(50)]
        del taken, more, views
        maps._again_at = 0.0  # a second later
        views = [store.get("d", f"v{number}") for number in range(count)]
        assert _all_right(views)
        return first, store.stats().mapped_segments

    first, later = call(child)
    assert 400 < first < 1200
    assert later == count


@pytest.mark.parametrize("mode", ["read", "cow", "copy"])
def test_near_the_limit_every_mode_answers(
    root: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """With no mapping to spare, each mode gives what it promises, in private memory."""
    store = shmstore.Store(root)
    store.put("d", "a", large(5))
    monkeypatch.setattr(maps, "_most", 1)
    monkeypatch.setattr(maps, "_left", 0)
    monkeypatch.setattr(maps, "_again_at", 0.0)
    got = store.get("d", "a", mode=mode)
    assert (got == 5).all()
    assert got.flags.writeable == (mode != "read")
    assert store.stats().mapped_segments == 0


def test_mappings_are_counted_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting is dear: it is done after half of what was left, and at the limit once a second."""
    counts: list[int] = []
    now, used = 100.0, 100

    def counted() -> int:
        counts.append(used)
        return used

    monkeypatch.setattr(maps, "counted", counted)
    monkeypatch.setattr(maps, "monotonic", lambda: now)
    monkeypatch.setattr(maps, "_most", 65_530)
    monkeypatch.setattr(maps, "_left", 0)
    monkeypatch.setattr(maps, "_again_at", 0.0)
    allowed = 0
    while maps.may_map():
        allowed += 1
        used += 1
    assert used == 65_530 - 4096
    assert len(counts) < 20
    for _ in range(1000):
        assert not maps.may_map()
    assert len(counts) < 20
    now += 1.1
    used -= 500  # views were let go of
    assert maps.may_map()
