"""The messages of an Arrow IPC stream that pyarrow has just written, taken apart.

A message in a stream is ``FFFFFFFF``, the metadata's length (int32), the
metadata (a flatbuffer, padded) and the body. Tables of a flatbuffer start with
the signed distance back to their vtable, which holds the position of each field
inside the table, or 0 if the field has its default::

    Message         0 version  1 header type  2 header  3 body length (int64)
    RecordBatch     0 length  1 nodes  2 buffers  3 compression  4 variadic counts
    DictionaryBatch 0 id (int64)  1 data (a RecordBatch)  2 is delta

This module trusts what it parses, and must never be given what was stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

PREFIX = struct.Struct("<Ii")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
#: Sizes of a vtable and of its table, then the positions of fields 0, 1 and 2.
_VTABLE = struct.Struct("<5H")

#: What begins a message: CONTINUATION, and the size of its metadata.
CONTINUATION = 0xFFFFFFFF
DICTIONARY_BATCH = 2
RECORD_BATCH = 3


class Body(NamedTuple):
    """The buffers of one message.

    Attributes:
        dictionary: The id of the dictionary that it carries, or -1 for a record batch.
        sizes: The size of each buffer, in the order of the metadata.
        nodes: Length and number of nulls of each column, at every depth, alternating.
        variadic: How many data buffers each column of a view type has.
    """

    dictionary: int
    sizes: Sequence[int]
    nodes: Sequence[int]
    variadic: Sequence[int]


class Message(NamedTuple):
    """A message with a body, as pyarrow wrote it.

    Attributes:
        metadata: Its flatbuffer.
        length_at: Where in the metadata the body's length lies, 0 if it is 0.
        kind: What it is.
        header_at: Where in the metadata its header lies.
        body: Its body, whole or as pieces by their position.
    """

    metadata: bytearray
    length_at: int
    kind: int
    header_at: int
    body: memoryview | dict[int, Any]


def split_whole(stream: memoryview) -> Iterator[Message]:
    """The messages of a stream that lies in one piece."""
    position = 0
    while True:
        size = PREFIX.unpack_from(stream, position)[1]
        if size == 0:
            return
        start = position + PREFIX.size
        metadata = bytearray(stream[start : start + size])
        length_at, kind, header_at = _message(metadata)
        start += size
        position = start + (_I64.unpack_from(metadata, length_at)[0] if length_at else 0)
        yield Message(metadata, length_at, kind, header_at, stream[start:position])


def split_pieces(pieces: list[Any]) -> Iterator[Message]:
    """The messages of a stream in the pieces in which pyarrow wrote it."""
    at = 0
    while True:
        metadata = bytearray()
        size = PREFIX.size
        while len(metadata) < size:
            metadata += pieces[at]
            at += 1
            if len(metadata) == PREFIX.size:
                size += PREFIX.unpack(metadata)[1]
        if size == PREFIX.size:
            return
        del metadata[: PREFIX.size]
        length_at, kind, header_at = _message(metadata)
        length = _I64.unpack_from(metadata, length_at)[0] if length_at else 0
        body: dict[int, Any] = {}
        position = 0
        while position < length:
            body[position] = pieces[at]
            position += len(pieces[at])
            at += 1
        yield Message(metadata, length_at, kind, header_at, body)


def _message(metadata: bytearray) -> tuple[int, int, int]:
    """Where the body's length lies, the kind of a message, and where its header lies."""
    table = _U32.unpack_from(metadata)[0]
    vtable = _vtable(metadata, table)
    size, _, _, kind, header = _VTABLE.unpack_from(metadata, vtable)
    length = _U16.unpack_from(metadata, vtable + 10)[0] if size >= 12 else 0
    return table + length if length else 0, metadata[table + kind], _refer(metadata, table + header)


def ranges_of(message: Message) -> tuple[int, Sequence[int], Body]:
    """Where the offsets and sizes of a message's buffers lie, and what they are."""
    metadata, table = message.metadata, message.header_at
    dictionary = -1
    if message.kind == DICTIONARY_BATCH:
        _, _, id_at, data, _ = _VTABLE.unpack_from(metadata, _vtable(metadata, table))
        # An absent id has its default.
        dictionary = _I64.unpack_from(metadata, table + id_at)[0] if id_at else 0
        table = _refer(metadata, table + data)
    vtable = _vtable(metadata, table)
    size, _, _, columns, buffers = _VTABLE.unpack_from(metadata, vtable)
    _, nodes = _numbers(metadata, table, columns, 2)
    at, ranges = _numbers(metadata, table, buffers, 2)
    counts = _U16.unpack_from(metadata, vtable + 12)[0] if size >= 14 else 0
    _, variadic = _numbers(metadata, table, counts, 1)
    return at, ranges, Body(dictionary, ranges[1::2], nodes, variadic)


def _vtable(metadata: bytearray, table: int) -> int:
    return table - int(_I32.unpack_from(metadata, table)[0])


def _refer(metadata: bytearray, at: int) -> int:
    """Position of the table or vector that a field refers to."""
    return at + int(_U32.unpack_from(metadata, at)[0])


def _numbers(metadata: bytearray, table: int, field: int, each: int) -> tuple[int, Sequence[int]]:
    """Position and content of a vector whose elements are ``each`` 64-bit numbers."""
    if not field:
        return 0, ()
    at = _refer(metadata, table + field)
    count = _U32.unpack_from(metadata, at)[0] * each
    return at + 4, struct.unpack_from(f"<{count}q", metadata, at + 4)
