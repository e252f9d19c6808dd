"""What is mounted where, as /proc/self/mountinfo tells."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_ESCAPED = re.compile(r"\\([0-7]{3})")
_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
_in_memory: dict[int, bool] = {}  # by device


class Mount(NamedTuple):
    """One line of the table.

    Attributes:
        device: The file system's device, as in ``st_dev``.
        root: What of the file system is mounted: "/" is all of it.
        point: Where.
        kind: The file system's type.
        options: The file system's own options.
    """

    device: int
    root: str
    point: str
    kind: str
    options: tuple[str, ...]


def parse(table: str) -> list[Mount]:
    """The mounts of a table, in its order: a later one may hide an earlier one."""
    found = []
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        found.append(
            Mount(
                os.makedev(int(major), int(minor)),
                _plain(fields[3]),
                _plain(fields[4]),
                rest[0],
                tuple(rest[2].split(",")),
            )
        )
    return found


def _plain(path: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts that this process sees."""
    with open(path, encoding="utf-8", errors="surrogateescape") as table:
        return parse(table.read())


def in_memory(device: int) -> bool:
    """Whether what is written to a file system stays in memory for good.

    On a disk it is page cache, which the kernel takes back when it needs to.
    """
    known = _in_memory.get(device)
    if known is None:
        try:
            known = any(one.kind in _MEMORY for one in read() if one.device == device)
        except OSError:
            return True  # out of descriptors, say: to be asked again
        _in_memory[device] = known
    return known


def file_system(path: str) -> str:
    """The type of the file system that holds ``path``."""
    mount = _holding(os.path.realpath(path))
    return mount.kind if mount else "an unknown file system"


def inner_path(path: str) -> str:
    """Where ``path`` lies in its file system, however that is mounted here."""
    path = os.path.realpath(path)
    mount = _holding(path)
    if mount is None:
        return path
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.point)))


def _holding(path: str) -> Mount | None:
    best = None
    for mount in read():
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best
