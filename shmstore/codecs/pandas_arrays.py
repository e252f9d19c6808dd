"""The arrays inside pandas values: numpy arrays and every extension array of pandas.

Each is a JSON object whose ``k`` names its kind; ``pandas_payload`` defines buffers,
parts and labels. What would not come back exactly is a part of kind ``opaque``: the
general codec pickles it, with its memory out of band where it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from shmstore.codecs import pandas_cells, pandas_times
from shmstore.codecs import pandas_internals as internals
from shmstore.codecs.pandas_payload import Array, Reader, Spec, Writer, damaged, is_plain_dtype


def write_array(out: Writer, values: Any) -> Spec:
    """Places an array of any kind; raises Unserializable if a cell cannot be stored."""
    write = WRITERS.get(type(values))
    spec = write(out, values) if write is not None else None
    return spec if spec is not None else {"k": "opaque", **out.part(values)}


def read_array(source: Reader, spec: Spec) -> Any:
    """The array that ``write_array`` placed."""
    return READERS[spec["k"]](source, spec)


def _write_numpy(out: Writer, values: Array) -> Spec | None:
    dtype = values.dtype
    if is_plain_dtype(dtype):
        return {"k": "numpy", **out.array(values)}
    if dtype.char == "O" and dtype.metadata is None:
        return pandas_cells.write_objects(out, values)
    return None


def _read_numpy(source: Reader, spec: Spec) -> Array:
    return source.array(spec)


def _write_masked(out: Writer, values: Any) -> Spec | None:
    data, mask = internals.masked_parts_of(values)
    if data.ndim != 1 or type(data) is not np.ndarray or not is_plain_dtype(data.dtype):
        return None
    return {"k": "masked", "data": out.array(data), "mask": out.array(mask)}


_MASKED = {
    "b": pd.arrays.BooleanArray,
    "i": pd.arrays.IntegerArray,
    "u": pd.arrays.IntegerArray,
    "f": pd.arrays.FloatingArray,
}


def _read_masked(source: Reader, spec: Spec) -> Any:
    data, mask = source.array(spec["data"]), source.array(spec["mask"])
    if data.ndim != 1 or mask.shape != data.shape or mask.dtype != np.bool_:
        raise damaged("a nullable array has not one dimension, or no mask")
    values = _MASKED[data.dtype.kind](data, mask)
    if values.dtype.numpy_dtype != data.dtype:
        raise damaged("a nullable array has a dtype that pandas does not know")
    return values


def _write_sparse(out: Writer, values: Any) -> Spec | None:
    where, dtype = internals.sparse_positions_of(values), values.dtype
    stored = values.sp_values
    if where is None or stored.dtype != dtype.subtype or not is_sparse_dtype(stored.dtype):
        return None
    length, positions = where
    return {
        "k": "sparse",
        "length": length,
        "values": write_array(out, stored),
        "positions": [out.array(each) for each in positions],
        "fill": out.label(dtype.fill_value),
    }


def is_sparse_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype are stored by kind ``numpy`` or ``object``."""
    return is_plain_dtype(dtype) or (dtype.char == "O" and dtype.metadata is None)


def _read_sparse(source: Reader, spec: Spec) -> Any:
    values, length = read_array(source, spec["values"]), spec["length"]
    positions = tuple(source.array(each) for each in spec["positions"])
    if type(length) is not int or not 0 <= length < 2**31 or type(values) is not np.ndarray:
        raise damaged("a sparse array has no length or no values")
    if not all(each.dtype == np.int32 and each.ndim == 1 for each in positions):
        raise damaged("a sparse array's positions are not of type int32")
    count = len(positions[0]) if len(positions) == 1 else int(positions[1].sum())
    if values.shape != (count,):
        raise damaged("a sparse array has not as many values as positions")
    if source.trust is not None:
        _check_positions(positions, length)
    return internals.sparse_of(values, length, positions, source.label(spec["fill"]))


def _check_positions(positions: tuple[Array, ...], length: int) -> None:
    """Positions lie within the array, in rising order: pandas reads by them unchecked."""
    if len(positions) not in (1, 2) or positions[0].shape != positions[-1].shape:
        raise damaged("a sparse array has neither indices nor blocks")
    starts = positions[0].astype(np.int64)
    sizes = positions[1].astype(np.int64) if len(positions) == 2 else np.ones_like(starts)
    ends = starts + sizes
    if len(starts) and (
        (starts < 0).any()
        or (sizes < 1).any()
        or (ends > length).any()
        or (starts[1:] < ends[:-1]).any()
    ):
        raise damaged("positions of a sparse array are out of order")


_SIDES = (np.ndarray, pd.arrays.DatetimeArray, pd.arrays.TimedeltaArray)


def _write_intervals(out: Writer, values: Any) -> Spec | None:
    left, right = internals.interval_sides_of(values)
    dtype = values.dtype
    if left.dtype != dtype.subtype or type(left) not in _SIDES or type(right) is not type(left):
        return None
    return {
        "k": "interval",
        "left": write_array(out, left),
        "right": write_array(out, right),
        "closed": dtype.closed,
    }


def _read_intervals(source: Reader, spec: Spec) -> Any:
    left, right = read_array(source, spec["left"]), read_array(source, spec["right"])
    if type(left) not in _SIDES or type(right) is not type(left):
        raise damaged("the bounds of an interval array are no numbers or times")
    if left.ndim != 1 or left.shape != right.shape or left.dtype != right.dtype:
        raise damaged("the bounds of an interval array differ in shape or dtype")
    if source.trust is not None:
        _check_sides(left, right)
    return internals.intervals_of(left, right, pd.IntervalDtype(left.dtype, spec["closed"]))


def _check_sides(left: Any, right: Any) -> None:
    """Each interval ends where it begins or later, and misses both bounds or none."""
    missing = pd.isna(left)
    if (missing != pd.isna(right)).any() or not (left <= right)[~missing].all():
        raise damaged("the bounds of an interval array are out of order")


def _read_opaque(source: Reader, spec: Spec) -> Any:
    values = source.part(spec)
    if not isinstance(values, np.ndarray | pd.api.extensions.ExtensionArray):
        raise damaged("an array is of another type")
    if source.trust is not None and isinstance(values, np.ndarray) and type(values) not in _OWN:
        raise damaged("an array is of another type")
    return values


#: Numpy's arrays that pandas may hold; subclasses know things that it does not.
_OWN = (np.ndarray, np.memmap)

#: By exact type. A writer returns None for what would not come back exactly, having
#: placed nothing. ``pandas_axes`` adds Categorical, whose categories are an axis.
WRITERS: dict[type, Callable[[Writer, Any], Spec | None]] = {
    np.ndarray: _write_numpy,
    pd.arrays.DatetimeArray: pandas_times.write_datetimes,
    pd.arrays.TimedeltaArray: pandas_times.write_datetimes,
    pd.arrays.PeriodArray: pandas_times.write_periods,
    pd.arrays.IntegerArray: _write_masked,
    pd.arrays.FloatingArray: _write_masked,
    pd.arrays.BooleanArray: _write_masked,
    pd.arrays.SparseArray: _write_sparse,
    pd.arrays.IntervalArray: _write_intervals,
    pd.arrays.ArrowExtensionArray: pandas_cells.write_arrow,
    **dict.fromkeys(internals.STRING_ARRAYS, pandas_cells.write_strings),
}

#: By the kind that the writer named.
READERS: dict[str, Callable[[Reader, Spec], Any]] = {
    "numpy": _read_numpy,
    "object": pandas_cells.read_objects,
    "datetime": pandas_times.read_datetimes,
    "period": pandas_times.read_periods,
    "masked": _read_masked,
    "sparse": _read_sparse,
    "interval": _read_intervals,
    "string": pandas_cells.read_strings,
    "arrow": pandas_cells.read_arrow,
    "opaque": _read_opaque,
}
