"""Taking figures: rounds of all contestants in turn, medians, and what is asked of them.

A machine is never quiet, and never equally loud for two minutes. So a round has every
contestant once, in an order that moves on by one each round, and what is compared are
medians of the same rounds; a round's number is itself a median of small groups of calls.
Garbage is collected between rounds, not in them.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Figure:
    """What one contestant took for one operation.

    Attributes:
        operation: What was done.
        contestant: Who did it.
        unit: Of the rounds: "us", "ms", "GB/s", "bytes", "1/s", ...
        rounds: One number a round.
    """

    operation: str
    contestant: str
    unit: str
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the rounds."""
        if len(self.rounds) < 2:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Target:
    """A figure that is asked for.

    Attributes:
        text: What is asked, in words.
        value: What was measured.
        limit: The bound.
        unit: Of both; "" for a ratio.
        at_least: True if the bound is a lower one.
    """

    text: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Answer:
    """What was measured to answer one question.

    Attributes:
        name: The question's name.
        title: The question.
        reference: For each operation, the contestant the others are compared with.
        figures: By operation and contestant, in the order of their first rounds.
        targets: What is asked of them.
        notes: What a reader must know to judge them.
    """

    name: str
    title: str
    reference: dict[str, str] = field(default_factory=dict)
    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, operation: str, contestant: str, value: float, unit: str = "us") -> None:
        """Adds the number of one round."""
        key = operation, contestant
        if key not in self.figures:
            self.figures[key] = Figure(operation, contestant, unit)
        self.figures[key].rounds.append(value)

    def median(self, operation: str, contestant: str) -> float:
        """The median of a figure."""
        return self.figures[operation, contestant].median

    def ratio(self, operation: str, over: str, under: str) -> float:
        """How often the median of ``under`` fits into that of ``over``."""
        return self.median(operation, over) / self.median(operation, under)

    def ask(
        self, text: str, value: float, limit: float, unit: str = "", *, at_least: bool = False
    ) -> None:
        """Holds a measured number against its bound."""
        self.targets.append(Target(text, value, limit, unit, at_least))

    def has(self, operation: str, contestant: str) -> bool:
        """Whether the figure was taken: a peer may be missing."""
        return (operation, contestant) in self.figures


def in_turn(contestants: Sequence[T], rounds: int, warm_up: int = 1) -> Iterator[tuple[int, T]]:
    """Every contestant once a round, each round beginning with the next one.

    Yields:
        The number of the round, negative while warming up, and a contestant.
    """
    for number in range(-warm_up, rounds):
        start = number % len(contestants)
        for contestant in (*contestants[start:], *contestants[:start]):
            yield number, contestant


@contextmanager
def no_garbage() -> Iterator[None]:
    """Collects garbage first, and none inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_each(call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Microseconds a call, the median of small groups of calls.

    The mean of a batch tells how often the scheduler gave the processor to others
    meanwhile, which costs a thousand times a put; few of many small groups meet that.
    What a call returns is dropped at once.
    """
    group = 10 if len(arguments) >= 50 else 1
    took = []
    with no_garbage():
        for first in range(0, len(arguments), group):
            chosen = arguments[first : first + group]
            start = perf_counter_ns()
            for given in chosen:
                call(*given)
            took.append((perf_counter_ns() - start) / len(chosen))
    return statistics.median(took) / 1000


def time_puts(put: Callable[[str, Any], Any], ids: Sequence[str], value: Any) -> float:
    """Microseconds a put of ``value`` under each of ``ids``."""
    return time_each(put, [(id, value) for id in ids])


def time_gets(get: Callable[[str], Any], ids: Sequence[str]) -> float:
    """Microseconds a get of each of ``ids``."""
    return time_each(get, [(id,) for id in ids])
