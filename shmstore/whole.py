"""Files for other programs, outside of the store: written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import IO


def write_whole(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file that appears whole or not at all; one that is there is replaced.

    What is no regular file, a pipe or a device, is written to as it is.

    Raises:
        OSError: It cannot be written.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        regular = True
    if not regular:
        with open(path, "wb") as out:
            write(out)
        return
    path = os.path.realpath(path)  # a link stays a link
    directory = os.path.dirname(path)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".shmstore-", delete=False) as out:
        try:
            write(out)
            out.flush()
            os.fchmod(out.fileno(), 0o666 & ~_umask())
            os.replace(out.name, path)
        except BaseException:
            os.unlink(out.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
