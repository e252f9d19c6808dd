"""What of a machine matters to a store, read once: facts without judgement.

What cannot be read is None, which is no verdict either way.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
from dataclasses import dataclass, field

from shmstore import cgroup, mounts, names
from shmstore.inspection.snapshot import NoStore, Snapshot
from shmstore.inspection.usage import usage

_LIBRARIES = (
    "shmstore", "numpy", "pyarrow", "pandas", "polars", "filelock", "nats-py", "multiprocess",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found.

    Attributes:
        root: The root looked at, there or not.
        file_system: The kind of its file system.
        size: Size of that, bytes; 0 for no limit.
        free: What is free of it.
        writable: Whether this user may write there.
        owner: The root's user, None if it is not there.
        uid: This user.
        mode: The root's permission bits, None if it is not there.
        in_container: Whether this looks like a container.
        remove_ipc: systemd-logind's RemoveIPC: True, False, or None without logind.
        system_user: Whether this user is one of the system's, which RemoveIPC spares.
        descriptors: The hard limit of open files; None for none.
        max_map_count: Mappings that a process may have.
        inotify_instances: inotify instances that a user may have.
        cgroup_limit: The least memory limit of this process's cgroups, None for none.
        leftover: Bytes that gc would free.
        stale: Whether the namespace is from before the machine's last start.
        unreadable: Names of DAGs that cannot be read.
        kernel: Its release.
        python: Its version.
        versions: Versions of libraries, by name; only of those installed.
    """

    root: str
    file_system: str
    size: int
    free: int
    writable: bool
    owner: int | None
    uid: int
    mode: int | None
    in_container: bool
    remove_ipc: bool | None
    system_user: bool
    descriptors: int | None
    max_map_count: int | None
    inotify_instances: int | None
    cgroup_limit: int | None
    leftover: int
    stale: bool
    unreadable: tuple[str, ...]
    kernel: str = field(default_factory=platform.release)
    python: str = field(default_factory=platform.python_version)
    versions: dict[str, str] = field(default_factory=dict)


def facts(root: str, namespace: str) -> Facts:
    """Looks at the machine and at a store's place. Makes nothing."""
    place = _nearest(root)
    status = os.statvfs(place)
    there = os.stat(root) if os.path.isdir(root) else None
    leftover, stale, unreadable = _store(root, namespace)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = [group.limit for group in cgroup.limited()]
    return Facts(
        root=root,
        file_system=mounts.file_system(place),
        size=status.f_blocks * status.f_frsize,
        free=status.f_bavail * status.f_frsize,
        writable=os.access(place, os.W_OK | os.X_OK),
        owner=there.st_uid if there else None,
        uid=os.geteuid(),
        mode=there.st_mode & 0o7777 if there else None,
        in_container=_in_container(),
        remove_ipc=_remove_ipc(),
        system_user=os.geteuid() < 1000,
        descriptors=None if hard == resource.RLIM_INFINITY else hard,
        max_map_count=_number("/proc/sys/vm/max_map_count"),
        inotify_instances=_number("/proc/sys/fs/inotify/max_user_instances"),
        cgroup_limit=min(limits, default=None),
        leftover=leftover,
        stale=stale,
        unreadable=unreadable,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """The versions of the libraries that the store uses, of those installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _store(root: str, namespace: str) -> tuple[int, bool, tuple[str, ...]]:
    try:
        looked = Snapshot(root, names.check_name(namespace, "namespace"))
    except NoStore:
        return 0, False, ()
    taken = usage(looked)
    broken = tuple(one.dag_id for one in taken.unreadable)
    settings = looked.settings
    stale = settings is not None and not settings.this_start
    return sum(one.leftover for one in taken.dags) + taken.trash, stale, broken


def _nearest(path: str) -> str:
    """The path, or what of it is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _in_container() -> bool:
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return True
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _remove_ipc() -> bool | None:
    """What systemd-logind's configuration says; its default is yes."""
    if not os.path.isdir("/run/systemd/seats"):
        return None
    said = True
    for path in _configuration("/etc/systemd/logind.conf"):
        for line in _lines(path):
            found = re.fullmatch(r"\s*RemoveIPC\s*=\s*(\w+)\s*", line)
            if found:
                said = found[1].lower() in ("yes", "true", "on", "1")
    return said


def _configuration(path: str) -> list[str]:
    try:
        more = sorted(os.listdir(f"{path}.d"))
    except OSError:
        more = []
    return [path, *(f"{path}.d/{name}" for name in more if name.endswith(".conf"))]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(path: str) -> int | None:
    for line in _lines(path):
        if line.strip().isdecimal():
            return int(line)
    return None
