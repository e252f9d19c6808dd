"""Processes that do as they are told: readers and writers other than the one that times.

A worker is a fresh interpreter. It takes functions with their arguments from a pipe,
calls them and sends back what they return; it ends when its pipe is closed.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

_context = multiprocessing.get_context("spawn")

#: Longest wait for an answer, seconds.
PATIENCE_S = 300.0


class WorkerFailed(RuntimeError):
    """A worker died, did not answer, or met an exception."""


class Worker:
    """One process.

    Args:
        given: Passed to ``accept`` in the process, for what cannot go through a pipe.
    """

    def __init__(self, given: Any = None) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, given), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, function: Callable[..., Any], *args: Any) -> None:
        """Lets the process begin with a call."""
        self._pipe.send((function, args))

    def answer(self) -> Any:
        """What the call returned."""
        if not self._pipe.poll(PATIENCE_S):
            raise WorkerFailed(f"a worker did not answer within {PATIENCE_S:.0f} s")
        try:
            worked, result = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise WorkerFailed(f"a worker died (exit code {self._process.exitcode})") from None
        if not worked:
            raise WorkerFailed(result)
        return result

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in the process and returns its result."""
        self.ask(function, *args)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


#: What the process was given, in the process.
given: Any = None


def _serve(pipe: Connection, handed: Any) -> None:
    global given
    # Ctrl-C reaches all of the terminal's processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = handed
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except Exception as error:
            answer = False, f"{function.__name__}: {type(error).__name__}: {error}"
        pipe.send(answer)
