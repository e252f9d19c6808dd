"""Processes with mounts, and pids, of their own: nothing of them is left when they end.

As root a process unshares what it needs; otherwise it becomes root of a user namespace
of its own first. Where neither is allowed a test fails and says so.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

from tests.fault.killing import DEADLINE_S, Child

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PR_SET_PDEATHSIG = 1
_BY_SIGNAL = 128
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        reason = os.strerror(ctypes.get_errno())
        raise AssertionError(f"this test needs root, or user namespaces: {what}: {reason}")


def _unshare(flags: int) -> None:
    """In a child with one thread only."""
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        flags |= _NEWUSER
    _checked(_libc.unshare(flags), "unshare")
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def mount(source: str, path: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """Mounts, in a process with mounts of its own."""
    result = _libc.mount(
        source.encode(),
        path.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _checked(result, f"mount {path}")


def mount_tmpfs(path: str, size_bytes: int) -> str:
    """Mounts a tmpfs of a size at a directory that is made if need be; returns its path."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    mount("none", path, "tmpfs", options=f"size={size_bytes},mode=0700")
    return path


def with_mounts(function: Callable[..., Any], *args: Any, timeout_s: float = DEADLINE_S) -> Any:
    """What ``function`` returns in a process with mounts of its own.

    However else the process ends, by SIGBUS say, is a failure that tells how.
    """

    def enclosed() -> Any:
        _unshare(_NEWNS)
        return function(*args)

    with Child(enclosed) as child:
        result = child.receive(timeout_s)
        assert child.join() == 0
        return result


def container(function: Callable[..., Any], *args: Any) -> Child:
    """A process of a pid namespace of its own, with a /proc to match, as in a container.

    ``function`` runs as its pid 2, since the kernel spares pid 1 its own signals. The
    child ends as the function's process does, and takes the namespace with it.
    """

    def outer(*given: Any) -> Any:
        _unshare(_NEWNS | _NEWPID)
        init = os.fork()
        if init:
            status = os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
            if status > _BY_SIGNAL:
                os.kill(os.getpid(), status - _BY_SIGNAL)
            os._exit(status)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        mount("proc", "/proc", "proc")
        inner = os.fork()
        if inner:
            status = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
            os._exit(status if status >= 0 else _BY_SIGNAL - status)
        assert os.getpid() == 2
        return function(*given)

    return Child(outer, *args)


def contained(function: Callable[..., Any], *args: Any, timeout_s: float = DEADLINE_S) -> Any:
    """What ``function`` returns in a container."""
    with container(function, *args) as child:
        result = child.receive(timeout_s)
        assert child.join() == 0
        return result


def pid_within(child: Child) -> int:
    """The pid, in this namespace, of what runs as pid 2 of a container that has begun."""
    pid = child.pid
    for _ in range(2):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            (pid,) = map(int, file.read().split())
    return pid
