"""How long from a put in one process to the return of a wait for it in another?"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from time import perf_counter_ns
from typing import Any, Protocol, cast

import shmstore
from benchmarks import workers
from benchmarks.contest import Bench, settle
from benchmarks.measuring import Answer, in_turn, no_garbage
from benchmarks.small_values import VALUE
from benchmarks.workers import Worker

NAME = "waking"
TITLE = "from a put in one process to the return of a wait in another"

OURS, PEER = "shmstore", "multiprocessing.Condition"
BRISK, DROWSY = "wake-up, asleep for a moment", "wake-up, asleep for 3 ms"
_LOOP = "wake-up of a task in an event loop"

_ASLEEP_S = 0.003


class _End(Protocol):
    """One end of a line between two processes."""

    def tell(self, number: int) -> None:
        """Tells the other end a number."""

    def hear(self, number: int) -> None:
        """Waits until the other end has told that number."""


class _Ours:
    def __init__(self, place: str, end: int) -> None:
        self._store = shmstore.Store(place)
        self._store.put("waking", f"opened by {end}", 0)
        self._mine, self._other = f"by {end}: ", f"by {1 - end}: "

    def tell(self, number: int) -> None:
        self._store.put("waking", f"{self._mine}{number}", VALUE)

    def hear(self, number: int) -> None:
        self._store.wait("waking", f"{self._other}{number}")

    def tell_a_loop(self, number: int) -> None:
        # In a DAG of its own: the thread that waits for a loop lingers for a second, and
        # would be woken by the puts of the next row, too.
        self._store.put("waking loops", f"{self._mine}{number}", VALUE)

    async def hear_in_a_loop(self, number: int) -> None:
        await self._store.wait_async("waking loops", f"{self._other}{number}")


class _Condition:
    """A condition and a number for each direction."""

    def __init__(self, lines: Any, end: int) -> None:
        self._mine, self._mine_last = lines[end]
        self._other, self._other_last = lines[1 - end]

    def tell(self, number: int) -> None:
        with self._mine:
            self._mine_last.value = number
            self._mine.notify_all()

    def hear(self, number: int) -> None:
        with self._other:
            self._other.wait_for(lambda: self._other_last.value >= number)


def run(bench: Bench) -> Answer:
    """Wakes a process many times, by turns through the store and through a Condition."""
    answer = Answer(NAME, TITLE)
    rounds, wakings = (2, 5) if bench.quick else (21, 200)
    for (operation, contestant), figures in measure(bench.place, rounds, wakings).items():
        for figure in figures:
            answer.add(operation, contestant, figure)
    answer.notes += [
        f"{rounds} rounds of {wakings} wake-ups each, a round's number is their median",
        "from before the put (of a two-key dict) to after the return of the wait, with its value;",
        "the Condition guards a number in shared memory: from before its lock to after wait_for",
        "a moment: two processes wake each other in turn; 3 ms: caches are cold by then",
    ]
    for operation in (BRISK, DROWSY):
        answer.reference[operation] = PEER
    for operation in (DROWSY, BRISK):
        ratio = answer.ratio(operation, OURS, PEER)
        answer.ask(f"{operation}: at most twice that of a {PEER}", ratio, 2.0)
    return answer


def measure(place: str, rounds: int, wakings: int) -> dict[tuple[str, str], list[float]]:
    """Microseconds from telling to being told, by operation and contestant, one a round.

    Args:
        place: An empty directory in shared memory.
        rounds: How many rounds, all contestants in turn in each.
        wakings: How many wake-ups a round, of which the median is taken.
    """
    spawn = multiprocessing.get_context("spawn")
    lines = [(spawn.Condition(), spawn.Value("q", -1, lock=False)) for _ in range(2)]
    ends: dict[str, _End] = {OURS: _Ours(place, 0), PEER: _Condition(lines, 0)}
    turns = [
        (BRISK, OURS),
        (BRISK, PEER),
        (DROWSY, OURS),
        (DROWSY, PEER),
        (_LOOP, OURS),
    ]
    figures: dict[tuple[str, str], list[float]] = {}
    with Worker((place, lines)) as other:
        other.call(_attach)
        settle()
        first = 0
        for number, (operation, contestant) in in_turn(turns, rounds):
            numbers = range(first, first + wakings)
            first += wakings
            end = ends[contestant]
            tell = cast("_Ours", end).tell_a_loop if operation == _LOOP else end.tell
            other.ask(_hear_in_a_loop if operation == _LOOP else _answer, contestant, numbers)
            told = []
            with no_garbage():
                for each in numbers:
                    if operation == DROWSY:
                        time.sleep(_ASLEEP_S)
                    told.append(perf_counter_ns())
                    tell(each)
                    end.hear(each)
            heard = other.answer()
            took = [(after - before) / 1000 for before, after in zip(told, heard, strict=True)]
            if number >= 0:
                figures.setdefault((operation, contestant), []).append(statistics.median(took))
    return figures


_ends: dict[str, _End] = {}


def _attach() -> None:
    """In the other process: takes the other end of each line."""
    place, lines = workers.given
    _ends.update({OURS: _Ours(place, 1), PEER: _Condition(lines, 1)})
    settle()


def _answer(contestant: str, numbers: range) -> list[int]:
    """In the other process: when it heard each number, which it sends back."""
    end = _ends[contestant]
    heard = []
    with no_garbage():
        for number in numbers:
            end.hear(number)
            heard.append(perf_counter_ns())
            end.tell(number)
    return heard


def _hear_in_a_loop(contestant: str, numbers: range) -> list[int]:
    import asyncio

    async def answer() -> list[int]:
        end = cast("_Ours", _ends[contestant])
        heard = []
        for number in numbers:
            await end.hear_in_a_loop(number)
            heard.append(perf_counter_ns())
            end.tell(number)
        return heard

    with no_garbage():
        return asyncio.run(answer())
