"""Arrow IPC streams whose buffers start on 64-byte boundaries, written without a copy.

pyarrow's own writer hands every body buffer to a Python sink as it lies in
memory, but places buffers on multiples of 8 only and has no option for more. So
its messages are taken apart here and laid out again. Three things of a message
change, all of fixed width and in place: the (offset, length) pairs of its
buffers, the length of its body, and the zeros behind its metadata. What results
is an ordinary stream that any Arrow implementation reads.

A message in a stream is ``FFFFFFFF``, the metadata's length (int32), the
metadata (a flatbuffer, padded) and the body. Tables of a flatbuffer start with
the signed distance back to their vtable, which holds the position of each field
inside the table, or 0 if the field has its default::

    Message         0 version  1 header type  2 header  3 body length (int64)
    RecordBatch     0 length  1 nodes  2 buffers  3 compression  4 variadic counts
    DictionaryBatch 0 id (int64)  1 data (a RecordBatch)  2 is delta

Only metadata that pyarrow has just written is parsed. What is read back is
first compared with a digest, so damaged metadata never reaches a parser.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from shmstore.codecs.encoded import ALIGNMENT
from shmstore.errors import CorruptValue

_PREFIX = struct.Struct("<Ii")
_SPAN = struct.Struct("<IQ")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
#: Sizes of a vtable and of its table, then the positions of fields 0, 1 and 2.
_VTABLE = struct.Struct("<5H")

_CONTINUATION = 0xFFFFFFFF
_END_OF_STREAM = _PREFIX.pack(_CONTINUATION, 0)
_DICTIONARY_BATCH = 2
_RECORD_BATCH = 3

#: Up to this size one copy inside Arrow is cheaper than a call to Python a buffer.
_SMALL_BYTES = 64 * 1024

#: Bodies up to this size are written as they are.
_WORTH_SHRINKING_BYTES = 1024

_EMPTY = memoryview(b"")
_PADDING = [bytes(size) for size in range(ALIGNMENT)]

_WRITE_OPTIONS = pa.ipc.IpcWriteOptions(
    allow_64bit=True, compression=None, use_threads=False, emit_dictionary_deltas=False
)
#: Threads serve decompression only, and nothing here is compressed.
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


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


#: Given the schema's metadata, a body and its buffers; gives fewer bytes for some of them.
Shrink = Callable[[bytes, Body, list[memoryview]], list[memoryview]]


class Stream(NamedTuple):
    """A stream, ready to be written.

    Attributes:
        schema: The metadata of the schema message.
        parts: Views of bytes whose concatenation is the stream.
        nbytes: Its size.
        spans: Size of metadata and body of each message, packed; what ``check`` needs.
        digest: Over everything but the bodies; what ``check`` needs.
        bodies: What the messages after the schema hold.
    """

    schema: bytes
    parts: list[memoryview | bytes]
    nbytes: int
    spans: bytes
    digest: int
    bodies: list[Body]


class _Sink:
    """Takes what pyarrow writes, piece by piece and uncopied.

    Body buffers arrive as ``pyarrow.Buffer``, everything else as ``bytes``.
    """

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.write = self.pieces.append

    def tell(self) -> int:
        return 0

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def write(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], nbytes: int, shrink: Shrink
) -> Stream:
    """Writes batches as a stream; large buffers stay where they are.

    Args:
        schema: The schema of all batches.
        batches: What to write.
        nbytes: About how large the buffers are; decides only how they are written.
        shrink: Called for each message that is not small.

    Raises:
        pa.ArrowException: If Arrow cannot write the type.
    """
    if nbytes <= _SMALL_BYTES:
        stream = pa.BufferOutputStream()
        _write(stream, schema, batches)
        return _align(_split_whole(memoryview(stream.getvalue()).cast("B")), shrink)
    sink = _Sink()
    _write(pa.PythonFile(sink, "w"), schema, batches)
    return _align(_split_pieces(sink.pieces), shrink)


def _write(sink: pa.NativeFile, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    writer = pa.ipc.RecordBatchStreamWriter(sink, schema, options=_WRITE_OPTIONS)
    for batch in batches:
        writer.write_batch(batch)
    writer.close()


class _Message(NamedTuple):
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


def _split_whole(stream: memoryview) -> Iterator[_Message]:
    """The messages of a stream that lies in one piece."""
    position = 0
    while True:
        size = _PREFIX.unpack_from(stream, position)[1]
        if size == 0:
            return
        start = position + _PREFIX.size
        metadata = bytearray(stream[start : start + size])
        length_at, kind, header_at = _message(metadata)
        start += size
        position = start + (_I64.unpack_from(metadata, length_at)[0] if length_at else 0)
        yield _Message(metadata, length_at, kind, header_at, stream[start:position])


def _split_pieces(pieces: list[Any]) -> Iterator[_Message]:
    """The messages of a stream in the pieces in which pyarrow wrote it."""
    at = 0
    while True:
        metadata = bytearray()
        size = _PREFIX.size
        while len(metadata) < size:
            metadata += pieces[at]
            at += 1
            if len(metadata) == _PREFIX.size:
                size += _PREFIX.unpack(metadata)[1]
        if size == _PREFIX.size:
            return
        del metadata[: _PREFIX.size]
        length_at, kind, header_at = _message(metadata)
        length = _I64.unpack_from(metadata, length_at)[0] if length_at else 0
        body: dict[int, Any] = {}
        position = 0
        while position < length:
            body[position] = pieces[at]
            position += len(pieces[at])
            at += 1
        yield _Message(metadata, length_at, kind, header_at, body)


def _align(messages: Iterable[_Message], shrink: Shrink) -> Stream:
    """Lays messages out so that bodies and their buffers start on multiples of 64."""
    parts: list[memoryview | bytes] = []
    spans: list[bytes] = []
    bodies: list[Body] = []
    digest = xxhash.xxh3_64()
    nbytes = 0
    schema = b""
    for message in messages:
        metadata = message.metadata
        body_parts: list[memoryview | bytes] = []
        position = 0
        if message.kind in (_RECORD_BATCH, _DICTIONARY_BATCH):
            ranges_at, ranges, body = _ranges(message)
            buffers = _cut(message.body, ranges)
            if sum(body.sizes) > _WORTH_SHRINKING_BYTES:
                buffers = shrink(schema, body, buffers)
                body = body._replace(sizes=[len(buffer) for buffer in buffers])
            bodies.append(body)
            laid_out: list[int] = []
            for buffer, size in zip(buffers, body.sizes, strict=True):
                laid_out += (position, size)
                if size:
                    body_parts += (buffer, _PADDING[-size % ALIGNMENT])
                    position += size + -size % ALIGNMENT
            struct.pack_into(f"<{len(laid_out)}q", metadata, ranges_at, *laid_out)
            if message.length_at:
                _I64.pack_into(metadata, message.length_at, position)
        else:
            schema = bytes(metadata)
        metadata.extend(_PADDING[-(_PREFIX.size + len(metadata)) % ALIGNMENT])
        head = _PREFIX.pack(_CONTINUATION, len(metadata)) + metadata
        digest.update(head)
        parts.append(head)
        parts += body_parts
        spans.append(_SPAN.pack(len(head), position))
        nbytes += len(head) + position
    digest.update(_END_OF_STREAM)
    parts.append(_END_OF_STREAM)
    spans.append(_SPAN.pack(len(_END_OF_STREAM), 0))
    nbytes += len(_END_OF_STREAM)
    if nbytes <= _SMALL_BYTES:
        parts = [b"".join(parts)]
    return Stream(schema, parts, nbytes, b"".join(spans), digest.intdigest(), bodies)


def _cut(body: memoryview | dict[int, Any], ranges: Sequence[int]) -> list[memoryview]:
    """The buffers at these offsets and sizes, which alternate."""
    pairs = zip(ranges[::2], ranges[1::2], strict=True)
    if isinstance(body, memoryview):
        return [body[offset : offset + size] for offset, size in pairs]
    return [memoryview(body[offset]).cast("B")[:size] if size else _EMPTY for offset, size in pairs]


def check(payload: memoryview, spans: bytes, digest: int) -> int:
    """Makes sure that all metadata of a stream is as it was written.

    Args:
        payload: What starts with the stream.
        spans: As given by ``write``.
        digest: As given by ``write``.

    Returns:
        The stream's size.

    Raises:
        CorruptValue: If a message is out of bounds or was changed.
    """
    size = len(payload)
    seen = xxhash.xxh3_64()
    position = 0
    for head, body in _SPAN.iter_unpack(spans):
        if position + head + body > size:
            raise CorruptValue(check="an Arrow message ends outside the payload", where="payload")
        seen.update(payload[position : position + head])
        position += head + body
    if seen.intdigest() != digest:
        raise CorruptValue(check="the digest of the Arrow metadata differs", where="payload")
    return position


def read(payload: memoryview) -> pa.RecordBatchReader:
    """Opens a checked stream; what is read views the payload and keeps it alive."""
    return pa.ipc.RecordBatchStreamReader(pa.py_buffer(payload), options=_READ_OPTIONS)


def _message(metadata: bytearray) -> tuple[int, int, int]:
    """Where the body's length lies, the kind of a message, and where its header lies."""
    table = _U32.unpack_from(metadata)[0]
    vtable = _vtable(metadata, table)
    size, _, _, kind, header = _VTABLE.unpack_from(metadata, vtable)
    length = _U16.unpack_from(metadata, vtable + 10)[0] if size >= 12 else 0
    return table + length if length else 0, metadata[table + kind], _refer(metadata, table + header)


def _ranges(message: _Message) -> tuple[int, Sequence[int], Body]:
    """Where the offsets and sizes of a message's buffers lie, and what they are."""
    metadata, table = message.metadata, message.header_at
    dictionary = -1
    if message.kind == _DICTIONARY_BATCH:
        _, _, id_at, data, _ = _VTABLE.unpack_from(metadata, _vtable(metadata, table))
        # An absent id has its default.
        dictionary = _I64.unpack_from(metadata, table + id_at)[0] if id_at else 0
        table = _refer(metadata, table + data)
    vtable = _vtable(metadata, table)
    size, _, _, columns, buffers = _VTABLE.unpack_from(metadata, vtable)
    _, nodes = _numbers(metadata, table, columns, 2)
    at, ranges = _numbers(metadata, table, buffers, 2)
    counts = _U16.unpack_from(metadata, vtable + 12)[0] if size >= 14 else 0
    variadic = _numbers(metadata, table, counts, 1)[1] if counts else ()
    return at, ranges, Body(dictionary, ranges[1::2], nodes, variadic)


def _vtable(metadata: bytearray, table: int) -> int:
    return table - int(_I32.unpack_from(metadata, table)[0])


def _refer(metadata: bytearray, at: int) -> int:
    """Position of the table or vector that a field refers to."""
    return at + int(_U32.unpack_from(metadata, at)[0])


def _numbers(metadata: bytearray, table: int, field: int, each: int) -> tuple[int, Sequence[int]]:
    """Position and content of a vector whose elements are ``each`` 64-bit numbers."""
    at = _refer(metadata, table + field)
    count = _U32.unpack_from(metadata, at)[0] * each
    return at + 4, struct.unpack_from(f"<{count}q", metadata, at + 4)
