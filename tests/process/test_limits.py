"""Descriptors and memory maps at their limit: a copy or StoreFull, never harm."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import segment
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
