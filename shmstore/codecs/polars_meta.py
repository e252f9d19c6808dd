"""The meta of a value of polars: its own schema, and where its columns lie."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import xxhash

from shmstore.codecs.polars_dtypes import Spec
from shmstore.errors import CorruptValue

FRAME, SERIES = 1, 2

#: Digest of the rest, kind, rows; size and digest of the columns kept apart;
#: sizes of the schema (JSON), of the notes (JSON) and of the stream's meta.
_HEAD = struct.Struct("<QBxxxxxxxQQQIII")
_DIGEST = struct.Struct("<Q")

#: Name and described dtype of each column.
Schema = list[tuple[str, Spec]]


class Meta(NamedTuple):
    """What the meta of a value of polars says.

    Attributes:
        kind: FRAME or SERIES.
        height: Number of rows.
        apart_size: Bytes of the columns in polars' own format.
        apart_digest: Of those bytes.
        schema: Names and described dtypes, as JSON.
        notes: Which columns are kept apart, and which are sorted.
        stream: Meta of the Arrow stream.
    """

    kind: int
    height: int
    apart_size: int
    apart_digest: int
    schema: bytes
    notes: dict[str, Any]
    stream: bytes


def pack(
    kind: int, height: int, apart: bytes, schema: str, notes: dict[str, Any], *, stream: bytes
) -> bytes:
    """Puts a meta together; see ``Meta``."""
    text = schema.encode()
    noted = json.dumps(notes).encode() if notes else b""
    digest = xxhash.xxh3_64_intdigest(apart)
    head = _HEAD.pack(0, kind, height, len(apart), digest, len(text), len(noted), len(stream))
    rest = b"".join((head[_DIGEST.size :], text, noted, stream))
    return _DIGEST.pack(xxhash.xxh3_64_intdigest(rest)) + rest


def unpack(meta: bytes) -> Meta:
    """Takes a meta apart; raises CorruptValue if it was changed."""
    if len(meta) < _HEAD.size:
        raise CorruptValue(check="too short", where="meta of a polars value")
    wanted, kind, height, size, digest, schema, notes, stream = _HEAD.unpack_from(meta)
    if xxhash.xxh3_64_intdigest(memoryview(meta)[_DIGEST.size :]) != wanted:
        raise CorruptValue(check="the digest differs", where="meta of a polars value")
    at = _HEAD.size
    text = meta[at : at + schema]
    noted = meta[at + schema : at + schema + notes]
    at += schema + notes
    return Meta(
        kind, height, size, digest, text, json.loads(noted) if noted else {}, meta[at : at + stream]
    )


@lru_cache(maxsize=64)
def parse_schema(text: bytes) -> Schema:
    """Names and described dtypes of all columns."""
    return [(name, found) for name, found in json.loads(text)]
