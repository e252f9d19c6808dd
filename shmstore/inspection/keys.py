"""Single keys of a terminal, without waiting for a line; the terminal is left as it was."""

from __future__ import annotations

import os
import select
import termios
import tty
from types import TracebackType
from typing import Any


class Keys:
    """The keys of a terminal, while it is used as a context."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def next(self, timeout_s: float) -> str:
        """The next key, "" if there was none in time."""
        ready = [self._fd] if self._before is not None else []
        if not select.select(ready, [], [], timeout_s)[0]:
            return ""
        return os.read(self._fd, 16).decode(errors="replace")
