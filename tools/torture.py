"""Kills processes that use a store, thousands of times, and looks for what it must not lose.

Runs from a checkout, without installation:

    python tools/torture.py --seconds 60 --seed 7

Workers put, overwrite, delete, clear, compact and read, and hold what they read; they are
killed by SIGKILL at random and at every crash point, stopped and continued, and forked in
the middle. A ledger outside the store tells what was acknowledged. After each round, a
couple of seconds, nobody is at work and everything is looked at: that each value may be
the one that is there, that all read before was possible, that no view has changed, nobody
hangs, and the files contain what they should. Exit status 0, or 1 with a report; then the
store is kept where the report says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shmstore
from shmstore.sizes import parse_size
from tools import torture_family as family
from tools import torture_values as values
from tools.torture_run import Summary, Torture
from tools.torture_scene import INTERRUPTED, Scene

_WARMING = 40  # values, enough for each kind
_SHOWN = 5  # faults
_SHOWN_LINES = 60  # of a history


def main(arguments: list[str] | None = None) -> int:
    """Runs as the options say; returns the exit status."""
    options = _parser().parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"torture: seed {seed}", flush=True)
    above = options.root or "/dev/shm"
    root = tempfile.mkdtemp(prefix=f"shmstore-torture-{os.getpid()}-", dir=above)
    ledgers = tempfile.mkdtemp(prefix=f"shmstore-torture-{os.getpid()}-")
    family.adopt_orphans()
    disk = tempfile.mkdtemp(prefix=f"shmstore-torture-{os.getpid()}-", dir=options.spill)
    told = mmap.mmap(-1, mmap.PAGESIZE)
    capacity, pool = (parse_size(getattr(options, name), name) for name in ("capacity", "pool"))
    scene = Scene(seed, root, ledgers, told, capacity, pool)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Raising here might raise in a callback of a fork, where it would be ignored.
        told[INTERRUPTED] = 1

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    keep = False
    try:
        _warm_up(root)
        with shmstore.Store(root, capacity=capacity, spill=disk, pool=pool or None):
            pass
        summary = Torture(scene, options.workers).run(options.seconds, options.kills)
        keep = bool(summary.faults)
    finally:
        family.end_all()
        for path in (ledgers,) if keep else (ledgers, root, disk):
            shutil.rmtree(path, ignore_errors=True)
    print(_as_json(summary) if options.json else _as_text(summary))
    if keep:
        print(f"repeat with --seed {seed}; the store is kept in {root}, its spill in {disk}")
    if scene.interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    return int(keep)


def _warm_up(root: str) -> None:
    """Lets this process import what values need, so that its forked workers need not."""
    with tempfile.TemporaryDirectory(dir=root) as own, shmstore.Store(own) as store:
        for version in range(_WARMING):
            store.put("warm", "id", values.make(0, "warm", "id", version))
            store.get("warm", "id")


def _as_json(summary: Summary) -> str:
    faults = [dataclasses.asdict(fault) for fault in summary.faults]
    return json.dumps({**vars(summary), "faults": faults}, indent=1)


def _as_text(summary: Summary) -> str:
    lines = [
        f"{summary.kills.total():,} kills, {summary.stops:,} stops and {summary.forks:,} forks "
        f"in the middle, in {summary.rounds:,} rounds and {summary.seconds:.0f} s",
        f"{summary.calls.total():,} calls acknowledged, {summary.in_doubt:,} in doubt; "
        f"{summary.looks:,} reads judged, {summary.values:,} values found right, "
        f"views compared {summary.views:,} times",
        f"the most shared memory after a round: {summary.most_memory:,} bytes",
        "calls: " + _counted(summary.calls),
        "kills: " + _counted(summary.kills),
    ]
    if summary.refusals:
        lines.append("refused: " + _counted(summary.refusals))
    if summary.missed:
        lines.append("points not reached in time: " + _counted(summary.missed))
    for fault in summary.faults[:_SHOWN]:
        lines.append(f"\nFAULT {fault.dag_id} {fault.id}: {fault.text}")
        lines += [f"    {line}" for line in fault.history[-_SHOWN_LINES:]]
    if len(summary.faults) > _SHOWN:
        lines.append(f"... and {len(summary.faults) - _SHOWN} more")
    lines.append("FAILED" if summary.faults else "all is well")
    return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/torture.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long (30)")
    parser.add_argument("--seed", type=int, help="drives every choice; a fresh one if not given")
    parser.add_argument("--kills", type=int, help="end after so many kills")
    parser.add_argument("--workers", type=int, default=4, help="processes at once (4)")
    parser.add_argument("--root", help="directory for the store (/dev/shm)")
    parser.add_argument("--capacity", default="24MiB", help="the store's; 0 for none (24MiB)")
    parser.add_argument("--pool", default="0", help="the store's; 0 for what it chooses (0)")
    parser.add_argument("--spill", help="directory on disk for what exceeds the capacity")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
