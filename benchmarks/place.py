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


@contextmanager
def temporary() -> Iterator[str]:
    """A new directory; removed at the end, at Ctrl-C and at SIGTERM, too."""
    before = signal.signal(signal.SIGTERM, _leave)
    path = tempfile.mkdtemp(prefix="shmstore-bench-", dir=SHARED_MEMORY)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def allocated(path: str) -> int:
    """Bytes of memory that the files below ``path`` take."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_blocks * 512
        for directory, _, files in os.walk(path)
        for name in files
    )


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
