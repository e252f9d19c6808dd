"""Seeing that somebody sleeps at a doorbell, and sleeping there without the second look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmstore import doorbell

DEADLINE_S = 30.0
HOUR_S = 3600.0


def until(condition: Callable[[], Any]) -> Any:
    """What a condition gives as soon as it holds; looks again and again, for a bounded time."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.001)
    return found


def asleep(pid: int | None = None) -> int:
    """How many threads of a process sleep at a doorbell, as the kernel tells."""
    number = str(doorbell.FUTEX[os.uname().machine])
    sleeping = 0
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        try:
            words = (task / "syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # FUTEX_WAIT, and not private, which nobody else in these processes does.
        sleeping += words[0] == number and int(words[2], 16) == 0
    return sleeping


def until_asleep(pid: int | None = None, count: int = 1) -> None:
    """Returns when that many threads of a process sleep at a doorbell."""
    until(lambda: asleep(pid) >= count)


def only_bells() -> None:
    """From now on, in this process, whoever sleeps is woken by a bell or not within the test.

    So that a wake-up that is lost is not made good by the look a second later.
    """
    doorbell.LONGEST_S = HOUR_S
    doorbell.AHEAD_NS = int(2 * HOUR_S * 1e9)
