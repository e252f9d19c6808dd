"""Directories are listed whole, whoever else lists them by the same open description."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import files, lookup, reading, relief, sweep_disk
from shmstore.sweep import Order
from tests.fault.killing import DEADLINE_S, Child, call

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

_LOOKS = 3000


def _short(store: shmstore.Store, whole: int) -> int:
    dags = store._dags.space.dags
    return sum(len(files.listed(dags)) != whole for _ in range(_LOOKS))


def test_a_parent_and_its_child_do_not_shorten_each_others_lists(store: shmstore.Store) -> None:
    """How far a directory was read is noted in the open description, which a fork shares."""
    for n in range(5):
        store.put(f"d{n}", "a", n)
    with Child(_short, store, 5) as child:
        assert _short(store, 5) == 0
        assert child.receive() == 0


def test_threads_do_not_shorten_each_others_lists(store: shmstore.Store) -> None:
    """Threads share descriptors as a matter of course."""
    for n in range(5):
        store.put(f"d{n}", "a", n)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(_short(store, 5))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert counts == [0, 0, 0]


def test_sweeps_of_relatives_leave_what_is_on_disk(root: str, tmp_path: Path) -> None:
    """A sweep that took a DAG for gone because another one was listing lost all it had on disk."""
    store = shmstore.Store(root, spill=tmp_path / "disk")
    for dag_id in ("d", "e"):
        store.put(dag_id, "a", np.arange(5000))
        manifest = lookup.find_dag(store._dags.space, dag_id)
        assert manifest is not None
        record = reading.find(manifest, b"a")
        assert record is not None
        assert relief.spill_one(manifest, record)

    def sweep() -> list[str]:
        space = store._dags.space
        return [one.kind for _ in range(_LOOKS // 3) for one in sweep_disk.spilled(space, Order())]

    with Child(sweep) as child:
        assert sweep() == []
        assert child.receive() == []
    for dag_id in ("d", "e"):
        assert np.array_equal(call(store.get, dag_id, "a"), np.arange(5000))
    assert store.check() == []


def test_no_module_lists_by_a_shared_descriptor() -> None:
    """Only ``files.listed`` lists a descriptor, one that it has just opened."""
    shmstore_files = Path(shmstore.__file__).parent.rglob("*.py")
    found = [
        (path.name, line.strip())
        for path in shmstore_files
        for line in path.read_text().splitlines()
        if re.search(r"(listdir|scandir)\([a-z_.]*fd\b", line)
    ]
    assert found == [("files.py", "return os.listdir(own.fd)")]
