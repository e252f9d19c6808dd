"""The first rows of a table, a corner of an array, the beginning of anything else.

What is shown is bounded whatever the value holds: so many rows and columns, so many
characters a cell.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shmstore.inspection import shape

_CELL = 40
_LINES = 200


@dataclass(frozen=True, slots=True)
class Preview:
    """What is shown of a value.

    Attributes:
        title: What it is, in a few words.
        heads: The columns' heads; empty for what is no table.
        rows: The cells.
        text: Lines, for what is no table.
        facts: Least and greatest, nulls, by their names.
        more: What was left out, or "".
    """

    title: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    more: str = ""


def preview(value: Any, rows: int, columns: int) -> Preview:
    """What to show of a value.

    Args:
        value: Any value.
        rows: The most rows of a table or an array, and items of anything else.
        columns: The most columns.
    """
    family = type(value).__module__.partition(".")[0]
    if family == "numpy" and hasattr(value, "ndim") and value.ndim:
        return _array(value, rows, columns)
    if family == "pyarrow" and hasattr(value, "schema") and hasattr(value, "num_rows"):
        return _table(value, rows, columns)
    if family == "pyarrow" and hasattr(value, "null_count"):
        return _column(value, rows)
    if family == "polars" and hasattr(value, "to_arrow"):
        return _polars(value, rows, columns)
    if family == "pandas" and hasattr(value, "iloc"):
        return _pandas(value, rows, columns)
    return _plain(value, rows)


def _array(value: Any, rows: int, columns: int) -> Preview:
    facts = shape.extremes(value)
    corner = value if value.ndim <= 2 else value[(0,) * (value.ndim - 2)]
    corner = corner[:rows] if value.ndim == 1 else corner[:rows, :columns]
    cells = corner.reshape(len(corner), -1) if corner.size else corner.reshape(0, 0)
    shown = tuple(tuple(_cell(cell) for cell in row) for row in cells)
    size = " × ".join(map(str, value.shape))
    cut = value.size > corner.size
    more = f"the first {corner.size:,} of {value.size:,} elements" if cut else ""
    heads = tuple(map(str, range(cells.shape[1]))) if value.ndim > 1 else ("",)
    return Preview(f"array {value.dtype} {size}", heads, shown, (), facts, more)


def _table(value: Any, rows: int, columns: int) -> Preview:
    names = [str(name) for name in value.schema.names[:columns]]
    part = value.slice(0, rows)
    cells = [[_cell(item) for item in part.column(at).to_pylist()] for at in range(len(names))]
    nulls = {name: value.column(at).null_count for at, name in enumerate(names)}
    title = f"{type(value).__name__}, {value.num_rows:,} rows × {value.num_columns:,} columns"
    more = _left_out(value.num_rows, rows, value.num_columns, columns)
    facts = {"nulls": {name: count for name, count in nulls.items() if count}}
    return Preview(title, tuple(names), tuple(zip(*cells, strict=True)), (), facts, more)


def _column(value: Any, rows: int) -> Preview:
    part = tuple((_cell(item),) for item in value.slice(0, rows).to_pylist())
    title = f"{type(value).__name__} {value.type}, {len(value):,} long"
    more = _left_out(len(value), rows, 1, 1)
    return Preview(title, ("",), part, (), {"nulls": value.null_count}, more)


def _polars(value: Any, rows: int, columns: int) -> Preview:
    frame = value if hasattr(value, "columns") else value.to_frame()
    names = frame.columns[:columns]
    cells = tuple(tuple(map(_cell, row)) for row in frame[:rows].select(names).iter_rows())
    nulls = {n: c for n in names if (c := frame[n].null_count())}
    title = f"polars {type(value).__name__}, {frame.height:,} rows × {frame.width:,} columns"
    more = _left_out(frame.height, rows, frame.width, columns)
    return Preview(title, tuple(names), cells, (), {"nulls": nulls}, more)


def _pandas(value: Any, rows: int, columns: int) -> Preview:
    frame = value if hasattr(value, "columns") else value.to_frame()
    part = frame.iloc[:rows, :columns]
    index = [_cell(label) for label in part.index]
    cells = [[_cell(item) for item in part.iloc[:, at].tolist()] for at in range(part.shape[1])]
    nulls = frame.iloc[:, :columns].isna().sum()
    named = {str(name): int(count) for name, count in nulls.items() if count}
    heads = ("", *(str(name) for name in part.columns))
    title = f"pandas {type(value).__name__}, {frame.shape[0]:,} rows × {frame.shape[1]:,} columns"
    more = _left_out(frame.shape[0], rows, frame.shape[1], columns)
    return Preview(title, heads, tuple(zip(index, *cells, strict=True)), (), {"nulls": named}, more)


def _plain(value: Any, rows: int) -> Preview:
    short = reprlib.Repr()
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = rows
    short.maxstring = short.maxother = short.maxlong = 2000
    short.maxlevel = 4
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if isinstance(value, dict) and len(value) <= rows:
        lines: Sequence[str] = [
            f"{short.repr(key)}: {short.repr(item)}" for key, item in value.items()
        ]
    elif isinstance(value, str):
        lines = value[:4000].split("\n")[:_LINES]
    else:
        lines = [short.repr(value)]
    length = f", {len(value):,} long" if hasattr(value, "__len__") else ""
    return Preview(f"{name}{length}", (), (), tuple(lines))


def _left_out(rows: int, most: int, columns: int, widest: int) -> str:
    left = []
    if rows > most:
        left.append(f"{most:,} of {rows:,} rows")
    if columns > widest:
        left.append(f"{widest:,} of {columns:,} columns")
    return f"the first {' and '.join(left)}" if left else ""


def _cell(item: Any) -> str:
    if item is None:
        return "null"
    if isinstance(item, float):
        return f"{item:.10g}"
    text = (
        item
        if isinstance(item, str)
        else reprlib.repr(item)
        if isinstance(item, (list, dict, tuple, bytes))
        else str(item)
    )
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
