"""How much memory a process has of its own, and how much of the shared kind it has touched."""

from __future__ import annotations

from typing import NamedTuple


class Memory(NamedTuple):
    """What ``/proc/self/status`` tells, in bytes.

    Attributes:
        own: RssAnon, pages that are this process's alone. (What smaps calls private
            would mislead: a shared page that one process maps counts as private.)
        shared: RssShmem and RssFile, pages of files, among them those of the store.
    """

    own: int
    shared: int

    def since(self, before: Memory) -> Memory:
        """By how much it has grown; never less than nothing."""
        return Memory(max(0, self.own - before.own), max(0, self.shared - before.shared))


def of_this_process() -> Memory:
    """The memory of the calling process, now."""
    return parse(_text("/proc/self/status"))


def parse(status: str) -> Memory:
    """Reads the text of a ``/proc/<pid>/status``."""
    sizes = {}
    for line in status.splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "RssShmem", "RssFile"):
            sizes[name] = int(rest.split()[0]) << 10
    return Memory(sizes["RssAnon"], sizes["RssShmem"] + sizes["RssFile"])


def available() -> int:
    """Bytes that the machine can still give without swapping."""
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
