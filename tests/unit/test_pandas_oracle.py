"""The oracle for pandas values sees each difference that pandas' own comparison does not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.pandas_oracle import difference, identical_pandas


def cells(*values: Any) -> pd.Series:
    return pd.Series(np.fromiter(values, dtype=object, count=len(values)))


def attributed(attrs: dict[str, Any]) -> pd.Series:
    series = pd.Series([1])
    series.attrs = attrs
    return series


def fragmented() -> pd.DataFrame:
    frame = pd.DataFrame({"a": [1.0]})
    frame["b"] = [2.0]
    return frame


def dated(freq: Any) -> pd.DatetimeIndex:
    index = pd.date_range("2020", periods=2, freq="D")
    index.freq = freq
    return index


def nan(payload: int) -> pd.Series:
    return pd.Series(np.array([0x7FF8000000000000 + payload], dtype="u8").view("f8"))


class Table(pd.DataFrame):
    pass


NA, NAN, NAT = pd.NA, float("nan"), pd.NaT

PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "None against NaN": lambda: (cells(None), cells(NAN)),
    "NaT against NaN": lambda: (cells(NAT), cells(NAN)),
    "NA against None": lambda: (cells(NA), cells(None)),
    "1 against 1.0": lambda: (cells(1), cells(1.0)),
    "1 against True": lambda: (cells(1), cells(True)),
    "a cell of numpy": lambda: (cells(1.0), cells(np.float64(1.0))),
    "a tuple against a list": lambda: (cells((1,)), cells([1])),
    "the order of a dict": lambda: (cells({1: 1, 2: 2}), cells({2: 2, 1: 1})),
    "-0.0": lambda: (pd.Series([0.0]), pd.Series([-0.0])),
    "-0.0 in a cell": lambda: (cells(0.0), cells(-0.0)),
    "bits of NaN": lambda: (nan(0), nan(1)),
    "byte order": lambda: (pd.Series([1], dtype="<i8"), pd.Series([1], dtype=">i8")),
    "width": lambda: (pd.Series([1], dtype="i4"), pd.Series([1])),
    "the same dtype by another name": lambda: (
        pd.Series(np.array([1], dtype="q")),
        pd.Series(np.array([1], dtype="l")),
    ),
    "a name's type": lambda: (pd.Series([1], name=1), pd.Series([1], name=1.0)),
    "a name": lambda: (pd.Series([1], name=None), pd.Series([1], name="None")),
    "attrs": lambda: (attributed({"x": 1}), attributed({"x": 2})),
    "flags": lambda: (
        pd.Series([1]),
        pd.Series([1]).set_flags(allows_duplicate_labels=False),
    ),
    "freq": lambda: (dated("D"), dated(None)),
    "another freq": lambda: (dated("D"), dated("24h")),
    "the class of an index": lambda: (
        pd.Series([1, 2], index=pd.RangeIndex(2)),
        pd.Series([1, 2], index=pd.Index([0, 1])),
    ),
    "the class of columns": lambda: (
        pd.DataFrame(np.zeros((1, 2))),
        pd.DataFrame(np.zeros((1, 2)), columns=pd.Index([0, 1])),
    ),
    "the bounds of a range": lambda: (pd.RangeIndex(0, 5, 2), pd.RangeIndex(0, 6, 2)),
    "objects against str": lambda: (pd.Index(["a"], dtype=object), pd.Index(["a"], dtype="str")),
    "a name of columns": lambda: (
        pd.DataFrame([[1]], columns=pd.Index(["a"], name="n")),
        pd.DataFrame([[1]], columns=pd.Index(["a"])),
    ),
    "the order of categories": lambda: (
        pd.Series(pd.Categorical(["a"], ["a", "b"])),
        pd.Series(pd.Categorical(["a"], ["b", "a"])),
    ),
    "unused categories": lambda: (
        pd.Series(pd.Categorical(["a"], ["a", "b"])),
        pd.Series(pd.Categorical(["a"], ["a"])),
    ),
    "ordered": lambda: (
        pd.Series(pd.Categorical(["a"], ordered=True)),
        pd.Series(pd.Categorical(["a"], ordered=False)),
    ),
    "dtype of categories": lambda: (
        pd.Series(pd.Categorical.from_codes([0], pd.Index(["a"], dtype=object))),
        pd.Series(pd.Categorical.from_codes([0], pd.Index(["a"], dtype="str"))),
    ),
    "unused levels": lambda: (
        pd.MultiIndex.from_product([["a"], [1, 2]])[:1],
        pd.MultiIndex.from_product([["a"], [1]]),
    ),
    "names of levels": lambda: (
        pd.MultiIndex.from_product([["a"], [1]], names=["x", None]),
        pd.MultiIndex.from_product([["a"], [1]], names=[None, "x"]),
    ),
    "sortorder": lambda: (
        pd.MultiIndex([["a"]], [[0]], sortorder=0),
        pd.MultiIndex([["a"]], [[0]]),
    ),
    "storage of strings": lambda: (
        pd.Series(["a"], dtype="string[python]"),
        pd.Series(["a"], dtype="string[pyarrow]"),
    ),
    "missing strings": lambda: (
        pd.Series(["a"], dtype="string[pyarrow]"),
        pd.Series(["a"], dtype="str"),
    ),
    "unit": lambda: (
        pd.Series(pd.DatetimeIndex(["2020"]).as_unit("s")),
        pd.Series(pd.DatetimeIndex(["2020"]).as_unit("ms")),
    ),
    "zone": lambda: (
        pd.date_range("2020", periods=1, tz=UTC),
        pd.date_range("2020", periods=1, tz=ZoneInfo("UTC")),
    ),
    "what is under a mask": lambda: (
        pd.Series(pd.arrays.IntegerArray(np.array([1, 2]), np.array([True, False]))),
        pd.Series(pd.arrays.IntegerArray(np.array([9, 2]), np.array([True, False]))),
    ),
    "NaN against missing": lambda: (
        pd.Series(pd.arrays.FloatingArray(np.array([NAN]), np.array([True]))),
        pd.Series(pd.arrays.FloatingArray(np.array([NAN]), np.array([False]))),
    ),
    "kind of sparse index": lambda: (
        pd.Series(pd.arrays.SparseArray([0, 1], kind="integer")),
        pd.Series(pd.arrays.SparseArray([0, 1], kind="block")),
    ),
    "fill value": lambda: (
        pd.Series(pd.arrays.SparseArray([1, 2], fill_value=0)),
        pd.Series(pd.arrays.SparseArray([1, 2], fill_value=3)),
    ),
    "Arrow types": lambda: (
        pd.Series(["a"], dtype=pd.ArrowDtype(pa.string())),
        pd.Series(["a"], dtype=pd.ArrowDtype(pa.large_string())),
    ),
    "Arrow NaN against null": lambda: (
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([NAN], from_pandas=False))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([None], pa.float64()))),
    ),
    "closed": lambda: (
        pd.interval_range(0, 2, closed="left"),
        pd.interval_range(0, 2, closed="right"),
    ),
    "blocks": lambda: (fragmented(), fragmented().copy()),
    "memory order": lambda: (
        pd.DataFrame(np.zeros((2, 2), order="C"), copy=False),
        pd.DataFrame(np.zeros((2, 2), order="F"), copy=False),
    ),
    "the class of a frame": lambda: (pd.DataFrame({"a": [1]}), Table({"a": [1]})),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_sees(name: str) -> None:
    """And a value is identical to itself made again."""
    one, two = PAIRS[name]()
    assert difference(one, two) is not None
    assert difference(two, one) is not None
    again, other = PAIRS[name]()
    assert identical_pandas(one, again)
    assert identical_pandas(two, other)
