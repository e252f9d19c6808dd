"""Any frame, series and index comes back exactly, whatever is in it."""

from __future__ import annotations

import datetime
import json
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shmstore.codecs import pandas_frames
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.errors import StoreError
from tests.pandas_oracle import difference

ZONES = st.sampled_from(
    [
        datetime.UTC,
        zoneinfo.ZoneInfo("UTC"),
        zoneinfo.ZoneInfo("Europe/Paris"),
        zoneinfo.ZoneInfo("America/St_Johns"),
        datetime.timezone(datetime.timedelta(hours=5, minutes=45)),
    ]
)
UNITS = st.sampled_from(["s", "ms", "us", "ns"])
#: Within what each unit can hold, and far enough from its ends for zones.
INSTANTS = st.integers(-(2**40), 2**40) | st.just(np.iinfo("i8").min)
TEXT = st.text(max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.text(st.characters(), max_size=3),
    st.binary(max_size=4),
    st.sampled_from([pd.NA, pd.NaT, np.float32(1.5), np.int8(3)]),
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=st.none() | ZONES),
    st.decimals(allow_nan=False),
)
CELLS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=4,
)
NAMES = st.one_of(
    st.none(),
    TEXT,
    st.text(st.characters(), max_size=2),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.tuples(TEXT, st.integers()),
)
PLAIN_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(32, 64)),
    hnp.complex_number_dtypes(endianness="="),
)
NULLABLE = st.sampled_from(
    ["Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"]
)
ARROW_TYPES = st.sampled_from(
    [
        (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
        (pa.float64(), st.floats()),
        (pa.string(), TEXT),
        (pa.large_string(), TEXT),
        (pa.binary(), st.binary(max_size=5)),
        (pa.bool_(), st.booleans()),
        (pa.timestamp("us", "Europe/Paris"), st.integers(-(2**50), 2**50)),
        (pa.list_(pa.int8()), st.lists(st.integers(-128, 127), max_size=3)),
        (pa.struct([("a", pa.string())]), st.fixed_dictionaries({"a": TEXT})),
    ]
)


def object_array(values: list[Any]) -> np.ndarray[Any, Any]:
    return np.fromiter(values, dtype=object, count=len(values))


@st.composite
def object_arrays(draw: st.DrawFn, length: int) -> Any:
    return object_array(draw(st.lists(CELLS, min_size=length, max_size=length)))


@st.composite
def times(draw: st.DrawFn, length: int) -> Any:
    values = draw(hnp.arrays("i8", length, elements=INSTANTS))
    unit = draw(UNITS)
    if draw(st.booleans()):
        return pd.array(values.view(f"m8[{unit}]"))
    plain = pd.array(values.view(f"M8[{unit}]"))
    if draw(st.booleans()):
        return plain
    return plain.tz_localize("UTC").tz_convert(draw(ZONES))


@st.composite
def periods(draw: st.DrawFn, length: int) -> Any:
    freq = draw(st.sampled_from(["D", "M", "Q-NOV", "Y-DEC", "W-MON", "3h", "min", "us"]))
    ordinals = draw(hnp.arrays("i8", length, elements=st.integers(-10_000, 10_000)))
    return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(freq))


@st.composite
def masked(draw: st.DrawFn, length: int) -> Any:
    mask = draw(hnp.arrays("?", length))
    kind = draw(st.sampled_from("bif"))
    if kind == "b":
        return pd.arrays.BooleanArray(draw(hnp.arrays("?", length)), mask)
    if kind == "f":
        dtype = draw(st.sampled_from(["f4", "f8"]))
        return pd.arrays.FloatingArray(draw(hnp.arrays(dtype, length)), mask)
    dtype = draw(NULLABLE).lower()
    return pd.arrays.IntegerArray(draw(hnp.arrays(dtype, length)), mask)


@st.composite
def strings(draw: st.DrawFn, length: int) -> Any:
    storage = draw(st.sampled_from(["python", "pyarrow"]))
    dtype = pd.StringDtype(storage, na_value=draw(st.sampled_from([pd.NA, np.nan])))
    values = draw(st.lists(st.none() | TEXT, min_size=length, max_size=length))
    many = draw(st.sampled_from([1, 1, 1, 80]))  # past what is kept within the meta
    return (
        pd.array(values * many, dtype=dtype)[: max(length, 0)]
        if many == 1
        else (pd.array(values * many, dtype=dtype).take(np.arange(length)))
    )


@st.composite
def categoricals(draw: st.DrawFn, length: int) -> Any:
    labels = draw(
        st.one_of(
            st.lists(TEXT, unique=True, max_size=5).map(lambda v: pd.Index(v, dtype="str")),
            st.lists(TEXT, unique=True, max_size=5).map(lambda v: pd.Index(v, dtype=object)),
            st.lists(st.integers(-99, 99), unique=True, max_size=5).map(
                lambda v: pd.Index(v, dtype="i4")
            ),
            st.integers(0, 5).map(pd.RangeIndex),
            st.integers(0, 5).map(lambda n: pd.date_range("2020", periods=n, freq="D")),
            st.integers(0, 5).map(lambda n: pd.interval_range(0, n)),
        )
    )
    codes = st.integers(-1, len(labels) - 1)
    return pd.Categorical.from_codes(
        draw(hnp.arrays("i1", length, elements=codes)), labels, ordered=draw(st.booleans())
    )


@st.composite
def sparse(draw: st.DrawFn, length: int) -> Any:
    values = draw(
        hnp.arrays(st.sampled_from(["i8", "f8", "i2"]), length, elements={"min_value": 0})
    )
    fill = draw(st.sampled_from([0, 1])) if values.dtype.kind == "i" else np.nan
    kind = draw(st.sampled_from(["integer", "block"]))
    return pd.arrays.SparseArray(values, fill_value=fill, kind=kind)


@st.composite
def intervals(draw: st.DrawFn, length: int) -> Any:
    left = draw(hnp.arrays(st.sampled_from(["i8", "f8"]), length, elements=st.integers(-99, 99)))
    return pd.arrays.IntervalArray.from_arrays(
        left, left + 1, closed=draw(st.sampled_from(["left", "right", "both", "neither"]))
    )


@st.composite
def arrow(draw: st.DrawFn, length: int) -> Any:
    kind, cells = draw(ARROW_TYPES)
    values = draw(st.lists(st.none() | cells, min_size=length, max_size=length))
    whole = pa.chunked_array([pa.array(values, kind, from_pandas=False)])
    cut = draw(st.integers(0, length))
    parts = [whole.slice(0, cut), whole.slice(cut)]
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pd.arrays.ArrowExtensionArray(pa.chunked_array(chunks, kind))


def arrays(length: int) -> st.SearchStrategy[Any]:
    return st.one_of(
        hnp.arrays(PLAIN_DTYPES, length),
        object_arrays(length),
        times(length),
        periods(length),
        masked(length),
        strings(length),
        categoricals(length),
        sparse(length),
        intervals(length),
        arrow(length),
    )


@st.composite
def indexes(draw: st.DrawFn, length: int, *, nested: bool = True) -> pd.Index:
    name = draw(NAMES)
    kind = draw(st.sampled_from(["range", "array", "dates", "multi" if nested else "range"]))
    if kind == "range":
        start, step = draw(st.integers(-5, 5)), draw(st.sampled_from([-2, 1, 3]))
        return pd.RangeIndex(start, start + step * length, step, name=name)
    if kind == "dates":
        freq = draw(st.sampled_from(["D", "2h", "ME", "W-TUE", "B"]))
        zone = draw(st.none() | ZONES)
        return pd.date_range("2020-02-01", periods=length, freq=freq, tz=zone, name=name)
    if kind == "multi":
        levels = draw(st.integers(1, 3))
        each = [draw(indexes(length, nested=False)) for _ in range(levels)]
        index = pd.MultiIndex.from_arrays(
            [labels.rename(None) for labels in each],
            names=[draw(NAMES) for _ in range(levels)],
        )
        return index if draw(st.booleans()) else index.remove_unused_levels()
    labels = draw(
        st.one_of(
            hnp.arrays(st.sampled_from(["?", "i1", "i8", "u4", "f8"]), length),
            times(length),
            periods(length),
            masked(length),
            strings(length),
            categoricals(length),
            intervals(length),
            st.lists(SCALARS.filter(hashable), min_size=length, max_size=length).map(object_array),
        )
    )
    return pd.Index(labels, dtype=labels.dtype, name=name, tupleize_cols=False)


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@st.composite
def extras(draw: st.DrawFn, value: Any) -> Any:
    value.attrs = draw(st.dictionaries(NAMES.filter(hashable), CELLS, max_size=2))
    unique = value.index.is_unique and (value.ndim == 1 or value.columns.is_unique)
    if unique and draw(st.booleans()):
        value.flags.allows_duplicate_labels = False
    return value


@st.composite
def series(draw: st.DrawFn) -> pd.Series:
    length = draw(st.integers(0, 6))
    values = draw(arrays(length))
    index = draw(indexes(length))
    made = pd.Series(values, index=index, dtype=values.dtype, name=draw(NAMES), copy=False)
    return draw(extras(made))


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows, width = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    index = draw(indexes(rows))
    if draw(st.booleans()):
        values = draw(hnp.arrays(PLAIN_DTYPES, (rows, width)))
        frame = pd.DataFrame(np.asarray(values, order=draw(st.sampled_from("CF"))), copy=False)
        frame.index = index
    else:
        columns = [
            pd.Series(a, index=index, dtype=a.dtype)
            for a in [draw(arrays(rows)) for _ in range(width)]
        ]
        frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    frame.columns = draw(indexes(width))
    if rows and draw(st.booleans()):
        frame = frame.iloc[:: draw(st.sampled_from([1, 2, -1]))]
    if width and draw(st.booleans()):
        frame = frame.iloc[:, draw(st.permutations(range(width)))]
    return draw(extras(frame))


ANY = st.one_of(frames(), series(), st.integers(0, 6).flatmap(indexes))
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def payload_of(encoded: Encoded, *, writable: bool) -> memoryview:
    memory = np.zeros(encoded.nbytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    payload = memory[start : start + encoded.nbytes]
    payload[:] = np.frombuffer(b"".join(encoded.parts), dtype=np.uint8)
    return memoryview(payload) if writable else memoryview(payload).toreadonly()


@SETTINGS
@given(value=ANY, writable=st.booleans())
def test_any_value_comes_back_exactly(value: Any, writable: bool) -> None:
    """In read and in copy mode, and a second time as the first."""
    encoded = pandas_frames.encode(value)
    assert encoded is not None
    assert sum(map(len, encoded.parts)) == encoded.nbytes
    again = pandas_frames.decode(encoded.meta, payload_of(encoded, writable=writable))
    assert difference(value, again) is None
    twice = pandas_frames.encode(again)
    assert twice is not None
    assert (twice.meta, b"".join(twice.parts)) == (encoded.meta, b"".join(encoded.parts))


@SETTINGS
@given(value=ANY)
def test_explain_accounts_for_the_payload(value: Any) -> None:
    """The buffers that it names are the payload but for the padding."""
    encoded = pandas_frames.encode(value)
    assert encoded is not None
    notes = pandas_frames.explain(encoded.meta, encoded.nbytes)
    named = sum(note.nbytes for note in notes)
    assert named <= encoded.nbytes
    if b"chunks" not in encoded.meta:  # Arrow's metadata are no buffer
        assert named + ALIGNMENT * (len(notes) + encoded.meta.count(b'"at"')) >= encoded.nbytes


@SETTINGS
@given(value=ANY, data=st.data())
def test_damaged_meta_never_gives_another_type(value: Any, data: st.DataObject) -> None:
    """Bytes changed at random: an error of shmstore, or a pandas value."""
    encoded = pandas_frames.encode(value)
    assert encoded is not None
    payload = payload_of(encoded, writable=False)
    for _ in range(10):
        meta = bytearray(encoded.meta)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(meta) - 1))
            meta[at] = data.draw(st.sampled_from(b'0123456789{}[]",:-abMO<>') | st.integers(0, 255))
        try:
            again = pandas_frames.decode(bytes(meta), payload)
        except StoreError:
            continue
        assert type(again) in (pd.DataFrame, pd.Series) or isinstance(again, pd.Index)
        assert again.shape is not None


@SETTINGS
@given(value=ANY)
def test_meta_is_json_in_ascii(value: Any) -> None:
    """Strictly: no NaN, no lone surrogates, nothing that other readers refuse."""
    encoded = pandas_frames.encode(value)
    assert encoded is not None
    assert encoded.meta.isascii()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(encoded.meta, parse_constant=refuse)
