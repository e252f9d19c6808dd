from __future__ import annotations

import math
import struct
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import codecs
from shmstore.errors import StoreError
from tests.oracle import identical
from tests.round_trip import round_trip

PLAIN, BYTES, ARRAY, PICKLE = 1, 2, 3, 4

any_float = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])
any_text = st.text(st.characters(exclude_categories=()))
atoms = (
    st.none() | st.booleans() | st.integers() | st.integers(-(1 << 900), 1 << 900)
    | any_float | st.floats() | any_text | st.binary() | st.binary().map(bytearray)
)  # fmt: skip
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | any_float | any_text | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
plain_values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=10)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashable, inner, max_size=6)
        | st.sets(hashable, max_size=5)
        | st.frozensets(hashable, max_size=5)
    ),
    max_leaves=12,
)


@given(plain_values)
def test_plain_values_come_back_exactly(value: Any) -> None:
    trip = round_trip(value)
    assert trip.encoded.codec == (BYTES if type(value) in (bytes, bytearray) else PLAIN)
    assert identical(trip.value, value)


@given(st.lists(plain_values, min_size=1, max_size=4), st.data())
def test_what_is_shared_stays_shared(values: list[Any], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.sampled_from(values), max_size=8))
    back = round_trip([places, {"k": places}]).value
    assert back[0] is back[1]["k"]
    lists = [(i, j) for i, x in enumerate(places) for j, y in enumerate(places) if x is y]
    kinds = (list, dict, set, bytearray)
    assert all(back[0][i] is back[0][j] for i, j in lists if isinstance(places[i], kinds))


@given(plain_values.filter(lambda value: type(value) not in (bytes, bytearray)), st.data())
def test_a_plain_pickle_cut_off_is_an_error_of_the_store(value: Any, data: st.DataObject) -> None:
    payload = b"".join(codecs.encode(value).parts)
    end = data.draw(st.integers(0, len(payload) - 1))
    try:
        codecs.decode(PLAIN, b"", memoryview(payload)[:end])
    except StoreError:
        return
    raise AssertionError("a pickle without its end was loaded")


UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]
times = st.builds(
    lambda order, kind, count, unit: np.dtype(f"{order}{kind}8[{count}{unit}]"),
    st.sampled_from("<>"),
    st.sampled_from("mM"),
    st.integers(1, 100),
    st.sampled_from(UNITS),
)
numbers = st.builds(
    lambda order, char: np.dtype(order + char),
    st.sampled_from("<>"),
    st.sampled_from("?bBhHiIlLqQefdgFDG"),
)
texts = st.builds(
    lambda order, kind, size: np.dtype(f"{order}{kind}{size}"),
    st.sampled_from("<>"),
    st.sampled_from("SUV"),
    st.integers(0, 9),
)
simple_dtypes = numbers | times | texts


@st.composite
def structured(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    """A structured dtype: aligned, packed or with fields placed anywhere."""
    names = draw(
        st.lists(any_text.filter(lambda s: "\0" not in s), min_size=1, max_size=4, unique=True)
    )
    formats = []
    for _ in names:
        field = draw(inner)
        if field.itemsize and draw(st.booleans()):
            field = np.dtype((field, draw(st.sampled_from([(2,), (2, 3), (1,)]))))
        formats.append(field)
    spec: dict[str, Any] = {"names": names, "formats": formats}
    if draw(st.booleans()):
        spec["offsets"] = [draw(st.integers(0, 20)) for _ in names]
        end = max(o + f.itemsize for o, f in zip(spec["offsets"], formats, strict=True))
        spec["itemsize"] = end + draw(st.integers(0, 9))
    if draw(st.booleans()):
        spec["titles"] = [f"title of {i}\0" for i in range(len(names))]
    made = np.dtype(spec, align="offsets" not in spec and draw(st.booleans()))
    return np.dtype((np.record, made)) if draw(st.booleans()) else made


dtypes = st.recursive(simple_dtypes, structured, max_leaves=5)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn, dtype: st.SearchStrategy[Any] = dtypes) -> np.ndarray[Any, Any]:
    """An array of any plain dtype, order and bits, writable or not."""
    kind = draw(dtype)
    shape = draw(shapes)
    size = math.prod(shape) * kind.itemsize
    # Bits of text must be code points; all others may be anything.
    letters = "U" in str(kind)
    bits = bytes(size) if letters else draw(st.binary(min_size=size, max_size=size))
    if size:
        array = np.ndarray(shape, kind, bytearray(bits), order=draw(st.sampled_from("CF")))
    else:
        array = np.ndarray(shape, kind)
    array.flags.writeable = draw(st.booleans())
    return array


@given(arrays())
def test_arrays_come_back_exactly(array: np.ndarray[Any, Any]) -> None:
    trip = round_trip(array)
    assert trip.encoded.codec == ARRAY
    assert trip.encoded.nbytes == array.nbytes
    assert identical(trip.value, array)
    assert not array.nbytes or trip.holds(trip.value)
    assert not trip.value.flags.writeable


@given(arrays(), st.data())
def test_strided_views_come_back_compact(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    steps = st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2), slice(1, 3)])
    view = array[tuple(data.draw(steps) for _ in range(array.ndim))]
    if not isinstance(view, np.ndarray):
        return
    trip = round_trip(view)
    assert trip.encoded.nbytes == view.nbytes
    # An array without bytes lies as any order does; numpy's own copies of dtype U0 are U1.
    gapless = view.flags.fnc or not view.nbytes
    assert identical(trip.value, view if gapless else np.array(view, order="C"))


@given(arrays(), st.booleans())
def test_arrays_within_other_values_come_back_exactly(
    array: np.ndarray[Any, Any], writable: bool
) -> None:
    trip = round_trip({"a": [array, array], "b": array.dtype}, writable=writable)
    assert trip.encoded.codec == PICKLE
    assert identical(trip.value, {"a": [array, array], "b": array.dtype})
    assert trip.value["a"][0] is trip.value["a"][1]
    assert trip.value["a"][0].flags.writeable is writable


@given(arrays().filter(lambda a: a.size))
def test_scalars_come_back_exactly(array: np.ndarray[Any, Any]) -> None:
    scalar = array.reshape(-1)[0]
    if isinstance(scalar, np.generic):
        assert identical(round_trip([scalar]).value, [scalar])


@settings(max_examples=200)
@given(arrays(), st.data())
def test_mutated_meta_never_reaches_beyond_the_payload(
    array: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    encoded = codecs.encode(array)
    meta = bytearray(encoded.meta)
    for _ in range(data.draw(st.integers(1, 3))):
        meta[data.draw(st.integers(0, len(meta) - 1))] = data.draw(st.integers(0, 255))
    payload = memoryview(b"".join(encoded.parts))
    try:
        back = codecs.decode(ARRAY, bytes(meta), payload)
    except StoreError:
        return
    assert back.nbytes == len(payload)
    assert not back.dtype.hasobject
    back.tobytes()
