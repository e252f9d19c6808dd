"""How arrays and tables are measured: put, then read by another process, three ways."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import contest
from benchmarks.contest import Contest
from benchmarks.measuring import Answer, in_turn, time_gets, time_puts

PUT = "put"
FIRST = "get, first in a process"
COLD = "get, first in a process, caches cold"
AGAIN = "get, attaching again at once"
LATER = "get, once attached"
READ = "get and read every byte"
_GETS = 40
_ATTACHES = 9
_WARMING = 50


def measure(
    answer: Answer,
    held: Contest,
    value: Any,
    small: Any,
    label: str,
    rounds: int,
    batch: int,
    read: Callable[[Any], float],
    raw: Any = None,
) -> None:
    """Adds the figures of one value, under operations that end in ``label``.

    Args:
        answer: Takes the figures, in microseconds.
        held: The peers.
        value: What is put.
        small: A small one of its kind, for warming up; large enough to be mapped.
        label: What it is.
        rounds: How often.
        batch: Under how many ids a round.
        read: Goes through a value and returns a number that depends on all of it.
        raw: The bytes that floors write in its stead.
    """
    (reader,) = held.workers
    expected = read(value)
    for number, peer in in_turn(held.peers, rounds):
        ids = [f"{label.replace(' ', '-')}-{number + 1}-{n}" for n in range(batch)]
        bytes_only = not peer.reads and raw is not None
        warm = f"{ids[0]}-warm"
        if peer.reads:
            peer.put(warm, small)
        put = time_puts(peer.put, ids, raw if bytes_only else value)
        took = reader.call(_read, peer.name, ids, warm, read, expected) if peer.reads else {}
        peer.delete([*ids, warm] if peer.reads else ids)
        if number >= 0:
            answer.add(f"{PUT}, {label}", peer.name, put)
            for operation, time in took.items():
                answer.add(f"{operation}, {label}", peer.name, time)


def _read(
    name: str, ids: list[str], warm: str, read: Callable[[Any], float], expected: float
) -> dict[str, float]:
    """In the reader: the first get of each value, a get while it is held, a get that reads it."""
    peer = contest.attached(name)
    held: list[Any] = []

    def keep(id: str) -> None:
        held.append(peer.get(id))

    def read_through(id: str) -> None:
        if read(peer.get(id)) != expected:
            raise ValueError(f"{name} gave back another value")

    # The first get of this value, by a process that has read others like it.
    for _ in range(_WARMING):
        peer.get(warm)
    took = {FIRST: time_gets(keep, ids[:1])}
    held.clear()
    peer.release()
    # The same with cold caches, as after other work: emptied here, for values of all sizes.
    _scrub()
    took[COLD] = time_gets(keep, ids[-1:])
    held.clear()
    peer.release()
    if peer.views:  # for what copies, every get is like the first
        took[AGAIN] = statistics.median(_attach_again(peer, ids[0]) for _ in range(_ATTACHES))
        held.append([peer.get(id) for id in ids])
        took[LATER] = time_gets(peer.get, ids * max(1, _GETS // len(ids)))
        held.clear()
        peer.release()
    took[READ] = time_gets(read_through, ids)
    peer.release()
    return took


def _attach_again(peer: Any, id: str) -> float:
    """A get of a value that was let go of before, and is again afterwards."""
    held: list[Any] = []
    took = time_gets(lambda key: held.append(peer.get(key)), [id])
    held.clear()
    peer.release()
    return took


def _scrub() -> None:
    """Goes through more memory than the caches hold."""
    global _scrubbed
    if not _scrubbed:
        _scrubbed = bytearray(_CACHES)
    _scrubbed[:] = bytes(_CACHES)


_CACHES = 64 << 20
_scrubbed = bytearray()
