"""What cannot be stored because it lives in one process only, and why.

dill would store some of these all the same: it reopens files by name, makes a
new unlocked lock of a held one and keeps a capsule's bare pointer.
"""

from __future__ import annotations

import io
import mmap
import queue
import select
import socket
import sqlite3
import subprocess
import threading
import types
import weakref
from typing import Final

_ITERATED = "it runs in this process, and reading it to its end would use it up"
_OPEN = "it is an open file of this process; store its path or its content"
_LOCK = "a lock has a meaning only among the threads that hold it"
_RUNNING = "it belongs to a running thread of this process"

#: Each type, with its subclasses unless they say how to pickle them, and why.
_REASONS: Final[dict[type, str]] = {
    # The ancestor of the files written in C; io.IOBase is only their interface.
    io.IOBase.__mro__[1]: _OPEN,
    socket.socket: "it is an open connection of this process",
    select.epoll: "it is an open descriptor of this process",
    mmap.mmap: "it is a mapping of this process; store bytes or a memoryview of it",
    sqlite3.Connection: "it is an open connection of this process",
    sqlite3.Cursor: "it is an open connection of this process",
    subprocess.Popen: "it is a child of this process",
    threading.Thread: "it is a thread of this process",
    type(threading.Lock()): _LOCK,
    type(threading.RLock()): _LOCK,
    threading.Condition: _LOCK,
    threading.Event: _LOCK,
    threading.Semaphore: _LOCK,
    threading.Barrier: _LOCK,
    threading.local: _RUNNING,
    queue.Queue: "a queue hands its elements on within one process",
    queue.SimpleQueue: "a queue hands its elements on within one process",
    types.GeneratorType: _ITERATED,
    types.CoroutineType: _ITERATED,
    types.AsyncGeneratorType: _ITERATED,
    types.FrameType: _RUNNING,
    types.TracebackType: _RUNNING,
    weakref.ref: "nothing would keep alive what it refers to",
}

#: In memory only, and pickled whole.
_ALLOWED: Final = frozenset({io.BytesIO, io.StringIO})

_HOOKS: Final = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__")


def why_refused(kind: type) -> str | None:
    """The reason why values of a type cannot be stored, or None."""
    if kind in _ALLOWED:
        return None
    if kind.__name__ == "PyCapsule" and kind.__module__ == "builtins":
        return "it is a bare pointer into this process's memory"
    mro = kind.__mro__
    for index, cls in enumerate(mro):
        reason = _REASONS.get(cls)
        if reason is not None:
            # A subclass that says itself how to pickle it knows better.
            return None if any(_says_how(sub) for sub in mro[:index]) else reason
    return None


def _says_how(kind: type) -> bool:
    # io's own classes define __getstate__ or __reduce__ only to raise.
    return kind.__module__ not in ("io", "_io", "socket") and any(
        hook in vars(kind) for hook in _HOOKS
    )
