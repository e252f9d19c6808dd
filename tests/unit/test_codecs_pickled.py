from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import io
import ipaddress
import mmap
import pathlib
import pickle
import random
import re
import socket
import sqlite3
import threading
import types
import uuid
import weakref
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from shmstore import codecs
from shmstore.codecs import pickled
from shmstore.codecs.encoded import ALIGNMENT
from shmstore.codecs.rebuilding import Rebuilding
from shmstore.codecs.runs import parse_runs
from shmstore.errors import CorruptValue, StoreError, Unserializable
from tests.importable import (
    Buffered,
    Dud,
    Explosive,
    Level,
    Pair,
    Point,
    Slotted,
    Text,
    Units,
    double,
)
from tests.oracle import identical
from tests.round_trip import round_trip

PICKLE = 4
PARIS = zoneinfo.ZoneInfo("Europe/Paris")


def masked(**options: Any) -> Any:
    return np.ma.MaskedArray(np.arange(100.0), **options)


LIBRARY_VALUES: list[Any] = [
    1j, complex("nan-infj"), range(3, 10, 2), slice(1, None, "x"), ..., NotImplemented,
    datetime.date(2020, 2, 29), datetime.time(1, 2, 3, 4, fold=1), datetime.timedelta(-1, 2, 3),
    datetime.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=PARIS), datetime.UTC,
    datetime.timezone(datetime.timedelta(hours=5, minutes=45), "NPT"),
    decimal.Decimal("-0E+5"), decimal.Decimal("sNaN123"), collections.OrderedDict(b=1, a=[2]),
    PARIS, zoneinfo.ZoneInfo.no_cache("America/New_York"),
    uuid.UUID(int=2**128 - 1), uuid.uuid1(),
    collections.deque([1, [2]], 5), collections.deque(), collections.Counter("banana"),
    collections.defaultdict(list, {1: [2]}), collections.defaultdict(None, a=1),
    collections.ChainMap({1: 2}, {3: 4}), types.SimpleNamespace(a=1, b=[2]),
    fractions.Fraction(-(10**5000), 3), pathlib.PurePosixPath("/a/../b"), pathlib.Path("x y"),
    pathlib.PureWindowsPath("c:/x/y"), pathlib.PurePosixPath("."),
    ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fe80::1%eth0"),
    ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::/0"),
    ipaddress.ip_interface("10.1.2.3/8"), ipaddress.ip_interface("fe80::1/64"),
    re.compile("a(?P<n>b)", re.I | re.M), re.compile(b"\xff"), re.compile("(?x) a # b"),
    array.array("d", range(100)), array.array("b"), array.array("Q", [2**64 - 1]),
    memoryview(bytes(1000)), memoryview(b""), memoryview(array.array("d", range(100))),
    memoryview(np.arange(60, dtype="i4").reshape(3, 4, 5)), memoryview(b"abcdef" * 100)[::3],
    np.dtype("f8"), np.dtype(">M8[3us]"), np.dtype("longlong"), np.dtype("O"),
    np.dtype([("a", "i1"), ("b", "f8")], align=True), np.dtype("i4", metadata={"unit": ["m"]}),
    np.dtypes.StringDType(), np.dtypes.StringDType(na_object=None, coerce=False),
    np.float64(-0.0), np.float32("nan"), np.int8(-1), np.longlong(5), np.bool_(True),
    np.longdouble(1) / 3, np.complex64(1j), np.datetime64("NaT", "us"), np.timedelta64(3),
    np.datetime64(5, "25s"), np.str_("trailing\0"), np.bytes_(b"trailing\0\0"), np.str_(""),
    np.void(b"abc"), np.zeros(2, [("a", "i4"), ("b", "U2")])[0],
    np.array([1, None, [2], np.nan, "x"], object), np.array([[1, "a"], [(),
    {}]], object, order="F"),
    np.array(None), np.array(["a", "b" * 99, None], np.dtypes.StringDType(na_object=None)),
    np.zeros((3, 100), np.dtype("f8", metadata={"a": 1})),
    np.zeros(3, np.dtype((np.void, 8), metadata={"a": 1})),
    np.array([(1, [2])], [("a", "i4"), ("b", "O")]),
    np.recarray((3,), [("a", "i4"), ("b", "f8")]).view(), np.zeros((2, 2),
    "S1").view(np.char.chararray),
    masked(), masked(mask=[True, False] * 50), masked(fill_value=-1, hard_mask=True), np.ma.masked,
    np.random.default_rng(5), np.random.RandomState(5).get_state(), np.sin, np.float64,
    Point(np.arange(100), [Point(1)]), Pair(1, [2]), Level.HIGH, [Level], Text("t"), double,
    {"a": Point(Slotted([1]))}, int, Point, OSError(2, "no", "file"), ValueError("x"),
]  # fmt: skip


@pytest.mark.parametrize("value", LIBRARY_VALUES, ids=lambda value: f"{type(value).__name__}")
@pytest.mark.parametrize("nested", [False, True])
def test_library_values_come_back_exactly(value: Any, nested: bool) -> None:
    value = {"within": [(value,)]} if nested else value
    trip = round_trip(value)
    assert trip.encoded.codec == PICKLE
    if isinstance(value, BaseException):
        assert type(trip.value) is type(value)
        assert trip.value.args == value.args
    elif not nested or not isinstance(value["within"][0][0], BaseException):
        assert identical(trip.value, value)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_comes_back_as_a_matrix_over_the_payload() -> None:
    value = np.matrix(np.arange(100).reshape(10, 10))
    trip = round_trip(value)
    assert identical(trip.value, value)
    assert trip.holds(trip.value)


FOREIGN = [
    value
    for value in LIBRARY_VALUES
    if type(value).__module__ not in ("tests.importable", "builtins", "numpy.random._generator")
    and not isinstance(value, (type, tuple, np.ufunc, np.ma.core.MaskedConstant))
    and not (isinstance(value, np.ndarray) and value.dtype.names and value.dtype.hasobject)
]
TABLE = {
    ("builtins", "complex"), ("builtins", "range"), ("builtins", "slice"), ("builtins", "Ellipsis"),
    ("datetime", "date"), ("datetime", "time"), ("datetime", "datetime"),
    ("datetime", "timedelta"), ("datetime", "timezone"), ("decimal", "Decimal"),
    ("collections", "OrderedDict"),
}  # fmt: skip


@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: type(value).__name__)
def test_library_values_are_written_with_the_names_of_the_table_only(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    look_up = Rebuilding.look_up

    def noting(self: Any, module: str, name: str) -> Any:
        names.add((module, name))
        return look_up(self, module, name)

    monkeypatch.setattr(Rebuilding, "look_up", noting)
    round_trip({"v": value})
    assert names
    assert all(name in TABLE or name[0] == "shmstore._wire" for name in names)


def test_arrays_are_viewed_in_place_wherever_they_sit() -> None:
    value = Point({"a": [np.arange(1000.0)]}, (np.zeros((50, 9), order="F"), np.ones(99, "M8[s]")))
    trip = round_trip(value)
    assert identical(trip.value, value)
    for found in (trip.value.x["a"][0], *trip.value.y):
        assert trip.holds(found)
        assert found.ctypes.data % ALIGNMENT == 0
        assert not found.flags.writeable


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("size", [3, 1000])
def test_arrays_within_are_writable_if_the_payload_is(writable: bool, size: int) -> None:
    value = [np.arange(size), np.arange(size).view(Units), np.arange(size).view(np.memmap)]
    trip = round_trip(value, writable=writable)
    assert [found.flags.writeable for found in trip.value] == [writable] * 3


def test_encode_copies_no_large_array_within() -> None:
    arrays = [np.arange(1000), np.zeros(500, "M8[us]"), np.zeros((20, 30), order="F")]
    parts = [np.frombuffer(p, np.uint8) for p in codecs.encode({"a": arrays}).parts if len(p)]
    for a in arrays:
        assert any(np.shares_memory(part, a) for part in parts)


def test_one_array_in_two_places_is_one_array() -> None:
    a = np.arange(1000)
    for size in (3, 1000):
        a = np.arange(size)
        trip = round_trip([a, {"again": a}])
        assert trip.value[0] is trip.value[1]["again"]
        assert trip.encoded.nbytes < 1.5 * a.nbytes + 300


@pytest.mark.parametrize("make", [collections.deque, types.SimpleNamespace])
def test_values_that_contain_themselves(make: Any) -> None:
    value = make()
    if isinstance(value, types.SimpleNamespace):
        value.me = value
        back = round_trip(value).value
        assert back.me is back
    else:
        value.append(value)
        back = round_trip(value).value
        assert back[0] is back


def test_an_object_array_that_contains_itself() -> None:
    value = np.array([None, 1], object)
    value[0] = value
    back = round_trip(value).value
    assert back[0] is back
    assert back[1] == 1


def test_a_subclass_of_array_keeps_its_attributes_and_its_memory_is_viewed() -> None:
    value = np.arange(500.0).view(Units)
    value.unit = "m"
    trip = round_trip([value])
    assert trip.value[0].unit == "m"
    assert identical(trip.value, [value])
    assert trip.holds(trip.value[0])


@pytest.mark.parametrize("writable", [False, True])
def test_buffers_that_objects_hand_out_are_views_of_the_payload(writable: bool) -> None:
    value = [Buffered(bytearray(b"x" * 1000)), Buffered(bytearray(b"y" * 2000)), Buffered(b"small")]
    trip = round_trip(value, writable=writable)
    assert [bytes(b.memory) for b in trip.value] == [bytes(b.memory) for b in value]
    for found in trip.value[:2]:
        memory = np.frombuffer(found.memory, np.uint8)
        assert trip.holds(memory)
        assert memory.ctypes.data % ALIGNMENT == 0
        assert found.memory.readonly is not writable


def test_large_memoryviews_are_views_and_array_array_owns_its_memory() -> None:
    trip = round_trip([memoryview(bytes(1000)), array.array("d", range(100))])
    assert trip.holds(np.frombuffer(trip.value[0], np.uint8))
    assert not trip.holds(np.frombuffer(trip.value[1], np.uint8))
    notes = codecs.explain(PICKLE, trip.encoded.meta, trip.encoded.nbytes)
    assert [note.copied for note in notes] == [False, True, True]


def test_a_value_of_very_many_arrays_keeps_a_small_meta() -> None:
    value = [np.full(100, i) for i in range(5000)]
    trip = round_trip(value)
    assert len(trip.encoded.meta) < 50_000
    assert identical(trip.value, value)


def test_values_of_other_codecs_are_embedded_at_any_depth() -> None:
    table = pa.table({"a": range(1000)})
    frame = pd.DataFrame({"a": np.arange(1000.0)})
    polars = pl.DataFrame({"a": range(1000)})
    trip = round_trip(Point([{"t": table}, frame], (polars, table)))
    (first, back), (polars_back, again) = trip.value.x, trip.value.y
    assert first["t"].equals(table)
    assert again is first["t"]
    assert polars_back.equals(polars)
    pd.testing.assert_frame_equal(back, frame)
    address = first["t"]["a"].chunk(0).buffers()[1].address
    start = np.frombuffer(trip.payload, np.uint8).ctypes.data
    assert start <= address < start + len(trip.payload)
    assert trip.holds(back["a"].to_numpy())
    notes = codecs.explain(PICKLE, trip.encoded.meta, trip.encoded.nbytes)
    assert [note.copied for note in notes].count(True) == 1
    assert sum(note.nbytes for note in notes if not note.copied) >= 3 * 8000


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2020-01-01 12:00", tz="Europe/Paris"), pd.Timestamp(5, unit="s"),
        pd.Timestamp(datetime.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=PARIS)),
        pd.Timestamp.max, pd.Timedelta(-1, "ns"),
        pd.Timedelta(3, "s").as_unit("s"), pd.NaT, pd.NA, pd.Interval(1, 2.5, "both"),
        pd.Interval(pd.Timestamp(0), pd.Timestamp(1)), pd.Period("2020-01", "M"),
        pd.offsets.BDay(3),
    ],
    ids=repr,
)  # fmt: skip
def test_pandas_scalars(value: Any) -> None:
    back = round_trip([value]).value[0]
    assert type(back) is type(value)
    assert back is value if value is pd.NaT or value is pd.NA else back == value
    for fact in ("unit", "tz", "fold", "closed", "freq"):
        if hasattr(value, fact):
            assert getattr(back, fact) == getattr(value, fact)


def generator() -> Any:
    yield 1


class OwnThread(threading.Thread):
    def __getstate__(self) -> Any:
        return {}


def refused_values() -> list[Any]:
    return [
        threading.Lock(), threading.RLock(), threading.Event(), threading.Thread(), generator(),
        mmap.mmap(-1, 10), sqlite3.connect(":memory:"), socket.socket(), weakref.ref(Point),
        io.FileIO("/dev/null"), open("/dev/null"), open("/dev/null", "rb"),
        pickle.PickleBuffer(b"x"),
        memoryview(np.zeros(3, "f2")),
        pa.RecordBatchReader.from_batches(pa.schema([]), []),
        pa.table({"a": [1]}).__arrow_c_stream__(),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(16))
@pytest.mark.parametrize("nested", [False, True])
def test_what_lives_in_one_process_is_refused_by_its_name(index: int, nested: bool) -> None:
    values = refused_values()
    value = values[index]
    try:
        with pytest.raises(Unserializable) as caught:
            codecs.encode([Point(value)] if nested and index != 12 else value)
        assert type(value).__name__.strip("_") in caught.value.type_name
        assert len(caught.value.why) > 10
    finally:
        for each in values:
            if hasattr(each, "close"):
                each.close()


def test_a_refused_generator_is_not_run() -> None:
    started = generator()
    with pytest.raises(Unserializable):
        codecs.encode([started])
    assert next(started) == 1


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("y"), OSError(3, "z"), RecursionError()]
)
def test_an_error_of_a_value_s_own_code_is_the_cause(error: Exception) -> None:
    with pytest.raises(Unserializable) as caught:
        codecs.encode([Explosive(error)])
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_concerns_the_process_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        codecs.encode([Explosive(error)])


def test_a_class_that_the_reader_lacks_is_named() -> None:
    encoded = codecs.encode(Point(1))
    payload = b"".join(encoded.parts).replace(b"tests.importable", b"tests.importablf")
    with pytest.raises(Unserializable, match=r"tests\.importablf") as caught:
        codecs.decode(PICKLE, encoded.meta, memoryview(payload))
    assert caught.value.type_name == "tests.importablf.Point"


def test_a_value_whose_own_code_fails_is_refused_at_put() -> None:
    with pytest.raises(Unserializable, match=r"cannot be read back.*no such state"):
        codecs.encode(Dud())
    with pytest.raises(Unserializable, match=r"cannot be read back.*no such state"):
        codecs.encode({"deep": [Dud(), np.zeros(1000)]})


def test_only_what_went_pickles_own_ways_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(pickled, "_try_out", lambda value, _: tried.append(value))
    library = {"a": np.arange(1000), "b": [datetime.date(2020, 1, 1), uuid.uuid4()]}
    codecs.encode(library)
    assert not tried
    codecs.encode([Point(1, 2)])
    assert tried == [[Point(1, 2)]]


def test_a_value_whose_own_code_fails_at_get_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # It loads where it is put, say, and not in the process that gets it.
    monkeypatch.setattr(pickled, "_try_out", lambda *_: None)
    encoded = codecs.encode(Dud())
    with pytest.raises(Unserializable, match="no such state") as caught:
        codecs.decode(PICKLE, encoded.meta, memoryview(b"".join(encoded.parts)))
    assert "Dud" in caught.value.type_name


def test_damaged_meta_never_reads_outside_of_the_payload() -> None:
    value = {"a": np.arange(100), "b": [np.zeros(300, "u1"), array.array("d", range(50))]}
    encoded = codecs.encode(value)
    payload = memoryview(b"".join(encoded.parts))
    chance = random.Random(3)
    refused = 0
    for _ in range(600):
        meta = bytearray(encoded.meta)
        meta[chance.randrange(len(meta))] = chance.randrange(256)
        if chance.random() < 0.2:
            del meta[chance.randrange(len(meta)) :]
        try:
            back = codecs.decode(PICKLE, bytes(meta), payload)
        except StoreError:
            refused += 1
            continue
        assert identical(back, value) or back["a"].nbytes == 800
    assert refused > 100


@pytest.mark.parametrize(
    "call",
    [
        ("uuid", -1, 0), ("uuid", "x", 0), ("deque", -1), ("deque", "a"), ("defaultdict", "eval"),
        ("path", "WindowsPath", "c:"), ("path", "os", "x"), ("ip", "eval", "x"),
        ("pattern", "(", 0),
        ("pattern", "a", re.DEBUG.value), ("typed_array", "u", False, 4, b""), ("dtype", b"O"),
        ("typed_array", "d", False, 8, b"123"), ("scalar", b"<d", b"1234567"), ("cells", 1, (1,),
        False),
        ("view_as", "ndarray", 1), ("fraction", 1, 0), ("chain_map", [1]),
        ("array", b"\0\0<d", b"1"),
        ("array", 1, b""), ("embedded", 0), ("embedded", 99), ("run", -1), ("run", 0),
        ("missing", "x"),
        ("memory", "q", None, b"123"), ("memory", "d", (9,), b"12345678"), ("MODULE",),
        ("_refuse",),
        ("TYPE_CHECKING",), ("re.compile", "a"), ("fill_cells", 1, []), ("seen_as", int, 1),
        ("dtype_with", b"<d", 5), ("masked_array", 1, None, None, False, {}),
        ("timestamp", 1, "D", None),
    ],
    ids=lambda call: f"{call[0]}",
)  # fmt: skip
def test_constructors_refuse_what_the_pickler_would_not_write(call: tuple[Any, ...]) -> None:
    """A forged stream gets CorruptValue from the constructors, not the library's own code."""
    name, *arguments = call

    class Forged:
        def __reduce__(self) -> Any:
            return uuid.UUID, tuple(arguments)

    forged = pickle.dumps(Forged(), 5).replace(
        b"\x8c\x04uuid\x94\x8c\x04UUID",
        b"\x8c\x0eshmstore._wire\x94\x8c" + bytes([len(name)]) + name.encode(),
    )
    forged = forged[:2] + forged[11:]  # Without its frame, whose length has changed.
    encoded = codecs.encode(1j)
    (stream,) = parse_runs(encoded.meta, 0, encoded.nbytes)
    meta = bytearray(encoded.meta)
    meta[8:16] = len(forged).to_bytes(8, "little")
    assert stream.offset == 0
    with pytest.raises(CorruptValue):
        codecs.decode(PICKLE, bytes(meta), memoryview(forged))
