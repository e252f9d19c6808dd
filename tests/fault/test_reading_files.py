"""The oracle sees what is wrong: otherwise no test that asks it would mean anything."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.reading_files import DagFiles


def _flip(file: str, at: Callable[[DagFiles], int]) -> Callable[[DagFiles], None]:
    def damage(dag: DagFiles) -> None:
        with open(getattr(dag, file), "r+b") as opened:
            opened.seek(at(dag))
            old = opened.read(1)
            opened.seek(at(dag))
            opened.write(bytes([old[0] ^ 1]))

    return damage


def _slot(dag: DagFiles) -> int:
    hashed = dag.records["a"].key_hash.to_bytes(8, "little")
    return dag.index.read_bytes().index(hashed, 128)


def _remove_segment(dag: DagFiles) -> None:
    os.unlink(dag.path / str(dag.records["large"].segment))


def _cut_segment(dag: DagFiles) -> None:
    os.truncate(dag.path / str(dag.records["large"].segment), 4096)


def _leave_segment(dag: DagFiles) -> None:
    (dag.path / "seg-0123456789abcdef").touch(mode=0o600)


def _open_to_all(dag: DagFiles) -> None:
    os.chmod(dag.log, 0o644)


_DAMAGE = {
    "manifest": (_flip("manifest", lambda _: 40), "manifest's checksum"),
    "state": (_flip("manifest", lambda _: 64), "its state is"),
    "log page": (_flip("log", lambda _: 40), "log's checksum"),
    "base": (_flip("log", lambda _: 49), "log's (checksum|base)"),
    "tail": (_flip("log", lambda _: 65), "indexed|no room|fails its check"),
    "record": (_flip("log", lambda dag: dag.records["a"].offset + 60), "fails its check"),
    "index page": (_flip("index", lambda _: 56), "index"),
    "used": (_flip("index", lambda _: 64), "slots are used"),
    "hash": (_flip("index", _slot), "slot .* is wrong"),
    "tag": (_flip("index", lambda dag: _slot(dag) + 8), "slot .* is wrong"),
    "offset": (_flip("index", lambda dag: _slot(dag) + 10), "slot .* is wrong"),
    "segment missing": (_remove_segment, "is missing"),
    "segment cut": (_cut_segment, "has 4096 bytes"),
    "segment of nothing": (_leave_segment, "segments of no record"),
    "mode": (_open_to_all, "has mode"),
}


@pytest.mark.parametrize("what", _DAMAGE)
def test_the_oracle_sees_damage(store: shmstore.Store, what: str) -> None:
    """Each kind of damage is a fault to the oracle, which finds none before."""
    store.put("dag", "a", {"a": 1})
    store.put("dag", "large", np.arange(9000))
    store.put("dag", "b", 2)
    store.delete("dag", "b")
    damage, told = _DAMAGE[what]
    dag = reading_files.check(store.root)["dag"]
    assert set(dag.records) == {"a", "large"}
    damage(dag)
    with pytest.raises(AssertionError, match=told):
        reading_files.check(store.root)


def test_the_oracle_counts_what_the_store_says(store: shmstore.Store) -> None:
    """Records, totals and segments read from the files are those that the store tells of."""
    for n in range(300):
        store.put("dag", f"id-{n % 50}", "x" * n)
    store.put("dag", "large", np.arange(9000))
    dag = reading_files.check(store.root)["dag"]
    (info,) = store.dags()
    assert (info.entries, info.nbytes, info.dead_bytes) == dag.totals[1:]
    assert set(dag.records) == set(store.ids("dag"))
    for entry in store.entries("dag"):
        assert dag.records[entry.id].segment == (
            None if entry.location == "inline" else entry.location
        )
        assert dag.records[entry.id].nbytes == entry.nbytes
