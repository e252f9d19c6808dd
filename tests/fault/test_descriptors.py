"""Descriptors that user code closes under the store, and uses for files of its own."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, lock
from shmstore.descriptor import Descriptor
from tests import reading_files
from tests.fault.killing import Child, Parent, call

_MINE = b"this is the user's own file\n" * 300


def _ours(root: str) -> list[int]:
    """Descriptors of the store's files that it opened itself.

    Not those that ``mmap`` keeps of its own: Python closes them whoever has them then.
    """
    opened = {one.fd for one in gc.get_objects() if isinstance(one, Descriptor) and one.fd >= 0}
    found = []
    for fd in opened:
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{root}/"):
                found.append(fd)
    return sorted(found)


class _Users:
    """The user's files in the place of the store's: written, locked, and looked at afterwards."""

    def __init__(self, root: str, place: str) -> None:
        self.files: dict[int, Path] = {}
        for fd in _ours(root):
            path = Path(place, f"user-{fd}")
            path.write_bytes(_MINE)
            os.close(fd)
            opened = os.open(path, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            fcntl.flock(fd, fcntl.LOCK_EX)
            self.files[fd] = path

    def check(self) -> None:
        """Nothing of the user's was written, moved, unlocked or closed."""
        for fd, path in self.files.items():
            assert os.readlink(f"/proc/self/fd/{fd}") == str(path), f"{path} was closed"
            assert path.read_bytes() == _MINE, f"{path} was written to"
            assert os.lseek(fd, 0, os.SEEK_CUR) == 0, f"{path} was moved in"
            with path.open("rb") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                raise AssertionError(f"{path} was unlocked")


def _calls(store: shmstore.Store) -> Iterator[str]:
    """Uses the store in every way; yields what was refused."""
    wrong = []
    for name, action in {
        "put": lambda: store.put("dag", "small", "new"),
        "put large": lambda: store.put("dag", "large", np.arange(9001)),
        "put_many": lambda: store.put_many("dag", {"x": 1, "y": np.arange(9002)}),
        "get": lambda: store.get("dag", "small"),
        "get large": lambda: store.get("dag", "large"),
        "delete": lambda: store.delete("dag", "x"),
        "put elsewhere": lambda: store.put("new", "small", 1),
        "ids": lambda: list(store.ids("dag")),
        "dags": store.dags,
        "clear": lambda: store.clear("other"),
    }.items():
        try:
            action()
        except shmstore.StoreError as error:
            assert len(str(error)) > 30
            yield name
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
    assert not wrong, wrong


def _close_and_go_on(root: str, place: str) -> list[str]:
    store = shmstore.Store(root)
    store.put("dag", "small", "old")
    store.put("dag", "large", np.arange(9000))
    store.put("other", "a", 1)
    view = store.get("dag", "large", mode="copy")
    users = _Users(root, place)
    assert len(users.files) > 3
    refused = list(_calls(store))
    users.check()
    store.close()
    del store
    users.check()
    assert np.array_equal(view, np.arange(9000))
    fresh = shmstore.Store(root)
    fresh.put("dag", "fresh", 1)
    assert fresh.get("dag", "fresh") == 1
    users.check()
    return refused


def test_the_users_files_at_our_numbers_stay_untouched(root: str) -> None:
    """With all our descriptors closed and reused, calls work or say why, and harm no file."""
    os.mkdir(f"{root}/user")
    call(_close_and_go_on, f"{root}/store", f"{root}/user")
    reading_files.check(f"{root}/store")


def _close_lock_and_put(parent: Parent, root: str, place: str) -> None:
    store = shmstore.Store(root)
    store.put("dag", "mine", 1)
    parent.send("has put")
    parent.receive()
    locks = [fd for fd in _ours(root) if os.readlink(f"/proc/self/fd/{fd}").endswith("/lock")]
    assert len(locks) == 1
    path = Path(place, "user")
    path.write_bytes(_MINE)
    os.close(locks[0])
    opened = os.open(path, os.O_RDWR)
    if opened != locks[0]:
        os.dup2(opened, locks[0])
        os.close(opened)
    fcntl.flock(locks[0], fcntl.LOCK_EX)
    lock.TIMEOUT_S = 0.2
    with pytest.raises(shmstore.StoreBusy):  # the other process is inside, and stays alone
        store.put("dag", "mine", 2)
    parent.send("was kept out")
    parent.receive()
    store.put("dag", "mine", 3)
    assert store.get("dag", "mine") == 3
    assert path.read_bytes() == _MINE
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_lock_whose_descriptor_was_closed_keeps_its_promise(root: str) -> None:
    """A process whose lock descriptor became a user's file still cannot enter beside another."""
    store = shmstore.Store(f"{root}/store")
    store.put("dag", "a", 1)
    os.mkdir(f"{root}/user")
    with Child(_close_lock_and_put, Parent, f"{root}/store", f"{root}/user") as other:
        assert other.receive() == "has put"

        def wait(name: str) -> None:
            if name == "commit:tail":
                crashpoints.hook = None
                other.send()
                assert other.receive() == "was kept out"

        crashpoints.hook = wait
        try:
            store.put("dag", "a", 2)
        finally:
            crashpoints.hook = None
        other.send()
        other.receive()
        assert other.join() == 0
    assert store.get("dag", "a") == 2
    assert store.get("dag", "mine") == 3
    reading_files.check(f"{root}/store")


def _close_everything(root: str) -> list[str]:
    store = shmstore.Store(root)
    store.put("dag", "small", "old")
    store.put("other", "a", 1)
    for fd in _ours(root):
        os.close(fd)
    refused = list(_calls(store))
    fresh = shmstore.Store(root)
    fresh.put("dag", "fresh", 1)
    assert fresh.get("dag", "fresh") == 1
    return refused


def test_closed_descriptors_are_said_to_be(root: str) -> None:
    """With all our descriptors closed by user code, calls work or say why; a new store works."""
    call(_close_everything, root)
    reading_files.check(root)


def _close_during_put(root: str, place: str) -> None:
    """The file of a value that is being stored is closed and its number reused."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    path = Path(place, "user")
    path.write_bytes(_MINE)
    before = set(_ours(root))

    def steal(name: str) -> None:
        if name == "segment:written":
            crashpoints.hook = None
            (fd,) = set(_ours(root)) - before
            os.close(fd)
            user = os.open(path, os.O_RDWR)
            if user != fd:
                os.dup2(user, fd)
                os.close(user)

    crashpoints.hook = steal
    with pytest.raises(shmstore.StoreError):
        store.put("dag", "large", np.arange(9000))
    assert not store.has_value("dag", "large")
    assert path.read_bytes() == _MINE
    store.put("dag", "large", np.arange(9000))
    assert np.array_equal(store.get("dag", "large"), np.arange(9000))


def test_a_stolen_segment_descriptor_stores_nothing_wrong(root: str) -> None:
    """A put whose file was closed and replaced fails, and never stores the user's file."""
    os.mkdir(f"{root}/user")
    call(_close_during_put, f"{root}/store", f"{root}/user")
    reading_files.check(f"{root}/store")
