"""pandas values come back exactly, on views of the payload, or not at all."""

from __future__ import annotations

import datetime
import decimal
import json
import mmap
import pickle
import tempfile
import zoneinfo
from collections.abc import Callable, Iterator
from typing import Any

import dateutil.tz
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shmstore import codecs
from shmstore.codecs import pandas_frames
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.errors import CorruptValue, StoreError, Unserializable
from tests.pandas_oracle import difference

NAN = float("nan")
PARIS = zoneinfo.ZoneInfo("Europe/Paris")


def payload_of(encoded: Encoded, *, writable: bool = False) -> memoryview:
    """The payload in memory of its own, as aligned as a segment is."""
    memory = np.zeros(encoded.nbytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    payload = memory[start : start + encoded.nbytes]
    payload[:] = np.frombuffer(b"".join(encoded.parts), dtype=np.uint8)
    return memoryview(payload) if writable else memoryview(payload).toreadonly()


def encode(value: Any) -> Encoded:
    encoded = pandas_frames.encode(value)
    assert encoded is not None
    assert encoded.codec == 8
    assert sum(map(len, encoded.parts)) == encoded.nbytes
    json.loads(encoded.meta)
    return encoded


def there_and_back(value: Any, *, writable: bool = False) -> Any:
    encoded = encode(value)
    return pandas_frames.decode(encoded.meta, payload_of(encoded, writable=writable))


def cells(*values: Any) -> np.ndarray[Any, Any]:
    return np.fromiter(values, dtype=object, count=len(values))


class Cell:
    """A class of a user."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return f"Cell({self.number})"


class Words(str):
    """A subclass of str, which is not a str."""

    __slots__ = ()


def with_attrs(value: Any, attrs: dict[Any, Any]) -> Any:
    value.attrs = attrs
    return value


def consolidated(order: str) -> pd.DataFrame:
    return pd.DataFrame(np.arange(12.0).reshape((4, 3), order=order), copy=False)


def fragmented() -> pd.DataFrame:
    frame = pd.DataFrame({"a": [1, 2]})
    frame["b"] = [3, 4]
    frame["c"] = [0.5, 1.5]
    frame["d"] = [5, 6]
    return frame


def interleaved() -> pd.DataFrame:
    """Blocks whose columns are neither contiguous nor evenly spaced."""
    frame = pd.DataFrame({c: [n] if n % 3 else [n / 2] for n, c in enumerate("abcdefg")})
    assert len(frame._mgr.blocks) == 2
    return frame


def unused_levels() -> pd.MultiIndex:
    index = pd.MultiIndex.from_product([["a", "b", "c"], [1, 2]], names=["letter", ("n", 1)])
    return index[:2]


def two_row_zoned_block() -> pd.DataFrame:
    """A block of several columns with a zone, as a transposition makes it."""
    frame = pd.DataFrame({n: pd.date_range("2020", periods=3, tz="UTC") for n in "ab"}).T
    assert isinstance(frame.dtypes.iloc[0], pd.DatetimeTZDtype)
    return frame


def of_memmap() -> pd.Series:
    with tempfile.TemporaryFile() as file:
        values = np.memmap(file, dtype="f8", shape=4, mode="w+")
    return pd.Series(values, copy=False)


ARRAYS: dict[str, Callable[[], Any]] = {
    **{
        f"numpy {name}": lambda name=name: np.array([0, 1, 1], dtype=name)
        for name in (
            *("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g"),
            *("F", "D", "G", ">i8", ">f4", "q", "Q"),
        )
    },
    "numpy bytes": lambda: np.array([b"a", b"bcd"]),
    "numpy with gaps": lambda: np.arange(10)[::3],
    "numpy backwards": lambda: np.arange(10)[::-1],
    "numpy NaN with a payload": lambda: np.array([0x7FF8000000000123], dtype="u8").view("f8"),
    "numpy metadata": lambda: np.array(
        [b"abc"], dtype=np.dtype("S3", metadata={"charset": "latin-1"})
    ),
    **{
        f"datetime64[{unit}]": lambda unit=unit: np.array(["2020", "NaT", "1066"], f"M8[{unit}]")
        for unit in ("s", "ms", "us")
    },
    "datetime64[ns]": lambda: np.array(["2020", "NaT"], "M8[ns]"),
    **{
        f"timedelta64[{unit}]": lambda unit=unit: np.array([1, "NaT", -5], f"m8[{unit}]")
        for unit in ("s", "ms", "us", "ns")
    },
    "zone UTC": lambda: pd.date_range("2020", periods=3, tz="UTC").array,
    "zone ZoneInfo": lambda: pd.date_range("2020-03-29", periods=3, freq="h", tz=PARIS).array,
    "zone ZoneInfo UTC": lambda: (
        pd.date_range("2020", periods=3, tz=zoneinfo.ZoneInfo("UTC")).array
    ),
    "zone fixed offset": lambda: (
        pd.date_range(
            "2020", periods=3, tz=datetime.timezone(datetime.timedelta(hours=5, minutes=30))
        ).array
    ),
    "zone named offset": lambda: (
        pd.date_range(
            "2020", periods=3, tz=datetime.timezone(datetime.timedelta(hours=-3), "here")
        ).array
    ),
    "zone dateutil": lambda: (
        pd.date_range("2020", periods=3, tz=dateutil.tz.gettz("Asia/Tokyo")).array
    ),
    "zone dateutil UTC": lambda: pd.date_range("2020", periods=3, tz=dateutil.tz.UTC).array,
    **{
        f"zone in {unit}": lambda unit=unit: (
            pd.date_range("2020", periods=3, tz=PARIS).as_unit(unit).array
        )
        for unit in ("s", "ms", "us", "ns")
    },
    **{
        f"period {freq}": lambda freq=freq: pd.period_range("2020", periods=4, freq=freq).array
        for freq in ("D", "M", "Q-FEB", "Y-JUN", "W-WED", "h", "2h", "s", "ns", "15min")
    },
    "period with NaT": lambda: pd.array([pd.Period("2020-01", "M"), pd.NaT], dtype="period[M]"),
    "categorical": lambda: pd.Categorical(["b", "a", None, "b"]),
    "categorical unused": lambda: pd.Categorical(["b"], categories=["z", "b", "a"]),
    "categorical ordered": lambda: pd.Categorical(
        ["lo", "hi"], categories=["lo", "mid", "hi"], ordered=True
    ),
    "categorical of integers": lambda: pd.Categorical([3, 1, 3]),
    "categorical of floats": lambda: pd.Categorical([0.5, -0.0]),
    "categorical of datetimes": lambda: pd.Categorical(pd.date_range("2020", periods=3, freq="D")),
    "categorical of zoned": lambda: pd.Categorical(pd.date_range("2020", periods=3, tz=PARIS)),
    "categorical of intervals": lambda: pd.cut([1, 5, 9], 3),
    "categorical of periods": lambda: pd.Categorical(pd.period_range("2020", periods=2, freq="M")),
    "categorical of objects": lambda: pd.Categorical(
        cells("a", 1), categories=pd.Index(cells("a", 1, (2, 3)), dtype=object)
    ),
    "categorical of booleans": lambda: pd.Categorical([True, False]),
    "categorical of a range": lambda: pd.Categorical.from_codes([0, 2], pd.RangeIndex(5)),
    "categorical of a named axis": lambda: pd.Categorical.from_codes(
        [1, 0], pd.Index(["x", "y"], name="which")
    ),
    "categorical of many": lambda: pd.Categorical([f"c{n}" for n in range(300)]),
    "categorical without any": lambda: pd.Categorical([None, None]),
    **{
        f"nullable {name}": lambda name=name: pd.array([1, None, 3], dtype=name)
        for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    },
    "nullable Float32": lambda: pd.array([1.5, None], dtype="Float32"),
    "nullable Float64 with NaN": lambda: pd.arrays.FloatingArray(
        np.array([NAN, 1.0, 2.0]), np.array([False, True, False])
    ),
    "nullable boolean": lambda: pd.array([True, None, False], dtype="boolean"),
    "nullable with gaps": lambda: pd.array(range(10), dtype="Int64")[::2],
    "string[python]": lambda: pd.array(["a", None, "ü𝄞"], dtype="string[python]"),
    "string[pyarrow]": lambda: pd.array(["a", None, "ü𝄞"], dtype="string[pyarrow]"),
    "str": lambda: pd.array(["a", None, ""], dtype="str"),
    "str of python": lambda: pd.array(["a", None], dtype=pd.StringDtype("python", na_value=np.nan)),
    "str of a surrogate": lambda: pd.array(["\ud800"], dtype="string[python]"),
    "str, many": lambda: pd.array([f"s{n}" for n in range(1000)] + [None], dtype="str"),
    "string[python], many": lambda: pd.array(["é"] * 999 + [None], dtype="string[python]"),
    "str, sliced": lambda: pd.array([f"s{n}" for n in range(1000)], dtype="str")[3:900],
    "str, in chunks": lambda: (
        pd.concat([pd.Series([f"s{n}" for n in range(200)], dtype="str")] * 2).array
    ),
    "sparse": lambda: pd.arrays.SparseArray([0, 0, 1, 2, 0]),
    "sparse of NaN": lambda: pd.arrays.SparseArray([NAN, 1.0, NAN]),
    "sparse of blocks": lambda: pd.arrays.SparseArray([0, 0, 1, 2, 0, 3], kind="block"),
    "sparse filled with 7": lambda: pd.arrays.SparseArray([7, 1, 7], fill_value=7),
    "sparse of booleans": lambda: pd.arrays.SparseArray([True, False], fill_value=False),
    "sparse of datetimes": lambda: pd.arrays.SparseArray(np.array(["NaT", "2020"], dtype="M8[ns]")),
    "sparse of objects": lambda: pd.arrays.SparseArray(cells("a", None), dtype=object),
    "sparse without values": lambda: pd.arrays.SparseArray([0, 0]),
    "interval": lambda: pd.interval_range(0, 3).array,
    "interval closed left": lambda: pd.interval_range(0.5, 3.5, closed="left").array,
    "interval of datetimes": lambda: (
        pd.interval_range(pd.Timestamp("2020"), periods=3, freq="D", closed="both").array
    ),
    "interval of zoned": lambda: (
        pd.interval_range(pd.Timestamp("2020", tz=PARIS), periods=3, freq="D").array
    ),
    "interval of timedeltas": lambda: pd.interval_range(pd.Timedelta(0), periods=3).array,
    "interval with NaN": lambda: pd.arrays.IntervalArray.from_tuples([(0, 1), NAN]),
    "Arrow integers": lambda: pd.array([1, None], dtype=pd.ArrowDtype(pa.int32())),
    "Arrow string": lambda: pd.array(["a", None], dtype=pd.ArrowDtype(pa.string())),
    "Arrow list": lambda: pd.array([[1], None, []], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    "Arrow struct": lambda: pd.array(
        [{"a": 1}, None], dtype=pd.ArrowDtype(pa.struct([("a", pa.int8())]))
    ),
    "Arrow dictionary": lambda: pd.arrays.ArrowExtensionArray(
        pa.array(["a", "b", "a"]).dictionary_encode()
    ),
    "Arrow timestamp": lambda: pd.array(
        [pd.Timestamp("2020", tz="UTC")], dtype=pd.ArrowDtype(pa.timestamp("ms", "Europe/Paris"))
    ),
    "Arrow decimal": lambda: pd.array(
        [decimal.Decimal("1.20")], dtype=pd.ArrowDtype(pa.decimal128(7, 2))
    ),
    "Arrow NaN and null": lambda: pd.arrays.ArrowExtensionArray(
        pa.array([NAN, None, -0.0], from_pandas=False)
    ),
    "Arrow null": lambda: pd.arrays.ArrowExtensionArray(pa.nulls(3)),
    "objects mixed": lambda: cells(None, NAN, pd.NaT, pd.NA, 1, 1.0, True, "a", b"b", -0.0),
    "objects tuples": lambda: cells((1, 2), (1,), ()),
    "objects of equal lengths": lambda: cells([1, 2], [3, 4]),
    "objects one list": lambda: cells([1, 2]),
    "objects dicts": lambda: cells({"a": [1]}, {}, None),
    "objects arrays": lambda: cells(np.arange(3), np.arange(3.0), None),
    "objects numpy scalars": lambda: cells(np.float64(1), np.int8(1), np.bool_(True), 1),
    "objects timestamps": lambda: cells(
        pd.Timestamp("2020", tz=PARIS), pd.Timedelta(1), datetime.date(2020, 1, 1), pd.NaT
    ),
    "objects of a class": lambda: cells(Cell(1), Cell(2)),
    "objects str subclass": lambda: cells(Words("a"), "a"),
    "objects surrogates": lambda: cells("\ud800\udc00", "\U00010000"),
    "objects large integers": lambda: cells(2**64, -(2**63), 2**64 - 1, 10**5000),
    "objects infinite": lambda: cells(float("inf"), float("-inf")),
    "objects frames": lambda: cells(pd.DataFrame({"a": [1]}), pd.Series([1], name="s")),
    "objects, many strings": lambda: cells(*[f"s{n}" for n in range(1000)], None),
    "objects with gaps": lambda: cells(*"abcdef")[::2],
}

INDEXES: dict[str, Callable[[], pd.Index]] = {
    "range": lambda: pd.RangeIndex(3),
    "range with steps": lambda: pd.RangeIndex(10, -5, -3, name="r"),
    "range that is empty": lambda: pd.RangeIndex(5, 5, 2),
    "integers": lambda: pd.Index([0, 1, 2]),
    "integers of 8 bits": lambda: pd.Index([1, 2], dtype="i1"),
    "floats": lambda: pd.Index([0.5, NAN]),
    "booleans": lambda: pd.Index([True, False]),
    "complex": lambda: pd.Index([1j]),
    "str": lambda: pd.Index(["a", "b"], dtype="str"),
    "str, many": lambda: pd.Index([f"s{n}" for n in range(1000)], dtype="str"),
    "objects of strings": lambda: pd.Index(["a", "b"], dtype=object),
    "objects mixed": lambda: pd.Index(["a", 1, None, NAN, (1, 2)], dtype=object),
    "tuples, no MultiIndex": lambda: pd.Index([("a", 1), ("b", 2)], tupleize_cols=False),
    "duplicates": lambda: pd.Index([1, 1, 2, 1]),
    "string[pyarrow]": lambda: pd.Index(["a", None], dtype="string[pyarrow]"),
    "nullable": lambda: pd.Index([1, None], dtype="Int64"),
    "Arrow": lambda: pd.Index([1, 2], dtype=pd.ArrowDtype(pa.int64())),
    "sparse": lambda: pd.Index(pd.arrays.SparseArray([0, 1])),
    "datetimes": lambda: pd.DatetimeIndex(["2020-01-01", "2020-01-05", pd.NaT]),
    **{
        f"freq {freq}": lambda freq=freq: pd.date_range("2020", periods=4, freq=freq)
        for freq in ("D", "3D", "h", "90min", "ME", "QS-FEB", "W-TUE", "B", "BME", "C", "bh", "ns")
    },
    "freq that is no alias": lambda: pd.date_range(
        "2020", periods=3, freq=pd.DateOffset(months=1, days=2)
    ),
    "freq with holidays": lambda: pd.date_range(
        "2020", periods=3, freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-02"])
    ),
    "freq with a week mask": lambda: pd.date_range(
        "2020", periods=3, freq=pd.offsets.CustomBusinessDay(weekmask="Mon Wed")
    ),
    "freq that normalizes": lambda: pd.date_range(
        "2020", periods=3, freq=pd.offsets.MonthEnd(normalize=True)
    ),
    "freq with a zone": lambda: pd.date_range("2020-03-28", periods=3, freq="D", tz=PARIS),
    "freq that is empty": lambda: pd.date_range("2020", periods=0, freq="D"),
    "timedeltas": lambda: pd.TimedeltaIndex(["1s", "5s", pd.NaT]),
    "timedeltas with freq": lambda: pd.timedelta_range(0, periods=3, freq="2h"),
    "periods": lambda: pd.period_range("2020", periods=3, freq="M", name="p"),
    "categories": lambda: pd.CategoricalIndex(["a", "b"], categories=["b", "a", "c"]),
    "intervals": lambda: pd.interval_range(0, 3, closed="left"),
    "intervals of datetimes": lambda: pd.interval_range(pd.Timestamp("2020"), periods=2),
    "MultiIndex": lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2]]),
    "MultiIndex names": lambda: pd.MultiIndex.from_arrays([[1], [2]], names=[0, ("t", None)]),
    "MultiIndex names that repeat": lambda: pd.MultiIndex.from_arrays([[1], [2]], names=["x", "x"]),
    "MultiIndex unused levels": unused_levels,
    "MultiIndex missing": lambda: pd.MultiIndex.from_arrays([["a", None], [NAN, 1.0]]),
    "MultiIndex of times": lambda: pd.MultiIndex.from_product(
        [pd.date_range("2020", periods=2, freq="D", tz=PARIS), pd.Categorical(["x", "y"])]
    ),
    "MultiIndex duplicates": lambda: pd.MultiIndex.from_arrays([[1, 1], [2, 2]]),
    "MultiIndex sortorder": lambda: pd.MultiIndex(
        levels=[["a"], ["b"]], codes=[[0], [0]], sortorder=2
    ),
    "MultiIndex of one level": lambda: pd.MultiIndex.from_arrays([[1, 2]]),
    "MultiIndex that is empty": lambda: pd.MultiIndex.from_arrays([[], []]),
    "MultiIndex of 200 labels": lambda: pd.MultiIndex.from_product([range(200), ["a"]]),
    "name of an integer": lambda: pd.Index([1], name=7),
    "name of a tuple": lambda: pd.Index([1], name=("a", 2)),
    "name of a date": lambda: pd.Index([1], name=datetime.date(2020, 1, 1)),
    "name that is NaN": lambda: pd.Index([1], name=NAN),
    "name that is True": lambda: pd.RangeIndex(2, name=True),
    "name that is empty": lambda: pd.Index([1], name=""),
    "empty": lambda: pd.Index([]),
    "empty of str": lambda: pd.Index([], dtype="str"),
}

FRAMES: dict[str, Callable[[], Any]] = {
    "empty": pd.DataFrame,
    "columns only": lambda: pd.DataFrame(columns=["a", "b"]),
    "typed columns only": lambda: pd.DataFrame({"a": [1], "b": ["x"]}).iloc[:0],
    "index only": lambda: pd.DataFrame(index=pd.Index([3, 4], name="i")),
    "one block in C order": lambda: consolidated("C"),
    "one block in F order": lambda: consolidated("F"),
    "one block with gaps": lambda: consolidated("C").iloc[::2],
    "one block backwards": lambda: consolidated("F").iloc[::-1],
    "blocks that are not consolidated": fragmented,
    "blocks that interleave": interleaved,
    "a block of several zoned columns": two_row_zoned_block,
    "objects of two dimensions": lambda: pd.DataFrame({"a": cells(None, 1), "b": cells("x", ())}),
    "objects transposed": lambda: pd.DataFrame({"a": cells(None, 1), "b": cells("x", ())}).T,
    "periods of two columns": lambda: pd.DataFrame(
        {n: pd.period_range("2020", periods=2, freq="M") for n in "ab"}
    ),
    "columns that repeat": lambda: pd.DataFrame([[1, 0.5, 2]], columns=["a", "a", "b"]),
    "columns of a range": lambda: pd.DataFrame(np.zeros((2, 3))),
    "columns of integers": lambda: pd.DataFrame([[1, 2]], columns=[5, 3]),
    "columns of a MultiIndex": lambda: pd.DataFrame(
        [[1, 2.5]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None])
    ),
    "columns of datetimes": lambda: pd.DataFrame(
        [[1, 2]], columns=pd.date_range("2020", periods=2, freq="D")
    ),
    "columns of categories": lambda: pd.DataFrame(
        [[1, 2]], columns=pd.CategoricalIndex(["a", "b"])
    ),
    "columns with a name": lambda: pd.DataFrame([[1]], columns=pd.Index(["a"], name=("n",))),
    "columns, many": lambda: pd.DataFrame(
        np.zeros((2, 1000)), columns=[f"c{n}" for n in range(1000)]
    ),
    "attrs": lambda: with_attrs(pd.DataFrame({"a": [1]}), {"unit": "m", 3: [None, (1,)]}),
    "attrs with an array": lambda: with_attrs(pd.DataFrame({"a": [1]}), {"x": np.arange(5)}),
    "no duplicate labels": lambda: pd.DataFrame({"a": [1]}).set_flags(
        allows_duplicate_labels=False
    ),
    "a Series with attrs": lambda: with_attrs(pd.Series([1], name="s"), {"unit": "m"}),
    "a Series without duplicates": lambda: pd.Series([1, 2]).set_flags(
        allows_duplicate_labels=False
    ),
    "a Series named by a tuple": lambda: pd.Series([1], name=("a", 1)),
    "a Series named by 0": lambda: pd.Series([1], name=0),
    "a Series that is empty": lambda: pd.Series([], dtype="f4"),
    "a Series with a MultiIndex": lambda: pd.Series([1, 2], index=unused_levels()),
    "a column of a frame": lambda: consolidated("C")[1],
    "a Series that is a memmap": of_memmap,
}


def of_array(values: Any) -> Iterator[Any]:
    yield pd.Series(values, copy=False, name="s", dtype=getattr(values, "dtype", None))
    yield pd.DataFrame({"a": pd.Series(values, dtype=values.dtype), "b": range(len(values))})
    yield pd.Series(values, dtype=values.dtype).iloc[:0]


def of_index(index: pd.Index) -> Iterator[Any]:
    yield index
    yield pd.Series(np.arange(len(index)), index=index)
    yield pd.DataFrame({"a": np.arange(len(index))}, index=index)
    yield pd.DataFrame(np.zeros((2, len(index))), columns=index)


CASES: dict[str, Callable[[], list[Any]]] = {
    **{f"array: {n}": lambda make=make: list(of_array(make())) for n, make in ARRAYS.items()},
    **{f"index: {n}": lambda make=make: list(of_index(make())) for n, make in INDEXES.items()},
    **{f"frame: {n}": lambda make=make: [make()] for n, make in FRAMES.items()},
}


@pytest.mark.parametrize("writable", [False, True], ids=["read", "copy"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_put_is_what_is_got(name: str, writable: bool) -> None:
    """Nothing that the oracle sees differs, and storing does not change the value."""
    for value, again in zip(CASES[name](), CASES[name](), strict=True):
        assert difference(value, there_and_back(value, writable=writable)) is None
        assert difference(value, again) is None


def memory_of(value: Any) -> Iterator[np.ndarray[Any, Any] | pa.Buffer]:
    """Every numpy array and Arrow buffer that holds a decoded value's data."""
    if isinstance(value, pd.DataFrame):
        yield from memory_of(value.columns)
        yield from memory_of(value.index)
        for block in value._mgr.blocks:
            yield from memory_of(block.values)
    elif isinstance(value, pd.Series):
        yield from memory_of(value.index)
        yield from memory_of(value._values)
    elif isinstance(value, pd.MultiIndex):
        for level in value.levels:
            yield from memory_of(level)
        for codes in value.codes:
            yield np.asarray(codes)
    elif isinstance(value, pd.Index):
        if not isinstance(value, pd.RangeIndex):
            yield from memory_of(value._values)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        for cell in value.ravel():
            if isinstance(cell, np.ndarray | pd.DataFrame | pd.Series):
                yield from memory_of(cell)
    elif isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, pd.Categorical):
        yield value._ndarray
        yield from memory_of(value.categories)
    elif isinstance(value, pd.arrays.IntervalArray):
        yield from memory_of(value._left)
        yield from memory_of(value._right)
    elif isinstance(value, pd.arrays.SparseArray):
        yield value.sp_values
        where = value.sp_index
        yield from (where.blocs, where.blengths) if hasattr(where, "blocs") else (where.indices,)
    elif hasattr(value, "_mask"):
        yield value._data
        yield value._mask
    elif hasattr(value, "_pa_array"):
        for chunk in value._pa_array.chunks:
            yield from (buffer for buffer in chunk.buffers() if buffer is not None)
            if isinstance(chunk, pa.DictionaryArray):
                yield from (buffer for buffer in chunk.dictionary.buffers() if buffer is not None)
    else:
        yield from memory_of(value._ndarray)


def address_of(memory: np.ndarray[Any, Any] | pa.Buffer) -> tuple[int, int]:
    if isinstance(memory, np.ndarray):
        return memory.ctypes.data, memory.nbytes
    return memory.address, memory.size


def lies_within(memory: np.ndarray[Any, Any] | pa.Buffer, payload: memoryview) -> bool:
    start = np.frombuffer(payload, dtype=np.uint8).ctypes.data
    at, nbytes = address_of(memory)
    return start <= at and at + nbytes <= start + payload.nbytes


@pytest.mark.parametrize("name", CASES)
def test_explain_tells_the_truth(name: str) -> None:
    """What it calls viewed is memory of the payload, size for size; all else is copied."""
    for value in CASES[name]():
        encoded = encode(value)
        payload = payload_of(encoded)
        notes = pandas_frames.explain(encoded.meta, encoded.nbytes)
        assert all(note.why for note in notes)
        again = pandas_frames.decode(encoded.meta, payload)
        memory = [
            each for each in (*memory_of(again), *memory_of_attrs(again)) if address_of(each)[1]
        ]
        viewed = [each for each in memory if lies_within(each, payload)]
        told = [note for note in notes if not note.copied]
        if any(isinstance(each, pa.Buffer) for each in viewed):
            # A note of Arrow's counts a buffer of all chunks, and each without its padding.
            held = sum(address_of(each)[1] for each in viewed)
            assert len(viewed) >= len(told)
            assert abs(held - sum(note.nbytes for note in told)) < ALIGNMENT * len(viewed)
        else:
            assert sorted(address_of(each)[1] for each in viewed) == sorted(n.nbytes for n in told)
        assert len(viewed) == len(memory) or any(n.copied for n in notes) or is_inline(encoded)


def memory_of_attrs(value: Any) -> Iterator[np.ndarray[Any, Any] | pa.Buffer]:
    for attr in getattr(value, "attrs", {}).values():
        if isinstance(attr, np.ndarray):
            yield attr


def is_inline(encoded: Encoded) -> bool:
    """Whether some strings are in the meta, so that they have no buffer of the payload."""
    return '"storage":"pyarrow"' in encoded.meta.decode() and '"cells"' in encoded.meta.decode()


# Writing into what was read


@pytest.fixture
def mapped() -> Iterator[Callable[[Any], tuple[Any, mmap.mmap]]]:
    """Decodes from pages that the kernel does not let anyone write to: a write would be fatal."""
    files = []

    def decode(value: Any) -> tuple[Any, mmap.mmap]:
        encoded = encode(value)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        files.append(file)
        file.write(b"".join(encoded.parts))
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return pandas_frames.decode(encoded.meta, memoryview(pages)), pages

    yield decode
    for file in files:
        file.close()


def mixed(rows: int = 60) -> pd.DataFrame:
    numbers = np.arange(rows)
    return pd.DataFrame(
        {
            "i": numbers[::-1],
            "j": numbers % 7,
            "f": np.where(numbers % 5 == 0, np.nan, numbers / 3),
            "g": numbers * 1.5,
            "t": pd.date_range("2020", periods=rows, freq="h"),
            "z": pd.date_range("2020", periods=rows, freq="h", tz=PARIS),
            "p": pd.period_range("2020", periods=rows, freq="D"),
            "c": pd.Categorical.from_codes(numbers % 3, ["x", "y", "z"]),
            "s": pd.array([f"s{n % 9}" for n in range(rows)], dtype="str"),
            "n": pd.array([None if n % 4 == 0 else n for n in range(rows)], dtype="Int64"),
            "b": numbers % 2 == 0,
            "v": pd.arrays.SparseArray(np.where(numbers % 6, 0, numbers)),
            "w": pd.interval_range(0, rows),
        },
        index=pd.Index(numbers * 2, name="key"),
    )


def replace_by(column: str, value: Any) -> Callable[[pd.DataFrame], Any]:
    def operation(frame: pd.DataFrame) -> None:
        frame[column] = value

    return operation


def set_at(column: str, value: Any) -> Callable[[pd.DataFrame], Any]:
    def operation(frame: pd.DataFrame) -> None:
        frame.loc[frame.index[3], column] = value

    return operation


def write_to_column(frame: pd.DataFrame) -> None:
    for name in frame.columns.difference(["v"]):
        column = frame[name]
        column.iloc[0] = column.iloc[1]
    column = frame["g"]
    column += 1


def write_to_row(frame: pd.DataFrame) -> None:
    row = frame[["f", "g"]].iloc[0]
    row.iloc[0] = 3.0


def write_to_orphan(frame: pd.DataFrame) -> None:
    column = frame["g"]
    for name in list(frame.columns):
        del frame[name]
    column.iloc[0] = 3.0
    assert column.iloc[0] == 3.0


def write_to_series_of_index(frame: pd.DataFrame) -> None:
    series = pd.Series(frame.index)
    frame.index = pd.RangeIndex(len(frame))
    series.iloc[0] = 5
    assert series.iloc[0] == 5


INPLACE: dict[str, Callable[[pd.DataFrame], Any]] = {
    "set an integer": set_at("i", 5),
    "set a float": set_at("f", 5.0),
    "set a datetime": set_at("t", pd.Timestamp("2021").as_unit("us")),
    "set a zoned datetime": set_at("z", pd.Timestamp("2021", tz=PARIS)),
    "set a period": set_at("p", pd.Period("2021-01-01", "D")),
    "set a category": set_at("c", "x"),
    "set a string": set_at("s", "new"),
    "set a nullable": set_at("n", 5),
    "set a missing nullable": set_at("n", None),
    "set a boolean": set_at("b", False),
    "set an interval": set_at("w", pd.Interval(0, 1)),
    "set by a mask": lambda frame: frame.loc.__setitem__((frame["b"], "g"), 0.0),
    "set by position": lambda frame: frame.iloc.__setitem__((0, 1), 9),
    "fill missing in place": lambda frame: frame.fillna({"f": 0.0, "n": 0}, inplace=True),
    "replace in place": lambda frame: frame.replace({"j": {1: 100}}, inplace=True),
    "mask": lambda frame: frame.loc.__setitem__((frame["b"], ["f", "g"]), -1.0),
    "fill forwards in place": lambda frame: frame.ffill(inplace=True),
    "update": lambda frame: frame.update(pd.DataFrame({"g": [1.0]}, index=[0])),
    "sort the values in place": lambda frame: frame.sort_values("i", inplace=True),
    "sort the index in place": lambda frame: frame.sort_index(ascending=False, inplace=True),
    "write to a column": write_to_column,
    "write to a row": write_to_row,
    "write to a column, the frame gone": write_to_orphan,
    "write to a series of the index": write_to_series_of_index,
    "replace a column": replace_by("g", 1.0),
    "insert": lambda frame: frame.insert(0, "new", 1),
    "delete": lambda frame: frame.__delitem__("g"),
    "pop": lambda frame: frame.pop("i"),
    "drop in place": lambda frame: frame.drop(columns=["i"], inplace=True),
    "rename in place": lambda frame: frame.rename(columns={"i": "ii"}, inplace=True),
    "set the index in place": lambda frame: frame.set_index("i", inplace=True),
    "drop duplicates in place": lambda frame: frame.drop_duplicates("j", inplace=True),
}


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # it is still there
@pytest.mark.parametrize("name", INPLACE)
def test_pandas_writes_to_copies(name: str, mapped: Callable[[Any], tuple[Any, mmap.mmap]]) -> None:
    """What pandas does in place works as on any frame, and the stored bytes stay as they are."""
    frame, pages = mapped(mixed())
    before = bytes(pages)
    INPLACE[name](frame)
    expected = mixed()
    INPLACE[name](expected)
    pd.testing.assert_frame_equal(frame, expected)
    assert bytes(pages) == before
    again, _ = mapped(mixed())
    assert difference(again, mixed()) is None


DIRECT: dict[str, Callable[[pd.DataFrame], Any]] = {
    "numpy of a column": lambda frame: frame["g"].to_numpy().__setitem__(0, 1.0),
    "numpy of a block": lambda frame: frame[["f", "g"]].to_numpy().__setitem__(0, 1.0),
    "a nullable array": lambda frame: frame["n"].array.__setitem__(0, 1),
    "a datetime array": lambda frame: frame["z"].array.__setitem__(0, frame["z"].iloc[1]),
    "an index": lambda frame: frame.index.values.__setitem__(0, 1),
    "codes": lambda frame: frame["c"].cat.codes.to_numpy().__setitem__(0, 1),
}


@pytest.mark.parametrize("name", DIRECT)
def test_arrays_taken_out_of_a_frame_are_read_only(
    name: str, mapped: Callable[[Any], tuple[Any, mmap.mmap]]
) -> None:
    """Where pandas' copy-on-write is passed by, writing raises."""
    frame, pages = mapped(mixed())
    before = bytes(pages)
    with pytest.raises(ValueError, match="read-only"):
        DIRECT[name](frame)
    assert bytes(pages) == before


READING: dict[str, Callable[[pd.DataFrame], Any]] = {
    "sort": lambda frame: frame.sort_values(["j", "f", "s"]),
    "group": lambda frame: frame.groupby(["c", "s"], observed=True)[["f", "i"]].agg(["sum", "std"]),
    "merge": lambda frame: frame.merge(frame, on="i", how="outer"),
    "merge by index": lambda frame: frame.join(frame[["g"]].add_prefix("r_")),
    "roll": lambda frame: frame[["f", "g"]].rolling(3).median(),
    "expand": lambda frame: frame[["g"]].expanding().skew(),
    "resample": lambda frame: frame.set_index("t")[["f"]].resample("D").mean(),
    "pivot": lambda frame: frame.pivot_table(index="j", columns="c", values="g", observed=True),
    "rank": lambda frame: frame[["i", "f"]].rank(),
    "unique": lambda frame: [frame[column].unique() for column in frame],
    "value counts": lambda frame: [frame[column].value_counts() for column in frame],
    "duplicated": lambda frame: frame.duplicated(["j", "s"]),
    "reindex": lambda frame: frame.drop(columns="v").reindex([4, 2, 999]),
    "concatenate": lambda frame: pd.concat([frame, frame]),
    "take": lambda frame: frame.take([3, 1, 2]),
    "transpose": lambda frame: frame.T,
    "look up": lambda frame: [frame.loc[6], frame.index.get_loc(6), frame.at[4, "s"]],
    "factorize": lambda frame: [frame[column].factorize() for column in ("i", "s", "c", "n", "t")],
    "convert zones": lambda frame: frame["z"].dt.tz_convert("UTC").dt.floor("D"),
    "interpolate": lambda frame: frame["f"].interpolate(),
    "fill": lambda frame: frame[["f", "n"]].ffill(),
    "quantile": lambda frame: frame[["g", "i"]].quantile([0.1, 0.9]),
    "correlate": lambda frame: frame[["f", "g", "i"]].corr(),
    "melt": lambda frame: frame.melt(id_vars="i", value_vars=["f", "g"]),
    "stack": lambda frame: frame[["f", "g"]].stack(),
    "densify": lambda frame: frame["v"].sparse.to_dense(),
    "find intervals": lambda frame: pd.IntervalIndex(frame["w"]).get_indexer([0.5, 3.5]),
    "searchsorted": lambda frame: frame["t"].searchsorted(pd.Timestamp("2020-01-02")),
    "print": lambda frame: [str(frame), frame.describe(include="all")],
    "pickle": lambda frame: pickle.loads(pickle.dumps(frame)),
}


@pytest.mark.parametrize("name", READING)
def test_pandas_reads_views_as_its_own_memory(
    name: str, mapped: Callable[[Any], tuple[Any, mmap.mmap]]
) -> None:
    """What pandas computes from a read-only frame is what it computes from the original."""
    frame, pages = mapped(mixed())
    before = bytes(pages)
    assert repr(READING[name](frame)) == repr(READING[name](mixed()))
    assert bytes(pages) == before


def test_a_writable_payload_gives_a_writable_frame() -> None:
    """In modes cow and copy all of pandas works in place, on the caller's own bytes."""
    frame = there_and_back(mixed(), writable=True)
    frame.iloc[0, 0] = -1
    frame.loc[0, "z"] = pd.Timestamp("2021", tz=PARIS)
    frame.loc[0, "c"] = "z"
    frame.loc[0, "n"] = 77
    assert frame.iloc[0, 0] == -1
    assert frame.loc[0, "n"] == 77
    assert frame.loc[0, "c"] == "z"


def test_a_frame_keeps_its_memory_alive() -> None:
    """The payload can be let go of before the frame; the mapping cannot be closed under it."""
    encoded = encode(mixed())
    pages = mmap.mmap(-1, encoded.nbytes)
    pages[:] = b"".join(encoded.parts)
    frame = pandas_frames.decode(encoded.meta, memoryview(pages))
    with pytest.raises(BufferError):
        pages.close()
    del pages
    assert difference(frame, mixed()) is None


# How the payload lies


def test_blocks_are_stored_without_a_copy() -> None:
    """Each part of the payload is the frame's own memory."""
    for order in "CF":
        frame = consolidated(order)
        values = frame._mgr.blocks[0].values
        (part,) = encode(frame).parts
        assert np.frombuffer(part).ctypes.data == values.ctypes.data


def test_only_the_bytes_of_a_slice_are_stored() -> None:
    """Ten rows of a large frame take the room of ten rows."""
    frame = mixed(10_000).iloc[5_000:5_010]
    assert encode(frame.drop(columns="v")).nbytes < 13 * 2 * ALIGNMENT + 10 * 13 * 16


def test_every_buffer_starts_on_a_boundary() -> None:
    """Also those within parts that other codecs placed."""
    value = with_attrs(mixed(1000), {"x": np.arange(10.0)})
    encoded = encode(value)
    payload = payload_of(encoded)
    start = np.frombuffer(payload, dtype=np.uint8).ctypes.data
    again = pandas_frames.decode(encoded.meta, payload)
    memory = [*memory_of(again), *memory_of_attrs(again)]
    inside = [address_of(each)[0] - start for each in memory if lies_within(each, payload)]
    assert len(inside) > 15
    assert [at % ALIGNMENT for at in inside] == [0] * len(inside)


def test_the_meta_is_small_and_plain() -> None:
    """Other languages find each column by JSON alone."""
    encoded = encode(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}))
    spec = json.loads(encoded.meta)
    assert spec["columns"]["values"]["cells"] == ["a", "b"]
    assert [block["values"]["dtype"] for block in spec["blocks"]] == ["<i8", "<f8"]
    assert [block["values"]["at"] for block in spec["blocks"]] == [0, 64]
    assert len(encoded.meta) < 400


def test_explain_names_columns_and_axes() -> None:
    """The names are those by which the user knows the buffers."""
    frame = pd.DataFrame(
        {
            "i": [1, 2],
            "j": [3, 4],
            "n": pd.array([1, None], dtype="Int64"),
            "c": pd.Categorical(["x", "y"]),
            "o": cells(None, (1,)),
        },
        index=pd.MultiIndex.from_arrays([[1, 2], [0.5, 1.5]]),
    )
    encoded = encode(frame)
    names = [note.name for note in pandas_frames.explain(encoded.meta, encoded.nbytes)]
    for name in ("i, j", "n", "n.mask", "c.codes", "index.levels[1]", "index.codes[0]"):
        assert name in names
    (objects,) = [
        note
        for note in pandas_frames.explain(encoded.meta, encoded.nbytes)
        if note.name.split(".")[0] == "o"
    ]
    assert objects.copied


# What is passed on


class Table(pd.DataFrame):
    _metadata = ["unit"]  # noqa: RUF012 - as pandas wants it

    @property
    def _constructor(self) -> type[Table]:
        return Table


class Column(pd.Series):
    pass


class Labels(pd.Index):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Table({"a": [1]}),
        Column([1]),
        pd.Timestamp("2020"),
        pd.NA,
        pd.array([1]),
        pd.DataFrame({"a": [1]}).groupby("a"),
        np.arange(3),
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_passed_on(value: Any) -> None:
    """Subclasses carry what this codec does not know; other values are not its own."""
    assert pandas_frames.encode(value) is None


def test_a_subclass_of_index_is_passed_on_wherever_it_stands() -> None:
    """An index of another class would come back as a plain one."""
    labels = Labels._simple_new(np.arange(2), name=None)
    assert type(labels) is Labels
    for value in (
        labels,
        pd.Series([1, 2], index=labels),
        pd.DataFrame({"a": [1, 2]}, index=labels),
    ):
        assert pandas_frames.encode(value) is None


def test_a_subclass_comes_back_through_the_general_codec() -> None:
    """With its metadata."""
    table = Table({"a": [1, 2]})
    table.unit = "m"
    encoded = codecs.encode(table)
    again = codecs.decode(encoded.codec, encoded.meta, payload_of(encoded))
    assert type(again) is Table
    assert again.unit == "m"


class Numbers(pd.arrays.IntegerArray):
    """An array that this codec does not know."""


def test_an_unknown_array_is_pickled_alone() -> None:
    """The other columns stay views, and the array keeps its class."""
    numbers = Numbers(np.arange(1000), np.zeros(1000, dtype=bool))
    series = pd.Series(numbers, copy=False)
    assert type(series.array) is Numbers
    frame = pd.DataFrame({"a": np.arange(1000.0), "n": series}, copy=False)
    again = there_and_back(frame)
    assert difference(frame, again) is None
    assert type(again["n"].array) is Numbers
    assert not again["a"].to_numpy().flags.writeable


@pytest.mark.parametrize("place", ["cell", "name", "attr", "label", "category"])
def test_what_cannot_be_stored_is_refused(place: str) -> None:
    """The error names the type in the way."""

    def nothing() -> Iterator[None]:
        yield None

    stream = nothing()
    values = {
        "cell": lambda: pd.Series(cells(stream)),
        "name": lambda: pd.Series([1], name=stream),
        "attr": lambda: with_attrs(pd.Series([1]), {"x": stream}),
        "label": lambda: pd.Index(cells(stream)),
        "category": lambda: pd.Series(pd.Categorical(cells(stream))),
    }
    with pytest.raises(Unserializable, match="generator"):
        pandas_frames.encode(values[place]())


# Damage


def paths_of(spec: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(spec, dict):
        for key, inner in spec.items():
            yield from paths_of(inner, (*path, key))
    elif isinstance(spec, list):
        for number, inner in enumerate(spec):
            yield from paths_of(inner, (*path, number))


def changed(spec: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(spec)
    copy = spec.copy()
    copy[path[0]] = changed(spec[path[0]], path[1:], change)
    return copy


CHANGES: list[Callable[[Any], Any]] = [
    lambda old: None,
    lambda old: -1,
    lambda old: 2**62,
    lambda old: 10**30,
    lambda old: 1.5,
    lambda old: "x",
    lambda old: "|O",
    lambda old: "<i2",
    lambda old: [],
    lambda old: [old, old],
    lambda old: {},
    lambda old: True,
    lambda old: old + 64 if isinstance(old, int) else {"k": old},
    lambda old: old - 1 if isinstance(old, int) else old,
]


def damages_of(value: Any) -> Iterator[bytes]:
    meta = encode(value).meta
    spec = json.loads(meta)
    for path in paths_of(spec):
        for change in CHANGES:
            yield json.dumps(changed(spec, path, change)).encode()
        if path:
            yield json.dumps(
                changed(spec, path[:-1], lambda old, key=path[-1]: without(old, key))
            ).encode()
    for end in range(0, len(meta), 7):
        yield meta[:end]


def without(container: Any, key: Any) -> Any:
    copy = container.copy()
    del copy[key]
    return copy


DAMAGED = {
    "frame": lambda: mixed(8),
    "series": lambda: pd.Series(cells((1,), None), name=("a",), index=unused_levels()),
    "attrs": lambda: with_attrs(pd.DataFrame({"a": [1]}), {"x": (1,)}),
    "interleaved": interleaved,
    "freq": lambda: pd.date_range("2020", periods=3, freq=pd.DateOffset(days=2), tz=PARIS),
    "block sparse": lambda: pd.Series(pd.arrays.SparseArray([0, 1, 0, 2], kind="block")),
    "python strings": lambda: pd.Series(["a", None], dtype="string[python]"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_meta_is_noticed_or_harmless(name: str) -> None:
    """It raises an error of shmstore or gives a value that can be looked at."""
    value = DAMAGED[name]()
    payload = payload_of(encode(value))
    noticed = 0
    for meta in damages_of(value):
        try:
            again = pandas_frames.decode(meta, payload)
        except StoreError:
            noticed += 1
        else:
            assert isinstance(again, pd.DataFrame | pd.Series | pd.Index)
            for memory in memory_of(again):
                address_of(memory)
        try:
            pandas_frames.explain(meta, payload.nbytes)
        except StoreError:
            pass
    assert noticed > 100


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"at":0,', '"at":64,'),
        ('"at":0,', '"at":-64,'),
        ('"at":0,', '"at":8,'),
        ('"nbytes":48', '"nbytes":56'),
        ('"shape":[2,3]', '"shape":[3,2]'),
        ('"shape":[2,3]', '"shape":[6]'),
        ('"shape":[2,3]', '"shape":[2,4]'),
        ('"shape":[2,3]', '"shape":[-2,-3]'),
        ('"dtype":"<f8"', '"dtype":"<i4"'),
        ('"dtype":"<f8"', '"dtype":"|O8"'),
        ('"dtype":"<f8"', '"dtype":"|V8"'),
        ('"at":[0,2,1]', '"at":[1,3,1]'),
        ('"at":[0,2,1]', '"at":[0,1,1]'),
        ('"at":[0,2,1]', '"at":{"list":[0,0]}'),
        ('"at":[0,2,1]', '"at":{"list":[0,7]}'),
        ('"at":[0,2,1]', '"at":{"list":[-1,0]}'),
        ('"stop":3', '"stop":4'),
        ('"v":1', '"v":2'),
        ('"k":"numpy"', '"k":"datetime"'),
        ('"type":"DataFrame"', '"type":"Series"'),
    ],
)
def test_each_check_of_the_meta(find: str, put: str) -> None:
    """Whatever contradicts itself or the payload is CorruptValue."""
    encoded = encode(pd.DataFrame(np.ones((3, 2)), columns=["a", "b"]))
    meta = encoded.meta.decode()
    assert find in meta
    with pytest.raises(CorruptValue):
        pandas_frames.decode(meta.replace(find, put).encode(), payload_of(encoded))


def test_a_payload_cut_short_is_noticed() -> None:
    """Nothing is read beyond its end."""
    encoded = encode(mixed(100))
    payload = payload_of(encoded)
    for end in range(0, len(payload) - 800, 64):
        with pytest.raises(CorruptValue):
            pandas_frames.decode(encoded.meta, payload[:end])


def test_a_missing_time_zone_says_so() -> None:
    """A host without the zone is not told that the value is damaged."""
    encoded = encode(pd.date_range("2020", periods=2, tz=PARIS))
    meta = encoded.meta.replace(b"Europe/Paris", b"Europe/Atlantis")
    with pytest.raises(Unserializable, match="Atlantis"):
        pandas_frames.decode(meta, payload_of(encoded))


def test_a_pytz_zone_comes_back_as_one() -> None:
    """Though pandas no longer requires pytz, its zones are in old data."""
    import pytz

    for zone in (pytz.timezone("Europe/Paris"), pytz.utc, pytz.FixedOffset(90)):
        index = pd.date_range("2020-03-28", periods=3, freq="D", tz=zone)
        assert difference(index, there_and_back(index)) is None
