"""Clears and puts of several processes at once, held against a ledger outside the store."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import shmstore
from tests import reading_files
from tests.fault.killing import Child, Parent
from tests.process.errands import large


class Put(NamedTuple):
    id: str
    number: int
    began_ns: int
    ended_ns: int


def put_on(root: str, name: str, parent: Parent) -> list[Put]:
    """Puts small and large values until told that the clears are over, and some more."""
    store = shmstore.Store(root)
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    ledger: list[Put] = []
    more = 20
    while more:
        if over.is_set():
            more -= 1
        number = len(ledger)
        id = f"{name}/{number}"
        began = time.monotonic_ns()
        store.put("d", id, number if number % 4 else large(number))
        ledger.append(Put(id, number, began, time.monotonic_ns()))
    return ledger


def clear_often(root: str, times: int) -> list[tuple[int, int]]:
    """Clears the DAG again and again; when each clear began and ended."""
    store = shmstore.Store(root)
    clears = []
    for _ in range(times):
        began = time.monotonic_ns()
        store.clear("d")
        clears.append((began, time.monotonic_ns()))
        # Lets the writers get somewhere in between.
        deadline = time.monotonic() + 1
        while store.count("d") < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
    return clears


def test_no_acknowledged_put_after_the_last_clear_is_lost(root: str) -> None:
    """What was put after the last clear is there, the rest is gone, and nothing dangles."""
    writers = [Child(put_on, root, f"w{number}", Parent) for number in range(3)]
    clearers = [Child(clear_often, root, 40) for _ in range(2)]
    try:
        clears = [times for child in clearers for times in child.receive(60)]
        for child in writers:
            child.send("over")
        ledgers = [child.receive() for child in writers]
    finally:
        for child in writers + clearers:
            child.kill()
    last_began = max(began for began, _ in clears)
    last_ended = max(ended for _, ended in clears)
    store = shmstore.Store(root)
    after = [one for ledger in ledgers for one in ledger if one.began_ns > last_ended]
    before = [one for ledger in ledgers for one in ledger if one.ended_ns < last_began]
    assert len(after) >= 60
    assert before
    for one in after:
        value = store.get("d", one.id)
        assert (value if one.number % 4 else value[0]) == one.number
    assert [one.id for one in before if store.has_value("d", one.id)] == []
    files = reading_files.check(root)["d"]
    assert len(files.records) == store.count("d")
    assert files.leftovers == set()
    assert reading_files.trash(root) == []
    # A DAG's directory must go whole: nothing that was put late keeps it.
    store.clear("d")
    assert reading_files.read_namespace(root) == {}
