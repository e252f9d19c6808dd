"""What the codec for polars promises of single values, beyond the round trip."""

from __future__ import annotations

import datetime
import pickle
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from shmstore.codecs import polars_frames
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.errors import CorruptValue, Unserializable

NEWEST = pl.CompatLevel.newest()
ROWS = 50_000


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """Polars' lazy engine opens descriptors when it first runs, and keeps them."""
    pl.DataFrame({"a": [1]}).lazy().select(pl.len()).collect()


def encoded_of(value: Any) -> Encoded:
    encoded = polars_frames.encode(value)
    assert encoded is not None
    return encoded


def payload_of(encoded: Encoded) -> memoryview:
    return memoryview(b"".join(encoded.parts))


def back(value: Any) -> Any:
    encoded = encoded_of(value)
    return polars_frames.decode(encoded.meta, payload_of(encoded))


TEXT = "a text of more than twelve bytes"
FRUIT = pl.Categorical(pl.Categories("fruit", "tests", pl.UInt8))

SERIES = {
    "Boolean": pl.Series([True, None, False]),
    "Int8": pl.Series([1, None, -128], dtype=pl.Int8),
    "UInt64": pl.Series([0, None, 2**64 - 1], dtype=pl.UInt64),
    "Int128": pl.Series([-(2**127), None, 2**127 - 1], dtype=pl.Int128),
    "Float16": pl.Series([1.5, None, float("nan")], dtype=pl.Float16),
    "Float32": pl.Series([-0.0, None, float("nan")], dtype=pl.Float32),
    "Float64": pl.Series([-0.0, None, float("inf")]),
    "Decimal": pl.Series([Decimal("1.25"), None], dtype=pl.Decimal(38, 10)),
    "String": pl.Series(["", None, TEXT]),
    "Binary": pl.Series([b"", None, TEXT.encode()]),
    "Null": pl.Series([None, None]),
    "Date": pl.Series([datetime.date(2020, 1, 1), None]),
    "Time": pl.Series([datetime.time(23, 59, 59, 1), None]),
    "Datetime_ms": pl.Series([0, None, -1]).cast(pl.Datetime("ms")),
    "Datetime_zone": pl.Series([0, None, -1]).cast(pl.Datetime("ns", "Europe/Berlin")),
    "Duration": pl.Series([0, None, -1]).cast(pl.Duration("ms")),
    "Categorical": pl.Series(["b", None, "a"], dtype=pl.Categorical),
    "Categorical_named": pl.Series(["b", None, "a"], dtype=FRUIT),
    "Enum": pl.Series(["b", None, "a"], dtype=pl.Enum(["c", "b", "a"])),
    "Enum_empty": pl.Series([None], dtype=pl.Enum([])),
    "List": pl.Series([[1], None, [], [None, 2]]),
    "List_Null": pl.Series([[None], None, []], dtype=pl.List(pl.Null)),
    "List_Categorical": pl.Series([["a", "b"], None, []], dtype=pl.List(FRUIT)),
    "List_Int128": pl.Series([[2**100], None, []], dtype=pl.List(pl.Int128)),
    "Array": pl.Series([[1, None], None], dtype=pl.Array(pl.Int8, 2)),
    "Array_of_Array": pl.Series([[[1, 2]], None], dtype=pl.Array(pl.Int8, (1, 2))),
    "Struct": pl.Series([{"a": 1, "b": [TEXT]}, None, {"a": None, "b": None}]),
    "Struct_Enum": pl.Series([{"a": "x"}], dtype=pl.Struct({"a": pl.Enum(["y", "x"])})),
    "Struct_empty": pl.Series([{}, {}], dtype=pl.Struct({})),
    "Struct_NUL": pl.Series([{"a\0b": 1}]),
}


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("rows", [None, 0])
def test_a_series_of_each_dtype_comes_back(name: str, rows: int | None) -> None:
    series = SERIES[name].alias(name)
    for value in (series.slice(0, rows), series.slice(1, rows)):
        again = back(value)
        assert type(again) is pl.Series
        assert again.name == name
        assert again.dtype == value.dtype
        assert repr(again.to_list()) == repr(value.to_list())
        frame = value.to_frame()
        assert back(frame).equals(frame)
        assert back(frame).schema == frame.schema


@pytest.mark.parametrize("name", ["UInt128", "Map"])
def test_a_dtype_of_newer_versions_comes_back(name: str) -> None:
    if not hasattr(pl, name):
        pytest.skip(f"this polars has no {name}")
    if name == "UInt128":
        series = pl.Series("a", [0, None, 2**128 - 1], dtype=pl.UInt128)
    else:
        series = pl.Series("a", [{"k": 1}, None], dtype=pl.Map(pl.String, pl.Int8))
    again = back(series)
    assert again.dtype == series.dtype
    assert again.equals(series, check_names=True, null_equal=True)


def test_enums_keep_the_order_of_their_categories() -> None:
    series = pl.Series(["b", "a"], dtype=pl.Enum(["c", "b", "a"]))
    again = back(series)
    assert again.dtype.categories.to_list() == ["c", "b", "a"]
    assert again.sort().to_list() == ["b", "a"]


def test_categories_keep_their_name() -> None:
    categories = back(SERIES["Categorical_named"]).dtype.categories
    assert (categories.name(), categories.namespace()) == ("fruit", "tests")
    assert categories.physical() == pl.UInt8


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame(),
        pl.DataFrame(height=5),
        pl.DataFrame(schema={"a": pl.Categorical, "b": pl.List(pl.Enum(["x"])), "c": pl.Int128}),
        pl.DataFrame({"": [1], "^a.*$": [2], "é\n": [3], "abc": [4]}),
        pl.DataFrame({"": [1], "\0x": [2], "^a.*$": [3], "abc": [4]}),
    ],
    ids=["nothing", "no columns", "no rows", "names", "names with NUL"],
)
def test_an_odd_frame_comes_back(frame: pl.DataFrame) -> None:
    again = back(frame)
    assert again.schema == frame.schema
    assert again.shape == frame.shape
    assert again.equals(frame)


def test_columns_kept_apart_return_to_their_places() -> None:
    wide = pl.Series("w", [1, 2], dtype=pl.Int128)
    text = pl.Series("t", ["x", "y"])
    frame = pl.DataFrame([wide, text, wide.alias("v"), text.alias("u")])
    encoded = encoded_of(frame)
    assert polars_frames.decode(encoded.meta, payload_of(encoded)).equals(frame)
    assert pa.ipc.open_stream(payload_of(encoded)).read_all().column_names == ["t", "u"]
    notes = polars_frames.explain(encoded.meta, encoded.nbytes)
    assert [note.name for note in notes if note.copied] == ["w, v"]


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_columns_are_known_to_be_sorted(descending: bool) -> None:
    series = pl.Series("a", [1, 2, 3]).sort(descending=descending)
    frame = pl.DataFrame([pl.Series("b", [2, 1, 3]), series])
    for again in (back(series), back(frame)["a"]):
        assert again.flags["SORTED_ASC"] is not descending
        assert again.flags["SORTED_DESC"] is descending
    assert not any(back(frame)["b"].flags.values())


class TestRefused:
    """What polars itself would not give back."""

    def test_objects(self) -> None:
        series = pl.Series("a", [object()], dtype=pl.Object)
        for value in (series, series.to_frame()):
            with pytest.raises(Unserializable, match="Python objects"):
                polars_frames.encode(value)

    @pytest.mark.parametrize("rows", [0, 2])
    def test_arrays_of_width_zero(self, rows: int) -> None:
        series = pl.Series("a", [[], None][:rows], dtype=pl.Array(pl.Int8, 0))
        with pytest.raises(Unserializable, match="width 0"):
            polars_frames.encode(series)

    def test_a_column_named_like_a_dtype_is_not(self) -> None:
        frame = pl.DataFrame({"Object": ["Int128"], "Int128": [["Array", "0"]]})
        assert back(frame).equals(frame)


class TestPassedOn:
    """What other codecs have to store."""

    def test_what_holds_no_rows(self) -> None:
        frame = pl.DataFrame({"a": [1]})
        for value in (frame.lazy(), pl.col("a"), pl.Int8(), frame.schema, frame.group_by("a")):
            assert polars_frames.encode(value) is None

    def test_subclasses(self) -> None:
        class Frame(pl.DataFrame):
            pass

        class Column(pl.Series):
            pass

        assert polars_frames.encode(Frame({"a": [1]})) is None
        assert polars_frames.encode(Column([1])) is None


def long_frame() -> pl.DataFrame:
    numbers = pl.Series("i", range(ROWS))
    texts = pl.Series("s", [f"{TEXT} {row}" for row in range(ROWS)])
    struct = pl.DataFrame([numbers, texts]).to_struct("st")
    return pl.DataFrame([numbers, texts, struct, numbers.reshape((ROWS, 1)).alias("l")])


def test_nothing_of_a_large_frame_is_copied_in_either_direction() -> None:
    frame = long_frame()
    encoded = encoded_of(frame)
    held = memory(frame)
    own = sum(len(part) for part in encoded.parts if len(part) and lies_in(part, held))
    assert own > 0.99 * encoded.nbytes
    payload = payload_of(encoded)
    base = np.frombuffer(payload, np.uint8).ctypes.data
    for address, size in memory(polars_frames.decode(encoded.meta, payload)):
        assert base <= address
        assert address + size <= base + encoded.nbytes
        assert (address - base) % ALIGNMENT == 0


def memory(frame: pl.DataFrame) -> list[tuple[int, int]]:
    buffers = [
        buffer
        for column in frame.to_arrow(compat_level=NEWEST).columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
    ]
    return [(buffer.address, buffer.size) for buffer in buffers if buffer is not None]


def lies_in(part: memoryview | bytes, places: list[tuple[int, int]]) -> bool:
    address = np.frombuffer(part, np.uint8).ctypes.data
    return any(start <= address < start + size for start, size in places)


@pytest.mark.parametrize("start", [0, 5003, ROWS - 10])
def test_of_a_slice_only_the_slice_is_stored(start: int) -> None:
    frame = long_frame().slice(start, 10)
    encoded = encoded_of(frame)
    assert encoded.nbytes < 8_000
    assert polars_frames.decode(encoded.meta, payload_of(encoded)).equals(frame)


def test_explain_says_what_is_copied_and_why() -> None:
    frame = pl.DataFrame(
        [
            pl.Series("i", [1, None]),
            pl.Series("e", ["x", "y"], dtype=pl.Enum(["x", "y"])),
            pl.Series("s", [{"f": None}, None], dtype=pl.Struct({"f": pl.Int8})),
        ]
    )
    encoded = encoded_of(frame)
    notes = {note.name: note for note in polars_frames.explain(encoded.meta, encoded.nbytes)}
    assert {name for name, note in notes.items() if note.copied} == {
        "e.indices",
        "e.dictionary.views",
        "s.f.validity",
    }
    assert "codes" in notes["e.indices"].why
    assert {"i.validity", "i.data", "s.validity", "s.f.data"} < set(notes)


def test_writing_into_what_was_read_leaves_the_payload_as_it_is() -> None:
    encoded = encoded_of(pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}))
    payload = payload_of(encoded)
    before = bytes(payload)
    frame = polars_frames.decode(encoded.meta, payload)
    frame[1, "a"] = 99
    frame.extend(frame)
    assert frame["a"].to_list() == [1, 99, 3] * 2
    assert bytes(payload) == before


def test_changed_columns_in_polars_own_format_are_noticed() -> None:
    encoded = encoded_of(pl.Series([1, 2], dtype=pl.Int128))
    payload = bytearray(payload_of(encoded))
    payload[-20] ^= 1
    with pytest.raises(CorruptValue, match="digest"):
        polars_frames.decode(encoded.meta, memoryview(payload))


if hasattr(pl, "BaseExtension"):

    class Celsius(pl.BaseExtension):
        """An extension dtype of the user's."""

        def __init__(self) -> None:
            super().__init__("tests.celsius", pl.Float64, "metadata")

        @classmethod
        def ext_from_params(cls, name: str, storage: Any, metadata: str | None) -> Any:
            return cls()

    @pytest.fixture
    def registered() -> Iterator[None]:
        pl.register_extension_type("tests.celsius", Celsius)
        yield
        pl.unregister_extension_type("tests.celsius")

    @pytest.mark.usefixtures("registered")
    def test_an_extension_dtype_comes_back() -> None:
        series = pl.Series("t", [1.5, None]).ext.to(Celsius())
        again = back(series)
        assert type(again.dtype) is Celsius
        assert again.ext.storage().to_list() == [1.5, None]

    @pytest.mark.usefixtures("registered")
    def test_a_reader_without_the_extension_dtype_is_told_to_register_it() -> None:
        encoded = encoded_of(pl.Series("t", [1.5, None]).ext.to(Celsius()))
        code = (
            "import pickle, sys\n"
            "from shmstore.codecs import polars_frames\n"
            "from shmstore.errors import Unserializable\n"
            "meta, payload = pickle.load(sys.stdin.buffer)\n"
            "try:\n"
            "    polars_frames.decode(meta, memoryview(payload))\n"
            "except Unserializable as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            input=pickle.dumps((encoded.meta, bytes(payload_of(encoded)))),
            capture_output=True,
            check=True,
        )
        assert b"register_extension_type" in done.stdout
