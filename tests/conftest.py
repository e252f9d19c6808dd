"""Every test's own root, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.resource_tracker
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import ref, warm

_SHARED_MEMORY = Path("/dev/shm")
# What a test makes there without the fixture, too, is told from what is other programs'.
_OURS = f"shmstore-test-{os.getpid()}-"
tempfile.template = _OURS
os.environ["SHMSTORE_ROOT"] = str(_SHARED_MEMORY / f"{_OURS}default")

_LEAVING_S = 10.0


@pytest.fixture
def root() -> Iterator[str]:
    """The path of an empty directory in shared memory, removed afterwards."""
    path = tempfile.mkdtemp(prefix=_OURS, dir=_SHARED_MEMORY)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def store(root: str) -> Iterator[shmstore.Store]:
    """A store in ``root``."""
    with shmstore.Store(root) as opened:
        yield opened


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Notes that a test failed: its traceback keeps everything open."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a descriptor, a child process or a name in /dev/shm."""
    looks: tuple[Callable[[], dict[Any, str]], ...] = (_children, _descriptors, _names)
    before = [look() for look in looks]
    yield
    if request.node.stash.get(_FAILED, False):
        return
    request.node.funcargs.clear()  # pytest would keep ``store`` until the very end
    deadline = time.monotonic() + _LEAVING_S
    while True:
        left = [
            f"{key}: {what}"
            for look, old in zip(looks, before, strict=True)
            for key, what in look().items()
            if old.get(key) != what
        ]
        if not left or time.monotonic() > deadline:
            break
        warm.forget()  # keeps mappings of what this process has written, by design
        ref._opened.cache_clear()  # keeps the stores of references open, by design
        gc.collect()
        _reap()
        # A process that was told to end takes its time; nothing tells us of a grandchild.
        time.sleep(0.005)
    assert not left, "left behind: " + ", ".join(left)


def _reap() -> None:
    multiprocessing.active_children()
    if "multiprocess" in sys.modules:
        sys.modules["multiprocess"].active_children()


def _lasting() -> tuple[set[int], set[int]]:
    """Pids and descriptors of what multiprocessing starts once and keeps."""
    pids: set[int] = set()
    fds: set[int] = set()
    for package in ("multiprocessing", "multiprocess"):
        tracker = sys.modules.get(f"{package}.resource_tracker")
        if tracker is not None:
            pids.add(tracker._resource_tracker._pid or 0)
            fds.add(-1 if tracker._resource_tracker._fd is None else tracker._resource_tracker._fd)
        server = sys.modules.get(f"{package}.forkserver")
        if server is not None:
            pids.add(server._forkserver._forkserver_pid or 0)
            alive = server._forkserver._forkserver_alive_fd
            fds.add(-1 if alive is None else alive)
    return pids, fds


def _children() -> dict[Any, str]:
    lasting, _ = _lasting()
    found: dict[Any, str] = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{thread}/children").read_text().split()
        except FileNotFoundError:
            continue
        for pid in map(int, pids):
            if pid not in lasting:
                found[f"process {pid}"] = "child"
    return found


def _descriptors() -> dict[Any, str]:
    _, lasting = _lasting()
    found: dict[Any, str] = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # that of listing the directory
        if fd not in lasting:
            found[f"descriptor {fd}"] = target
    return found


def _names() -> dict[Any, str]:
    names = os.listdir(_SHARED_MEMORY)
    return {str(_SHARED_MEMORY / name): "name" for name in names if name.startswith(_OURS)}
