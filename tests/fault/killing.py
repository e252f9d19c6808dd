"""Processes for fault tests: forked, killed at a named point, asked and waited for.

A child is made by ``os.fork``, so that a test may give it any function. What it
returns or raises comes back through a pipe; everything has a deadline, and a child
that outlives it is killed and fails the test.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from shmstore import crashpoints

DEADLINE_S = 30.0


class Child:
    """A forked process that runs one function.

    Attributes:
        pid: Its process id.
        status: How it ended, as of ``os.waitstatus_to_exitcode``; None before ``join``.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.status: int | None = None
        self._results, results = os.pipe()
        calls, self._calls = os.pipe()
        with warnings.catch_warnings():
            # From 3.12 on, Python warns of the threads that numpy's BLAS has; they are idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os.close(self._results)
            os.close(self._calls)
            _serve(function, args, calls, results)
        os.close(results)
        os.close(calls)

    def receive(self, timeout_s: float = DEADLINE_S) -> Any:
        """The next thing that the child sends or returns; raises what it raised."""
        deadline = time.monotonic() + timeout_s
        kind, value = pickle.loads(self._exactly(self._size(deadline), deadline))
        if kind == "raised":
            raise AssertionError(f"child {self.pid} raised:\n{value}")
        return value

    def silent(self, seconds: float) -> bool:
        """True if the child neither sends anything nor ends for that long."""
        return not select.select([self._results], [], [], seconds)[0]

    def send(self, value: Any = None) -> None:
        """Sends the child what its ``Parent.receive`` waits for."""
        _write(self._calls, value)

    def _size(self, deadline: float) -> int:
        return int.from_bytes(self._exactly(8, deadline), "little")

    def _exactly(self, size: int, deadline: float) -> bytes:
        raw = b""
        while len(raw) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._results], [], [], left)[0]:
                self.kill()
                raise AssertionError(f"child {self.pid} sent nothing in time")
            piece = os.read(self._results, size - len(raw))
            if not piece:
                raise AssertionError(f"child {self.pid} ended with {self.join()}")
            raw += piece
        return raw

    def join(self, timeout_s: float = DEADLINE_S) -> int:
        """Waits for the end; the exit status, negative for a signal."""
        if self.status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                ended = bool(select.select([pidfd], [], [], timeout_s)[0])
                if not ended:
                    os.kill(self.pid, signal.SIGKILL)
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            finally:
                os.close(pidfd)
            assert ended, f"child {self.pid} did not end in time"
        return self.status

    def kill(self) -> None:
        """Kills it, if it lives, and closes the pipes."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.join()
        for fd in (self._results, self._calls):
            if fd >= 0:
                os.close(fd)
        self._results = self._calls = -1

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Parent:
    """A child's way to its parent: given to functions that take part in a conversation."""

    def __init__(self, calls: int, results: int) -> None:
        self._calls, self._results = calls, results

    def send(self, value: Any = None) -> None:
        """Sends what ``Child.receive`` waits for."""
        _write(self._results, ("sent", value))

    def receive(self) -> Any:
        """Waits for ``Child.send``; EOFError if the parent has gone."""
        size = int.from_bytes(_read(self._calls, 8), "little")
        return pickle.loads(_read(self._calls, size))


def _serve(function: Callable[..., Any], args: Any, calls: int, results: int) -> NoReturn:
    status = 1
    try:
        parent = Parent(calls, results)
        args = [parent if one is Parent else one for one in args]
        try:
            _write(results, ("sent", function(*args)))
            status = 0
        except BaseException:
            _write(results, ("raised", traceback.format_exc()))
    finally:
        os._exit(status)


def _write(fd: int, value: Any) -> None:
    raw = pickle.dumps(value)
    left = memoryview(len(raw).to_bytes(8, "little") + raw)
    while left:
        left = left[os.write(fd, left) :]


def _read(fd: int, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        piece = os.read(fd, size - len(raw))
        if not piece:
            raise EOFError
        raw += piece
    return raw


def call(function: Callable[..., Any], *args: Any, timeout_s: float = DEADLINE_S) -> Any:
    """What ``function`` returns in a process of its own."""
    with Child(function, *args) as child:
        result = child.receive(timeout_s)
        assert child.join() == 0
        return result


def kill_at(point: str, occurrence: int, function: Callable[..., Any], *args: Any) -> None:
    """Runs ``function`` in a process that SIGKILL ends when it reaches ``point``.

    Fails if it never gets there.

    Args:
        point: A name of ``crashpoints.POINTS``.
        occurrence: The how-maniest time counts, from 1 on.
        function: What the process does.
        args: Its arguments.
    """
    assert point in crashpoints.POINTS, f"{point!r} is no crash point"

    def victim() -> None:
        left = occurrence

        def hook(name: str) -> None:
            nonlocal left
            if name == point:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        crashpoints.hook = hook
        function(*args)

    with Child(victim) as child:
        status = child.join()
        if status == 0:
            raise AssertionError(f"{point} was not reached {occurrence} times")
        if status != -signal.SIGKILL:
            child.receive()
            raise AssertionError(f"the victim ended with {status} before {point}")


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The points that this process reaches meanwhile, in order."""
    reached: list[str] = []
    before = crashpoints.hook
    crashpoints.hook = reached.append
    try:
        yield reached
    finally:
        crashpoints.hook = before
