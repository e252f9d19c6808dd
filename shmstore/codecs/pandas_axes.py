"""The axes of pandas values: every built-in class of Index, and Categorical.

Each is a JSON object whose ``k`` names its class, with its ``name`` as a label.
Categorical is here because its categories are an axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from shmstore.codecs import pandas_arrays, pandas_times
from shmstore.codecs import pandas_internals as internals
from shmstore.codecs.pandas_payload import Array, Reader, Spec, Writer, damaged

#: The classes that are an array with a name, and the array that each must have.
_CLASSES: dict[str, tuple[type[pd.Index], type | tuple[type, ...]]] = {
    "index": (pd.Index, (np.ndarray, pd.api.extensions.ExtensionArray)),
    "datetimes": (pd.DatetimeIndex, pd.arrays.DatetimeArray),
    "timedeltas": (pd.TimedeltaIndex, pd.arrays.TimedeltaArray),
    "periods": (pd.PeriodIndex, pd.arrays.PeriodArray),
    "categories": (pd.CategoricalIndex, pd.Categorical),
    "intervals": (pd.IntervalIndex, pd.arrays.IntervalArray),
}
_KINDS = {cls: kind for kind, (cls, _) in _CLASSES.items()}
_WITH_FREQ = (pd.DatetimeIndex, pd.TimedeltaIndex)


def is_understood(index: pd.Index) -> bool:
    """Whether ``write_index`` gives back exactly this index: no subclasses, at any depth."""
    kind = type(index)
    if kind is pd.MultiIndex:
        return all(map(is_understood, index.levels))
    return kind is pd.RangeIndex or kind in _KINDS


def write_index(out: Writer, index: pd.Index) -> Spec:
    """Places an index for which ``is_understood`` holds."""
    cls = type(index)
    if cls is pd.RangeIndex:
        spec: Spec = {
            "k": "range",
            "start": index.start,
            "stop": index.stop,
            "step": index.step,
        }
    elif cls is pd.MultiIndex:
        return _write_multi(out, index)
    else:
        spec = {
            "k": _KINDS[cls],
            "values": pandas_arrays.write_array(out, internals.values_of(index)),
        }
        if cls in _WITH_FREQ and index.freq is not None:
            spec["freq"] = pandas_times.write_freq(out, index.freq)
    if index.name is not None:
        spec["name"] = out.label(index.name)
    return spec


def read_index(source: Reader, spec: Spec) -> pd.Index:
    """The index that ``write_index`` placed."""
    kind = spec["k"]
    if kind == "multi":
        return _read_multi(source, spec)
    name = source.label(spec.get("name"))
    if kind == "range":
        bounds = spec["start"], spec["stop"], spec["step"]
        if not all(type(bound) is int for bound in bounds):
            raise damaged("a range is not made of integers")
        if not all(-(2**63) <= bound < 2**63 for bound in bounds):
            raise damaged("a range leads beyond 64 bits")
        return pd.RangeIndex(*bounds, name=name)
    cls, content = _CLASSES[kind]
    values: Any = pandas_arrays.read_array(source, spec["values"])
    if values.ndim != 1 or not isinstance(values, content):
        raise damaged(f"a {cls.__name__} has values of another type")
    freq = None
    if "freq" in spec:
        if cls not in _WITH_FREQ:
            raise damaged(f"a {cls.__name__} has a freq")
        freq = pandas_times.read_freq(source, spec["freq"])
    hash(name)
    return internals.index_of(cls, values, name, freq)


def _write_multi(out: Writer, index: pd.MultiIndex) -> Spec:
    levels = [level.rename(None) for level in index.levels]
    codes = [
        np.asarray(each).astype(code_dtype(len(level)), copy=False)
        for each, level in zip(index.codes, levels, strict=True)
    ]
    spec: Spec = {
        "k": "multi",
        "levels": [write_index(out, level) for level in levels],
        "codes": [out.array(each) for each in codes],
        "names": [out.label(name) for name in index.names],
    }
    if index.sortorder is not None:
        spec["sortorder"] = index.sortorder
    return spec


def _read_multi(source: Reader, spec: Spec) -> pd.MultiIndex:
    levels = [read_index(source, each) for each in spec["levels"]]
    codes = [source.array(each) for each in spec["codes"]]
    names = [source.label(each) for each in spec["names"]]
    sortorder = spec.get("sortorder")
    if not levels or not len(levels) == len(codes) == len(names):
        raise damaged("a MultiIndex has not as many levels as codes and names")
    for level, each in zip(levels, codes, strict=True):
        _check_codes(source, each, level)
        if each.shape != codes[0].shape:
            raise damaged("a MultiIndex has codes of different lengths")
    if sortorder is not None and type(sortorder) is not int:
        raise damaged("a MultiIndex has a sortorder that is no number")
    return pd.MultiIndex(levels, codes, sortorder, names, verify_integrity=False)


_CODES = [(int(np.iinfo(each).max), np.dtype(each)) for each in ("i1", "i2", "i4")]


def code_dtype(categories: int) -> np.dtype[Any]:
    """The dtype to which pandas brings codes into so many categories; others it copies."""
    for limit, dtype in _CODES:
        if categories < limit:
            return dtype
    return np.dtype(np.int64)


def _check_codes(source: Reader, codes: Array, categories: pd.Index) -> None:
    if codes.ndim != 1 or codes.dtype != code_dtype(len(categories)):
        raise damaged("codes do not fit their categories")
    # pandas looks categories up by their codes without a look at these.
    if (
        source.trust is not None
        and len(codes)
        and not -1 <= int(codes.min()) <= int(codes.max()) < len(categories)
    ):
        raise damaged("codes lead out of their categories")


def _write_categorical(out: Writer, values: Any) -> Spec | None:
    dtype, codes = values.dtype, internals.memory_of(values)
    categories = dtype.categories
    if type(dtype) is not pd.CategoricalDtype or not is_understood(categories):
        return None
    if type(codes) is not np.ndarray or codes.dtype != code_dtype(len(categories)):
        return None
    return {
        "k": "categorical",
        "codes": out.array(codes),
        "categories": write_index(out, categories),
        "ordered": bool(dtype.ordered),
    }


def _read_categorical(source: Reader, spec: Spec) -> Any:
    codes, ordered = source.array(spec["codes"]), spec["ordered"]
    categories = read_index(source, spec["categories"])
    _check_codes(source, codes, categories)
    if type(ordered) is not bool:
        raise damaged("a categorical is neither ordered nor unordered")
    return internals.categorical_of(codes, categories, ordered)


pandas_arrays.WRITERS[pd.Categorical] = _write_categorical
pandas_arrays.READERS["categorical"] = _read_categorical
