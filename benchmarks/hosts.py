"""What does get_with_fetch cost, from a process of one host to one of another, nodes and all?

Two roots, a node at each, as ``shmstore node`` runs them, and one nats-server. Beside it are a
bare request and its reply, a bare TCP connection, and other ways to have a large array from
another node.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg

import shmstore
from benchmarks import host_peers, workers
from benchmarks.contest import Bench, settle
from benchmarks.host_peers import HostPeer, Plain
from benchmarks.measuring import Answer, in_turn
from benchmarks.workers import Worker
from shmstore.demo.server import NatsServer

NAME = "hosts"
TITLE = "get_with_fetch from process to process, through the nodes of two hosts"

BARE = "nats-py, a bare request"
UNKNOWN, KNOWN = "get_with_fetch", "get_with_fetch(from_node=...)"
OURS = "shmstore"
_SMALL = "small value"
_REGISTERED, _BYTES = "100,000 puts registered", "8 processes at once"

_MIB = 1 << 20
_READY_S = 30.0
_ASKING = 8


def run(bench: Bench) -> Answer:
    """Brings values over in turn."""
    answer = Answer(NAME, TITLE)
    nbytes, rounds, calls = (8 * _MIB, 2, 20) if bench.quick else (256 * _MIB, 9, 200)
    large = f"{nbytes // _MIB} MiB"
    answer.reference |= {_SMALL: BARE, large: OURS}
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(os.path.join(bench.place, "nats")))
        for name in ("a", "b"):
            stack.callback(end_node, start_node(bench.place, name, server.url))
        a, b, echo, ask = (stack.enter_context(Worker((server.url, bench.place))) for _ in range(4))
        a.call(open_store, "a")
        b.call(open_store, "b")
        echo.call(begin_echo)
        stack.callback(echo.call, hang_up)
        ask.call(begin_asking)
        stack.callback(ask.call, hang_up)
        _small(answer, (a, b, ask), rounds, calls)
        _large(answer, bench, (a, b), nbytes, large, rounds)
        _at_once(answer, bench, server, a, nbytes)
        took = a.call(register, 2_000 if bench.quick else 100_000)
        answer.add(_REGISTERED, OURS, took, "s")
        if not bench.quick:
            answer.ask("100,000 puts registered within 10 s", took, 10, "s")
    return answer


def _small(answer: Answer, hosts: tuple[Worker, Worker, Worker], rounds: int, calls: int) -> None:
    a, b, ask = hosts
    for number, (name, _) in in_turn([(BARE, 0), (UNKNOWN, 0), (KNOWN, 0)], 2 * rounds):
        if name == BARE:
            took = ask.call(ask_bare, calls)
        else:
            ids = a.call(put_small, calls)
            took = b.call(bring_small, ids, "a" if name == KNOWN else None)
        if number >= 0:
            answer.add(_SMALL, name, took * 1e6)
    twice = 2 * answer.median(_SMALL, BARE)
    ratio = answer.median(_SMALL, UNKNOWN) / twice
    answer.ask("small, looked up: at most 1.5 x two bare requests", ratio, 1.5)
    ratio = answer.ratio(_SMALL, KNOWN, BARE)
    answer.ask("small, its node known: at most 2 x one bare request", ratio, 2)


def _large(
    answer: Answer, bench: Bench, hosts: tuple[Worker, Worker], nbytes: int, large: str, rounds: int
) -> None:
    a, b = hosts
    a.call(put_large, nbytes)
    with ExitStack() as stack:
        contestants: list[tuple[str, Any]] = [(OURS, lambda: b.call(bring_large))]
        for kind in (*host_peers.PLAIN, *host_peers.CLUSTERS):
            missing = kind.missing()
            if missing:
                answer.notes.append(f"missing, so not compared: {missing}")
                continue
            answer.notes.append(kind.note)
            contestants.append((kind.name, _peer(stack, kind, bench.place, nbytes)))
        for number, (name, bring) in in_turn(contestants, rounds, warm_up=1):
            took = bring()
            if number >= 0:
                answer.add(large, name, took * 1e3, "ms")
    names = [name for name, _ in contestants]
    speeds = ", ".join(f"{n} {nbytes / answer.median(large, n) / 1e3:,.0f}" for n in names)
    answer.notes.append(f"MB/s: {speeds}")
    if host_peers.Ray.name in names:
        ratio = answer.ratio(large, host_peers.Ray.name, OURS)
        answer.ask(f"{large}: ahead of {host_peers.Ray.name}", ratio, 1, at_least=True)


def _peer(stack: ExitStack, kind: type[HostPeer], place: str, nbytes: int) -> Any:
    """What brings the array by a peer and says how long that took, seconds."""
    own = os.path.join(place, kind.__name__)
    if not issubclass(kind, Plain):
        # They start processes of their own, which a worker may not.
        peer = kind()
        stack.callback(peer.close)
        peer.open((own, nbytes))
        return peer.took
    giver, taker = (stack.enter_context(Worker()) for _ in range(2))
    found = giver.call(peer_give, kind, own, nbytes)
    stack.callback(giver.call, peer_close)
    taker.call(peer_open, kind, found)
    stack.callback(taker.call, peer_close)
    return lambda: taker.call(peer_took)


def _at_once(answer: Answer, bench: Bench, server: NatsServer, a: Worker, nbytes: int) -> None:
    """What the server sends if one process asks, and if several ask for the same value."""
    with ExitStack() as stack:
        asking = [stack.enter_context(Worker((server.url, bench.place))) for _ in range(_ASKING)]
        for one in asking:
            one.call(open_store, "b")
        sent = []
        for some in (asking[:1], asking):
            a.call(put_large, nbytes)
            before = server.monitor("varz")["out_bytes"]
            for one in some:
                one.ask(bring_large, False)
            for one in some:
                one.answer()
            sent.append(server.monitor("varz")["out_bytes"] - before)
            some[0].call(drop_large)
    answer.add(_BYTES, OURS, sent[1] / sent[0], "x")
    answer.ask("8 processes at once: at most 1.1 x the bytes of one", sent[1] / sent[0], 1.1)


def start_node(place: str, name: str, url: str) -> subprocess.Popen[bytes]:
    options = ["--root", os.path.join(place, name), "--nats", url, "--name", name]
    node = subprocess.Popen(
        [sys.executable, "-m", "shmstore", "node", *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = shmstore.Store(os.path.join(place, name))
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            store.sync(1.0)
            return node
        except shmstore.RemoteError:
            if time.monotonic() > deadline:
                end_node(node)
                raise
            time.sleep(0.05)


def end_node(node: subprocess.Popen[bytes]) -> None:
    node.send_signal(signal.SIGTERM)
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()


# --- In the workers -------------------------------------------------------------------------

_state: dict[str, Any] = {}


def open_store(name: str) -> None:
    """Opens a host's store."""
    _state["store"] = shmstore.Store(os.path.join(workers.given[1], name))
    _state["count"] = 0
    settle()


def put_small(count: int) -> list[str]:
    """Stores small values and has them registered; returns their ids."""
    store, start = _state["store"], _state["count"]
    _state["count"] += count
    values = {f"s{n}": {"alpha": 0.5, "beta": n} for n in range(start, start + count)}
    store.put_many("small", values)
    store.sync()
    return list(values)


def bring_small(ids: list[str], node: str | None) -> float:
    """Seconds a value."""
    store = _state["store"]
    start = perf_counter()
    for id in ids:
        store.get_with_fetch("small", id, from_node=node)
    return (perf_counter() - start) / len(ids)


def put_large(nbytes: int) -> None:
    """Stores the large value, and has it registered."""
    _state["store"].put("large", "v", host_peers.array(nbytes))
    _state["store"].sync()


def bring_large(drop: bool = True) -> float:
    """Seconds for the large value, whose copy is deleted afterwards."""
    store = _state["store"]
    start = perf_counter()
    value = store.get_with_fetch("large", "v", timeout=120.0)
    took = perf_counter() - start
    assert isinstance(value, np.ndarray)
    del value
    if drop:
        drop_large()
    return took


def drop_large() -> None:
    """Deletes the copy."""
    _state["store"].delete("large", "v")


def register(count: int) -> float:
    """Seconds from the first of so many puts until all are registered."""
    store = _state["store"]
    start = perf_counter()
    for n in range(count):
        store.put("many", f"k{n}", n)
    store.sync(120.0)
    return perf_counter() - start


def _client() -> Client:
    loop = _state["loop"] = asyncio.new_event_loop()
    client = _state["client"] = Client()
    loop.run_until_complete(client.connect(workers.given[0]))
    return client


def begin_echo() -> None:
    """Answers with what is sent, from a thread."""
    client = _client()

    async def echo(message: Msg) -> None:
        await client.publish(message.reply, message.data)

    _state["loop"].run_until_complete(client.subscribe("bare.echo", cb=echo))
    _state["loop"].run_until_complete(client.flush())
    _state["thread"] = threading.Thread(target=_state["loop"].run_forever)
    _state["thread"].start()


def begin_asking() -> None:
    """Connects."""
    _client()


def hang_up() -> None:
    """Ends the bare client."""
    loop = _state["loop"]
    thread = _state.get("thread")
    if thread is None:
        loop.run_until_complete(_state["client"].close())
    else:
        asyncio.run_coroutine_threadsafe(_state["client"].close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    loop.close()


def ask_bare(calls: int) -> float:
    """Seconds a request and its reply, of a small value's size."""
    client, body = _state["client"], b"x" * 200

    async def ask() -> float:
        start = perf_counter()
        for _ in range(calls):
            await client.request("bare.echo", body, timeout=30)
        return (perf_counter() - start) / calls

    took: float = _state["loop"].run_until_complete(ask())
    return took


def peer_give(kind: type[Plain], place: str, nbytes: int) -> Any:
    """Prepares a peer's one end."""
    peer = _state["peer"] = kind()
    return peer.give(place, nbytes)


def peer_open(kind: type[Plain], found: Any) -> None:
    """Prepares its other end."""
    _state["peer"] = kind()
    _state["peer"].open(found)


def peer_took() -> float:
    """Seconds to bring the array."""
    took: float = _state["peer"].took()
    return took


def peer_close() -> None:
    """Ends what the peer started."""
    _state["peer"].close()
