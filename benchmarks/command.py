"""The command ``python -m benchmarks``: its options, and which question is where."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from types import ModuleType

from benchmarks import (
    arrays,
    fetch,
    followed,
    growth,
    hosts,
    inspection,
    machine,
    many_entries,
    place,
    profile,
    report,
    reuse,
    tables,
    waking,
    writers,
)
from benchmarks import small_values as small
from benchmarks.contest import Bench
from benchmarks.measuring import Answer

#: The questions of ``local``, by name.
LOCAL = {question.NAME: question for question in (small, arrays, tables, many_entries, writers)}

#: The questions of ``memory``.
MEMORY = {question.NAME: question for question in (reuse, waking, growth)}

#: The questions of ``fetch``.
FETCH = {question.NAME: question for question in (fetch, hosts, followed)}

#: The question of ``tool``.
TOOL = {inspection.NAME: inspection}
_QUESTIONS = {"local": LOCAL, "memory": MEMORY, "fetch": FETCH, "tool": TOOL}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        print("python -m benchmarks local   the store of one host; its questions (--only):")
        for question in LOCAL.values():
            print(f"    {question.NAME:<10}{question.TITLE}")
        print("python -m benchmarks memory   its memory, and waiting; its questions (--only):")
        for question in MEMORY.values():
            print(f"    {question.NAME:<10}{question.TITLE}")
        print("python -m benchmarks fetch    values of other hosts; its questions (--only):")
        for question in FETCH.values():
            print(f"    {question.NAME:<10}{question.TITLE}")
        print("python -m benchmarks tool     the command line; its questions (--only):")
        for question in TOOL.values():
            print(f"    {question.NAME:<10}{question.TITLE}")
        print("python -m benchmarks profile {put,get}   where the time of a small one goes")
        return 0
    with place.temporary() as path:
        print(machine.line(path), flush=True)
        try:
            if options.command == "profile":
                print(profile.run(Bench(path, options.quick), options.call))
            else:
                _measure(path, options, _QUESTIONS[options.command])
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0


def _measure(path: str, options: argparse.Namespace, questions: dict[str, ModuleType]) -> None:
    start = time.monotonic()
    facts = machine.describe(path)
    answers: list[Answer] = []
    if options.quick:
        print("A quick run: it shows that everything works, its figures mean little.")
    for name in options.only or questions:
        print(f"\nmeasuring {name} ...", file=sys.stderr, flush=True)
        with place.below(path, name) as own:
            answers.append(questions[name].run(Bench(own, options.quick)))
        print(report.show(answers[-1]), flush=True)
    seconds = time.monotonic() - start
    print(report.verdicts(answers) + f", in {seconds:.0f} s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(report.as_json(facts, options.quick, seconds, answers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    told = {
        "local": "the store of one host, beside floors and peers",
        "fetch": "values of other hosts, beside bare nats-py",
        "memory": "memory that is new and reused, growth, and waking up",
        "tool": "how long the command line keeps one waiting",
    }
    for name, questions in _QUESTIONS.items():
        asked = commands.add_parser(name, help=told[name])
        asked.add_argument("--json", metavar="FILE", help="write every round there, too")
        asked.add_argument("--quick", action="store_true", help="seconds, to see that it works")
        asked.add_argument(
            "--only", action="append", choices=questions, metavar="NAME", help="one; repeatable"
        )
    shown = commands.add_parser("profile", help="where the time of a small put or get goes")
    shown.add_argument("call", choices=("put", "get"))
    shown.add_argument("--quick", action="store_true", help="a second, to see that it works")
    return parser
