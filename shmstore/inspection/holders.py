"""Which processes have a segment in use: who maps it, and who holds a lock on it.

Told by /proc: of the processes of this pid namespace, those that this user may look at.
A pid is a hint for people; whether a value is in use is judged by its lease alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from shmstore import holder

Inode = tuple[int, int]  # device and number


class Holder(NamedTuple):
    """A process that uses a file.

    Attributes:
        pid: Its number; 0 for one outside this pid namespace.
        command: Its command line, words joined by spaces; "" if that is not told.
        how: "view" for a mapping, "lease" for a lock on the file and no mapping that is seen.
    """

    pid: int
    command: str
    how: str


def holders(wanted: Collection[Inode]) -> dict[Inode, list[Holder]]:
    """Who uses each of several files; only files that somebody uses."""
    looking = set(wanted)
    found: dict[Inode, dict[int, Holder]] = {}
    for pid in _pids():
        for inode in _mapped(pid) & looking:
            found.setdefault(inode, {})[pid] = Holder(pid, command_of(pid), "view")
    for inode, pid in _locked():
        if inode in looking and pid not in found.get(inode, {}):
            found.setdefault(inode, {})[pid] = Holder(pid, command_of(pid), "lease")
    return {inode: [by[pid] for pid in sorted(by)] for inode, by in found.items()}


def inode_of(status: os.stat_result) -> Inode:
    """What tells a file from all others."""
    return status.st_dev, status.st_ino


def command_of(pid: int) -> str:
    """The command line of a process, "" if it has ended or may not be looked at."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").strip().decode(errors="replace")
    except OSError:
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _mapped(pid: int) -> set[Inode]:
    """The files that a process maps; none if it may not be looked at."""
    found = set()
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split(None, 5)
                if fields[4] != "0":
                    major, minor = fields[3].split(":")
                    found.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    except OSError:
        pass  # it has ended, or is another user's
    return found


def _locked() -> list[tuple[Inode, int]]:
    """The files that are locked by ``flock``, and by which process."""
    try:
        with open("/proc/locks", encoding="ascii") as table:
            return list(holder.flocks(table.read()))
    except OSError:
        return []
