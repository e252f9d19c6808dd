"""What does a value of another host cost, beside what nats-py itself takes for as many bytes?

Owner and receiver are processes of their own, with roots of their own, and meet through one
nats-server. The bare contestants are the least that nats-py can do: a request and its reply,
and pieces of a buffer that are asked for a window at a time and copied into another buffer.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg

import shmstore
from benchmarks import workers
from benchmarks.contest import Bench, settle
from benchmarks.measuring import Answer, in_turn
from benchmarks.workers import Worker
from shmstore.demo.server import NatsServer
from shmstore.node import transfer
from shmstore.node.connection import Connection
from shmstore.node.owner import Owner
from shmstore.node.settings import Settings

T = TypeVar("T")

NAME = "fetch"
TITLE = "a value of another host, small and large, through one nats-server"

BARE = "nats-py, bare"
OURS = "shmstore"
NEW, REUSED = "shmstore, into new memory", "shmstore, into reused memory"
_SMALL = "small value, its node known"

_MIB = 1 << 20
_DAG, _SMALL_ID, _LARGE_ID = "dag", "small", "large"
_VALUE = {"alpha": 0.5, "beta": 12}
_RANGE = struct.Struct("<QQ")
#: Sizes of pieces and of windows among which the bare transfer's best is looked for.
_PIECES = (128 << 10, 256 << 10, 512 << 10, _MIB - 1024)
_WINDOWS = (2 * _MIB, 4 * _MIB, 8 * _MIB, 16 * _MIB, 32 * _MIB)


def run(bench: Bench) -> Answer:
    """Fetches the same values in turn."""
    answer = Answer(NAME, TITLE)
    nbytes, rounds, calls = (8 * _MIB, 3, 50) if bench.quick else (256 * _MIB, 15, 500)
    large = f"{nbytes // _MIB} MiB"
    answer.reference |= {_SMALL: BARE, large: BARE}
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(os.path.join(bench.place, "nats")))
        given = (server.url, bench.place, nbytes)
        bare_owner, owner, bare, new, reused = (
            stack.enter_context(Worker(given)) for _ in range(5)
        )
        bare_owner.call(begin_bare_owner)
        owner.call(begin_owner)
        bare.call(begin_bare)
        new.call(begin_receiver, "new", 0)
        reused.call(begin_receiver, "reused", 2 << 30)
        for number, (name, one, call) in in_turn(
            ((BARE, bare, bare_small), (OURS, reused, small)), 2 * rounds
        ):
            took = one.call(call, calls)
            if number >= 0:
                answer.add(_SMALL, name, took * 1e6)
        piece, window = bare.call(best, 1 if bench.quick else 3)
        contestants = (
            (BARE, bare, bare_large, (piece, window)),
            (NEW, new, fetch_large, ()),
            (REUSED, reused, fetch_large, ()),
        )
        for number, (name, one, call, arguments) in in_turn(contestants, rounds, warm_up=2):
            took = one.call(call, *arguments)
            if number >= 0:
                answer.add(large, name, took * 1e3, "ms")
    answer.notes += [
        f"{BARE}: pieces of {piece // 1024:,} KiB, {window // _MIB} MiB at a time, the best of "
        f"{len(_PIECES) * len(_WINDOWS)} pairs tried before; copied into memory that is warm",
        "MB/s: "
        + ", ".join(
            f"{name} {nbytes / answer.median(large, name) / 1e3:,.0f}" for name, *_ in contestants
        ),
    ]
    ratio = answer.ratio(_SMALL, OURS, BARE)
    answer.ask("small: at most 2 bare round trips", ratio, 2)
    for name in (NEW, REUSED):
        ratio = 1 / answer.ratio(large, name, BARE)
        text = f"{large}, {name.partition(', ')[2]}: at least 0.95 of bare"
        answer.ask(text, ratio, 0.95, at_least=True)
    return answer


# --- In the workers -------------------------------------------------------------------------

_loop: asyncio.AbstractEventLoop
_state: dict[str, Any] = {}


def _in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the worker's event loop, which goes on between the calls."""
    global _loop
    if "thread" not in _state:
        _loop = asyncio.new_event_loop()
        _state["thread"] = threading.Thread(target=_loop.run_forever, daemon=True)
        _state["thread"].start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result(workers.PATIENCE_S)


async def _client() -> Client:
    client = Client()
    await client.connect(workers.given[0])
    return client


def begin_bare_owner() -> None:
    """Answers with pieces of a buffer, and with what is sent."""
    data = memoryview(np.random.default_rng(1).bytes(workers.given[2]))

    async def begin() -> None:
        client = await _client()

        async def piece(message: Msg) -> None:
            at, size = _RANGE.unpack(message.data)
            await client.publish(message.reply, bytes(data[at : at + size]))

        async def echo(message: Msg) -> None:
            await client.publish(message.reply, message.data)

        await client.subscribe("bare.piece", cb=piece)
        await client.subscribe("bare.echo", cb=echo)
        await client.flush()
        _state["client"] = client

    _in_loop(begin())
    settle()


def begin_bare() -> None:
    """Makes the buffer that is copied into."""
    _state["buffer"] = memoryview(np.ones(workers.given[2], dtype=np.uint8)).cast("B")
    _state["client"] = _in_loop(_client())
    settle()


def bare_small(calls: int) -> float:
    """Seconds a request and its reply, of a small value's size."""
    body = b"x" * 200

    async def ask() -> float:
        client = _state["client"]
        start = perf_counter()
        for _ in range(calls):
            await client.request("bare.echo", body, timeout=30)
        return (perf_counter() - start) / calls

    return _in_loop(ask())


def bare_large(piece: int, window: int) -> float:
    """Seconds for all pieces."""
    client, buffer = _state["client"], _state["buffer"]

    async def bring() -> float:
        start = perf_counter()
        room = asyncio.Semaphore(max(1, window // piece))

        async def one(at: int) -> None:
            size = min(piece, len(buffer) - at)
            message = await client.request("bare.piece", _RANGE.pack(at, size), timeout=60)
            room.release()
            buffer[at : at + size] = message.data

        async with asyncio.TaskGroup() as group:
            for at in range(0, len(buffer), piece):
                await room.acquire()
                group.create_task(one(at))
        return perf_counter() - start

    return _in_loop(bring())


def best(rounds: int) -> tuple[int, int]:
    """The size of pieces and window with which the bare transfer is the fastest."""
    took: dict[tuple[int, int], float] = {}
    for _ in range(rounds):
        for pair in ((piece, window) for piece in _PIECES for window in _WINDOWS):
            took[pair] = min(bare_large(*pair), took.get(pair, float("inf")))
    return min(took, key=lambda pair: took[pair])


def begin_owner() -> None:
    """Stores the values, and gives them out."""
    url, place, nbytes = workers.given
    store = shmstore.Store(os.path.join(place, "owner"))
    store.put(_DAG, _SMALL_ID, _VALUE)
    store.put(_DAG, _LARGE_ID, np.random.default_rng(1).random(nbytes // 8))

    async def begin() -> None:
        connection = await Connection.open(Settings.parse(url, {}), "default", "owner")
        owner = Owner(connection, store._dags, "default", "owner")
        await owner.start()
        _state["owner"] = owner

    _in_loop(begin())
    settle()


def begin_receiver(name: str, pool: int) -> None:
    """Opens a store of its own, and a connection."""
    url, place, _ = workers.given
    _state["store"] = shmstore.Store(os.path.join(place, name), pool=pool)
    _state["connection"] = _in_loop(Connection.open(Settings.parse(url, {}), "default", name))
    settle()


def small(calls: int) -> float:
    """Seconds a fetch of the small value, each replacing the copy before."""

    async def fetch() -> float:
        start = perf_counter()
        for _ in range(calls):
            await transfer.fetch(
                _state["connection"], "owner", _DAG, _SMALL_ID, _state["store"]._dags
            )
        return (perf_counter() - start) / calls

    return _in_loop(fetch())


def fetch_large() -> float:
    """Seconds a fetch of the large value, which is deleted afterwards."""
    store = _state["store"]

    async def fetch() -> float:
        start = perf_counter()
        await transfer.fetch(_state["connection"], "owner", _DAG, _LARGE_ID, store._dags)
        return perf_counter() - start

    took = _in_loop(fetch())
    store.delete(_DAG, _LARGE_ID)
    return took
