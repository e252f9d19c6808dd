"""What a codec hands to the store: a payload in parts, and how to read it back.

A payload is one run of bytes. It lies in a segment that starts on a page
boundary, or, when small, in the manifest's log. A codec names the parts that
make up the payload, in order; the store writes them one after another, straight
from the value's own memory. Pure: no I/O, no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Every buffer of a payload starts on a multiple of this many bytes.
ALIGNMENT = 64

_PADDING = memoryview(bytes(ALIGNMENT))


class Encoded(NamedTuple):
    """A value, ready to be written.

    Attributes:
        codec: Number of the codec, as in ``codecs.NAMES``.
        meta: What the codec's ``decode`` needs besides the payload.
        parts: One-dimensional, contiguous views of bytes; the payload is their
            concatenation. They may point into the value's own memory.
        nbytes: Size of the payload, the sum of the parts' sizes.
    """

    codec: int
    meta: bytes
    parts: Sequence[memoryview | bytes]
    nbytes: int


class BufferNote(NamedTuple):
    """How ``get`` treats one buffer of a value.

    Attributes:
        name: What the buffer holds, for example a column's name.
        nbytes: Its size.
        copied: True if ``get`` copies it, False if the value views it in place.
        why: The reason, a clause.
    """

    name: str
    nbytes: int
    copied: bool
    why: str


def flat(buffer: Buffer) -> memoryview:
    """A one-dimensional view of a contiguous buffer's bytes, copying nothing.

    Fortran-ordered memory is viewed in the order in which it lies.
    """
    view = memoryview(buffer)
    if view.nbytes == 0:
        return memoryview(b"")
    if view.format == "B" and view.ndim == 1:
        return view
    if view.ndim == 1 and view.contiguous:
        return view.cast("B")
    import pickle

    return pickle.PickleBuffer(buffer).raw()


def lay_out(
    buffers: Iterable[memoryview | bytes],
) -> tuple[list[memoryview | bytes], list[int], int]:
    """Places buffers one after another, each on a multiple of ``ALIGNMENT``.

    Returns:
        The parts (the buffers with padding between them), the offset of each
        buffer in the payload, and the payload's size.
    """
    parts: list[memoryview | bytes] = []
    offsets: list[int] = []
    position = 0
    for buffer in buffers:
        gap = -position % ALIGNMENT
        if gap:
            parts.append(_PADDING[:gap])
            position += gap
        offsets.append(position)
        size = len(buffer)
        if size:
            parts.append(buffer)
            position += size
    return parts, offsets, position
