from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shmstore import codecs
from shmstore.codecs import custom
from shmstore.codecs.reductions import REDUCERS
from shmstore.errors import CorruptValue, Unserializable
from tests.round_trip import mapped, round_trip

CUSTOM, PICKLE = 9, 4


class Signal:
    """Pickles to nothing useful, so that only its codec can keep it."""

    def __init__(self, samples: Any, rate: Any = 1) -> None:
        self.samples = samples
        self.rate = rate

    def __reduce__(self) -> Any:
        raise AssertionError("the codec was not asked")


class Tree:
    def __init__(self, *children: Tree) -> None:
        self.children = children


@pytest.fixture(autouse=True)
def _unregister() -> Iterator[None]:
    """Takes the test's codecs out of the tables again."""
    codecs.encode([np.arange(3)])  # The tables of numpy are filled by its first value.
    tables: list[dict[Any, Any]] = [
        custom._by_type, custom._by_name, REDUCERS, codecs._direct
    ]  # fmt: skip
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def register_signal(name: str = "tests.signal") -> None:
    codecs.register_codec(
        Signal, lambda s: (s.samples, s.rate), lambda stored: Signal(*stored), name=name
    )


def test_a_registered_value_comes_back_with_its_buffers_viewed() -> None:
    register_signal()
    trip = round_trip(Signal(np.arange(1000.0), 44_100))
    assert trip.encoded.codec == CUSTOM
    assert type(trip.value) is Signal
    assert trip.value.rate == 44_100
    assert trip.holds(trip.value.samples)
    notes = codecs.explain(CUSTOM, trip.encoded.meta, trip.encoded.nbytes)
    assert [note.copied for note in notes] == [False, True]


def test_it_holds_anywhere_within_other_values() -> None:
    register_signal()
    signal = Signal(np.arange(1000.0))
    trip = round_trip({"a": [(signal,)], "b": signal})
    assert trip.encoded.codec == PICKLE
    assert trip.value["a"][0][0] is trip.value["b"]
    assert trip.holds(trip.value["b"].samples)


def test_a_stand_in_may_be_a_lone_array_or_plain() -> None:
    codecs.register_codec(Signal, lambda s: s.samples, Signal, name="tests.signal")
    trip = round_trip(Signal(np.arange(1000.0)))
    assert trip.holds(trip.value.samples)
    assert round_trip(Signal({"a": 1})).value.samples == {"a": 1}
    assert round_trip(Signal(b"raw")).value.samples == b"raw"


def test_a_stand_in_may_hold_registered_values() -> None:
    codecs.register_codec(Tree, lambda t: t.children, lambda c: Tree(*c), name="tests.tree")
    back = round_trip(Tree(Tree(), Tree(Tree()))).value
    assert [len(child.children) for child in back.children] == [0, 1]


def test_only_the_exact_type_is_meant() -> None:
    register_signal()

    class Louder(Signal):
        pass

    with pytest.raises((Unserializable, AssertionError)):
        codecs.encode(Louder(1))


def test_a_name_belongs_to_one_type_and_a_type_has_one_name() -> None:
    register_signal()
    with pytest.raises(ValueError, match=r"tests\.signal.*taken"):
        codecs.register_codec(Tree, list, Tree, name="tests.signal")
    register_signal("tests.other")
    codecs.register_codec(Tree, lambda t: t.children, lambda c: Tree(*c), name="tests.signal")
    assert type(round_trip(Tree()).value) is Tree
    assert type(round_trip(Signal(1)).value) is Signal


def test_registering_again_replaces() -> None:
    register_signal()
    codecs.register_codec(Signal, lambda s: 5, lambda stored: Signal("new"), name="tests.signal")
    assert round_trip(Signal(1)).value.samples == "new"
    assert round_trip([Signal(1)]).value[0].samples == "new"


@pytest.mark.parametrize("nested", [False, True])
def test_an_unregistered_name_is_named_at_get(nested: bool) -> None:
    register_signal()
    encoded = codecs.encode([Signal(1)] if nested else Signal(1))
    custom._by_name.clear()
    with pytest.raises(Unserializable, match="register_codec") as caught:
        codecs.decode(encoded.codec, encoded.meta, mapped(encoded))
    assert "tests.signal" in caught.value.type_name


@pytest.mark.parametrize("nested", [False, True])
def test_an_encoder_that_returns_its_own_type_is_refused(nested: bool) -> None:
    codecs.register_codec(Signal, Signal, Signal, name="tests.signal")
    with pytest.raises(Unserializable, match="same type"):
        codecs.encode([Signal(1)] if nested else Signal(1))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value]])
def test_encoders_that_never_end_are_refused(nested: bool, wrap: Any) -> None:
    codecs.register_codec(Signal, lambda s: wrap(Tree()), lambda s: s, name="tests.signal")
    codecs.register_codec(Tree, lambda t: wrap(Signal(1)), lambda t: t, name="tests.tree")
    with pytest.raises(Unserializable, match="deeply"):
        codecs.encode([Signal(1)] if nested else Signal(1))


@pytest.mark.parametrize("nested", [False, True])
def test_errors_of_the_codec_s_own_code_are_the_cause(nested: bool) -> None:
    error = ValueError("no")

    def fail(value: Any) -> Any:
        raise error

    value = [Signal(1)] if nested else Signal(1)
    codecs.register_codec(Signal, lambda s: 1, fail, name="tests.signal")
    encoded = codecs.encode(value)
    with pytest.raises(Unserializable, match="decode of its codec") as caught:
        codecs.decode(encoded.codec, encoded.meta, mapped(encoded))
    assert caught.value.__cause__ is error
    codecs.register_codec(Signal, fail, fail, name="tests.signal")
    with pytest.raises(Unserializable, match="encode of its codec") as caught:
        codecs.encode(value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [int, str, dict, list, bytes, type(None), type, range])
def test_plain_types_cannot_be_registered(kind: type) -> None:
    with pytest.raises(ValueError, match="pickle itself"):
        codecs.register_codec(kind, str, str, name="tests.plain")
    assert round_trip({"a": [1]}).encoded.codec == 1


def test_wrong_arguments_are_the_caller_s_mistake() -> None:
    for wrong in (
        {"type": 5}, {"encode": 5}, {"decode": None}, {"name": 5},
    ):  # fmt: skip
        arguments: dict[str, Any] = {
            "type": Signal, "encode": str, "decode": str, "name": "tests.signal", **wrong
        }  # fmt: skip
        with pytest.raises(TypeError):
            codecs.register_codec(**arguments)
    for name in ("", "x" * 2000):
        with pytest.raises(ValueError, match="bytes"):
            codecs.register_codec(Signal, str, str, name=name)


def test_a_library_s_type_can_be_registered_before_the_library_is_met() -> None:
    code = (
        "import numpy as np, shmstore.codecs as c\n"
        "c.register_codec(np.ndarray, lambda a: a.tolist(), np.array, name='tests.array')\n"
        "for value in (np.arange(3), [np.arange(3), np.float64(1)]):\n"
        "    e = c.encode(value)\n"
        "    print(b'tests.array' in e.meta + b''.join(e.parts))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]


def test_a_library_s_type_can_be_registered() -> None:
    codecs.register_codec(np.ndarray, lambda a: a.tolist(), np.array, name="tests.array")
    assert round_trip(np.arange(3)).encoded.codec == CUSTOM
    assert round_trip([np.arange(3)]).value[0].tolist() == [0, 1, 2]


def test_damaged_meta_is_corrupt_or_unserializable() -> None:
    register_signal()
    encoded = codecs.encode(Signal(np.arange(100.0)))
    for end in range(len(encoded.meta)):
        with pytest.raises((CorruptValue, Unserializable)):
            codecs.decode(CUSTOM, encoded.meta[:end], mapped(encoded))
    for number in (0, 10, 255):
        with pytest.raises(CorruptValue):
            codecs.decode(CUSTOM, bytes([number]) + encoded.meta[1:], mapped(encoded))


def test_threads_may_register_while_others_encode() -> None:
    register_signal()
    stop = threading.Event()
    wrong: list[Any] = []

    def put() -> None:
        while not stop.is_set():
            back = round_trip([Signal(7), Signal(8)]).value
            if [s.samples for s in back] != [7, 8]:
                wrong.append(back)

    threads = [threading.Thread(target=put) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        register_signal()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
