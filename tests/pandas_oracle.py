"""Whether two pandas values are the same in everything that a user could tell apart.

``pandas.testing`` lets several differences pass: None against NaN, freq, flags, attrs,
the class of an index, cells' types, the order of categories, unused categories and
levels, the layout of blocks. This compares all of them, and knows nothing of codecs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd


class Different(Exception):
    """Two values differ; says where and how."""


def identical_pandas(a: Any, b: Any) -> bool:
    """True if nothing tells the two values apart."""
    return difference(a, b) is None


def difference(a: Any, b: Any) -> str | None:
    """Where two values differ first, None if nowhere."""
    try:
        _value(a, b)
    except Different as error:
        return str(error)
    return None


def _need(same: bool, what: str, a: Any, b: Any) -> None:
    if not same:
        raise Different(f"{what}: {_shown(a)} against {_shown(b)}")


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4,300 digits
        return object.__repr__(value)


@contextmanager
def _within(place: str) -> Iterator[None]:
    try:
        yield
    except Different as error:
        raise Different(f"{place} > {error}") from None


def _value(a: Any, b: Any) -> None:
    _need(type(a) is type(b), "type", type(a), type(b))
    if isinstance(a, pd.DataFrame):
        _frame(a, b)
    elif isinstance(a, pd.Series):
        _series(a, b)
    elif isinstance(a, pd.Index):
        _index(a, b)
    else:
        _cell(a, b)


def _frame(a: pd.DataFrame, b: pd.DataFrame) -> None:
    with _within("columns"):
        _index(a.columns, b.columns)
    with _within("index"):
        _index(a.index, b.index)
    mine, other = a._mgr.blocks, b._mgr.blocks
    _need(len(mine) == len(other), "number of blocks", len(mine), len(other))
    for number, (one, two) in enumerate(zip(mine, other, strict=True)):
        with _within(f"block {number}"):
            at, to = one.mgr_locs.as_array.tolist(), two.mgr_locs.as_array.tolist()
            _need(at == to, "columns of the block", at, to)
            _need(type(one) is type(two), "class of the block", type(one), type(two))
            _array(one.values, two.values)
    _extras(a, b)


def _series(a: pd.Series, b: pd.Series) -> None:
    with _within("index"):
        _index(a.index, b.index)
    with _within("name"):
        _cell(a.name, b.name)
    with _within("values"):
        _array(a._values, b._values)
    _extras(a, b)


def _extras(a: pd.DataFrame | pd.Series, b: pd.DataFrame | pd.Series) -> None:
    with _within("attrs"):
        _cell(a.attrs, b.attrs)
    mine, other = a.flags.allows_duplicate_labels, b.flags.allows_duplicate_labels
    _need(mine is other, "flags.allows_duplicate_labels", mine, other)


def _index(a: pd.Index, b: pd.Index) -> None:
    _need(type(a) is type(b), "class of the index", type(a), type(b))
    _need(len(a) == len(b), "length", len(a), len(b))
    with _within("names"):
        _cell(list(a.names), list(b.names))
    if isinstance(a, pd.RangeIndex):
        mine, other = (a.start, a.stop, a.step), (b.start, b.stop, b.step)
        _need(mine == other, "range", mine, other)
    elif isinstance(a, pd.MultiIndex):
        _need(a.nlevels == b.nlevels, "nlevels", a.nlevels, b.nlevels)
        _need(a.sortorder == b.sortorder, "sortorder", a.sortorder, b.sortorder)
        for number in range(a.nlevels):
            with _within(f"level {number}"):
                _index(a.levels[number], b.levels[number])
                _array(np.asarray(a.codes[number]), np.asarray(b.codes[number]))
    else:
        _array(a._values, b._values)
        if isinstance(a, pd.DatetimeIndex | pd.TimedeltaIndex):
            _freq(a.freq, b.freq)


def _freq(a: Any, b: Any) -> None:
    _need(type(a) is type(b), "freq", a, b)
    if a is not None:
        _need(a == b and a.n == b.n and a.normalize == b.normalize, "freq", a, b)
        mine, other = a.__reduce_ex__(4), b.__reduce_ex__(4)
        _need(str(mine) == str(other), "state of freq", mine, other)


def _array(a: Any, b: Any) -> None:
    _need(type(a) is type(b), "class of the array", type(a), type(b))
    _need(a.shape == b.shape, "shape", a.shape, b.shape)
    if isinstance(a, np.ndarray):
        _numpy(a, b)
        return
    _dtype(a.dtype, b.dtype)
    if isinstance(a, pd.Categorical):
        _numpy(a.codes, b.codes)
    elif isinstance(a, pd.arrays.SparseArray):
        _need(type(a.sp_index) is type(b.sp_index), "sparse index", a.sp_index, b.sp_index)
        _need(a.sp_index.equals(b.sp_index), "sparse index", a.sp_index, b.sp_index)
        _numpy(a.sp_values, b.sp_values)
    elif isinstance(a, pd.arrays.IntervalArray):
        _array(a._left, b._left)
        _array(a._right, b._right)
    elif hasattr(a, "_mask"):
        _numpy(a._data, b._data)
        _numpy(a._mask, b._mask)
    elif hasattr(a, "_pa_array"):
        mine, other = a._pa_array.combine_chunks(), b._pa_array.combine_chunks()
        _need(mine.type == other.type, "Arrow type", mine.type, other.type)
        _need(str(mine.type) == str(other.type), "Arrow type", mine.type, other.type)
        b._pa_array.validate(full=True)
        # to_pylist tells NaN from null and -0.0 from 0.0, which equals does not.
        with _within("Arrow cells"):
            _cell(mine.to_pylist(), other.to_pylist())
    else:
        _need(hasattr(a, "_ndarray"), "an array that the oracle knows", type(a), type(b))
        if isinstance(a, pd.arrays.DatetimeArray | pd.arrays.TimedeltaArray):
            _freq(getattr(a, "_freq", None), getattr(b, "_freq", None))
        _numpy(a._ndarray, b._ndarray)


def _dtype(a: Any, b: Any) -> None:
    _need(type(a) is type(b), "class of the dtype", type(a), type(b))
    _need(a == b, "dtype", a, b)
    _need(str(a) == str(b) and repr(a) == repr(b), "dtype", a, b)
    if isinstance(a, np.dtype):
        mine, other = (a.char, a.byteorder, a.metadata), (b.char, b.byteorder, b.metadata)
        _need(mine == other, "dtype", mine, other)
    if isinstance(a, pd.CategoricalDtype):
        _need(a.ordered is b.ordered, "ordered", a.ordered, b.ordered)
        with _within("categories"):
            _index(a.categories, b.categories)
    if isinstance(a, pd.DatetimeTZDtype):
        _need(type(a.tz) is type(b.tz), "class of the zone", type(a.tz), type(b.tz))
        _need(a.tz == b.tz, "zone", a.tz, b.tz)
    if isinstance(a, pd.PeriodDtype):
        _freq(a.freq, b.freq)
    if isinstance(a, pd.SparseDtype):
        with _within("fill value"):
            _cell(a.fill_value, b.fill_value)
    if isinstance(a, pd.StringDtype):
        _need(a.storage == b.storage, "storage", a.storage, b.storage)
        _need(a.na_value is b.na_value, "na_value", a.na_value, b.na_value)


def _numpy(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    _need(type(a) is type(b), "class of the array", type(a), type(b))
    _dtype(a.dtype, b.dtype)
    _need(a.shape == b.shape, "shape", a.shape, b.shape)
    # An array with gaps may come back compact; one without keeps its order.
    if a.flags.c_contiguous or a.flags.f_contiguous:
        mine = a.flags.c_contiguous, a.flags.f_contiguous
        other = b.flags.c_contiguous, b.flags.f_contiguous
        _need(mine == other, "memory order", mine, other)
    if a.dtype.hasobject:
        for one, two in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            _cell(one, two)
    else:
        _need(a.tobytes() == b.tobytes(), "bytes", a, b)


def _cell(a: Any, b: Any) -> None:
    """Compares what stands in a cell, a name or an attribute, at every depth."""
    _need(type(a) is type(b), "type of a cell", (type(a), a), (type(b), b))
    if a is None or a is pd.NA or a is pd.NaT:
        _need(a is b, "missing value", a, b)
    elif isinstance(a, pd.DataFrame | pd.Series | pd.Index):
        _value(a, b)
    elif isinstance(a, np.ndarray):
        _numpy(a, b)
    elif isinstance(a, np.generic):
        _dtype(a.dtype, b.dtype)
        _need(a.tobytes() == b.tobytes(), "cell", a, b)
    elif isinstance(a, float):
        if math.isnan(a) or math.isnan(b):
            _need(math.isnan(a) and math.isnan(b), "cell", a, b)
        else:
            _need(a.hex() == b.hex(), "cell", a, b)
    elif isinstance(a, list | tuple):
        _need(len(a) == len(b), "length of a cell", a, b)
        for one, two in zip(a, b, strict=True):
            _cell(one, two)
    elif isinstance(a, dict):
        _need(len(a) == len(b), "length of a cell", a, b)
        for (key, one), (other_key, two) in zip(a.items(), b.items(), strict=True):
            _cell(key, other_key)
            _cell(one, two)
    elif isinstance(a, pd.Timestamp):
        _need(a.tz == b.tz and type(a.tz) is type(b.tz), "zone of a cell", a.tz, b.tz)
        _need((a.unit, a.isoformat()) == (b.unit, b.isoformat()), "cell", a, b)
    elif isinstance(a, int):
        _need(a == b, "cell", a, b)
    else:
        _need(a == b and repr(a) == repr(b), "cell", a, b)
