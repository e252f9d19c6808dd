"""The payload of a pickled value: its streams and buffers, each a run of bytes.

A run is a stretch of the payload that starts on a 64-byte boundary. Meta holds a
table of the runs: offset, size, kind, and for a value that another codec stored
there that codec's meta. ``Runs`` collects them while a value is pickled;
``parse_runs`` reads the table back and checks it against the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from shmstore.codecs.encoded import ALIGNMENT, Encoded, flat
from shmstore.errors import CorruptValue

#: A pickle stream. Kinds below ``STREAM`` are the numbers of codecs.
STREAM: Final = 200
#: A buffer that an object handed out while it was pickled; the pickle stream
#: asks for such buffers in their order.
HANDED_OUT: Final = 201
#: Memory that a numpy array or a memoryview views in place.
VIEWED: Final = 202
#: Memory that its owner copies when it is built.
COPIED: Final = 203

#: Smaller memory is kept within the pickle: its place in the table would cost
#: more than the copy.
_SMALL_BYTES: Final = 256

#: A value with more runs than this keeps also larger memory within the pickle,
#: so that its meta, which lies in the log, stays small.
_MANY_RUNS: Final = 1024
_SMALL_BYTES_OF_MANY: Final = 64 * 1024

_ENTRY = Struct("<QQBI")


class Run(NamedTuple):
    """One run, as its place in the table tells."""

    offset: int
    nbytes: int
    kind: int
    meta: bytes


class RunRef:
    """Stands for a run's memory in the value that is being pickled."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Runs:
    """Collects the runs of one value. For use by one thread.

    Attributes:
        asked: True once a ``PickleBuffer`` was met.
    """

    def __init__(self) -> None:
        self.asked = False
        self._parts: list[Sequence[memoryview | bytes]] = []
        self._table: list[tuple[int, int, bytes]] = []
        # A value can be pickled twice, by reference and by value; both streams
        # share its runs. Holding an owner keeps its id from being used again.
        self._embedded: dict[int, tuple[object, int]] = {}
        self._memory: dict[int, tuple[object, RunRef]] = {}

    def _add(
        self, parts: Sequence[memoryview | bytes], nbytes: int, kind: int, meta: bytes = b""
    ) -> int:
        self._parts.append(parts)
        self._table.append((nbytes, kind, meta))
        return len(self._table) - 1

    def _too_small(self, nbytes: int) -> bool:
        many = len(self._table) >= _MANY_RUNS
        return nbytes <= (_SMALL_BYTES_OF_MANY if many else _SMALL_BYTES)

    def memory(self, owner: object, view: memoryview, kind: int) -> RunRef | bytes:
        """Gives an object's memory a run of its own, or copies it if it is small."""
        known = self._memory.get(id(owner))
        if known is not None:
            return known[1]
        if self._too_small(len(view)):
            return bytes(view)
        ref = RunRef(self._add((view,), len(view), kind))
        self._memory[id(owner)] = owner, ref
        return ref

    def hand_out(self, buffer: Any) -> bool:
        """Takes a ``PickleBuffer``; True asks the pickler to keep it in its stream."""
        self.asked = True
        try:
            view = flat(buffer.raw())
        except BufferError:
            return True
        if self._too_small(len(view)):
            return True
        self._add((view,), len(view), HANDED_OUT)
        return False

    def embed(self, value: object, encode: Callable[[Any], Encoded | None]) -> int | None:
        """Stores a value by another codec; None if that passes it on."""
        known = self._embedded.get(id(value))
        if known is not None:
            return known[1]
        encoded = encode(value)
        if encoded is None:
            return None
        index = self._add(encoded.parts, encoded.nbytes, encoded.codec, encoded.meta)
        self._embedded[id(value)] = value, index
        return index

    def add_stream(self, stream: Sequence[memoryview | bytes]) -> None:
        """Adds a pickle stream, after the buffers that it handed out."""
        self._add(stream, sum(map(len, stream)), STREAM)

    def finish(self, codec: int, head: bytes) -> Encoded:
        """Lays out all runs, of which the last is a stream."""
        parts: list[memoryview | bytes] = []
        entries = bytearray(head)
        position = 0
        for (nbytes, kind, meta), pieces in zip(self._table, self._parts, strict=True):
            gap = -position % ALIGNMENT
            if gap:
                parts.append(bytes(gap))
                position += gap
            entries += _ENTRY.pack(position, nbytes, kind, len(meta)) + meta
            parts.extend(pieces)
            position += nbytes
        return Encoded(codec, bytes(entries), parts, position)


def parse_runs(meta: bytes, start: int, nbytes: int) -> list[Run]:
    """Reads the table of runs from meta.

    Raises:
        CorruptValue: The table is malformed, or a run leaves the payload.
    """
    runs = []
    position = start
    while position < len(meta):
        if position + _ENTRY.size > len(meta):
            raise CorruptValue("the table of runs is cut off", "meta of a pickled value")
        offset, size, kind, length = _ENTRY.unpack_from(meta, position)
        position += _ENTRY.size
        if position + length > len(meta) or offset + size > nbytes or offset % ALIGNMENT:
            raise CorruptValue("a run lies outside of the payload", "meta of a pickled value")
        runs.append(Run(offset, size, kind, meta[position : position + length]))
        position += length
    if not runs or runs[-1].kind != STREAM:
        raise CorruptValue("there is no pickle stream", "meta of a pickled value")
    return runs
