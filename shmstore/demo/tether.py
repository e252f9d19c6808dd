"""Programs that end with the process that started them, however that one ends.

The kernel kills them when it dies (PR_SET_PDEATHSIG), so that a run of the demo that is killed
leaves no server behind. They have a session of their own: Ctrl-C at the terminal is for the
demo, which ends them in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

# Runs in a bare interpreter, which then becomes the program, under the same pid. Who died
# before the kernel was told to look out for that is no longer the parent.
_TIE = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)}, 0, 0, 0)
os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])
"""


def start(
    command: Sequence[str], said: IO[bytes], env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a program that lives no longer than the calling thread.

    Args:
        command: The program's path and its arguments.
        said: The file that gets what it says.
        env: Its environment; by default the caller's.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=env,
        start_new_session=True,
    )


def obituary(what: str, process: subprocess.Popen[bytes]) -> str:
    """A sentence that says how a process ended."""
    return how_it_ended(f"{what} (process {process.pid})", process.wait())


def how_it_ended(what: str, code: int | None) -> str:
    """A sentence that says how it ended, from an exit code as Python has it."""
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        how = "ended" if code is None else f"ended with exit code {code}"
    return f"{what} {how} before its work was done."
