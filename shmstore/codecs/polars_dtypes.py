"""Polars dtypes as plain JSON, to compare what was put with what is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

#: What ``spec`` gives for a dtype: its name, or a list that starts with its name.
Spec = str | list[Any]

_FLAT: dict[Any, str] = {
    getattr(pl, name): name
    for name in (
        *("Boolean", "String", "Binary", "Null", "Object", "Unknown", "Date", "Time"),
        *("Int8", "Int16", "Int32", "Int64", "Int128"),
        *("UInt8", "UInt16", "UInt32", "UInt64", "UInt128"),
        *("Float16", "Float32", "Float64"),
    )
    if hasattr(pl, name)
}

EXTENSION = "Extension"

#: Where in the description of a nested dtype those of its parts begin.
_NESTED = {"List": 1, "Array": 2, "Map": 1, EXTENSION: 4}


def spec(dtype: Any) -> Spec:
    """Describes a dtype with all its parameters.

    Raises:
        KeyError: If this dtype is not known here.
    """
    cls = dtype if isinstance(dtype, type) else type(dtype)
    name = _FLAT.get(cls)
    if name is not None:
        return name
    name = cls.__name__
    if cls is pl.Datetime:
        return [name, dtype.time_unit, dtype.time_zone]
    if cls is pl.Duration:
        return [name, dtype.time_unit]
    if cls is pl.Decimal:
        return [name, dtype.precision, dtype.scale]
    if cls is pl.Enum:
        return [name, dtype.categories.to_list()]
    if cls is pl.Categorical:
        return [name, *_categories(dtype)]
    if cls is pl.List:
        return [name, spec(dtype.inner)]
    if cls is pl.Array:
        return [name, dtype.shape[0], spec(dtype.inner)]
    if cls is pl.Struct:
        return [name, [[field.name, spec(field.dtype)] for field in dtype.fields]]
    if name == "Map" and cls is getattr(pl, "Map", None):
        return [name, spec(dtype.key), spec(dtype.value)]
    base = getattr(pl, "BaseExtension", None)
    if base is not None and isinstance(dtype, base):
        whose = f"{cls.__module__}.{cls.__qualname__}"
        return [EXTENSION, dtype.ext_name(), dtype.ext_metadata(), whose, spec(dtype.ext_storage())]
    raise KeyError(name)


def _categories(dtype: Any) -> list[Any]:
    found = getattr(dtype, "categories", None)
    if found is None:
        return [getattr(dtype, "ordering", None)]
    return [found.name(), found.namespace(), str(found.physical())]


def parts(found: Spec) -> Iterator[Spec]:
    """A described dtype and all that it is made of."""
    yield found
    if isinstance(found, str):
        return
    if found[0] == "Struct":
        for _, field in found[1]:
            yield from parts(field)
    elif found[0] in _NESTED:
        for inner in found[_NESTED[found[0]] :]:
            yield from parts(inner)


def is_named(found: Spec, names: frozenset[str]) -> bool:
    """Whether one of the named dtypes occurs in a described one, at any depth."""
    return any((part if isinstance(part, str) else part[0]) in names for part in parts(found))


def has_width_zero(found: Spec) -> bool:
    """Whether an Array of width 0 occurs in a described dtype."""
    return any(part[0] == "Array" and part[1] == 0 for part in parts(found))


def has_nul(found: Spec) -> bool:
    """Whether a field's name holds the character that ends names in Arrow's C interface."""
    return any(
        part[0] == "Struct" and any("\0" in field[0] for field in part[1]) for part in parts(found)
    )
