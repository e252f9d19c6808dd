"""What honest hosts store comes across exactly, though it is decoded with distrust."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shmstore import codecs, register_codec
from shmstore.codecs.polars_dtypes import is_named, spec
from shmstore.codecs.trust import NOBODY, Trust, parse_allow
from shmstore.errors import UnsafeValue, Unserializable
from tests import arrow_strategies as some
from tests.importable import Level, Pair, Point, Slotted, Text, Units
from tests.oracle import identical
from tests.pandas_oracle import difference
from tests.property import test_pandas, test_pickled, test_plain_and_arrays, test_polars
from tests.round_trip import mapped
from tests.unit import (
    test_codecs_arrays,
    test_codecs_arrow,
    test_codecs_pandas,
    test_codecs_pickled,
    test_codecs_polars,
)
from tests.unit.test_codecs_custom import Signal

OURS = ("Point", "Pair", "Level", "Slotted", "Text", "Units", "Buffered")
ALLOWED = parse_allow(
    [
        *(f"tests.importable.{name}" for name in OURS),
        *(f"tests.unit.test_codecs_pandas.{name}" for name in ("Cell", "Words")),
        *("builtins.ValueError", "builtins.FileNotFoundError"),
    ]
)

#: Decoded as they are, these would run numpy's own code, or be code.
REFUSED = (np.random.Generator, np.ufunc, type(len), type(lambda: 0))


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """Polars' lazy engine opens descriptors when it first runs, and keeps them."""
    pl.DataFrame({"a": [1]}).lazy().select(pl.len()).collect()


def across(value: Any, trust: Trust = ALLOWED, *, writable: bool = False) -> Any:
    """The value as another host's processes get it."""
    encoded = codecs.encode(value)
    return codecs.decode(encoded.codec, encoded.meta, mapped(encoded, writable=writable), trust)


def is_refused(value: Any) -> bool:
    return (
        isinstance(value, REFUSED)
        or (isinstance(value, type) and value not in (Point,))
        or (isinstance(value, np.ndarray) and bool(value.dtype.names) and value.dtype.hasobject)
    )


@pytest.mark.parametrize(
    "value", test_codecs_pickled.LIBRARY_VALUES, ids=lambda value: type(value).__name__
)
def test_values_of_libraries_come_across(value: Any) -> None:
    """Every value of the catalogue of pickles, but for code, classes and numpy's generators."""
    if is_refused(value):
        with pytest.raises(UnsafeValue):
            across([value])
        return
    back = across([value])[0]
    if isinstance(value, BaseException):
        assert type(back) is type(value)
        assert back.args == value.args
    else:
        assert identical(back, value)


@given(test_pickled.values)
def test_nested_values_come_across(value: Any) -> None:
    """Whatever is made of them, with shared and cyclic parts."""
    assert identical(across(value), value)


@given(test_plain_and_arrays.plain_values)
def test_plain_values_come_across(value: Any) -> None:
    """Values that need no names need no permission."""
    assert identical(across(value, NOBODY), value)


@given(st.lists(st.integers() | st.floats() | st.none() | st.booleans(), max_size=3000))
def test_runs_of_numbers_come_across(numbers: list[Any]) -> None:
    """Numbers of every size, alone and in runs."""
    value = [numbers, dict.fromkeys(numbers, "x"), tuple(numbers)]
    assert identical(across(value, NOBODY), value)


def test_what_is_shared_stays_shared_and_cycles_close() -> None:
    """One object in two places is one object, also within itself."""
    one: list[Any] = [1]
    one.append(one)
    cell = np.array([None, one], object)
    cell[0] = cell
    value = {"a": one, "b": one, "cell": cell}
    back = across(value)
    assert back["a"] is back["b"] is back["a"][1] is back["cell"][1]
    assert back["cell"][0] is back["cell"]


def test_values_as_deep_as_can_be_put_come_across() -> None:
    """What our picklers can write is not too deep to be read."""
    value: Any = ()
    deepest = None
    for depth in range(1, 3000):
        value = (value,)
        if depth % 100:
            continue
        try:
            deepest = codecs.encode(value), value
        except Unserializable:
            break
    assert deepest is not None
    encoded, value = deepest
    back = codecs.decode(1, encoded.meta, mapped(encoded), NOBODY)
    while value:
        value, back = value[0], back[0]
    assert back == ()


@pytest.mark.parametrize("dtype", test_codecs_arrays.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (3, 0, 2)], ids=str)
def test_arrays_of_each_dtype_come_across(dtype: Any, shape: tuple[int, ...]) -> None:
    """Every plain dtype, also structured ones."""
    for order in "CF":
        value = test_codecs_arrays.filled(shape, dtype, order)
        assert identical(across(value, NOBODY), value)


@given(test_plain_and_arrays.arrays())
def test_arrays_come_across(array: np.ndarray[Any, Any]) -> None:
    """Alone, where they have a codec of their own, and within another value."""
    assert identical(across(array, NOBODY), array)
    assert identical(across([array], NOBODY), [array])


@pytest.mark.parametrize("writable", [False, True], ids=["read", "copy"])
@pytest.mark.parametrize("name", test_codecs_pandas.CASES)
def test_values_of_pandas_come_across(name: str, writable: bool) -> None:
    """Every value of the catalogue of the codec for pandas."""
    make = test_codecs_pandas.CASES[name]
    for value in make():
        assert difference(value, across(value, writable=writable)) is None


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
@given(test_pandas.ANY)
def test_any_value_of_pandas_comes_across(value: Any) -> None:
    """Frames, series and indexes of anything."""
    assert difference(value, across(value)) is None


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2020-01-01 12:00", tz="Europe/Paris"), pd.Timestamp(5, unit="s"),
        pd.Timedelta(-1, "ns"), pd.NaT, pd.NA, pd.Interval(1, 2.5, "both"),
        pd.Interval(pd.Timestamp(0), pd.Timestamp(1)), pd.Period("2020-01", "M"),
        pd.offsets.BDay(3), pd.offsets.CustomBusinessDay(holidays=["2020-01-01"]),
        pd.DateOffset(months=2, day=1), pd.offsets.BusinessHour(start="09:30"),
        pd.offsets.FY5253(), pd.offsets.Easter(), pd.offsets.Week(weekday=2),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_of_pandas_come_across(value: Any) -> None:
    """Times, periods, intervals, missing values and offsets."""
    back = across([value], NOBODY)[0]
    assert type(back) is type(value)
    assert back is value or back == value
    assert repr(back) == repr(value)


def test_zones_of_pytz_and_dateutil_come_across() -> None:
    """Time zones of the libraries that pandas has used, also of a moment in them."""
    import datetime

    import dateutil.tz
    import pytz

    paris = pytz.timezone("Europe/Paris")
    summer = paris.localize(datetime.datetime(2020, 7, 1))
    zones = [
        pytz.utc, paris, pytz.FixedOffset(90), pytz.timezone("Etc/GMT+5"), summer.tzinfo,
        dateutil.tz.tzutc(), dateutil.tz.gettz("Europe/Paris"), dateutil.tz.tzoffset("x", 3600),
    ]  # fmt: skip
    back = across([*zones, summer], NOBODY)
    assert back == [*zones, summer]
    for zone, again in zip(zones, back, strict=False):
        assert type(again) is type(zone)
        assert pickled_twice(again) == pickled_twice(zone)
    assert all(again is zone for zone, again in zip(zones[:5], back, strict=False))


def pickled_twice(zone: Any) -> Any:
    encoded = codecs.encode([zone])
    return encoded.meta, [bytes(part) for part in encoded.parts]


@pytest.mark.parametrize("name", test_codecs_polars.SERIES)
def test_series_of_polars_come_across(name: str) -> None:
    """Every dtype, also those that Arrow does not carry."""
    series = test_codecs_polars.SERIES[name].alias(name)
    for value in (series, series.slice(0, 0), series.slice(1), series.alias("")):
        back = across(value, NOBODY)
        assert (back.name, back.dtype) == (value.name, value.dtype)
        assert repr(back.to_list()) == repr(value.to_list())
        test_polars.assert_same(across(value.to_frame(), NOBODY), value.to_frame())


@settings(deadline=None, max_examples=60)
@given(test_polars.FRAMES)
def test_frames_of_polars_come_across(frame: pl.DataFrame) -> None:
    """Frames of anything that the codec for polars takes."""
    try:
        encoded = codecs.encode(frame)
    except Unserializable:
        assume(False)
    described = [spec(dtype) for dtype in frame.dtypes]
    # Their classes run code; and those that only polars can write have categories.
    refused = any(
        is_named(found, frozenset({"Extension"}))
        or (is_named(found, WIDE) and is_named(found, test_polars.CATEGORIES))
        for found in described
    )
    if refused:
        with pytest.raises(UnsafeValue):
            codecs.decode(7, encoded.meta, mapped(encoded), NOBODY)
        return
    test_polars.assert_same(codecs.decode(7, encoded.meta, mapped(encoded), NOBODY), frame)


WIDE = frozenset({"Int128", "UInt128"})


@settings(deadline=None)
@given(some.arrays(depth=3))
def test_arrow_arrays_come_across(array: pa.Array) -> None:
    """Every type and nesting, also views with nulls."""
    assert_same_cells(across(array, NOBODY), array)


def assert_same_cells(back: Any, value: Any) -> None:
    assert type(back) is type(value)
    assert back.type == value.type
    assert some.cells(back) == some.cells(value)


@settings(deadline=None, max_examples=40)
@given(some.chunked_arrays(), some.tables())
def test_arrow_tables_come_across(chunked: pa.ChunkedArray, table: pa.Table) -> None:
    """Tables, their batches and schemas."""
    assert_same_cells(across(chunked, NOBODY), chunked)
    back = across(table, NOBODY)
    assert back.schema.equals(table.schema, check_metadata=True)
    for again, column in zip(back.columns, table.columns, strict=True):
        assert_same_cells(again, column)
    assert across(table.schema, NOBODY).equals(table.schema, check_metadata=True)


@pytest.mark.parametrize("name", test_codecs_arrow.LONG)
def test_slices_of_arrow_arrays_come_across(name: str) -> None:
    """Long columns of each layout, and what is left of them in a slice."""
    column = test_codecs_arrow.LONG[name]
    for value in (column.slice(5003, 10), column.slice(0, 0)):
        assert_same_cells(across(value, NOBODY), value)
    assert some.cell(across(column[7], NOBODY)) == some.cell(column[7])


def test_other_values_of_arrow_come_across() -> None:
    """Fields, types, tensors, buffers, extension types whose metadata Arrow checks."""
    values = [
        pa.field("a", pa.dictionary(pa.int8(), pa.string())), pa.struct({"a": pa.int8()}),
        pa.Tensor.from_numpy(np.arange(6.0).reshape(2, 3)), pa.py_buffer(b"abc"),
        pa.array([struct.pack("<QQ", 1, 2)], pa.uuid()), pa.record_batch({"a": [1]}),
        pa.table({"a": pa.array([1], pa.int8())}).slice(0, 0),
    ]  # fmt: skip
    for value in values:
        back = across(value, NOBODY)
        assert type(back) is type(value)
        assert back.equals(value)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_registered_codecs_decode_them_if_they_say_so(remote: bool, nested: bool) -> None:
    """A codec is given data of other hosts only if it was registered with ``remote=True``."""
    decoded: list[Any] = []

    def decode(stored: Any) -> Any:
        decoded.append(stored)
        return Signal(*stored)

    from shmstore.codecs import custom

    register_codec(
        Signal, lambda s: (s.samples, s.rate), decode, name="tests.across", remote=remote
    )
    try:
        value: Any = Signal(np.arange(1000), 50)
        value = [value] if nested else value
        if remote:
            back = across(value, NOBODY)
            assert identical((back[0] if nested else back).samples, np.arange(1000))
        else:
            with pytest.raises(UnsafeValue, match=r"tests\.across"):
                across(value)
            assert not decoded
    finally:
        custom._by_type.pop(Signal)
        custom._by_name.pop("tests.across")
        custom.REDUCERS.pop(Signal)
        codecs._direct.pop(Signal)


def test_what_dill_writes_does_not_come_across() -> None:
    """Functions and classes with their code are code."""
    with pytest.raises(UnsafeValue, match="their code"):
        across(lambda: 1)


def test_user_s_classes_come_across_if_they_are_allowed() -> None:
    """Dataclasses, named tuples, enums, exceptions, slots, subclasses of builtins and arrays."""
    units = np.arange(3).view(Units)
    units.unit = "m"
    values = [Point(1, [Point(2)]), Pair(1, 2), Level.HIGH, Slotted([1]), Text("x"), units, Point]
    assert identical(across(values), values)
    for value in values:
        with pytest.raises(UnsafeValue, match=r"tests\.importable\."):
            across(value, NOBODY)
