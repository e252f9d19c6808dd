"""Takes a value through encode and decode as the store does: over a mapping."""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np

from shmstore import codecs
from shmstore.codecs.encoded import Encoded


class Trip(NamedTuple):
    """A value that was encoded, and what came back."""

    encoded: Encoded
    payload: memoryview
    value: Any

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """True if all of an array's memory lies within the payload."""
        low, high = np.lib.array_utils.byte_bounds(array)
        start = np.frombuffer(self.payload, np.uint8).ctypes.data
        return start <= low <= high <= start + len(self.payload)


def mapped(encoded: Encoded, *, writable: bool = False) -> memoryview:
    """The payload in a mapping of its own, as a reader sees it."""
    assert sum(map(len, encoded.parts)) == encoded.nbytes
    area = mmap.mmap(-1, max(encoded.nbytes, 1))
    area[: encoded.nbytes] = b"".join(encoded.parts)
    view = memoryview(area)[: encoded.nbytes]
    return view if writable else view.toreadonly()


def round_trip(value: Any, *, writable: bool = False) -> Trip:
    """Encodes a value, maps its payload and decodes it."""
    encoded = codecs.encode(value)
    payload = mapped(encoded, writable=writable)
    back = codecs.decode(encoded.codec, encoded.meta, payload)
    notes = codecs.explain(encoded.codec, encoded.meta, encoded.nbytes)
    assert sum(note.nbytes for note in notes) <= encoded.nbytes
    return Trip(encoded, payload, back)
