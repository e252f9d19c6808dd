"""Where does the time of a small put or get go?

A profiler's own cost is several times that of the short functions it meets. So the
time of each function is put right by what the profiler costs for a call of it and for
each call that it makes, both found with functions that do nothing; the least of many
short runs counts, as a busy machine only ever adds. Under a profiler, the interpreter is
slower between calls, too: so all are scaled to the time that it takes without one.
"""

from __future__ import annotations

import cProfile
import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter_ns
from typing import Any

from benchmarks.contest import Bench
from benchmarks.floors import SmallFloor
from benchmarks.measuring import no_garbage, time_gets, time_puts
from benchmarks.peers import Shmstore
from benchmarks.small_values import VALUE

_SHOWN = 32


@dataclass(frozen=True)
class _Cost:
    """What the profiler adds, microseconds: to a function called, and to its caller."""

    called: float
    caller: float


def run(bench: Bench, call: str) -> str:
    """A table of functions by their own time in one put (over a value) or get."""
    runs, count = (3, 50) if bench.quick else (200, 100)
    store, floor = Shmstore.start(bench.place), SmallFloor.start(bench.place)
    assert isinstance(store, Shmstore)
    ids = [f"value {number}" for number in range(count)]
    time_puts(store.put, ids, VALUE)

    def puts() -> None:
        for id in ids:
            store.put(id, VALUE)

    def gets() -> None:
        for id in ids:
            store.get(id)

    if call == "put":
        plain, least = (
            min(time_puts(peer.put, ids, VALUE) for _ in range(runs)) for peer in (store, floor)
        )
    else:
        plain, least = (
            min(time_gets(peer.get, ids) for _ in range(runs)) for peer in (store, floor)
        )
    python, builtin = _cost(_nothing, runs), _cost(get_ident, runs)
    shortest: dict[str, tuple[float, float]] = {}
    for _ in range(runs):
        for name, calls, own in _corrected(
            _profile(puts if call == "put" else gets), count, python, builtin
        ):
            shortest[name] = min(shortest.get(name, (calls, own)), (calls, own))
    store.close()
    floor.close()
    rows = sorted(((name, *found) for name, found in shortest.items()), key=lambda row: -row[2])
    return _table(call, plain, least, rows)


def _profile(body: Callable[[], Any]) -> list[Any]:
    profiler = cProfile.Profile()
    with no_garbage():
        profiler.enable()
        body()
        profiler.disable()
    return profiler.getstats()


def _corrected(
    entries: list[Any], count: int, python: _Cost, builtin: _Cost
) -> list[tuple[str, float, float]]:
    """Name, calls and own microseconds of each function, for one put or get."""
    rows = []
    for entry in entries:
        cost = builtin if isinstance(entry.code, str) else python
        own = entry.inlinetime * 1e6 - entry.callcount * cost.called
        for below in entry.calls or ():
            cost = builtin if isinstance(below.code, str) else python
            own -= below.callcount * cost.caller
        # What happens less often than every other time, and the loop itself, are left out.
        if entry.callcount >= count // 2:
            rows.append((_name(entry.code), entry.callcount / count, own / count))
    return rows


def _nothing() -> None:
    pass


def _cost(function: Callable[[], Any], runs: int, count: int = 100) -> _Cost:
    """Calibrates with a function that does next to nothing."""
    turns = range(count)

    def calling() -> None:
        for _ in turns:
            function()

    def looping() -> None:
        for _ in turns:
            pass

    def took(body: Callable[[], None]) -> float:
        start = perf_counter_ns()
        body()
        return (perf_counter_ns() - start) / 1000 / count

    whole = min(took(calling) for _ in range(runs))
    loop = min(took(looping) for _ in range(runs))
    called: list[float] = []
    caller: list[float] = []
    for _ in range(runs):
        for entry in _profile(calling):
            into = caller if _name(entry.code).endswith("calling") else called
            if entry.callcount in (1, count):
                into.append(entry.inlinetime * 1e6 / count)
    # What the call truly costs is split between the two, as the profiler splits it.
    true = (whole - loop) / 2
    return _Cost(min(called) - true, min(caller) - loop - true)


def _name(code: Any) -> str:
    if isinstance(code, str):
        return code.strip("<>").removeprefix("built-in method ").removeprefix("method ")
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno} {code.co_qualname}"


def _table(call: str, plain: float, least: float, rows: list[tuple[str, float, float]]) -> str:
    scale = plain / sum(own for _, _, own in rows)
    lines = [
        f"{call} of a two-key dict: {plain:.2f} us without a profiler; the floor: {least:.2f} us",
        f"{'function':<70}{'calls':>10}{'own us':>10}{'share':>10}",
        "-" * 100,
    ]
    for name, calls, unscaled in rows[:_SHOWN]:
        own = unscaled * scale
        lines.append(f"{name[:69]:<70}{calls:>10.1f}{own:>10.2f}{own / plain:>10.1%}")
    rest = sum(own for _, _, own in rows[_SHOWN:]) * scale
    lines.append(f"{'the rest':<70}{'':>10}{rest:>10.2f}{rest / plain:>10.1%}")
    lines.append(f"scaled by {scale:.2f}")
    return "\n".join(lines)
