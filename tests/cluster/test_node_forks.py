"""Stores that know of NATS, across pickling and forks."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import shmstore
from shmstore.demo.server import NatsServer
from tests.cluster.running import hosts


def test_a_store_is_pickled_without_credentials(
    server: NatsServer, root: str, tmp_path: Path
) -> None:
    """A pickled store is its root and namespace; nothing of the server's address is in it."""
    with hosts(server.url, root, tmp_path, "a") as (a,):
        with shmstore.Store(a.root, nats="nats://me:secret@127.0.0.1:1") as store:
            pickled = pickle.dumps(store)
        assert b"secret" not in pickled
        assert b"nats" not in pickled
        with pickle.loads(pickled) as again:
            assert (again.root, again.namespace) == (a.root, "default")
            assert not again._node.expected
            assert [one.node for one in again.nodes()] == ["a"]


def _ask(store: shmstore.Store, number: int, told: Any) -> None:
    told.put([store.get_with_fetch("etl", f"v{number * 10 + i}") for i in range(10)])


def test_parent_and_children_ask_the_node(server: NatsServer, root: str, tmp_path: Path) -> None:
    """After a fork parent and children call the node by the same Store, each for itself."""
    fork = multiprocessing.get_context("fork")
    with hosts(server.url, root, tmp_path, "a", "b") as (a, b):
        a.store.put_many("etl", {f"v{i}": i for i in range(50)})
        a.store.sync()
        assert b.store.get_with_fetch("etl", "v0") == 0  # so that there are connections
        queues: list[Any] = [fork.Queue() for _ in range(4)]
        processes = [
            fork.Process(target=_ask, args=(b.store, number + 1, queue))
            for number, queue in enumerate(queues)
        ]
        for process in processes:
            process.start()
        assert [b.store.get_with_fetch("etl", f"v{i}") for i in range(10)] == [*range(10)]
        got = [queue.get(timeout=60) for queue in queues]
        assert got == [[*range(n * 10, n * 10 + 10)] for n in range(1, 5)]
        for process, queue in zip(processes, queues, strict=True):
            process.join(60)
            queue.close()
            queue.join_thread()
        assert b.store.registry.lookup("etl", "v1") == "a"
