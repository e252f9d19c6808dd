"""The meta of a value of pyarrow: which kind of value it is, and how to check its payload."""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from shmstore.errors import CorruptValue

CODEC = 6

TABLE, BATCH, ARRAY, CHUNKED, SCALAR, SCHEMA, FIELD, TYPE, TENSOR, BUFFER = range(1, 11)

#: Digest of the rest, kind, number of extension types, rows, digest of the
#: payload's metadata, sizes of: the schema, the spans, the buffers' sizes.
_HEAD = struct.Struct("<QBxHQQIII")
_DIGEST = struct.Struct("<Q")


class Meta(NamedTuple):
    """What the meta of a value of pyarrow says.

    Attributes:
        kind: What the value is, one of the numbers above.
        rows: How many rows it has.
        digest: Of the payload's metadata.
        schema: Metadata of the schema message.
        spans: Where the payload's messages lie.
        sizes: Bytes in each buffer, packed.
        extensions: How many columns, at any depth, have an extension type.
    """

    kind: int
    rows: int
    digest: int
    schema: bytes
    spans: bytes
    sizes: bytes
    extensions: int


def pack(
    kind: int,
    rows: int,
    digest: int,
    schema: bytes = b"",
    spans: bytes = b"",
    *,
    totals: bytes = b"",
    extensions: int = 0,
) -> bytes:
    """Puts a meta together; see ``Meta``."""
    head = _HEAD.pack(
        0, kind, min(extensions, 0xFFFF), rows, digest, len(schema), len(spans), len(totals)
    )
    rest = b"".join((head[_DIGEST.size :], schema, spans, totals))
    return _DIGEST.pack(xxhash.xxh3_64_intdigest(rest)) + rest


def unpack(meta: bytes) -> Meta:
    """Takes a meta apart; raises CorruptValue if it was changed."""
    if len(meta) < _HEAD.size:
        raise CorruptValue(check="too short", where="meta of an Arrow value")
    wanted, kind, extensions, rows, digest, schema, spans, totals = _HEAD.unpack_from(meta)
    if xxhash.xxh3_64_intdigest(memoryview(meta)[_DIGEST.size :]) != wanted:
        raise CorruptValue(check="the digest differs", where="meta of an Arrow value")
    at = _HEAD.size
    return Meta(
        kind,
        rows,
        digest,
        meta[at : at + schema],
        meta[at + schema : at + schema + spans],
        meta[at + schema + spans : at + schema + spans + totals],
        extensions,
    )
