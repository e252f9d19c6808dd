"""The machine's line: what a figure is worth nothing without."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

_PACKAGES = ("shmstore", "numpy", "pyarrow", "lmdb", "diskcache", "redis")


def describe(place: str) -> dict[str, str | int | float | dict[str, str]]:
    """CPU, cores, load, kernel, Python, packages, and what is free at ``place``."""
    status = os.statvfs(place)
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gil": bool(getattr(sys, "_is_gil_enabled", lambda: True)()),
        "packages": {name: _version(name) for name in _PACKAGES},
        "free_bytes": status.f_bavail * status.f_frsize,
        "place": place,
    }


def line(place: str) -> str:
    """The same in two lines of text."""
    facts = describe(place)
    packages = facts["packages"]
    assert isinstance(packages, dict)
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    free = int(str(facts["free_bytes"])) / 1e9
    return (
        f"{facts['cpu']}, {facts['cores']} cores (load {facts['load']}), Linux {facts['kernel']}, "
        f"{free:.1f} GB free in /dev/shm\nPython {facts['python']}, {listed}"
    )


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as table:
        for row in table:
            if row.lower().startswith(("model name", "hardware", "cpu model")):
                return " ".join(row.partition(":")[2].split())
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
