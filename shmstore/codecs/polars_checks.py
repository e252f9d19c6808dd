"""What polars would believe of values that came from another host, checked or read without it.

polars' own reader of IPC trusts what it reads. Columns that were written in its format,
since Arrow's C interface does not carry them, are therefore read by Arrow, with
128-bit integers as 16 bytes each, validated, and made integers again.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl
import pyarrow as pa

from shmstore.codecs import arrow_checks
from shmstore.codecs.polars_dtypes import Spec
from shmstore.codecs.polars_meta import Meta, Schema, parse_schema
from shmstore.codecs.trust import unsafe
from shmstore.errors import CorruptValue

_WIDE: Final = {name: getattr(pl, name) for name in ("Int128", "UInt128") if hasattr(pl, name)}
_FLAT: Final = {
    "Boolean": pa.bool_(), "String": pa.string_view(), "Binary": pa.binary_view(),
    "Int8": pa.int8(), "Int16": pa.int16(), "Int32": pa.int32(), "Int64": pa.int64(),
    "UInt8": pa.uint8(), "UInt16": pa.uint16(), "UInt32": pa.uint32(), "UInt64": pa.uint64(),
    "Float16": pa.float16(), "Float32": pa.float32(), "Float64": pa.float64(),
    "Date": pa.date32(), "Time": pa.time64("ns"), "Null": pa.null(),
}  # fmt: skip


def check_notes(facts: Meta) -> None:
    """What a meta may say beside its columns.

    Raises:
        CorruptValue: It says something else.
    """
    width = len(parse_schema(facts.schema))
    told = facts.notes.get("sorted", {})
    if type(told) is not dict or not all(
        index.isdecimal() and int(index) < width and type(descending) is bool
        for index, descending in told.items()
    ):
        raise CorruptValue(check="no such columns are sorted", where="meta of a polars value")
    apart = facts.notes.get("apart", [])
    if (
        type(apart) is not list
        or not all(type(index) is int and 0 <= index < width for index in apart)
        or sorted(set(apart)) != apart
    ):
        raise CorruptValue(check="no such columns are apart", where="meta of a polars value")


def is_sorted(column: pl.Series, descending: bool) -> bool:
    """Whether a column is sorted, with its nulls at either end."""
    return any(
        column.is_sorted(descending=descending, nulls_last=nulls_last)
        for nulls_last in (False, True)
    )


def read_checked(stored: memoryview, schema: Schema) -> pl.DataFrame:
    """Reads columns that were written in polars' own format.

    Args:
        stored: What polars wrote.
        schema: The columns' names and described dtypes.

    Raises:
        CorruptValue: The columns are not valid.
        UnsafeValue: They are of dtypes that only polars can read.
    """
    # Arrow does not see the names, in which there may be any character.
    names = [str(index) for index in range(len(schema))]
    types = [_arrow_type(found) for _, found in schema]
    read_as = pa.schema(list(zip(names, types, strict=True)))
    batches = [
        pa.ipc.read_record_batch(pa.py_buffer(bytes(message)), read_as)
        for message in arrow_checks.record_batches(stored)
    ]
    table = pa.Table.from_batches(batches, read_as)
    arrow_checks.check_values(table)
    columns = {}
    for (name, found), column in zip(schema, table.columns, strict=True):
        # Without a chunk polars would not know the type.
        chunks = column if column.num_chunks else pa.chunked_array([pa.nulls(0, column.type)])
        frame = pl.DataFrame({"0": pl.Series(chunks)})
        columns[name] = frame.select(_restored(pl.col("0"), found).alias("0")).to_series(0)
    return pl.DataFrame(columns)


def _arrow_type(found: Spec) -> Any:
    if isinstance(found, str):
        if found in _WIDE:
            return pa.binary(16)
        if found in _FLAT:
            return _FLAT[found]
    elif found[0] == "Datetime":
        return pa.timestamp(found[1], found[2])
    elif found[0] == "Duration":
        return pa.duration(found[1])
    elif found[0] == "Decimal":
        return pa.decimal128(found[1], found[2])
    elif found[0] == "List":
        return pa.large_list(_arrow_type(found[1]))
    elif found[0] == "Array" and found[1]:
        return pa.list_(_arrow_type(found[2]), found[1])
    elif found[0] == "Struct":
        return pa.struct(
            [pa.field(str(at), _arrow_type(inner)) for at, (_, inner) in enumerate(found[1])]
        )
    raise unsafe(f"polars' own format for the dtype {found!r:.100}")


def _restored(column: pl.Expr, found: Spec) -> pl.Expr:
    """A column with its 128-bit integers and its fields' names."""
    if isinstance(found, str):
        return column.bin.reinterpret(dtype=_WIDE[found]) if found in _WIDE else column
    if found[0] == "List":
        return column.list.eval(_restored(pl.element(), found[1]))
    if found[0] == "Array":
        return (
            column.arr.to_list()
            .list.eval(_restored(pl.element(), found[2]))
            .list.to_array(found[1])
        )
    if found[0] == "Struct" and found[1]:
        fields = [
            _restored(column.struct.field(str(at)), inner).alias(name)
            for at, (name, inner) in enumerate(found[1])
        ]
        return pl.when(column.is_not_null()).then(pl.struct(fields))
    return column
