"""Polars frames and series, stored as Arrow IPC and read through Arrow's C interface.

The payload is a plain Arrow stream at polars' newest compat level, so nothing
is converted in either direction; the meta has polars' own schema beside it.
Columns that Arrow's C interface cannot carry between polars and pyarrow (128-bit
integers, names with a NUL character) follow behind the stream in polars' own
IPC format and are copied when read. What neither keeps is refused: never is a
column given back with another dtype.

Not kept: how columns are cut into chunks, the physical codes of Categoricals
(their strings and their ``Categories`` are), and the flag FAST_EXPLODE.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import polars as pl
import pyarrow as pa
import xxhash

from shmstore.codecs import arrow
from shmstore.codecs.arrow_layout import read_schema
from shmstore.codecs.encoded import ALIGNMENT, BufferNote, Encoded
from shmstore.codecs.polars_dtypes import (
    EXTENSION,
    Spec,
    has_nul,
    has_width_zero,
    is_named,
    spec,
)
from shmstore.errors import CorruptValue, Unserializable

CODEC = 7

_NEWEST = pl.CompatLevel.newest()

#: Digest of the rest, then the sizes of the facts (JSON) and of the Arrow meta.
_HEAD = struct.Struct("<QII")
_DIGEST_SIZE = 8

_WIDE = frozenset({"Int128", "UInt128"})
#: One of these in the facts is a reason to look closer.
_SUSPECTS = ('"Object"', '"Int128"', '"UInt128"', '["Array", 0', "\\u0000")

_FLAGS = {"SORTED_ASC": False, "SORTED_DESC": True}


class _Stream:
    """Hides from polars that a table is one of pyarrow's, whose types it would convert."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def encode(value: Any) -> Encoded | None:
    """Encodes a DataFrame or a Series.

    Returns:
        None for what is neither, such as a LazyFrame or an instance of a subclass.

    Raises:
        Unserializable: For columns that hold Python objects or arrays of width 0.
    """
    cls = type(value)
    if cls is pl.DataFrame:
        frame = value
    elif cls is pl.Series:
        frame = value.to_frame()
    else:
        return None
    try:
        schema = [[name, spec(dtype)] for name, dtype in frame.schema.items()]
    except KeyError:
        return None
    facts: dict[str, Any] = {"series": cls is pl.Series, "height": frame.height, "schema": schema}
    text = json.dumps(schema)
    apart: list[int] = []
    if any(suspect in text for suspect in _SUSPECTS):
        apart = [index for index, (name, found) in enumerate(schema) if _is_apart(name, found)]
    table, inner = _encode_arrow(frame, apart)
    if inner is None:
        return None
    read = _reads_as(inner.schema)
"""
"""
