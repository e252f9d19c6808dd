"""A value that came from another host is marked as that for good, and every get obeys."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import UnsafeValue, reading, record
from shmstore.codecs.trust import NOBODY
from tests import elsewhere
from tests.fault.killing import call
from tests.importable import Point
from tests.process.sleepers import until_asleep
from tests.process.test_moved_values import locations, move

Get = Callable[[shmstore.Store], Any]

GETS: dict[str, Get] = {
    "get": lambda store: store.get("d", "x"),
    "get to write": lambda store: store.get("d", "x", mode="cow"),
    "get a copy": lambda store: store.get("d", "x", mode="copy"),
    "get with a default": lambda store: store.get("d", "x", default=None),
    "get_many": lambda store: store.get_many("d", ["x"]),
    "wait": lambda store: store.wait("d", "x", 5),
    "wait to copy": lambda store: store.wait("d", "x", 5, mode="copy"),
    "wait_many": lambda store: store.wait_many("d", ["x"], 5),
    "wait_many at once": lambda store: store.wait_many("d", ["x"], 0),
    "take": lambda store: store.take("d", "x"),
    "mapping": lambda store: store.dag("d")["x"],
    "mapping's get": lambda store: store.dag("d").get("x"),
    "mapping's values": lambda store: [*store.dag("d").values()],
    "mapping's pop": lambda store: store.dag("d").pop("x"),
    "reference": lambda store: store.ref("d", "x").get(),
    "reference that waits": lambda store: store.ref("d", "x").wait(5),
    "pickled store": lambda store: pickle.loads(pickle.dumps(store)).get("d", "x"),
    "get_async": lambda store: asyncio.run(store.get_async("d", "x")),
    "get_many_async": lambda store: asyncio.run(store.get_many_async("d", ["x"])),
    "wait_async": lambda store: asyncio.run(store.wait_async("d", "x", 5)),
    "wait_many_async": lambda store: asyncio.run(store.wait_many_async("d", ["x"], 5)),
}


def refused(store: shmstore.Store, get: Get, marker: Path) -> None:
    """Says that the value is unsafe, whose it is and why, and runs nothing."""
    with pytest.raises(UnsafeValue) as caught:
        get(store)
    error = caught.value
    assert (error.what, error.dag_id, error.id, error.origin) == (
        "posix.system",
        "d",
        "x",
        elsewhere.ORIGIN,
    )
    assert not marker.exists()


@pytest.mark.parametrize("size", [0, 100_000], ids=["inline", "segment"])
@pytest.mark.parametrize("name", GETS)
def test_every_way_to_get_a_value_decodes_it_with_distrust(
    store: shmstore.Store, tmp_path: Path, name: str, size: int
) -> None:
    """A pickle of another host that calls os.system is refused by all of them."""
    marker = tmp_path / "executed"
    encoded = elsewhere.call_of(os.system, f"touch {marker} # {'x' * size}")
    elsewhere.put_encoded(store, "d", "x", encoded)
    refused(store, GETS[name], marker)
    assert store.has_value("d", "x")
    shmstore.ref._opened.cache_clear()


SLEEPING: dict[str, Get] = {
    "wait": lambda store: store.wait("d", "x", 30),
    "wait to write": lambda store: store.wait("d", "x", 30, mode="cow"),
    "wait_many": lambda store: store.wait_many("d", ["x"], 30),
    "reference": lambda store: store.ref("d", "x").wait(30),
}


@pytest.mark.parametrize("name", SLEEPING)
def test_who_sleeps_until_the_value_comes_obeys(
    store: shmstore.Store, tmp_path: Path, name: str
) -> None:
    """Whoever is woken by a value of another host decodes it with distrust, too."""
    marker = tmp_path / "executed"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(refused, store, SLEEPING[name], marker)
        until_asleep()
        elsewhere.put_encoded(store, "d", "x", elsewhere.call_of(os.system, f"touch {marker}"))
        waiting.result(60)
    shmstore.ref._opened.cache_clear()


def test_tasks_that_wait_until_the_value_comes_obey(store: shmstore.Store, tmp_path: Path) -> None:
    """The same for tasks of an event loop."""
    marker = tmp_path / "executed"

    async def both() -> None:
        waiting = asyncio.gather(
            store.wait_async("d", "x", 30), store.wait_many_async("d", ["x"], 30),
            return_exceptions=True,
        )  # fmt: skip
        await asyncio.to_thread(until_asleep)
        elsewhere.put_encoded(store, "d", "x", elsewhere.call_of(os.system, f"touch {marker}"))
        for error in await waiting:
            assert isinstance(error, UnsafeValue)
            assert error.origin == elsewhere.ORIGIN

    asyncio.run(both())
    assert not marker.exists()


def test_other_processes_obey(store: shmstore.Store, tmp_path: Path) -> None:
    """The mark is in the record: a process that knows nothing else of the value sees it."""
    marker = tmp_path / "executed"
    elsewhere.put_encoded(store, "d", "x", elsewhere.call_of(os.system, f"touch {marker}"))

    def look(root: str) -> str:
        try:
            shmstore.Store(root).get("d", "x")
        except UnsafeValue as error:
            return str(error)
        return "decoded"

    assert "posix.system" in call(look, store.root)
    assert not marker.exists()


def test_the_bytes_stay_readable(store: shmstore.Store) -> None:
    """What may not be decoded can be looked at, explained and deleted."""
    encoded = elsewhere.call_of(os.system, "true")
    elsewhere.put_encoded(store, "d", "x", encoded)
    assert store.get_buffer("d", "x").to_pybytes() == b"".join(encoded.parts)
    assert store.explain("d", "x").nbytes == encoded.nbytes
    assert store.entry("d", "x").origin == elsewhere.ORIGIN
    store.delete("d", "x")
    assert not store.has_value("d", "x")


def test_the_mark_stays_when_the_log_is_compacted(store: shmstore.Store, tmp_path: Path) -> None:
    """A compaction copies records as they are: a value of another host stays one."""
    marker = tmp_path / "executed"
    elsewhere.put_encoded(store, "d", "x", elsewhere.call_of(os.system, f"touch {marker}"))
    before = store._dags.manifests["d"].fresh().log.number
    while store._dags.manifests["d"].fresh().log.number == before:
        store.put("d", "waste", "w" * 14_000)
    assert flags(store) == record.UNTRUSTED
    refused(store, GETS["get"], marker)


def test_the_mark_stays_when_a_value_moves_to_disk(root: str, tmp_path: Path) -> None:
    """A value of another host that was moved to the spill directory stays one."""
    marker = tmp_path / "executed"
    store = shmstore.Store(root, spill=str(tmp_path / "disk"))
    encoded = elsewhere.call_of(os.system, f"touch {marker} # {'x' * 100_000}")
    elsewhere.put_encoded(store, "d", "x", encoded)
    assert move(store, "x")
    assert locations(store)["x"].startswith("spill-")
    assert flags(store) == record.UNTRUSTED | record.SPILLED
    for name in ("get", "get a copy", "wait", "take"):
        refused(store, GETS[name], marker)


def flags(store: shmstore.Store) -> int:
    """The flags in a value's record."""
    found = store._dags.read("d", reading.find, b"x")
    assert found is not None
    return found.flags


def test_a_local_put_makes_a_value_ours(store: shmstore.Store) -> None:
    """The mark belongs to the record, not to the id."""
    elsewhere.put(store, "d", "x", [np.sin])
    with pytest.raises(UnsafeValue):
        store.get("d", "x")
    store.put("d", "x", [np.sin])
    assert store.get("d", "x") == [np.sin]
    assert flags(store) == 0
    assert store.entry("d", "x").origin is None


def test_users_cannot_say_that_a_value_came_from_elsewhere(store: shmstore.Store) -> None:
    """Only what fetches values says where they came from."""
    with pytest.raises(TypeError):
        store.put("d", "x", 1, origin="b")  # type: ignore[call-arg]


def test_allowed_classes_are_those_of_one_store_object(root: str) -> None:
    """``allow`` is obeyed by the object it was given to; copies and references allow none."""
    name = "tests.importable.Point"
    with shmstore.Store(root, allow=[name]) as trusting:
        elsewhere.put(trusting, "d", "x", Point(1, [Point(2)]))
        for get in ("get", "get_many", "wait", "wait_many", "mapping", "get_async", "wait_async"):
            found = GETS[get](trusting)
            assert (found["x"] if type(found) is dict else found) == Point(1, [Point(2)])
        others: list[Get] = [
            lambda store: shmstore.Store(store.root).get("d", "x"),
            lambda store: pickle.loads(pickle.dumps(store)).get("d", "x"),
            lambda store: store.ref("d", "x").get(),
        ]
        for other in others:
            with pytest.raises(UnsafeValue, match=r"tests\.importable\.Point"):
                other(trusting)
        assert pickle.loads(pickle.dumps(trusting))._dags.trust is NOBODY
        assert GETS["take"](trusting) == Point(1, [Point(2)])
    shmstore.ref._opened.cache_clear()
