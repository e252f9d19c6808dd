"""Where a run keeps its files: one directory in shared memory, gone when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SHARED_MEMORY = "/dev/shm"


def prefix(pid: int) -> str:
    """How the directories and blocks of a run are named that has this process id."""
    return f"shmstore-bench-{pid}-"


@contextmanager
def temporary() -> Iterator[str]:
    """A new directory; removed at the end, at Ctrl-C and at SIGTERM, too."""
    before = signal.signal(signal.SIGTERM, _leave)
    path = tempfile.mkdtemp(prefix=prefix(os.getpid()), dir=SHARED_MEMORY)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def below(path: str, name: str) -> Iterator[str]:
    """A new directory ``path/name``, removed at the end."""
    own = os.path.join(path, name)
    os.mkdir(own, 0o700)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def allocated(path: str) -> int:
    """Bytes of memory that the files below ``path`` take."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_blocks * 512
        for directory, _, files in os.walk(path)
        for name in files
    )


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
