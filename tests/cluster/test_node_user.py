"""What a user does with two hosts: put on one, get on the other."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore.demo.server import NatsServer
from tests.cluster.running import Host, hosts, until

_TABLE = np.arange(1_000_000)


@pytest.fixture
def pair(server: NatsServer, root: str, tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts, each with a node."""
    with hosts(server.url, root, tmp_path, "a", "b") as both:
        yield both


def _traffic(server: NatsServer, *hosts: Host) -> tuple[int, int]:
    """What the server has sent to and got from the nodes, but what they always do: messages."""
    found = server.monitor("varz")
    return found["in_msgs"], found["out_bytes"]


def _mapped_from(array: np.ndarray[Any, Any]) -> str:
    """The file in which an array lies, by this process's own map."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end:
            return path
    raise AssertionError("not mapped")


def _read(root: str, told: Any) -> None:
    with shmstore.Store(root) as store:
        value = store.get_with_fetch("etl", "table")
        told.put((_mapped_from(value), bool(np.array_equal(value, _TABLE))))
        del value


def test_a_value_of_another_host_is_fetched_once(server: NatsServer, pair: list[Host]) -> None:
    """The first get brings it; later ones, of any process, are without network and copies."""
    a, b = pair
    a.store.put("etl", "table", _TABLE)
    a.store.sync()
    before = server.monitor("varz")["out_bytes"]
    assert np.array_equal(b.store.get_with_fetch("etl", "table"), _TABLE)
    moved = server.monitor("varz")["out_bytes"] - before
    assert _TABLE.nbytes < moved < 1.1 * _TABLE.nbytes
    entry = b.store.entry("etl", "table")
    assert (entry.origin, entry.producer.pid) == ("a", os.getpid())

    # Without a node, nothing can go over the network.
    a.node.kill()
    b.node.kill()
    assert np.array_equal(b.store.get_with_fetch("etl", "table"), _TABLE)
    spawn = multiprocessing.get_context("spawn")
    told: Any = spawn.Queue()
    process = spawn.Process(target=_read, args=(b.root, told))
    process.start()
    path, same = told.get(timeout=60)
    process.join(60)
    told.close()
    told.join_thread()
    assert same
    assert (
        path
        == _mapped_from(b.store.get("etl", "table"))
        == f"{b.root}/default/dags/etl/" + (entry.location)
    )


def test_a_second_get_sends_nothing(server: NatsServer, pair: list[Host]) -> None:
    """With both nodes running, a thousand gets of what is here move no bytes of it again."""
    a, b = pair
    a.store.put("etl", "table", _TABLE)
    a.store.sync()
    b.store.get_with_fetch("etl", "table")
    before = server.monitor("varz")["out_bytes"]
    for _ in range(1_000):
        b.store.get_with_fetch("etl", "table")
    assert server.monitor("varz")["out_bytes"] - before < 100_000


def test_all_that_is_put_can_be_had_elsewhere(pair: list[Host]) -> None:
    """Every way to get a value of another host gives it, and those that are nowhere are missed."""
    a, b = pair
    a.store.put_many("etl", {f"v{i}": {"x": i} for i in range(20)})
    a.store.put("etl", "now", 1, publish=True)
    assert b.store.registry.lookup("etl", "now") == "a"
    assert set(b.store.registry.get_all("etl")) == {f"v{i}" for i in range(20)} | {"now"}
    assert b.store.fetch_remote("etl", "now", from_node="a") == 1
    found = b.store.synchronize("etl", ["v1", "v2", "none"])
    assert dict(found) == {"v1": {"x": 1}, "v2": {"x": 2}}
    assert isinstance(found.errors["none"], shmstore.NotFound)
    b.store.prefetch("etl", ["v3"])
    assert b.store.wait("etl", "v3", 60) == {"x": 3}
    with pytest.raises(shmstore.NotFound, match="the registry"):
        b.store.get_with_fetch("etl", "none")
    with pytest.raises(shmstore.NotFound, match="on node 'a'"):
        b.store.get_with_fetch("etl", "none", from_node="a")
    assert b.store.ref("etl", "v4").fetch() == {"x": 4}
    reference = pickle.loads(pickle.dumps(b.store.ref("etl", "v5")))
    assert reference.fetch(timeout=30) == {"x": 5}


def test_what_is_awaited_comes_when_another_host_stores_it(pair: list[Host]) -> None:
    """get_with_timeout returns what is stored only after it was called."""
    a, b = pair
    fork = multiprocessing.get_context("fork")
    asked = fork.Event()
    process = fork.Process(target=_put_when, args=(a.root, asked))
    process.start()
    asked.set()
    assert b.store.get_with_timeout("etl", "late", 60) == "there"
    process.join(60)
    assert process.exitcode == 0


def _put_when(root: str, asked: Any) -> None:
    assert asked.wait(60)
    with shmstore.Store(root) as store:
        store.put("etl", "late", "there")


def test_clearing_reaches_the_other_host(pair: list[Host]) -> None:
    """A DAG that is cleared on all nodes is gone on all, and can be used again."""
    a, b = pair
    a.store.put("etl", "x", 1, publish=True)
    b.store.put("etl", "y", 2, publish=True)
    report = a.store.clear("etl", all_nodes=True)
    assert report.cleared
    assert not report.unreachable
    assert not a.store.has_value("etl", "x")
    assert not b.store.has_value("etl", "y")
    b.store.put("etl", "again", 3, publish=True)
    assert a.store.get_with_fetch("etl", "again") == 3


def test_nodes_tells_who_is_there(pair: list[Host]) -> None:
    """Every living node is told of with its facts; a killed one no more after some seconds."""
    a, b = pair
    found = {one.node: one for one in a.store.nodes()}
    assert set(found) == {"a", "b"}
    assert {name: one.pid for name, one in found.items()} == {"a": a.node.pid, "b": b.node.pid}
    assert {one.host for one in found.values()} == {os.uname().nodename}
    assert len({one.incarnation for one in found.values()}) == 2
    assert all(one.started_at.utcoffset() is not None for one in found.values())
    b.node.kill()
    until(lambda: [one.node for one in a.store.nodes()] == ["a"], "the dead node is forgotten")


def test_copies_that_give_way_to_each_other_are_missed_by_nobody(pair: list[Host]) -> None:
    """With room for two of eight, each call ends in the value or in StoreFull, never NotFound."""
    a, b = pair
    ids = [f"v{i}" for i in range(8)]
    for i, id in enumerate(ids):
        a.store.put("d", id, np.full(1 << 20, i))
    a.store.sync()
    with shmstore.Store(b.root, capacity=20 << 20) as small:
        wrong: list[object] = []

        def get(first: int) -> None:
            for i in range(first, first + 2 * len(ids)):
                try:
                    value = small.get_with_fetch("d", ids[i % len(ids)], timeout=60)
                    if value[0] != i % len(ids):
                        wrong.append(value)
                    del value
                except shmstore.StoreFull:
                    pass
                except shmstore.StoreError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=get, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert not wrong

        found = small.synchronize("d", ids, timeout=60)
        assert set(found) | set(found.errors) == set(ids)
        assert {type(error) for error in found.errors.values()} == {shmstore.StoreFull}


@pytest.mark.parametrize("how", ["get_with_fetch", "fetch_remote", "get_with_timeout"])
@pytest.mark.parametrize("twin", ["", "_async"])
def test_a_copy_that_is_deleted_at_once_is_brought_again(
    pair: list[Host], how: str, twin: str
) -> None:
    """Copies that another process deletes as they come are still to be had where they are from."""
    a, b = pair
    a.store.put("d", "v", "value", publish=True)
    call = getattr(b.store, how + twin)
    over = threading.Event()

    def delete() -> None:
        with shmstore.Store(b.root) as other:
            while not over.is_set():
                try:
                    other.wait("d", "v", 0.1)
                    other.delete("d", "v")
                except (shmstore.NotFound, shmstore.WaitTimeout):
                    pass

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        for _ in range(2 if how == "get_with_timeout" else 20):
            got = call("d", "v", timeout=60)
            assert (asyncio.run(got) if twin else got) == "value"
    finally:
        over.set()
        deleting.join(60)
