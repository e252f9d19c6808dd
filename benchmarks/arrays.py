"""What does it cost to store and to read an array?"""

from __future__ import annotations

import numpy as np

from benchmarks import contest
from benchmarks.contest import Bench
from benchmarks.floors import NewFile, WarmCopy
from benchmarks.large_values import AGAIN, COLD, FIRST, LATER, PUT, READ, measure
from benchmarks.measuring import Answer
from benchmarks.peers import OTHERS, Peer, Shmstore
from benchmarks.shared_blocks import SharedArrays

NAME = "arrays"
TITLE = "put and get of float64 arrays of 64 KiB, 1 MiB and 256 MiB"

_KIB, _MIB = 1 << 10, 1 << 20
_CONTESTANTS: tuple[type[Peer], ...] = (NewFile, WarmCopy, Shmstore, *OTHERS, SharedArrays)


def run(bench: Bench) -> Answer:
    """Measures each size; values are removed between the rounds."""
    answer = Answer(NAME, TITLE)
    # size, rounds, ids a round
    sizes = [(64 * _KIB, 15, 40), (_MIB, 15, 8), (256 * _MIB, 3, 1)]
    if bench.quick:
        sizes = [(64 * _KIB, 2, 2), (_MIB, 2, 1), (4 * _MIB, 2, 1)]
    with contest.held(bench.place, _CONTESTANTS) as held:
        for nbytes, rounds, batch in sizes:
            label = _label(nbytes)
            value = np.random.default_rng(nbytes).random(nbytes // 8)
            measure(answer, held, value, value[: 64 * _KIB // 8], label, rounds, batch, _sum)
            answer.reference[f"{PUT}, {label}"] = NewFile.name
            for operation in (FIRST, COLD, AGAIN, LATER, READ):
                answer.reference[f"{operation}, {label}"] = Shmstore.name
            gigabytes = {
                peer.name: nbytes / answer.median(f"{PUT}, {label}", peer.name) / 1000
                for peer in held.peers
            }
            listed = ", ".join(f"{name} {speed:.2f}" for name, speed in gigabytes.items())
            answer.notes.append(f"{PUT}, {label}, GB/s: {listed}")
        answer.notes += held.notes
    middle, largest = (_label(nbytes) for nbytes, _, _ in sizes[1:])
    _ask(answer, middle, largest)
    return answer


def _sum(value: np.ndarray) -> float:
    return float(value.sum())


def _label(nbytes: int) -> str:
    return f"{nbytes // _MIB} MiB" if nbytes >= _MIB else f"{nbytes // _KIB} KiB"


def _ask(answer: Answer, middle: str, largest: str) -> None:
    ours = Shmstore.name
    for operation in (FIRST, AGAIN, LATER):
        took = answer.median(f"{operation}, {largest}", ours)
        ratio = took / answer.median(f"{operation}, {middle}", ours)
        answer.ask(f"{operation}: {largest} at most 1.5 times {middle}", ratio, 1.5)
    took = answer.median(f"{LATER}, {largest}", ours)
    answer.ask(f"{LATER}, {largest}: under 20 us", took, 20, "us")
    took = answer.median(f"{FIRST}, {largest}", ours)
    answer.ask(f"{FIRST}, {largest}: under 150 us", took, 150, "us")
    answer.notes.append(f"{FIRST}: by a process that has read other values; one call a round")
    speed = 1 / answer.ratio(f"{PUT}, {largest}", ours, NewFile.name)
    text = f"{PUT}, {largest}: at least 0.9 of os.write to a new file"
    answer.ask(text, speed, 0.9, at_least=True)
