"""A file to unpickle from, over a payload, that copies no more than it must.

``io.BytesIO`` would copy the whole pickle before its first byte is read, which
for a value with large strings doubles the memory that a ``get`` needs.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SMALL_BYTES = 64 * 1024


class _Reader:
    """The three methods that an unpickler needs, over a view of bytes."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._position + size
        data = bytes(self._view[self._position : end])
        self._position += len(data)
        return data

    def readinto(self, target: Buffer) -> int:
        into = memoryview(target).cast("B")
        piece = self._view[self._position : self._position + len(into)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readline(self) -> bytes:
        position = self._position
        # Only opcodes of protocol 0 read lines, and their lines are short.
        rest = bytes(self._view[position : position + _SMALL_BYTES])
        newline = rest.find(b"\n")
        return self.read(len(rest) if newline < 0 else newline + 1)


def reader_of(view: memoryview) -> io.BytesIO | _Reader:
    """Opens a view of bytes for an unpickler."""
    return io.BytesIO(view) if len(view) <= _SMALL_BYTES else _Reader(view)
