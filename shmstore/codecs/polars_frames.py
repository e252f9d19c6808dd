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
from functools import lru_cache
from typing import Any

import polars as pl
import pyarrow as pa
import xxhash

from shmstore.codecs import arrow, arrow_checks
from shmstore.codecs.arrow_layout import EXTENSION_KEY, MAP_OFFSETS, VALIDITY, read_schema
from shmstore.codecs.arrow_meta import unpack as unpack_stream
from shmstore.codecs.encoded import ALIGNMENT, BufferNote, Encoded
from shmstore.codecs.polars_checks import check_notes, is_sorted, read_checked
from shmstore.codecs.polars_dtypes import (
    EXTENSION,
    Spec,
    has_nul,
    has_width_zero,
    is_named,
    spec,
)
from shmstore.codecs.polars_meta import FRAME, SERIES, Meta, Schema, pack, parse_schema, unpack
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue, Unserializable

CODEC = 7

_NEWEST = pl.CompatLevel.newest()

#: One of these in the schema is a reason to look closer.
_SUSPECTS = ('"Object"', '"Int128"', '"UInt128"', '["Array", 0', "\\u0000")
_WIDE = frozenset({"Int128", "UInt128"})
_OBJECT = frozenset({"Object"})


class _Stream:
    """Hides from polars that a table is one of pyarrow's, whose types it would convert."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def encode(value: Any) -> Encoded | None:
    """Encodes a DataFrame or a Series.

    Returns:
        None for what is neither, such as a LazyFrame or an instance of a
        subclass, and for dtypes that are not known here.

    Raises:
        Unserializable: For columns of Python objects or of arrays of width 0.
    """
    cls = type(value)
    if cls is pl.DataFrame:
        frame = value
    elif cls is pl.Series:
        frame = value.to_frame()
    else:
        return None
    try:
        schema = _schema(frame)
    except KeyError:
        return None
    text = json.dumps(schema)
    apart: list[int] = []
    if any(suspect in text for suspect in _SUSPECTS):
        apart = [index for index, (name, found) in enumerate(schema) if _is_apart(name, found)]
    stream = _encode_stream(frame, apart)
    lost = None if stream is None else _lost(stream, schema, apart)
    if lost:
        apart += lost
        stream = _encode_stream(frame, apart)
        lost = None if stream is None else _lost(stream, schema, apart)
    if stream is None or lost:
        return None
    rest = _encode_apart(frame, schema, apart)
    if rest is None:
        return None
    notes: dict[str, Any] = {}
    if apart:
        notes["apart"] = sorted(apart)
    directions = _sorted_columns(frame)
    if directions:
        notes["sorted"] = directions
    meta = pack(
        SERIES if cls is pl.Series else FRAME, frame.height, rest, text, notes, stream=stream.meta
    )
    if not rest:
        return Encoded(CODEC, meta, stream.parts, stream.nbytes)
    gap = bytes(-stream.nbytes % ALIGNMENT)
    parts = [*stream.parts, gap, rest]
    return Encoded(CODEC, meta, parts, stream.nbytes + len(gap) + len(rest))


def _schema(frame: pl.DataFrame) -> Schema:
    return [(name, spec(dtype)) for name, dtype in zip(frame.columns, frame.dtypes, strict=True)]


def _is_apart(name: str, found: Spec) -> bool:
    """Whether a column cannot pass through Arrow's C interface."""
    if is_named(found, _OBJECT):
        raise Unserializable(
            "polars.Object",
            f"column {name!r} holds Python objects, of which polars stores addresses",
        )
    if has_width_zero(found):
        raise Unserializable(
            "polars.Array", f"column {name!r} has arrays of width 0, which polars cannot read back"
        )
    return "\0" in name or has_nul(found) or is_named(found, _WIDE)


def _encode_stream(frame: pl.DataFrame, apart: list[int]) -> Encoded | None:
    if apart:
        frame = _without(frame, apart)
    return arrow.encode_table(frame.to_arrow(compat_level=_NEWEST))


def _lost(stream: Encoded, schema: Schema, apart: list[int]) -> list[int]:
    """The columns that would be read with another name or dtype."""
    kept = [index for index in range(len(schema)) if index not in apart]
    arrow_schema = unpack_stream(stream.meta).schema
    if EXTENSION_KEY in arrow_schema:
        # Which of these are known may have changed since this schema was last read.
        _reads_as.cache_clear()
    read = _reads_as(arrow_schema)
    return [index for at, index in enumerate(kept) if read[at] != schema[index]]


def _without(frame: pl.DataFrame, indexes: list[int]) -> pl.DataFrame:
    """The frame without some columns; selecting takes names for patterns or replaces them."""
    names = frame.columns
    rest = frame.clone()
    for index in indexes:
        rest.drop_in_place(names[index])
    return rest


@lru_cache(maxsize=64)
def _reads_as(arrow_schema: bytes) -> Schema:
    """The polars schema that a stream with this Arrow schema is read with."""
    empty = pa.Table.from_batches([], read_schema(arrow_schema))
    return _schema(pl.DataFrame(_Stream(empty)))


def _encode_apart(frame: pl.DataFrame, schema: Schema, apart: list[int]) -> bytes | None:
    """Writes columns in polars' own IPC format; None if that would change a dtype."""
    if not apart:
        return b""
    rest = _without(frame, [index for index in range(frame.width) if index not in apart])
    wanted = [schema[index] for index in sorted(apart)]
    if _schema(_read_apart(_write_apart(rest.clear()))) != wanted:
        return None
    return _write_apart(rest)


def _write_apart(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_ipc_stream(sink, compat_level=_NEWEST)
    return sink.getvalue()


def _read_apart(stored: bytes) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(stored), use_pyarrow=False)


def _sorted_columns(frame: pl.DataFrame) -> dict[str, bool]:
    """Whether descending, by index, for the columns that polars knows to be sorted."""
    found = {}
    for index, column in enumerate(frame.get_columns()):
        flags = column.flags
        if flags["SORTED_ASC"]:
            found[str(index)] = False
        elif flags["SORTED_DESC"]:
            found[str(index)] = True
    return found


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Rebuilds a DataFrame or Series whose columns view the payload.

    Raises:
        CorruptValue: If the meta or the stored metadata was changed.
        UnsafeValue: If it came from another host and has extension dtypes, or columns that
            Arrow does not carry and ``polars_checks`` does not read.
        Unserializable: If the value has an extension dtype that is not registered here.
    """
    facts = unpack(meta)
    apart = facts.notes.get("apart", [])
    if trust is not None:
        check_notes(facts)
    table = arrow.decode_table(facts.stream, payload, trust)
    if trust is not None and any(map(arrow_checks.has_width_zero, table.schema.types)):
        raise CorruptValue(check="arrays of width 0", where="polars value")
    try:
        frame = pl.DataFrame(_Stream(table))
        if apart:
            rest = _decode_apart(facts, payload, apart, trust)
            frame = _insert(frame, rest, apart)
    except pl.exceptions.PolarsError as error:
        raise CorruptValue(check=f"polars refuses it: {error}", where="payload") from error
    _compare(frame, facts)
    for index, descending in facts.notes.get("sorted", {}).items():
        column = frame.to_series(int(index))
        if trust is not None and not is_sorted(column, descending):
            raise CorruptValue(check="a column is not sorted as told", where="polars value")
        frame.replace_column(int(index), column.set_sorted(descending=descending))
    return frame.to_series(0) if facts.kind == SERIES else frame


def _decode_apart(
    facts: Meta, payload: memoryview, apart: list[int], trust: Trust | None
) -> pl.DataFrame:
    stored = payload[len(payload) - facts.apart_size :]
    if len(stored) != facts.apart_size:
        raise CorruptValue(check="too short", where="columns in polars' own format")
    if xxhash.xxh3_64_intdigest(stored) != facts.apart_digest:
        raise CorruptValue(check="the digest differs", where="columns in polars' own format")
    if trust is not None:
        schema = parse_schema(facts.schema)
        return read_checked(stored, [schema[index] for index in apart])
    return _read_apart(bytes(stored))


def _insert(frame: pl.DataFrame, rest: pl.DataFrame, indexes: list[int]) -> pl.DataFrame:
    if not frame.width:
        return rest
    for index, column in zip(indexes, rest.get_columns(), strict=True):
        frame.insert_column(index, column)
    return frame


def _compare(frame: pl.DataFrame, facts: Meta) -> None:
    """Refuses a value that this process reads with other dtypes than it was put with."""
    if frame.height != facts.height:
        raise CorruptValue(
            check=f"{frame.height} rows instead of {facts.height}", where="polars value"
        )
    wanted = parse_schema(facts.schema)
    for (name, found), (old_name, old) in zip(_schema(frame), wanted, strict=True):
        if found == old and name == old_name:
            continue
        if is_named(old, frozenset({EXTENSION})):
            raise Unserializable(
                "polars.Extension",
                f"column {name!r} has the dtype {old!r}, which this process reads as {found!r}; "
                "call polars.register_extension_type first",
            )
        raise CorruptValue(
            check=f"column {name!r} is read as {found!r} instead of {old!r}", where="polars value"
        )


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says for each buffer whether ``decode`` copies it, and why."""
    facts = unpack(meta)
    found = arrow.buffers(facts.stream)
    notes = []
    for place, size in found:
        if not size:
            continue
        if place.encoded:
            copied = "polars maps categories to its own codes"
        elif place.use == MAP_OFFSETS:
            copied = "polars has 64-bit offsets for maps"
        elif place.use == VALIDITY and any(found[struct][1] for struct in place.structs):
            copied = "polars merges it with the nulls of the struct around it"
        else:
            copied = ""
        why = copied or "Arrow's C interface hands it over in place"
        notes.append(BufferNote(place.name, size, bool(copied), why))
    if facts.apart_size:
        names = [parse_schema(facts.schema)[index][0] for index in facts.notes["apart"]]
        why = "Arrow's C interface does not carry it, so it is in polars' own format"
        notes.append(BufferNote(", ".join(names), facts.apart_size, True, why))
    return notes
