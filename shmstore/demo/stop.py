"""Stopping in good order: a signal is noted, and the run ends at its next step.

Nothing is interrupted in the middle, so clean-up always finds things as the code
left them; a second Ctrl-C does not disturb it. The death of a process that the run
depends on is noticed at the same points.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import multiprocess.connection

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The person, or the system, asked the run to end.

    Attributes:
        signum: The signal by which they did.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stop:
    """Notes the signals that ask the process to end, while it is entered.

    Attributes:
        bell: A descriptor that becomes readable when ``ring`` was called or a signal came.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.bell, self._ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, Any] = {}
        self._rung_before = -1
        self._watched: dict[int, Callable[[], Exception]] = {}

    def __enter__(self) -> Stop:
        for signum in SIGNALS:
            # What is ignored stays so: nohup ignores SIGHUP.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._note)
        # Python runs a handler when the main thread is next at work. If the signal comes
        # just before that thread goes to sleep, or to another thread, that may be never:
        # so the bell is rung by the C part of the handler, which runs at once.
        self._rung_before = signal.set_wakeup_fd(self._ringer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._rung_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self.bell)
        os.close(self._ringer)

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.signum = self.signum or signum
        self.ring()

    def ring(self) -> None:
        """Wakes who waits for ``bell``. Any thread, any time."""
        try:
            os.write(self._ringer, b"!")
        except BlockingIOError:
            pass  # full, so it is ringing

    def silence(self) -> None:
        """Takes what was rung so far."""
        try:
            while os.read(self.bell, 4096):
                pass
        except BlockingIOError:
            pass

    def watch(self, fd: int, died: Callable[[], Exception]) -> None:
        """Ends the run also when a process has ended.

        Args:
            fd: A descriptor that becomes readable then.
            died: Makes what is to be raised.
        """
        self._watched[fd] = died

    def unwatch(self, fd: int) -> None:
        """Watches it no more; to be called before it is closed."""
        self._watched.pop(fd, None)

    def wait(self, *others: Any, timeout: float | None = None) -> None:
        """Waits until the bell rings, or another of some connections has something to say.

        Args:
            others: The connections, or descriptors.
            timeout: The longest wait, seconds.

        Raises:
            As ``check`` does.
        """
        multiprocess.connection.wait([self.bell, *self._watched, *others], timeout)
        self.silence()
        self.check()

    def check(self) -> None:
        """Ends the run if a signal came, or a process died that is watched.

        Raises:
            Stopped: A signal came.
            Exception: What was given to ``watch``.
        """
        if self.signum:
            raise Stopped(self.signum)
        for fd in multiprocess.connection.wait(list(self._watched), 0):
            raise self._watched[fd]()


@contextmanager
def blocked() -> Iterator[None]:
    """Holds the signals back: processes started meanwhile do not run this one's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_go_in_worker() -> None:
    """In a worker: Ctrl-C is for the main process, which ends its workers by SIGTERM."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
