from __future__ import annotations

import math
import pickle
import pickletools
import struct
import subprocess
import sys
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest

from shmstore import codecs
from shmstore.errors import CorruptValue, Unserializable
from tests.oracle import identical
from tests.round_trip import round_trip

PLAIN, BYTES, PICKLE = 1, 2, 4

NAN_WITH_PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 1 << 4000, -(1 << 64), 0.0, -0.0, math.inf, math.nan,
        NAN_WITH_PAYLOAD, "", "\ud800", "a\0b", "\U0001f600", (), [], {}, set(), frozenset(),
        {"a": 1, "b": "x"}, {1: None, None: 2, (1, 2): [3]}, [[], [[]], {"k": (1,)}],
        {"nested": {"deep": {"deeper": {"deepest": {"end": [1, {2}]}}}}},
        list(range(1000)), {str(i): i for i in range(1000)}, [bytearray(b"x"), b"y"],
        ["x" * 100_000, b"y" * 100_000, bytearray(b"z" * 100_000)],
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_plain_values_come_back_exactly_as_plain(value: Any) -> None:
    trip = round_trip(value)
    assert trip.encoded.codec == PLAIN
    assert identical(trip.value, value)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_are_stored_raw_and_handed_on_without_a_copy(kind: type, size: int) -> None:
    value = kind(b"x" * size)
    encoded = codecs.encode(value)
    assert encoded.codec == BYTES
    (part,) = encoded.parts
    assert (part if kind is bytes else part.obj) is value  # type: ignore[union-attr]
    del encoded, part
    assert identical(round_trip(value).value, value)


def test_large_bytes_within_a_container_are_not_copied_by_encode() -> None:
    blob = b"x" * 1_000_000
    assert any(part is blob for part in codecs.encode({"blob": blob}).parts)


@pytest.mark.parametrize("depth", [1, 200])
def test_shared_and_recursive_references_stay_shared(depth: int) -> None:
    shared: list[Any] = [1]
    loop: list[Any] = [shared, {"again": shared}]
    for _ in range(depth):
        loop = [loop]
    shared.append(loop)
    trip = round_trip(loop)
    assert trip.encoded.codec == PLAIN
    inner = trip.value
    for _ in range(depth):
        (inner,) = inner
    assert inner[0] is inner[1]["again"]
    assert inner[0][1] is trip.value


@pytest.mark.parametrize(
    "value",
    [Colour.RED, {"a": Colour.RED}, {Colour.RED: 1}, [OrderedDict(a=1)], ({"a": [1j]},)],
    ids=repr,
)
def test_subclasses_and_other_types_are_not_taken_for_plain(value: Any) -> None:
    trip = round_trip(value)
    assert trip.encoded.codec == PICKLE
    assert identical(trip.value, value)


def test_a_plain_payload_names_no_class() -> None:
    """Whatever path encodes a plain value, its pickle needs no find_class."""
    for value in ({"a": 1}, [[{1}, frozenset([b"x"])]], list(range(500)), [bytearray(2)]):
        data = b"".join(codecs.encode(value).parts)
        names = {opcode.name for opcode, _, _ in pickletools.genops(data)}
        assert not names & {"STACK_GLOBAL", "GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ"}


def test_a_large_plain_payload_that_names_a_function_is_refused() -> None:
    data = pickle.dumps([print, "x" * 100_000], 5)
    with pytest.raises(CorruptValue, match=r"names builtins\.print"):
        codecs.decode(PLAIN, b"", memoryview(data))


@pytest.mark.parametrize("value", [{"a": [1, 2.5, "x"] * 20}, ["x" * 90_000]])
def test_a_cut_off_payload_is_corrupt(value: Any) -> None:
    data = b"".join(codecs.encode(value).parts)
    for end in {0, 1, 2, 10, len(data) // 2, len(data) - 1}:
        with pytest.raises(CorruptValue):
            codecs.decode(PLAIN, b"", memoryview(data)[:end])


def test_unknown_codecs_and_kinds_are_corrupt() -> None:
    with pytest.raises(CorruptValue):
        codecs.decode(77, b"", memoryview(b""))
    with pytest.raises(CorruptValue):
        codecs.decode(BYTES, b"z", memoryview(b""))


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda v: {"a": v}])
def test_a_lone_pickle_buffer_is_not_taken_for_bytes(wrap: Any) -> None:
    with pytest.raises(Unserializable, match="PickleBuffer"):
        codecs.encode(wrap(pickle.PickleBuffer(b"x")))


def test_a_value_nested_too_deeply_is_unserializable() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Unserializable, match="deeply"):
        codecs.encode(value)
    while value:  # Else freeing it recurses, too.
        (value,) = value


def test_importing_the_codecs_imports_no_heavy_library() -> None:
    code = (
        "import sys, shmstore.codecs as c\n"
        "e = c.encode({'a': [1, b'x', 'y' * 99]})\n"
        "c.decode(e.codec, e.meta, memoryview(e.parts[0]))\n"
        "print([m for m in ('pyarrow', 'pandas', 'polars', 'dill') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
