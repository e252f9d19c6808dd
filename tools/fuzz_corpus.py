"""The values that the fuzzer mutates: some of each codec, small, of every kind of content."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import ipaddress
import pathlib
import re
import types
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Any

import dateutil.tz
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytz

TEXT = "a text of more than twelve bytes"
PARIS = zoneinfo.ZoneInfo("Europe/Paris")


def every_value() -> dict[str, Any]:
    """Values by a name."""
    found: dict[str, Any] = {}
    for group, values in (
        ("plain", _plain()),
        ("numpy", _numpy()),
        ("pickle", _pickled()),
        ("arrow", _arrow()),
        ("polars", _polars()),
        ("pandas", _pandas()),
    ):
        for number, value in enumerate(values):
            found[f"{group} {number}"] = value
    return found


def _plain() -> Iterator[Any]:
    yield {"a": [1, 2.5, None, True, "é", b"b", 10**30, -(2**40)], ("t", (1, (2,))): {3, "x"}}
    shared: list[Any] = [frozenset((1, 2))]
    shared.append(shared)
    yield [shared, shared, list(range(50)), "x" * 300, bytearray(b"z" * 300), b"y" * 300]
    yield {"deep": [[[[[[(((((1,),),),),)]]]]]], "long": {str(n): n for n in range(40)}}


def _numpy() -> Iterator[Any]:
    for dtype in ("d", ">i2", "?", "U3", ">U2", "S4", "M8[25us]", "m8", "V3", "g", "G"):
        yield np.zeros((3, 2), dtype)
    yield np.asfortranarray(np.arange(12).reshape(3, 4))
    yield np.zeros((2, 0, 3))
    yield np.zeros(4, [("a", "i1"), ("b", ">f8", (2, 2)), (("t", "c"), "U2")])
    yield np.zeros(4, np.dtype([("a", "i1"), ("b", "d")], align=True)).view(np.recarray)


def _pickled() -> Iterator[Any]:
    yield [
        1j, range(3, 10, 2), slice(1, None, "x"), ..., datetime.date(2020, 2, 29),
        datetime.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=PARIS), datetime.UTC,
        datetime.timezone(datetime.timedelta(hours=5)), decimal.Decimal("-0E+5"),
        collections.OrderedDict(b=1), PARIS, uuid.UUID(int=5), collections.deque([1, [2]], 5),
        collections.Counter("banana"), collections.defaultdict(list, {1: [2]}),
        collections.ChainMap({1: 2}, {3: 4}), types.SimpleNamespace(a=1, b=[2]),
        fractions.Fraction(-1, 3), pathlib.PurePosixPath("/a"), ipaddress.ip_network("::/0"),
        re.compile("a(?P<n>b)", re.I), array.array("d", range(5)), memoryview(b"abc" * 200),
        memoryview(np.arange(60, dtype="i4").reshape(3, 4, 5)),
    ]  # fmt: skip
    yield {
        "dtypes": [np.dtype("f8"), np.dtype(">M8[3us]"), np.dtype("O"), np.dtypes.StringDType(),
                   np.dtype([("a", "i1"), ("b", "f8")]), np.dtype("i4", metadata={"u": ["m"]})],
        "scalars": [np.float64(1), np.bool_(True), np.datetime64(5, "25s"), np.str_("t\0"),
                    np.void(b"abc"), np.zeros(2, [("a", "i4"), ("b", "U2")])[0]],
    }  # fmt: skip
    yield [np.array([1, None, [2], "x"], object), np.array([["a"], [()]], object, order="F")]
    yield np.array(["a", "b" * 99, None], np.dtypes.StringDType(na_object=None))
    yield np.ma.MaskedArray(np.arange(100), np.arange(100) % 2 == 0)
    yield [np.zeros((3, 100), np.dtype("f8", metadata={"a": 1})), np.arange(9).view(np.memmap)]
    yield [pd.Timestamp("2020", tz=PARIS), pd.Timedelta(1), pd.NaT, pd.NA, pd.Interval(1, 2)]
    yield [
        pd.Period("2020-01", "M"), pd.offsets.CustomBusinessDay(holidays=["2020-01-01"]),
        pd.DateOffset(months=2), pytz.timezone("Europe/Paris"), pytz.FixedOffset(9),
        dateutil.tz.gettz("Europe/Paris"), dateutil.tz.tzoffset("x", 60),
    ]  # fmt: skip
    yield {
        "frame": pd.DataFrame({"a": [1, 2]}),
        "table": pa.table({"a": [1]}),
        "pl": pl.Series([1]),
    }


def _arrow() -> Iterator[Any]:
    texts = ["a", None, TEXT, ""]
    flat = [
        pa.array([1, None, 3, 4]), pa.array([True, None, False, True]), pa.array(texts),
        pa.array(texts, pa.large_string()), pa.array(texts, pa.string_view()),
        pa.array([b"a", None, b"b", b""], pa.binary_view()),
        pa.array([b"ab", None] * 2, pa.binary(2)),
        pa.array(texts).dictionary_encode(), pa.array([None] * 4),
        pa.array([decimal.Decimal("1.5"), None] * 2, pa.decimal128(10, 2)),
        pa.array([0, None, 1, 2], pa.timestamp("us", "Europe/Paris")),
        pa.array([0, None, 1, 2], pa.date64()), pa.array([0, None, 1, 2], pa.time32("s")),
        pa.array([1.0, None, 2.0, 3.0], pa.float16()),
        pa.array([(1, 2, 3), None] * 2, pa.month_day_nano_interval()),
    ]  # fmt: skip
    lists: list[Any] = [[1], None, [], [2, None]]
    nested = [
        pa.array(lists), pa.array(lists, pa.large_list(pa.int8())),
        pa.array(lists, pa.list_view(pa.int8())), pa.array(lists, pa.large_list_view(pa.int64())),
        pa.array([[1, 2], None] * 2, pa.list_(pa.int8(), 2)),
        pa.array([{"a": 1, "b": TEXT}, None] * 2),
        pa.array([[("k", 1)], None] * 2, pa.map_(pa.string(), pa.int8())),
        pa.array([texts, None] * 2, pa.list_(pa.string_view())),
        pa.array([1, 1, 1, 2], pa.run_end_encoded(pa.int32(), pa.int64())),
        pa.UnionArray.from_dense(
            pa.array([0, 1, 0, 1], pa.int8()), pa.array([0, 0, 1, 1], pa.int32()),
            [pa.array([1, 2]), pa.array(["x", "y"])]),
        pa.UnionArray.from_sparse(
            pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1, 2, 3, 4]), pa.array(texts)]),
    ]  # fmt: skip
    yield from (*flat, *nested)
    yield pa.table({str(n): column for n, column in enumerate((*flat, *nested))})
    yield pa.record_batch({"a": flat[0], "b": flat[2]})
    yield pa.chunked_array([flat[7], pa.array(["z"]).dictionary_encode()])
    yield nested[5][0]
    yield pa.schema([pa.field("a", pa.list_(pa.int8()), metadata={"k": "v"})], metadata={"x": "y"})
    yield pa.field("a", pa.dictionary(pa.int8(), pa.string()))
    yield pa.struct([pa.field("a", pa.int8())])
    yield pa.Tensor.from_numpy(np.arange(6.0).reshape(2, 3), ["x", "y"])
    yield pa.py_buffer(b"abc")
    yield pa.array([uuid.UUID(int=1).bytes], pa.uuid())


def _polars() -> Iterator[Any]:
    columns = [
        pl.Series([1, None, 3]), pl.Series([True, None, False]), pl.Series(["", None, TEXT]),
        pl.Series([b"", None, b"x" * 20]), pl.Series([1.5, None, 2.5]), pl.Series([None] * 3),
        pl.Series([0, None, 1]).cast(pl.Datetime("ns", "Europe/Berlin")),
        pl.Series([decimal.Decimal("1.25"), None, None], dtype=pl.Decimal(38, 10)),
        pl.Series(["b", None, "a"], dtype=pl.Categorical),
        pl.Series(["b", None, "a"], dtype=pl.Enum(["c", "b", "a"])),
        pl.Series([[1], None, []]),
        pl.Series([[1, None], None, [3, 4]], dtype=pl.Array(pl.Int8, 2)),
        pl.Series([{"a": 1, "b": [TEXT]}, None, {"a": None, "b": None}]),
        pl.Series([1, 2, 3]).set_sorted(), pl.Series([2**100, None, -1], dtype=pl.Int128),
        pl.Series([[2**100], None, [-1]], dtype=pl.List(pl.Int128)), pl.Series([{"a\0b": 1}] * 3),
    ]  # fmt: skip
    yield from columns
    yield pl.DataFrame({str(n): column for n, column in enumerate(columns)})


def _pandas() -> Iterator[Any]:
    days = pd.date_range("2020", periods=3, tz="Europe/Paris", name="d")
    yield pd.DataFrame({"a": [1, 2, 3], "b": [1.5, 2.5, 3.5], "c": ["x", None, "z"]}, index=days)
    yield pd.DataFrame(np.zeros((2, 3)), columns=pd.MultiIndex.from_product([["a"], [1, 2, 3]]))
    yield pd.Series(pd.Categorical(["a", None, "b"], ordered=True), name=("n", 1))
    yield pd.Series(pd.arrays.SparseArray([0, 0, 1, 2]))
    yield pd.Series(pd.arrays.SparseArray([0, 0, 1, 2], kind="block"))
    yield pd.Series(pd.array([1, None, 3]))
    yield pd.Series(pd.interval_range(0, 3))
    yield pd.Series(pd.period_range("2020-01", periods=3, freq="M"))
    yield pd.Series(pd.array(["a", None], "string"))
    yield pd.Series(pd.array([[1], None], pd.ArrowDtype(pa.list_(pa.int8()))))
    yield pd.Series(pd.timedelta_range("1s", periods=3, freq="s"))
    yield pd.Series([1, {"a": [2]}, None, (3,)], dtype=object)
    yield pd.RangeIndex(2, 9, 3)
    yield pd.MultiIndex.from_arrays([[1, 2, 2], ["a", "b", "b"], days], names=["x", None, "z"])
    framed = pd.DataFrame({"a": [1]})
    framed.attrs = {"k": [1, 2]}
    yield framed.set_flags(allows_duplicate_labels=False)
