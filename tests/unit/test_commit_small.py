"""The short commit does what the general one does, byte by byte."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from shmstore import commit_small, compaction, crashpoints, store, stored
from shmstore.record import SWEPT, TOUCHED
from shmstore.store import Store


def _files(root: str) -> dict[str, bytes]:
    place = Path(root) / "default" / "dags" / "d"
    files = {file.name: file.read_bytes() for file in sorted(place.iterdir())}
    # When the DAG was last used, and swept, is the clock's business.
    page = files["manifest"]
    files["manifest"] = page[: TOUCHED * 8] + page[(SWEPT + 1) * 8 :]
    return files


def _work(root: str) -> None:
    """Puts, overwrites, deletes and puts again: index growth, extension and compaction."""
    rng = random.Random(7)
    kept: set[str] = set()
    shared = Store(root)
    shared.put_many("d", {"first": 0})
    for _ in range(3000):
        id = f"k{rng.randrange(400)}"
        if id in kept and rng.random() < 0.1:
            shared.delete("d", id)
            kept.remove(id)
        else:
            shared.put("d", id, {"text": "x" * rng.randrange(900)})
            kept.add(id)


def test_both_ways_write_the_same_files(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence of puts leaves the same log, index and control page, whichever way it takes."""
    taken = {"small": 0, "general": 0}
    put_small, prepare = store.put_small, stored._prepare

    def counted(*args: Any) -> Any:
        entry = put_small(*args)
        taken["small"] += entry is not None
        return entry

    def prepared(*args: Any) -> Any:
        taken["general"] += 1
        return prepare(*args)

    monkeypatch.setattr(compaction, "FLOOR", 1 << 16)
    monkeypatch.setattr(commit_small, "time_ns", lambda: 1)
    monkeypatch.setattr(stored, "time_ns", lambda: 1)
    monkeypatch.setattr("shmstore.creating.time.time_ns", lambda: 1)
    monkeypatch.setattr("shmstore.store.time.time_ns", lambda: 1)
    # One generation for both, on which the records' checksums depend.
    monkeypatch.setattr(os, "urandom", lambda size: bytes([1]) * size)
    monkeypatch.setattr(stored, "_prepare", prepared)
    monkeypatch.setattr(store, "put_small", counted)
    _work(f"{root}/one")
    assert taken["small"] > 2000
    monkeypatch.setattr(store, "put_small", lambda *_: None)
    taken["general"] = 0
    _work(f"{root}/other")
    assert taken["general"] > 2000
    assert _files(f"{root}/one") == _files(f"{root}/other")


def test_the_short_way_passes_the_same_points(store: Store) -> None:
    """A put the short way reaches the crash points of a commit, in their order."""
    store.put_many("d", {"a": 1})
    seen: list[str] = []
    crashpoints.hook = seen.append
    try:
        store.put("d", "new", 1)
    finally:
        crashpoints.hook = None
    assert seen == [
        "commit:locked",
        "commit:written",
        "commit:tail",
        "commit:slot-hash",
        "commit:slot",
        "commit:indexed",
        "commit:counted",
        "commit:unlocked",
    ]
    assert store.get("d", "new") == 1


def test_an_entry_of_the_short_way_is_that_of_the_store(store: Store) -> None:
    """What put returns is what entry tells afterwards."""
    store.put_many("d", {"a": 1})
    assert store.put("d", "b", {"x": 1}) == store.entry("d", "b")
