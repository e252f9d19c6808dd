"""Messages between nodes, and between a process and its node: packed, and taken apart.

A message is the size of its header (u32, little-endian), the header, a JSON object, and
a body of bytes. What comes in was made by a stranger: a field is only read through the
functions here, which hold it to its type and range. Pure.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from shmstore.names import encode_id

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


def unpack(message: bytes) -> tuple[Header, memoryview]:
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
        header = json.loads(message[_SIZE.size : end])
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
