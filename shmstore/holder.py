"""Who holds a lock: what /proc/locks tells, for the sentence of an error and no more.

Whether a holder lives is never judged by a pid: the lock itself says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

OUTSIDE = "a process outside this pid namespace"

_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # the inode of the machine's own, fixed in the kernel


def of(device: int, inode: int) -> str | None:
    """Who holds the ``flock`` of a file, or None if that cannot be told."""
    try:
        with open("/proc/locks", encoding="ascii") as table:
            locks = table.read()
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            status = file.read()
        apart = os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE
    except OSError:
        return None
    return told(locks, status, apart, device, inode)


def flocks(locks: str) -> Iterator[tuple[tuple[int, int], int]]:
    """The files that are locked by ``flock``: device and inode, and by which process.

    Args:
        locks: What /proc/locks says.

    Yields:
        Also 0 for a process that has no pid in the namespace of /proc.
    """
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) < 6 or "->" in fields or fields[1] != "FLOCK":
            continue
        major, minor, inode = fields[5].split(":")
        device = os.makedev(int(major, 16), int(minor, 16))
        yield (device, int(inode)), max(int(fields[4]), 0)


def told(locks: str, status: str, apart: bool, device: int, inode: int) -> str | None:
    """Who holds the lock of a file.

    Args:
        locks: What /proc/locks says.
        status: What /proc/self/status says.
        apart: True if this process's pid namespace is not the machine's first.
        device: The file's.
        inode: The file's.

    Returns:
        Who, or None if that is not told. A number that means another process here, or
        none, is not given as if it were a pid of this namespace.
    """
    for place, pid in flocks(locks):
        if place != (device, inode):
            continue
        if not pid:
            return OUTSIDE
        # Our own pid in every namespace from that of /proc down to ours.
        own = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
        if len(own.split()) > 2:
            return f"process {pid} of the pid namespace that /proc shows"
        return f"process {pid}"
    # The kernel leaves out holders that have no pid in the namespace of /proc.
    return OUTSIDE if apart else None
