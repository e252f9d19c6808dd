"""What does a put of 256 MiB cost into new memory, and into memory that is reused?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import shmstore
from benchmarks import contest, many_entries
from benchmarks.contest import Bench
from benchmarks.floors import NewFile, WarmCopy
from benchmarks.measuring import Answer, in_turn, time_puts
from benchmarks.peers import Peer, Shmstore

NAME = "reuse"
TITLE = "put of a large array into new memory and, over and over, into reused memory"

_MIB = 1 << 20
_READER = "memory of its own that a reader takes"


class NewMemory(Shmstore):
    """This project, with no pool: each put is into new memory."""

    name = "shmstore, new memory"

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        shmstore.Store(address, pool=0).close()


class ReusedMemory(Shmstore):
    """This project: each put replaces the value, the one before it was written to is free."""

    name = "shmstore, reused memory"

    def delete(self, ids: Sequence[str]) -> None:
        """Keeps the value, for the next round to replace."""


class Ray(Peer):
    """``ray.put``, the object store of Ray; an object is let go of before the next."""

    name = "ray.put"
    note = "Ray: ray.init(num_cpus=1), the reference of the last round dropped before a put"
    reads = False

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        return None if find_spec("ray") else "Ray: pip install 'shmstore[ray]'"

    @classmethod
    def start(cls, place: str) -> Ray:
        """Starts Ray on this host."""
        import ray

        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=2 << 30,
            configure_logging=False,
        )
        return cls(None)

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self._kept: Any = None

    def put(self, id: str, value: Any) -> None:
        """Stores a value."""
        import ray

        self._kept = ray.put(value)

    def delete(self, ids: Sequence[str]) -> None:
        """Lets go of the object."""
        self._kept = None

    def close(self) -> None:
        """Ends Ray's processes."""
        import ray

        ray.shutdown()


_CONTESTANTS: tuple[type[Peer], ...] = (NewFile, WarmCopy, NewMemory, ReusedMemory, Ray)


def run(bench: Bench) -> Answer:
    """Puts the same array in turn, then lets another process read it."""
    answer = Answer(NAME, TITLE)
    nbytes, rounds = (4 * _MIB, 3) if bench.quick else (256 * _MIB, 15)
    operation = f"put, {nbytes // _MIB} MiB"
    answer.reference[operation] = WarmCopy.name
    value = np.random.default_rng(nbytes).random(nbytes // 8)
    with contest.held(bench.place, [one for one in _CONTESTANTS if one is not Ray]) as held:
        missing = Ray.missing()
        ray = None if missing else Ray.start(bench.place)
        try:
            # Two rounds until the memory of a value is there to be reused.
            peers = [*held.peers, *([ray] if ray else [])]
            for number, peer in in_turn(peers, rounds, warm_up=2):
                took = time_puts(peer.put, ["large"], value)
                peer.delete(["large"])
                if number >= 0:
                    answer.add(operation, peer.name, took / 1000, "ms")
        finally:
            if ray:
                ray.close()
        (reader,) = held.workers
        for _ in range(3):
            answer.add(_READER, ReusedMemory.name, reader.call(_read, float(value.sum())), "KiB")
        answer.notes += [
            *held.notes,
            *([f"missing, so not compared: {missing}"] if missing else []),
        ]
    _ask(answer, operation, nbytes)
    return answer


def _read(expected: float) -> float:
    """In the reader: the anonymous memory that reading every byte of the value takes."""
    get = partial(contest.attached(ReusedMemory.name).get, "large")
    before = many_entries.anonymous_kb()
    value = get()
    if float(value.sum()) != expected:
        raise ValueError("another value came back")
    return max(0.0, many_entries.anonymous_kb() - before)


def _ask(answer: Answer, operation: str, nbytes: int) -> None:
    speed = {
        name: nbytes / answer.median(operation, name) / 1e6
        for of, name in answer.figures
        if of == operation
    }
    answer.notes.append("GB/s: " + ", ".join(f"{name} {one:.2f}" for name, one in speed.items()))
    ratio = 1 / answer.ratio(operation, ReusedMemory.name, WarmCopy.name)
    answer.ask("reused memory: at least 0.8 of memcpy into warm memory", ratio, 0.8, at_least=True)
    ratio = 1 / answer.ratio(operation, NewMemory.name, NewFile.name)
    answer.ask("new memory: at least 0.9 of os.write to a new file", ratio, 0.9, at_least=True)
    if answer.has(operation, Ray.name):
        ratio = 1 / answer.ratio(operation, ReusedMemory.name, Ray.name)
        answer.ask("reused memory: at least what ray.put reaches", ratio, 1, at_least=True)
    taken = answer.median(_READER, ReusedMemory.name)
    answer.ask("a reader: at most 1 MiB of its own, whatever the value's size", taken, 1024, "KiB")
