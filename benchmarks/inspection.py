"""How long does the command line keep one waiting?"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import shmstore
from benchmarks.contest import Bench
from benchmarks.measuring import Answer

NAME = "inspection"
TITLE = "the command line: help, the first line of a long listing, and all of it"

_BARE = [sys.executable, "-c", "pass"]
_CLICK = [sys.executable, "-c", "import click"]
_TOOL = [sys.executable, "-m", "shmstore"]


def run(bench: Bench) -> Answer:
    """Runs commands as a shell does, beside a bare interpreter and one that imports click."""
    answer = Answer(NAME, TITLE)
    values = 10_000 if bench.quick else 1_000_000
    rounds = 3 if bench.quick else 15
    root = os.path.join(bench.place, "inspection")
    with shmstore.Store(root) as store:
        for start in range(0, values, 10_000):
            store.put_many("many", {f"value-{n}": n for n in range(start, start + 10_000)})
    for _ in range(rounds):
        answer.add("from start to end", "bare Python", _whole_s(_BARE) * 1e3, "ms")
        answer.add("from start to end", "Python and click", _whole_s(_CLICK) * 1e3, "ms")
        answer.add(
            "from start to end", "shmstore, --help", _whole_s([*_TOOL, "--help"]) * 1e3, "ms"
        )
    listing = [*_TOOL, "ls", "many", "--root", root]
    for _ in range(rounds):
        answer.add(f"ls of {values:,}", "shmstore, first line", _first_s(listing) * 1e3, "ms")
    for _ in range(max(rounds // 5, 1)):
        answer.add(f"ls of {values:,}", "shmstore, all lines", _whole_s(listing) * 1e3, "ms")
    answer.reference["from start to end"] = "Python and click"
    helped = answer.median("from start to end", "shmstore, --help")
    answer.ask("shmstore --help, ms", helped, 150.0)
    answer.ask(
        "first line of ls, ms", answer.median(f"ls of {values:,}", "shmstore, first line"), 1000.0
    )
    return answer


def _whole_s(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _first_s(command: list[str]) -> float:
    """Seconds until the first line; the rest is not waited for."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took = time.perf_counter() - began
        process.stdout.close()
    return took
