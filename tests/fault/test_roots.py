"""Places that are not fit for a store, and stores that lose theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

import shmstore
from tests import reading_files
from tests.fault.killing import call

_NOBODY = 65534


def _from_the_future(page: bytes) -> bytes:
    """The page of a later version: another number, and a checksum that fits."""
    page = page[:8] + (2).to_bytes(8, "little") + page[16:]
    check = xxh3_64_intdigest(page[:16] + page[24:64] + page[128:])
    return page[:16] + check.to_bytes(8, "little") + page[24:]


def test_a_namespace_of_a_later_version_is_refused(root: str) -> None:
    """A control page of a later format is left alone, and the error says what to do."""
    shmstore.Store(root).put("dag", "a", 1)
    control = Path(root, "default", "control")
    before = control.read_bytes()
    control.write_bytes(_from_the_future(before))
    with pytest.raises(shmstore.UnusableRoot, match=r"version 2 is newer than 1.*upgrade"):
        shmstore.Store(root)
    assert control.read_bytes() == _from_the_future(before)
    control.write_bytes(before)
    assert shmstore.Store(root).get("dag", "a") == 1


def test_a_dag_of_a_later_version_is_refused(root: str) -> None:
    """A manifest of a later format is neither read, written nor cleared; other DAGs work."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    store.put("other", "a", 2)
    manifest = reading_files.read(root, "dag").manifest
    manifest.write_bytes(_from_the_future(manifest.read_bytes()))
    later = shmstore.Store(root)
    for refused in (
        lambda: later.get("dag", "a"),
        lambda: later.put("dag", "a", 3),
        lambda: later.delete("dag", "a"),
        lambda: later.clear("dag"),
        lambda: list(later.ids("dag")),
    ):
        with pytest.raises(shmstore.UnusableRoot, match=r"version 2 is newer than 1.*upgrade"):
            refused()
    assert manifest.exists()
    assert later.get("other", "a") == 2
    assert [(dag.dag_id, bool(dag.fault)) for dag in later.dags()] == [
        ("dag", True),
        ("other", False),
    ]


def _as_nobody(root: str) -> str:
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    with pytest.raises(shmstore.UnusableRoot) as refused:
        shmstore.Store(root)
    return str(refused.value)


def test_a_root_that_may_not_be_written_is_refused(root: str) -> None:
    """A user who may not write at the root is told so."""
    os.chmod(root, 0o755)
    assert "you may not write there" in call(_as_nobody, f"{root}/inner/store")


def test_another_users_root_is_refused(root: str) -> None:
    """A root that belongs to somebody else is refused, also to the superuser."""
    os.chmod(root, 0o711)
    theirs = Path(root, "theirs")
    shmstore.Store(theirs).put("dag", "a", 1)
    os.chmod(theirs, 0o755)
    assert "belongs to user 0 and you are 65534" in call(_as_nobody, str(theirs))
    os.chown(theirs, _NOBODY, _NOBODY)
    os.chmod(theirs, 0o700)
    with pytest.raises(shmstore.UnusableRoot, match="belongs to user 65534"):
        shmstore.Store(theirs)


@pytest.mark.parametrize(("which", "mode"), [("", 0o770), ("default", 0o750)])
def test_a_place_that_others_may_change_is_refused(root: str, which: str, mode: int) -> None:
    """A root that others may write, or a namespace they may enter, is refused, with the cure."""
    shmstore.Store(root)
    os.chmod(f"{root}/{which}", mode)
    with pytest.raises(shmstore.UnusableRoot, match=f"mode {mode:04o}.*chmod 700"):
        shmstore.Store(root)


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_root_that_is_a_file_is_refused(root: str, below: str) -> None:
    """A root that is a file, or lies below one, is refused and the file kept."""
    file = Path(root, "file")
    file.write_text("mine")
    with pytest.raises(shmstore.UnusableRoot, match="no directory"):
        shmstore.Store(f"{file}{below}")
    assert file.read_text() == "mine"


@pytest.fixture
def on_disk() -> Iterator[str]:
    """A directory on the disk; fails where /var/tmp is no disk."""
    path = tempfile.mkdtemp(dir="/var/tmp")
    yield path
    shutil.rmtree(path)


def test_a_root_on_a_disk_works_and_warns(on_disk: str) -> None:
    """Outside shared memory a store works, after one warning that names the cost."""
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", on_disk], text=True).strip()
    assert kind not in ("tmpfs", "overlayfs"), "this test needs a disk at /var/tmp"
    with pytest.warns(shmstore.SlowRootWarning, match="not in shared memory.*disk") as told:
        store = shmstore.Store(on_disk)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = shmstore.Store(on_disk)
    store.put("dag", "small", 1)
    store.put("dag", "large", np.arange(9000))
    assert again.get("dag", "small") == 1
    assert np.array_equal(again.get("dag", "large"), np.arange(9000))


@pytest.fixture
def overlay(root: str) -> Iterator[str]:
    """A mounted overlay; needs to be root."""
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{root}/{name}")
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, f"{root}/merged"], check=True
    )
    yield f"{root}/merged"
    subprocess.run(["umount", f"{root}/merged"], check=True)


def test_an_overlay_is_refused(overlay: str) -> None:
    """An overlay is refused with the reason, and nothing is left on it."""
    os.chmod(overlay, 0o700)
    with pytest.raises(shmstore.UnusableRoot, match=r"on overlay.*use /dev/shm"):
        shmstore.Store(overlay)
    left = [name for _, _, files in os.walk(overlay) for name in files]
    assert not left


def _within(seconds: float, call: object, *args: object) -> BaseException | object:
    """What a call returns or raises; fails if it does neither in time."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call(*args))  # type: ignore[operator]
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"{call} has not come back"
    return outcome[0]


@pytest.mark.parametrize("gone", ["", "default", "default/dags"])
def test_a_root_that_vanishes_is_said_to_have(root: str, gone: str) -> None:
    """When the root is removed under a store, every call says so, none hangs."""
    inner = f"{root}/inner"
    store = shmstore.Store(inner)
    store.put("dag", "small", 1)
    store.put("dag", "large", np.arange(9000))
    view = store.get("dag", "large")
    shutil.rmtree(f"{inner}/{gone}")
    deadline = time.monotonic() + 1  # whether the root is there is looked at now and then
    while not isinstance(_within(20, store.put, "dag", "small", 2), Exception):
        assert time.monotonic() < deadline, "a put still worked a second later"
    calls = {
        "put": lambda: store.put("dag", "small", 2),
        "put large": lambda: store.put("dag", "new", np.arange(9001)),
        "put elsewhere": lambda: store.put("new", "small", 2),
        "put_many": lambda: store.put_many("dag", {"a": 1, "b": np.arange(9001)}),
        "delete": lambda: store.delete("dag", "small"),
        "clear": lambda: store.clear("dag"),
        "dags": store.dags,
        "get": lambda: store.get("dag", "small"),
        "ids": lambda: list(store.ids("dag")),
    }
    for what, action in calls.items():
        outcome = _within(20, action)
        assert isinstance(outcome, shmstore.StoreError), f"{what}: {outcome!r}"
        assert not isinstance(outcome, shmstore.NotFound), f"{what}: {outcome!r}"
        assert "removed" in str(outcome), f"{what}: {outcome}"
    assert np.array_equal(view, np.arange(9000))
    if gone == "default/dags":  # half a namespace is nothing that was ever made here
        with pytest.raises(shmstore.UnusableRoot):
            shmstore.Store(inner)
        return
    with shmstore.Store(inner) as fresh:
        fresh.put("dag", "small", 3)
        assert fresh.get("dag", "small") == 3


@pytest.mark.parametrize("gone", ["manifest", "lock", "log.1", "index.1"])
def test_a_dag_without_one_of_its_files(root: str, gone: str) -> None:
    """A DAG whose file was removed answers rightly or says that it is damaged; clear heals it."""
    shmstore.Store(root).put("dag", "a", 1)
    os.unlink(reading_files.read(root, "dag").path / gone)
    store = shmstore.Store(root)
    for action in (
        lambda: store.get("dag", "a"),
        lambda: store.put("dag", "a", 1),
        lambda: store.get("dag", "a"),
        lambda: store.delete("dag", "b"),
    ):
        outcome = _within(20, action)
        right = outcome == 1 or isinstance(outcome, (shmstore.Entry, shmstore.CorruptValue))
        deleting = isinstance(outcome, shmstore.NotFound) and outcome.id == "b"
        assert right or deleting, f"{outcome!r}"
    assert _within(20, store.clear, "dag") == shmstore.ClearReport(True)
    store.put("dag", "a", 2)
    assert store.get("dag", "a") == 2
    reading_files.check(root)
