"""What does it cost to store and to read a small value?"""

from __future__ import annotations

from typing import Any

from benchmarks import contest
from benchmarks.contest import Bench
from benchmarks.floors import SmallFloor
from benchmarks.measuring import Answer, in_turn, time_gets, time_puts
from benchmarks.peers import OTHERS, Lmdb, Peer, Redis, Shmstore
from benchmarks.shared_blocks import SharedMemory

NAME = "small"
TITLE = "put and get of a two-key dict"
VALUE: dict[str, Any] = {"mean": 12.5, "count": 336776}

PUT, AGAIN, GET = "put, new ids", "put, over a value", "get, in another process"
_CONTESTANTS: tuple[type[Peer], ...] = (SmallFloor, Shmstore, *OTHERS, SharedMemory)


def run(bench: Bench) -> Answer:
    """Measures batches of puts and gets; the reader is another process."""
    answer = Answer(NAME, TITLE, dict.fromkeys((PUT, AGAIN, GET), SmallFloor.name))
    rounds, batch = (2, 20) if bench.quick else (25, 300)
    with contest.held(bench.place, _CONTESTANTS) as held:
        (reader,) = held.workers
        for number, peer in in_turn(held.peers, rounds):
            ids = [f"round {number}, value {n}" for n in range(batch)]
            put = time_puts(peer.put, ids, VALUE)
            again = time_puts(peer.put, ids, VALUE)
            got = reader.call(_get, peer.name, ids)
            if isinstance(peer, SharedMemory):
                peer.delete(ids)  # a block a value: they would use up the descriptors
            if number >= 0:
                answer.add(PUT, peer.name, put)
                answer.add(AGAIN, peer.name, again)
                answer.add(GET, peer.name, got)
        answer.notes += [f"{rounds} rounds of {batch} operations each", *held.notes]
    _ask(answer)
    return answer


def _get(name: str, ids: list[str]) -> float:
    peer = contest.attached(name)
    if peer.get(ids[0]) != VALUE:
        raise ValueError(f"{name} gave back another value")
    return time_gets(peer.get, ids)


def _ask(answer: Answer) -> None:
    ours = Shmstore.name
    for operation in (PUT, AGAIN):
        ratio = answer.ratio(operation, ours, SmallFloor.name)
        answer.ask(f"{operation}: at most 3 times the floor", ratio, 3)
    if answer.has(GET, Lmdb.name):
        ratio = answer.ratio(GET, ours, Lmdb.name)
        answer.ask(f"{GET}: at most 2 times {Lmdb.name}", ratio, 2)
    for operation in (PUT, GET):
        if answer.has(operation, Redis.name):
            ratio = answer.ratio(operation, Redis.name, ours)
            text = f"{operation}: at least 5 times faster than {Redis.name}"
            answer.ask(text, ratio, 5, at_least=True)
