"""Do several writers to one DAG hold each other up?"""

from __future__ import annotations

import gc
import os
from time import perf_counter_ns
from typing import Any

from benchmarks import contest
from benchmarks.contest import Bench
from benchmarks.floors import SmallFloor
from benchmarks.measuring import Answer, in_turn
from benchmarks.peers import Diskcache, Lmdb, ManagerDict, Peer, Redis, Shmstore
from benchmarks.small_values import VALUE

NAME = "writers"
TITLE = "1, 2, 4 and 8 processes putting two-key dicts into one DAG"
COUNTS = (1, 2, 4, 8)

_RING = 1000  # ids of a writer; then it begins anew
_CONTESTANTS: tuple[type[Peer], ...] = (SmallFloor, Shmstore, Lmdb, Diskcache, Redis, ManagerDict)


def run(bench: Bench) -> Answer:
    """Lets writers put for a while, all at once, and counts what each of them did."""
    answer = Answer(NAME, TITLE)
    rounds, seconds = (1, 0.05) if bench.quick else (7, 0.4)
    with contest.held(bench.place, _CONTESTANTS, readers=max(COUNTS)) as held:
        turns = [(peer, count) for peer in held.peers for count in COUNTS]
        for number, (peer, count) in in_turn(turns, rounds, warm_up=0 if bench.quick else 1):
            chosen = held.workers[:count]
            for worker in chosen:
                worker.ask(_be_ready)
            for worker in chosen:
                worker.answer()
            begin = perf_counter_ns() + count * 5_000_000
            for writer, worker in enumerate(chosen):
                worker.ask(_put_for, peer.name, writer, begin, seconds)
            done = [worker.answer() for worker in chosen]
            if number < 0:
                continue
            name = _several(count)
            answer.add(f"puts, {name}", peer.name, sum(n for n, _ in done) / seconds, "/s")
            fair = sum(n for n, _ in done) / count
            least = min(n for n, _ in done) / fair if fair else 0.0
            if count > 1:
                answer.add(f"least share, {name}", peer.name, least, "of fair")
            longest = max(longest for _, longest in done)
            answer.add(f"longest put, {name}", peer.name, longest)
        answer.notes += [
            f"{rounds} rounds of {seconds} s each",
            "least share: what the slowest writer did, 1 meaning its fair part",
            *held.notes,
        ]
    for count in COUNTS:
        answer.reference[f"puts, {_several(count)}"] = SmallFloor.name
    _ask(answer)
    return answer


def _several(count: int) -> str:
    return "1 writer" if count == 1 else f"{count} writers"


def _be_ready() -> None:
    """In a writer: collects garbage, so that none is collected later."""
    gc.collect()
    gc.disable()


def _put_for(name: str, writer: int, begin: int, seconds: float) -> tuple[int, float]:
    """In a writer: how many puts it did, and the longest of them in microseconds."""
    put: Any = contest.attached(name).put
    ids = [f"writer {writer}, value {n}" for n in range(_RING)]
    end = begin + int(seconds * 1e9)
    longest = done = 0
    while (before := perf_counter_ns()) < begin:
        os.sched_yield()
    while before < end or not done:
        put(ids[done % _RING], VALUE)
        done += 1
        now = perf_counter_ns()
        longest = max(longest, now - before)
        before = now
    return done, longest / 1000


def _ask(answer: Answer) -> None:
    ours = Shmstore.name
    four = answer.median("puts, 4 writers", ours)
    ratio = four / answer.median("puts, 1 writer", ours)
    answer.ask("4 writers together: at least 0.7 of one alone", ratio, 0.7, at_least=True)
    # A writer that is left out does next to nothing.
    least = answer.median("least share, 4 writers", ours)
    text = "4 writers: none starves, the slowest does 0.2 of its part"
    answer.ask(text, least, 0.2, at_least=True)
