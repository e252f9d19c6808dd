"""Messages between nodes, and between a process and its node: packed, and taken apart.

A message is the size of its header (u32, little-endian), the header, a JSON object, and
a body of bytes. What comes in was made by a stranger: a field is only read through the
functions here, which hold it to its type and range. Pure.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from shmstore import errors
from shmstore.names import check_name, encode_id

if TYPE_CHECKING:
    import asyncio

_SIZE = struct.Struct("<I")
#: The largest header, bytes: more than an id, a dag_id and all else can take.
LARGEST_HEADER = 64 << 10
#: The largest piece of a value in one message, bytes.
LARGEST_PIECE = 1 << 20
#: What such a message holds besides the piece, at most.
MARGIN = 1 << 10

Header = dict[str, Any]


class ProtocolError(Exception):
    """A message is not what it should be; says what is wrong, in words."""


def pack(header: Header, body: bytes | memoryview = b"") -> bytes:
    """A message."""
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join((_SIZE.pack(len(raw)), raw, body))


def unpack(message: bytes | memoryview) -> tuple[Header, memoryview]:
    """Header and body of a message.

    Raises:
        ProtocolError: It is none.
    """
    if len(message) < _SIZE.size:
        raise ProtocolError("it is shorter than the size of its header")
    (size,) = _SIZE.unpack_from(message)
    end = _SIZE.size + size
    if size > LARGEST_HEADER or end > len(message):
        raise ProtocolError(f"its header of {size:,} bytes is too long")
    try:
        header = json.loads(bytes(message[_SIZE.size : end]))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("its header is no JSON") from error
    if type(header) is not dict:
        raise ProtocolError("its header is no JSON object")
    return header, memoryview(message)[end:]


def id_of(header: Header, field: str) -> str:
    """An id or dag_id.

    Raises:
        ProtocolError: It is missing or none.
    """
    value = header.get(field)
    try:
        encode_id(value, field)
    except (TypeError, ValueError) as error:
        raise ProtocolError(str(error)) from None
    assert type(value) is str
    return value


def text(header: Header, field: str, longest: int = 1024) -> str:
    """A string of so many characters at most.

    Raises:
        ProtocolError: It is missing, too long or no string.
    """
    value: object = header.get(field)
    if type(value) is not str or len(value) > longest:
        raise ProtocolError(f"{field} is no string of at most {longest:,} characters")
    return value


def node_of(header: Header, field: str) -> str:
    """The name of a node.

    Raises:
        ProtocolError: It is missing or none.
    """
    try:
        return check_name(header.get(field), field)
    except (TypeError, ValueError) as error:
        raise ProtocolError(str(error)) from None


def integer(header: Header, field: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """An integer within bounds.

    Raises:
        ProtocolError: It is missing, out of bounds or no integer.
    """
    value: object = header.get(field)
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"{field} is no integer from {least:,} to {most:,}")
    return value


def seconds(header: Header, field: str, most: float = 1e9) -> float:
    """A time span, seconds.

    Raises:
        ProtocolError: It is missing, negative, too long or no number.
    """
    value: object = header.get(field)
    if not isinstance(value, (int, float)) or type(value) is bool or not 0 <= value <= most:
        raise ProtocolError(f"{field} is no number of seconds up to {most:g}")
    return float(value)


# --- Between a process and its node -----------------------------------------------------

#: The largest frame on the Unix socket, without its size, bytes.
LARGEST_FRAME = 64 << 10


def frame(header: Header) -> bytes:
    """A message on the Unix socket.

    Raises:
        ProtocolError: It is too large.
    """
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(raw) > LARGEST_FRAME:
        raise ProtocolError(f"a message of {len(raw):,} bytes is too large")
    return _SIZE.pack(len(raw)) + raw


def frame_size(head: bytes) -> int:
    """The size that a frame begins with.

    Raises:
        ProtocolError: It is too large.
    """
    (size,) = _SIZE.unpack(head)
    if size > LARGEST_FRAME:
        raise ProtocolError(f"a message of {size:,} bytes is too large")
    return int(size)


def parse_frame(raw: bytes) -> Header:
    """The header in a frame.

    Raises:
        ProtocolError: It is none.
    """
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("it is no JSON") from error
    if type(header) is not dict:
        raise ProtocolError("it is no JSON object")
    return header


async def read_frame(reader: asyncio.StreamReader) -> Header:
    """The next frame of a stream.

    Raises:
        ProtocolError: It is none.
        asyncio.IncompleteReadError: The stream has ended.
    """
    size = frame_size(await reader.readexactly(_SIZE.size))
    return parse_frame(await reader.readexactly(size))


def pack_error(error: errors.StoreError) -> Header:
    """An error, with its facts, to be raised by a process of this host."""
    return {"error": type(error).__name__, "facts": error.facts}


def unpack_error(header: Header) -> Exception:
    """The error in an answer of the node."""
    name, facts = header.get("error"), header.get("facts")
    kind = getattr(errors, name, None) if type(name) is str and name in errors.__all__ else None
    if kind is None or type(facts) is not dict:
        why = facts.get("why") if type(facts) is dict else None
        return ValueError(why) if name == "ValueError" else RuntimeError(f"the node failed: {why}")
    if type(facts.get("ids")) is list:
        facts["ids"] = tuple(facts["ids"])
    error: Exception = kind(**facts)
    return error
