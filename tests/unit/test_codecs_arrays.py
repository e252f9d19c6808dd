from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from shmstore import codecs
from shmstore.errors import CorruptValue, Unserializable
from tests.oracle import identical
from tests.round_trip import round_trip

ARRAY, PICKLE = 3, 4

STRUCTURED: list[Any] = [
    [("a", "f8"), ("b", ">i4", (2, 3)), ("c", [("d", "M8[ms]"), ("e", "U3")])],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype([("x", np.dtype([("a", "i1"), ("b", "f8")], align=True)), ("y", "i1")]),
    {"names": ["a", "b"], "formats": ["i1", "f8"], "titles": ["A", "B"]},
    {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 10},
    {"names": ["b", "a"], "formats": ["i4", "i2"], "offsets": [8, 0], "itemsize": 12},
    (np.record, [("a", "i4"), ("b", "S2")]),
    [],
    [("", "i4"), ("é\ud800", "longlong")],
]
DTYPES: list[Any] = [
    *"?bBhHiIlLqQefdgFDG", ">q", ">e", ">g", ">G", "M8", "m8", "M8[25us]", ">M8[D]", "m8[as]",
    "S0", "U0", "V0", "S3", "U3", ">U3", "V5", *STRUCTURED,
]  # fmt: skip


def filled(shape: tuple[int, ...], dtype: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    """An array full of bits that mean nothing in particular, NaNs among them."""
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, order=order)
    if array.nbytes:
        bits = random.Random(array.nbytes).randbytes(array.nbytes)
        if array.dtype.kind in "?bU":
            bits = bytes(len(bits))
        if array.dtype.names is not None:
            bits = bytes(b & 1 for b in bits)
            bits = bytes(len(bits)) if "U" in str(array.dtype) else bits
        flat = array.reshape(-1, order="A").view(np.uint8)
        flat[...] = np.frombuffer(bits, np.uint8)
    return array


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_dtypes_come_back_exactly(dtype: Any, shape: tuple[int, ...], order: str) -> None:
    array = filled(shape, np.dtype(dtype), order)
    trip = round_trip(array)
    assert trip.encoded.codec == ARRAY
    assert identical(trip.value, array)


@pytest.mark.parametrize("writable", [False, True])
def test_an_array_views_the_payload_and_is_writable_if_that_is(writable: bool) -> None:
    for array in (np.arange(1000.0), np.zeros((30, 40), order="F"), np.zeros((0, 3))):
        trip = round_trip(array, writable=writable)
        assert trip.value.flags.writeable is writable
        assert not array.size or trip.holds(trip.value)
        (note,) = codecs.explain(ARRAY, trip.encoded.meta, trip.encoded.nbytes)
        assert not note.copied


def test_encoding_copies_no_contiguous_array() -> None:
    for array in (np.arange(1000), np.zeros((30, 40), order="F"), np.zeros(9, "M8[s]")):
        (part,) = codecs.encode(array).parts
        assert np.shares_memory(np.frombuffer(part, np.uint8), array)


def test_a_read_only_source_is_encoded_without_a_copy() -> None:
    array = np.arange(1000)
    array.flags.writeable = False
    (part,) = codecs.encode(array).parts
    assert np.shares_memory(np.frombuffer(part, np.uint8), array)
    assert identical(round_trip(array).value, array)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a[1:, 2:5], lambda a: a[:, 3],
        lambda a: np.broadcast_to(a[0], (4, 7)), lambda a: a.T[::3],
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f8", ">i2", "M8[ns]", [("a", "i1"), ("b", "f8")]])
def test_a_view_with_gaps_is_stored_compact_in_c_order(view: Any, dtype: Any) -> None:
    array = view(np.arange(42).reshape(6, 7).astype(dtype))
    trip = round_trip(array)
    assert trip.encoded.nbytes == array.nbytes
    assert trip.value.flags.c_contiguous
    assert identical(trip.value, np.ascontiguousarray(array))


def test_long_long_is_not_taken_for_long() -> None:
    """Equal dtypes of different types, which numpy's type strings do not tell apart."""
    for char in "lLqQ":
        assert round_trip(np.zeros(2, char)).value.dtype.char == char


def test_long_doubles_of_another_machine_are_refused() -> None:
    encoded = codecs.encode(np.zeros(2, "g"))
    bits = np.finfo(np.longdouble).nmant
    foreign = encoded.meta.replace(b":%d" % bits, b":%d" % (bits + 49))
    with pytest.raises(Unserializable, match="long doubles"):
        codecs.decode(ARRAY, foreign, memoryview(b"".join(encoded.parts)))


def test_renaming_a_decoded_array_s_fields_changes_no_other() -> None:
    array = np.zeros(3, [("a", "i4")])
    first, second = round_trip(array).value, round_trip(array).value
    first.dtype.names = ("changed",)
    assert second.dtype.names == ("a",)
    assert round_trip(array).value.dtype.names == ("a",)


@pytest.mark.parametrize("dtype", ["d", ">U3", STRUCTURED[0], STRUCTURED[4]], ids=str)
def test_damaged_meta_gives_an_array_within_the_payload_or_corrupt_value(dtype: Any) -> None:
    array = filled((3, 4), np.dtype(dtype))
    encoded = codecs.encode(array)
    payload = memoryview(b"".join(encoded.parts))
    chance = random.Random(7)
    refused = 0
    for _ in range(600):
        meta = bytearray(encoded.meta)
        for _ in range(chance.randint(1, 3)):
            meta[chance.randrange(len(meta))] = chance.randrange(256)
        if chance.random() < 0.2:
            del meta[chance.randrange(len(meta)) :]
        try:
            back = codecs.decode(ARRAY, bytes(meta), payload)
        except (CorruptValue, Unserializable):
            refused += 1
            continue
        assert back.nbytes == len(payload)
        assert not back.dtype.hasobject
        back.tobytes()
    assert refused > 100


def test_a_payload_of_another_size_is_corrupt() -> None:
    encoded = codecs.encode(np.arange(10))
    for data in (b"", bytes(79), bytes(81)):
        with pytest.raises(CorruptValue):
            codecs.decode(ARRAY, encoded.meta, memoryview(data))


@pytest.mark.parametrize(
    "text", ["O", "V", "O4", "i4,i4", "<f8,O", "d:63", "<M8[generic]", "|O", '{"names":1}', "{"]
)
def test_a_description_that_the_codec_never_writes_is_corrupt(text: str) -> None:
    with pytest.raises(CorruptValue):
        codecs.decode(ARRAY, bytes([0, 0]) + text.encode(), memoryview(bytes(8)))
