"""The ledger: what each process meant to do, did and saw, kept outside the store.

One file a writer, one line an event, each written by one ``write(2)`` to a file that only
grows: what was written stays when the writer is killed. An intent is written before the
call, the acknowledgement after it returned; a line that was cut short never counts.
"""

from __future__ import annotations

import json
import os
from time import monotonic_ns
from typing import Any

#: Kinds of lines, by their first element.
DO = "do"  # number, time, what, dag_id, {id: version}: an intent
OK = "ok"  # number, time: it was acknowledged
NO = "no"  # number, time, why: it was refused, nothing has changed
SAW = "saw"  # time before, time after, dag_id, id, version
KEPT = "kept"  # how many views were found unchanged
KILLED = "killed"  # time, writer, crash point: a child was killed there
FAULT = "fault"  # text, dag_id or "", id or ""


class StrayedError(BaseException):
    """The process is a child that a fork in the middle of a call has made."""


class Ledger:
    """One process's ledger.

    Args:
        directory: Where all ledgers are.
        writer: Its number, which no other process has.
    """

    def __init__(self, directory: str, writer: int) -> None:
        self._pid = os.getpid()
        self._number = 0
        self._fd = os.open(
            os.path.join(directory, f"ledger-{writer}"),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )

    def intend(self, what: str, dag_id: str, versions: dict[str, int]) -> int:
        """Notes what is about to be done; returns its number."""
        self._number += 1
        self._write(DO, self._number, monotonic_ns(), what, dag_id, versions)
        return self._number

    def done(self, number: int) -> None:
        """Notes that the call has returned."""
        self._write(OK, number, monotonic_ns())

    def refused(self, number: int, why: str) -> None:
        """Notes that the call has said that nothing was changed."""
        self._write(NO, number, monotonic_ns(), why)

    def saw(self, before: int, dag_id: str, id: str, version: int) -> None:
        """Notes what a get that began at ``before`` has returned."""
        self._write(SAW, before, monotonic_ns(), dag_id, id, version)

    def kept(self, count: int) -> None:
        """Notes how many views were compared with what they were."""
        self._write(KEPT, count)

    def killed(self, writer: int, point: str) -> None:
        """Notes that a child was killed at a crash point and is dead by now."""
        self._write(KILLED, monotonic_ns(), writer, point)

    def fault(self, text: str, dag_id: str = "", id: str = "") -> None:
        """Notes that something is wrong."""
        self._write(FAULT, text, dag_id, id)

    def _write(self, *event: Any) -> None:
        if os.getpid() != self._pid:
            raise StrayedError
        os.write(self._fd, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def collect(directory: str) -> dict[int, list[list[Any]]]:
    """The events by writer of all ledgers, which are removed."""
    events: dict[int, list[list[Any]]] = {}
    for name in os.listdir(directory):
        if not name.startswith("ledger-"):
            continue
        path = os.path.join(directory, name)
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("\n")]
        events[int(name.partition("-")[2])] = [json.loads(line) for line in lines]
        os.unlink(path)
    return events
