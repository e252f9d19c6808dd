"""Objects of other libraries that export an Arrow stream, such as relations of DuckDB."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from shmstore.errors import Unserializable

#: Instances of classes derived from theirs are more than a table.
_FAMILIES = frozenset({"pandas", "polars", "pyarrow"})
#: Methods that make an object an iterator or a reader of a stream.
_ONE_SHOT_METHODS = ("__next__", "read_next_batch", "get_next")


def read_stream(value: Any) -> pa.Table | pa.ChunkedArray | None:
    """Reads a foreign object that exports an Arrow stream and can do so again.

    Only what can be read again is stored, since putting a value must not use it
    up. An object that says by its methods that it is an iterator or a reader is
    refused untouched. Any other is read once, then asked for a second stream:
    if that fails, or is empty where the first was not, the object was good for
    one reading, which is then gone.

    Returns:
        What it holds: a Table, or a ChunkedArray if its stream is not one of
        records. None for instances of classes derived from those of pandas, polars or
        pyarrow: a Table would not be what was put.

    Raises:
        Unserializable: If the object can be read only once.
    """
    cls = type(value)
    if any(base.__module__.partition(".")[0] in _FAMILIES for base in cls.__mro__):
        return None
    if any(hasattr(cls, name) for name in _ONE_SHOT_METHODS):
        raise _read_once(cls)
    try:
        whole = _read_all(value)
    except Exception as error:
        raise Unserializable(_name(cls), f"its Arrow stream cannot be read: {error}") from error
    if len(whole) and not _starts_again(value, whole):
        raise _read_once(cls)
    return whole


def _read_all(value: Any) -> pa.Table | pa.ChunkedArray:
    """Reads a stream to its end."""
    try:
        reader = pa.RecordBatchReader.from_stream(value)
    except pa.ArrowInvalid:
        # A stream of plain columns, not of records; none of it is read yet.
        return pa.chunked_array(value)
    return reader.read_all()


def _starts_again(value: Any, whole: pa.Table | pa.ChunkedArray) -> bool:
    """Whether the object gives rows of the same kind once more."""
    try:
        if isinstance(whole, pa.ChunkedArray):
            again = pa.chunked_array(value)
            return bool(again.type == whole.type and len(again) == len(whole))
        reader = pa.RecordBatchReader.from_stream(value)
        return reader.schema == whole.schema and any(batch.num_rows for batch in reader)
    except Exception:
        return False


def _read_once(cls: type) -> Unserializable:
    return Unserializable(
        _name(cls),
        "its Arrow stream can be read only once, and storing it would consume it; "
        "put pyarrow.table(value) instead",
    )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
