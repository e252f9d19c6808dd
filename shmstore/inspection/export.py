"""Writing a stored value to a file in a form that other programs read."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

#: The forms, and the suffixes of files that have them.
FORMS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "arrow": (".arrow", ".ipc", ".feather"),
    "npy": (".npy",),
    "raw": (".bin", ".raw"),
}


class NotExportable(ValueError):
    """A value that has no such form."""


def form_of(path: str) -> str:
    """The form that a file's suffix stands for.

    Raises:
        ValueError: None.
    """
    for form, suffixes in FORMS.items():
        if path.lower().endswith(suffixes):
            return form
    told = ", ".join(suffix for suffixes in FORMS.values() for suffix in suffixes)
    raise ValueError(f"{path!r} has none of the suffixes {told}; say the form with --format")


def write(value: Any, form: str, out: IO[bytes]) -> None:
    """Writes a value.

    Args:
        value: A table or frame, or for "npy" an array.
        form: One of ``FORMS`` but "raw".
        out: Where to.

    Raises:
        NotExportable: The value has no such form.
    """
    _WRITERS[form](value, out)


def _npy(value: Any, out: IO[bytes]) -> None:
    import numpy as np

    if not isinstance(value, np.ndarray):
        raise NotExportable(f"a {_kind(value)} is no numpy array; a table has other forms")
    if value.dtype.hasobject:
        raise NotExportable("an array of Python objects has no file that is safe to read")
    np.lib.format.write_array(out, value, allow_pickle=False)


def _parquet(value: Any, out: IO[bytes]) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(_table(value), out)


def _csv(value: Any, out: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.csv

    try:
        pyarrow.csv.write_csv(_table(value), out)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise NotExportable(f"it has columns that CSV cannot hold: {error}") from None


def _arrow(value: Any, out: IO[bytes]) -> None:
    import pyarrow as pa

    table = _table(value)
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _table(value: Any) -> Any:
    """Any value with rows as a pyarrow table."""
    import pyarrow as pa

    family = type(value).__module__.partition(".")[0]
    try:
        if isinstance(value, pa.Table):
            return value
        if isinstance(value, pa.RecordBatch):
            return pa.Table.from_batches([value])
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            return pa.table({"value": value})
        if family == "pandas" and hasattr(value, "columns"):
            return pa.Table.from_pandas(value)
        if family == "pandas" and hasattr(value, "to_frame"):
            return pa.Table.from_pandas(value.to_frame())
        if family == "polars" and hasattr(value, "columns"):
            return value.to_arrow()
        if family == "polars" and hasattr(value, "to_frame"):
            return value.to_frame().to_arrow()
        if family == "numpy" and hasattr(value, "ndim") and value.ndim in (1, 2):
            columns = [value] if value.ndim == 1 else list(value.T)
            return pa.table({str(number): column for number, column in enumerate(columns)})
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise NotExportable(f"a {_kind(value)} like this is no table: {error}") from None
    raise NotExportable(f"a {_kind(value)} is no table; --format raw writes its stored bytes")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_WRITERS: dict[str, Callable[[Any, IO[bytes]], None]] = {
    "npy": _npy,
    "parquet": _parquet,
    "csv": _csv,
    "arrow": _arrow,
}
