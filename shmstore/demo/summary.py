"""Statistics of a table's numeric columns: of parts, merged, and of a whole to check against.

A part is worked through in slices, so that what is allocated on the way stays small
whatever the part's size. ``merge`` adds summaries up; ``whole`` does not use it, nor
slices, and so can tell whether it is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SLICE_ROWS = 16_384
_TOLERANCE = 1e-9

#: Of one column: count, nulls, mean, m2 (sum of squared deviations), min, max.
Summary = dict[str, Any]


def numeric_columns(schema: pa.Schema) -> list[int]:
    """The columns that have statistics, by position: integers, floats and decimals."""
    from pyarrow import types

    return [
        number
        for number, field in enumerate(schema)
        if types.is_integer(field.type)
        or types.is_floating(field.type)
        or types.is_decimal(field.type)
    ]


def summarize(table: pa.Table) -> dict[str, Summary]:
    """The summary of each numeric column, by its name; NaN and infinity as IEEE has them."""
    return {
        label: merge(
            _summarize_slice(chunk.slice(start, SLICE_ROWS))
            for chunk in table.column(number).chunks
            for start in range(0, len(chunk), SLICE_ROWS)
        )
        for number, label in _labelled(table.schema)
    }


def _labelled(schema: pa.Schema) -> list[tuple[int, str]]:
    """Position and name of each numeric column; names that come twice get their position."""
    names = schema.names
    return [
        (number, names[number] if names.count(names[number]) == 1 else f"{names[number]} #{number}")
        for number in numeric_columns(schema)
    ]


def merge(summaries: Iterable[Summary]) -> Summary:
    """The summary of a whole from those of its parts."""
    parts = list(summaries)
    filled = [part for part in parts if part["count"]]
    count = sum(part["count"] for part in filled)
    mean = m2 = None
    if count:
        mean = sum(part["count"] * part["mean"] for part in filled) / count
        m2 = sum(part["m2"] + part["count"] * (part["mean"] - mean) ** 2 for part in filled)
    return {
        "count": count,
        "nulls": sum(part["nulls"] for part in parts),
        "mean": mean,
        "m2": m2,
        "min": _extreme(min, [part["min"] for part in filled]),
        "max": _extreme(max, [part["max"] for part in filled]),
    }


def _extreme(choose: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    """The least or greatest, NaN only if there is nothing else: what Arrow does."""
    numbers = [value for value in values if not _nan(value)]
    return choose(numbers) if numbers else (values[0] if values else None)


def merge_tables(summaries: Iterable[dict[str, Summary]]) -> dict[str, Summary]:
    """The summaries of a table from those of its parts, with the standard deviation."""
    parts = list(summaries)
    merged = {name: merge(part[name] for part in parts) for name in parts[0]}
    for summary in merged.values():
        m2, count = summary.pop("m2"), summary["count"]
        summary["std"] = math.sqrt(m2 / count) if count else None
    return merged


def whole(table: pa.Table) -> dict[str, Summary]:
    """What ``merge_tables`` should come to, by Arrow's own functions over whole columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {}
    for number, label in _labelled(table.schema):
        column = _widened(table.column(number))
        floats = pc.cast(column, pa.float64(), safe=False)
        extremes = pc.min_max(column).as_py()
        found[label] = {
            "count": len(column) - column.null_count,
            "nulls": column.null_count,
            "mean": pc.mean(floats).as_py(),
            "std": pc.stddev(floats, ddof=0).as_py(),
            **extremes,
        }
    return found


def differences(merged: dict[str, Summary], expected: dict[str, Summary]) -> list[str]:
    """How two merged summaries differ: exactly, but for rounding in mean and deviation."""
    if merged.keys() != expected.keys():
        return [f"columns {sorted(merged)} instead of {sorted(expected)}"]
    found = []
    for name, wanted in expected.items():
        for key, value in wanted.items():
            if not _same(merged[name][key], value, wanted if key in ("mean", "std") else None):
                found.append(f"{name}: {key} is {merged[name][key]!r} instead of {value!r}")
    return found


def _same(one: Any, other: Any, rounded: Summary | None) -> bool:
    if one is None or other is None:
        return one is other
    if _nan(one) or _nan(other):
        return _nan(one) and _nan(other)
    if rounded is None or math.isinf(one) or math.isinf(other):
        return bool(one == other)
    size = max(abs(float(rounded["min"])), abs(float(rounded["max"])))
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * size)


def _summarize_slice(values: pa.Array) -> Summary:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = _widened(values)
    count = len(values) - values.null_count
    floats = pc.cast(values, pa.float64(), safe=False)
    extremes = pc.min_max(values).as_py()
    variance = pc.variance(floats).as_py()
    return {
        "count": count,
        "nulls": values.null_count,
        "mean": pc.mean(floats).as_py(),
        "m2": variance * count if count else None,
        **extremes,
    }


def _widened(values: Any) -> Any:
    """The same numbers in a type for which Arrow has all of the functions."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_float16(kind):
        return values.cast(pa.float32())
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return values.cast(pa.decimal128(kind.precision, kind.scale))
    return values


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
