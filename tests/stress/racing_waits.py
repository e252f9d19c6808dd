"""Puts with waiters racing: whether a wake-up is ever lost.

Run as ``python -m tests.stress.racing_waits --puts 1000000``; the test suite runs a short
form. In both, nobody looks again by himself: what is lost stays lost, and stops the race.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable

import shmstore
from tests.fault.killing import Child, Parent
from tests.process.sleepers import only_bells

#: Longest time that nothing moves before it counts as a lost wake-up, seconds.
STUCK_S = 60.0
TOKENS = 2
RING = 3
_REPORT = 1000


def _runner(root: str, place: int, rounds: int, parent: Parent) -> int:
    """Takes tokens from its neighbour and puts them for the next one. Returns its puts."""
    only_bells()
    store = shmstore.Store(root)
    own, following = f"at {place}", f"at {(place + 1) % RING}"
    puts = 0
    for number in range(rounds):
        for token in range(TOKENS):
            id = f"{own}: {token}, {number}"
            hops = store.wait("d", id)
            store.delete("d", id)
            # The last one begins the next round.
            coming = number + (place == RING - 1)
            if coming < rounds:
                store.put("d", f"{following}: {token}, {coming}", hops + 1)
                puts += 1
        if number % _REPORT == 0:
            parent.send(number)
    return puts


def race_in_a_ring(root: str, puts: int, tell: Callable[[str], None] = lambda _: None) -> int:
    """Tokens run round a ring of processes, each hop a put that the next one waits for.

    Returns:
        How many puts were waited for, none in vain.
    """
    rounds = max(1, puts // (RING * TOKENS))
    children = [Child(_runner, root, place, rounds, Parent) for place in range(RING)]
    try:
        store = shmstore.Store(root)
        for token in range(TOKENS):
            store.put("d", f"at 0: {token}, 0", 0)
        done = TOKENS
        for number in range(0, rounds, _REPORT):
            for child in children:
                assert child.receive(STUCK_S) == number
            tell(f"{number * RING * TOKENS:,} puts")
        for child in children:
            done += child.receive(STUCK_S)
            assert child.join() == 0
    finally:
        for child in children:
            child.kill()
    assert store.count("d") == 0
    return done


def _sleeper(root: str, rounds: int, parent: Parent) -> None:
    only_bells()
    store = shmstore.Store(root)
    chance = random.Random(1)
    store.put("d", "ready", 0)
    for number in range(rounds):
        parent.receive()
        if number % 3 == 0:
            for _ in range(chance.randrange(30)):
                os.sched_yield()
        parent.send(store.wait("d", f"{number}"))


def race_from_nothing(root: str, rounds: int) -> None:
    """In each round nobody has ever waited: the first announcement races with the put.

    What is tried is the order of the two: a committer that reads the deadline too early
    and a waiter that announces itself too late would miss each other.
    """
    store = shmstore.Store(root)
    chance = random.Random(2)
    with Child(_sleeper, root, rounds, Parent) as child:
        store.put("d", "own", 0)
        manifest = store._dags.manifests["d"]
        for number in range(rounds):
            manifest.control[11] = 0
            child.send()
            # Between "before it has announced itself" and "long asleep".
            until = time.perf_counter() + chance.random() ** 2 * 300e-6
            while time.perf_counter() < until:
                pass
            store.put("d", f"{number}", number)
            assert child.receive(STUCK_S) == number
            store.delete("d", f"{number}")


def main() -> None:
    """Runs the races at full length."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.racing_waits")
    parser.add_argument("--puts", type=int, default=1_000_000)
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="shmstore-race-", dir="/dev/shm")
    try:
        began = time.monotonic()
        done = race_in_a_ring(root, options.puts * 9 // 10, lambda text: print(text, flush=True))
        race_from_nothing(root, options.puts // 10)
        seconds = time.monotonic() - began
        total = done + options.puts // 10
        print(f"{total:,} puts waited for in {seconds:.0f} s, no wake-up lost")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
