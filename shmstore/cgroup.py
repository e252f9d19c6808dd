"""The memory that the cgroups of this process leave it, before a write takes it.

Past a limit of a memory cgroup, the kernel does not fail a write into shared memory:
it kills the writer, or another process of the cgroup. So what is to be written is
held against the limits first: those of the process's cgroup and of all above it that
can be seen, in versions 1 and 2. What may be taken is limit - current + file - shmem,
as page cache is given back when needed, but shared memory is not.

A check, no reservation: several processes that write at once may all pass it. That
is what the margin is for, and that it is repeated within a large write.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import NamedTuple

from shmstore import mounts
from shmstore.errors import StoreFull
from shmstore.mounts import Mount

WHAT = "memory of this process's cgroup"

#: What is returned if there is no limit.
UNBOUNDED = 1 << 62

_PROC = "/proc/self"
_LOOK_EVERY_S = 1.0
# As much again as is asked for stays free, up to this: for what the process itself and
# others of the cgroup take meanwhile.
_MARGIN = 4 << 20
# With this much more than is asked for, the size of the page cache need not be known.
_PLENTY = 32 << 20
# Small writes are checked together.
_TOGETHER = 1 << 20
_NO_LIMIT = 1 << 60  # version 1 says "none" by a number near 2**63


class Group(NamedTuple):
    """A cgroup.

    Attributes:
        path: Its directory.
        first: True in version 1.
        limit: Bytes.
    """

    path: str
    first: bool
    limit: int


_limited: tuple[Group, ...] = ()
_look_at = 0.0
_unchecked = 0


def check(asked: int, headroom: int = 0) -> int:
    """Returns the bytes that may still be taken, or fewer, but ``asked`` at least.

    Args:
        asked: Bytes of shared memory that are to be taken.
        headroom: Bytes that are to be left besides.

    Raises:
        StoreFull: A cgroup's limit would be passed.
    """
    global _limited, _look_at
    now = monotonic()
    if now >= _look_at:
        _limited = limited()
        _look_at = now + _LOOK_EVERY_S
    free = UNBOUNDED
    if not _limited:
        return free
    kept = headroom + min(asked, _MARGIN)
    for group in _limited:
        left = _free(group, asked + kept + _PLENTY)
        if left - asked < kept:
            raise StoreFull(WHAT, asked, max(left, 0), group.limit, kept)
        free = min(free, left)
    return free


def check_together(asked: int) -> None:
    """``check`` for writes too small to be checked one by one.

    Raises:
        StoreFull: A cgroup's limit would be passed by about a MiB of such writes.
    """
    global _unchecked
    _unchecked += asked
    if _unchecked >= _TOGETHER:
        # Only what passed is forgotten: past the limit, each of them is refused.
        # Many small values take memory of the process, too: to list them for relief, say.
        check(max(asked, _TOGETHER), _MARGIN)
        _unchecked = 0


def limited(proc: str | None = None) -> tuple[Group, ...]:
    """The cgroups of this process that have a limit, innermost first.

    Args:
        proc: What is read instead of /proc/self.
    """
    proc = proc or _PROC
    try:
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as table:
            cgroups = table.read()
        # One of two of its kind with the wider view comes first.
        places = sorted(mounts.read(f"{proc}/mountinfo"), key=lambda mount: len(mount.root))
    except OSError:
        return ()
    found: list[Group] = []
    for first in (True, False):
        for ancestors in directories(cgroups, places, first):
            if os.path.isdir(ancestors[0]):
                found += _with_limits(ancestors, first)
                break
    return tuple(found)


def directories(cgroups: str, places: list[Mount], first: bool) -> list[list[str]]:
    """The directories of a process's memory cgroup and of those above it.

    Args:
        cgroups: The text of its /proc/self/cgroup.
        places: What is mounted.
        first: True for version 1.

    Returns:
        For each mount that shows them, the innermost first.
    """
    own = _own_path(cgroups, first)
    if own is None:
        return []
    found = []
    for mount in places:
        if first:
            fits = mount.kind == "cgroup" and "memory" in mount.options
        else:
            fits = mount.kind == "cgroup2"
        below = _below(own, mount.root) if fits else None
        if below is not None:
            found.append(
                [os.path.join(mount.point, *below[:depth]) for depth in range(len(below), -1, -1)]
            )
    return found


def _own_path(cgroups: str, first: bool) -> str | None:
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(",") if first else number == "0" and not controllers:
            return path
    return None


def _below(own: str, root: str) -> list[str] | None:
    """The way from what is mounted down to a cgroup, or None if it does not lie below.

    Both are as seen from the root of the process's cgroup namespace, and may lie
    outside of it: "/../..".
    """
    mine = [name for name in own.split("/") if name]
    top = [name for name in root.split("/") if name]
    if mine[: len(top)] == top and ".." not in mine[len(top) :]:
        return mine[len(top) :]
    if top and set(top) == {".."} and mine.count("..") < len(top):
        # Mounted is what is above the namespace; the names on the way are not told.
        return []
    return None


def _with_limits(ancestors: list[str], first: bool) -> list[Group]:
    found = []
    for path in ancestors:
        if first and path != ancestors[0] and _number(f"{path}/memory.use_hierarchy") == 0:
            break  # what is below does not count here, nor above
        limit = _number(f"{path}/memory.{'limit_in_bytes' if first else 'max'}")
        if first and path == ancestors[-1]:
            # Version 1 tells of limits above what can be seen, though not of their use.
            stat = _stat(path)
            above = stat.get("hierarchical_memory_limit")
            limit = min(limit or _NO_LIMIT, above or _NO_LIMIT)
        if limit is not None and limit < _NO_LIMIT:
            found.append(Group(path, first, limit))
    return found


def _free(group: Group, wanted: int) -> int:
    """Bytes that a cgroup has left; page cache is only counted if ``wanted`` is more."""
    current = _number(f"{group.path}/memory.{'usage_in_bytes' if group.first else 'current'}")
    if current is None:
        return UNBOUNDED  # it has gone: the process was moved
    left = group.limit - current
    if left < wanted:
        stat = _stat(group.path)
        if group.first:
            cache = stat.get("total_cache", stat.get("cache", 0))
            shared = stat.get("total_shmem", stat.get("shmem", 0))
        else:
            cache, shared = stat.get("file", 0), stat.get("shmem", 0)
        left += max(cache - shared, 0)
    return left


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _number(path: str) -> int | None:
    """What a file of one number says; None for "max", or if there is no such file."""
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return None


def _stat(path: str) -> dict[str, int]:
    try:
        lines = _read(f"{path}/memory.stat").decode().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _after_fork_in_child() -> None:
    global _look_at
    _look_at = 0.0  # it may be moved to another cgroup


os.register_at_fork(after_in_child=_after_fork_in_child)
