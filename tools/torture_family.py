"""Processes that the runner forks: their ends, their deadlines, where one hangs.

The runner is made the parent of whatever its children leave behind, so that it can tell
when nobody is at work any more. It signals processes that it or its children started,
and no others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import NoReturn

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@dataclass
class Process:
    """A forked child.

    Attributes:
        pid: Its process id; it is not reaped by anyone else.
        pidfd: Readable when it has ended.
        status: How it ended, negative for a signal; None before.
        death: When it was certainly dead, monotonic nanoseconds.
    """

    pid: int
    pidfd: int
    status: int | None = None
    death: int = 0

    def reap(self, timeout_s: float) -> bool:
        """Waits for its end; False if it does not come in time."""
        if self.status is None:
            if not select.select([self.pidfd], [], [], timeout_s)[0]:
                return False
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.death = monotonic_ns()
            os.close(self.pidfd)
        return True

    def signal(self, number: int) -> None:
        """Sends it a signal, if it has not ended."""
        if self.status is None:
            os.kill(self.pid, number)


def fork(run: Callable[[], NoReturn]) -> Process:
    """A child that runs a function, which never returns."""
    with warnings.catch_warnings():
        # From 3.12 on, Python warns of the threads that numpy's BLAS has; they are idle.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            run()
        finally:
            os._exit(99)
    return Process(pid, os.pidfd_open(pid))


def others() -> list[int]:
    """Living children that are not processes of ``fork``: those of the dead."""
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return pids


def wait_for_orphans(known: set[int], deadline: float) -> list[int]:
    """Reaps what dead children left behind; returns those that do not end in time."""
    while left := [pid for pid in others() if pid not in known]:
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return left
        time.sleep(0.002)
    return []


def where(pid: int, trace: Path) -> str:
    """Where a process hangs: what the kernel says, and its stack in Python."""
    told = []
    for name in ("wchan", "status"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text()
            told.append(text if name == "wchan" else text.split("\nTgid")[0])
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.3)
        told.append(trace.read_text(encoding="utf-8"))
    return "\n".join(told)


def end_all() -> None:
    """Kills and reaps all that is left of this process's children and theirs."""
    while left := others():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
