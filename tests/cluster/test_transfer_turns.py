"""Many fetches at once: bounded together, and none starves another."""

from __future__ import annotations

import asyncio

import numpy as np

from shmstore import provenance
from shmstore.demo.server import NatsServer
from shmstore.node import protocol, transfer
from shmstore.node.connection import Message
from shmstore.node.subjects import call_subject
from shmstore.node.window import MOST_BYTES
from tests.cluster.hosts import host, hosts
from tests.cluster.nodes import connected, until

_MIB = 1 << 20
_VALUE = np.random.default_rng(1).integers(0, 255, 24 * _MIB, dtype=np.uint8)


def test_many_fetches_stay_below_the_bound(server: NatsServer, root: str) -> None:
    """However much is fetched at once, at most 32 MiB are on their way to a node."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b", "c") as (a, b, c):
            for owner in (a, c):
                for number in range(12):
                    owner.store.put("dag", f"{owner.name}{number}", _VALUE[: 6 * _MIB])
            window = transfer._windows.setdefault(b.connection, transfer.Window())
            for name in "ac":
                window.flow(name).window = MOST_BYTES  # as if nothing ever had to queue
            async with asyncio.TaskGroup() as group:
                for name in "ac":
                    for number in range(12):
                        group.create_task(b.fetch(name, f"{name}{number}"))
            assert MOST_BYTES - _MIB <= window.highest <= MOST_BYTES
            assert window.on_its_way == 0
            assert b.store.stats().entries == 24
            assert not [c for c in server.monitor("connz")["connections"] if c["pending_bytes"]]

    asyncio.run(run())


def test_large_fetches_take_turns(server: NatsServer, root: str) -> None:
    """Of two large values that are fetched at once, both come on, piece by piece."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            order: list[str] = []
            for id in ("one", "two"):
                a.store.put("dag", id, _VALUE)
            began = asyncio.Event()

            def came(done: int, total: int) -> None:
                order.append("one")
                if done > 2 * _MIB:
                    began.set()

            one = asyncio.create_task(b.fetch("a", "one", progress=came))
            await began.wait()
            behind = len(order)
            await b.fetch("a", "two", progress=lambda done, total: order.append("two"))
            await one
            meanwhile = order[behind : len(order) - order[::-1].index("one")]
            assert meanwhile.count("two") >= meanwhile.count("one") // 2 - 8

    asyncio.run(run())


def test_a_small_value_does_not_wait_for_large_ones(server: NatsServer, root: str) -> None:
    """Small values come while all the room for large ones is taken, and none of them comes."""

    async def run() -> None:
        async with (
            connected(server.url, "stuck", "default") as stuck,
            host(server.url, root, "a") as a,
            host(server.url, root, "b") as b,
        ):
            meta = provenance.build_meta(b"", bytes)
            head = {"status": "value", "version": "v", "codec": 2, "created": 1}
            told = protocol.pack(head | {"meta": len(meta), "nbytes": 64 * _MIB}, meta)

            async def tell(message: Message) -> None:
                await stuck.publish(message.reply, told)

            async def say_nothing(message: Message) -> None:
                pass

            await stuck.subscribe(call_subject("default", "stuck", "get"), tell)
            await stuck.subscribe(call_subject("default", "stuck", "chunk"), say_nothing)
            window = transfer._windows.setdefault(b.connection, transfer.Window())
            window.flow("stuck").window = MOST_BYTES
            large = asyncio.create_task(b.fetch("stuck", "large"))
            await until(lambda: window.on_its_way > MOST_BYTES - _MIB, "the room was not taken")
            for number in range(3):
                a.store.put("dag", str(number), "x" * 1000 * number)
                await b.fetch("a", str(number))
            assert not large.done()
            large.cancel()
            await asyncio.wait([large])
            assert window.on_its_way == 0

    asyncio.run(run())
