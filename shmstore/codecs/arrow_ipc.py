"""Arrow IPC streams whose buffers start on 64-byte boundaries, written without a copy.

pyarrow's own writer hands every body buffer to a Python sink as it lies in
memory, but places buffers on multiples of 8 only and has no option for more. So
its messages are taken apart here and laid out again. Three things of a message
change, all of fixed width and in place: the (offset, length) pairs of its
buffers, the length of its body, and the zeros behind its metadata. What results
is an ordinary stream that any Arrow implementation reads.

Only metadata that pyarrow has just written is parsed. What is read back is
first compared with a digest, so damaged metadata never reaches a parser.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from shmstore.codecs.arrow_messages import (
    CONTINUATION,
    DICTIONARY_BATCH,
    PREFIX,
    RECORD_BATCH,
    Body,
    Message,
    ranges_of,
    split_pieces,
    split_whole,
)
from shmstore.codecs.encoded import ALIGNMENT
from shmstore.errors import CorruptValue

_SPAN = struct.Struct("<IQ")
_I64 = struct.Struct("<q")

_END_OF_STREAM = PREFIX.pack(CONTINUATION, 0)

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
        return _align(split_whole(memoryview(stream.getvalue()).cast("B")), shrink)
    sink = _Sink()
    _write(pa.PythonFile(sink, "w"), schema, batches)
    return _align(split_pieces(sink.pieces), shrink)


def _write(sink: pa.NativeFile, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    writer = pa.ipc.RecordBatchStreamWriter(sink, schema, options=_WRITE_OPTIONS)
    for batch in batches:
        writer.write_batch(batch)
    writer.close()


def _align(messages: Iterable[Message], shrink: Shrink) -> Stream:
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
        if message.kind in (RECORD_BATCH, DICTIONARY_BATCH):
            ranges_at, ranges, body = ranges_of(message)
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
        metadata.extend(_PADDING[-(PREFIX.size + len(metadata)) % ALIGNMENT])
        head = PREFIX.pack(CONTINUATION, len(metadata)) + metadata
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
