"""The torture runner's judge: what may be seen when, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tools import torture_values as values
from tools.torture_history import Fault, History
from tools.torture_ledger import DO, NO, OK, SAW
from tools.torture_values import GONE, SOME

DEAD, END = 900, 1000
A = ("dag", "a")


def do(number: int, at: int, what: str = "put", **versions: int) -> list[Any]:
    return [DO, number, at, what, "dag", versions]


def ok(number: int, at: int) -> list[Any]:
    return [OK, number, at]


def saw(begin: int, end: int, version: int, id: str = "a") -> list[Any]:
    return [SAW, begin, end, "dag", id, version]


def judged(found: dict[str, int], *ledgers: list[list[Any]], stood: int = GONE) -> list[Fault]:
    history = History()
    if stood:
        history.settle({A: stood})
    for writer, events in enumerate(ledgers):
        history.take(writer, events, DEAD)
    return history.judge({("dag", id): version for id, version in found.items()}, END)


@pytest.mark.parametrize(
    ("found", "ledgers"),
    [
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20)]]),
        ({"a": 2}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2), ok(2, 40)]]),
        # In doubt: it happened, or it did not.
        ({"a": 2}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2)]]),
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2)]]),
        # Two at once: either may be the last.
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 30)], [do(1, 20, a=2), ok(1, 40)]]),
        ({"a": 2}, [[do(1, 10, a=1), ok(1, 30)], [do(1, 20, a=2), ok(1, 40)]]),
        # Read while it was being replaced.
        ({"a": 2}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2), ok(2, 60)], [saw(40, 50, 1)]]),
        ({}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, "clear"), ok(2, 40)]]),
        ({}, [[do(1, 10, a=1), [NO, 1, 20, "StoreFull"]], [saw(30, 40, GONE)]]),
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20)], [saw(15, 40, SOME)]]),
        # Half of it was overwritten since.
        ({"a": 9, "b": 2}, [[do(1, 10, "put_many", a=1, b=2)], [do(1, 20, a=9), ok(1, 30)]]),
    ],
)
def test_what_is_possible_is_no_fault(
    found: dict[str, int], ledgers: list[list[list[Any]]]
) -> None:
    """Whatever a sound store may do, kills included, is accepted."""
    assert judged(found, *ledgers) == []


@pytest.mark.parametrize(
    ("found", "ledgers", "complaint"),
    [
        ({}, [[do(1, 10, a=1), ok(1, 20)]], "saw nothing, which was replaced"),
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2), ok(2, 40)]], "was replaced"),
        ({"a": 7}, [[do(1, 10, a=1), ok(1, 20)]], "was never put"),
        ({"a": 1}, [[do(1, 10, a=1), [NO, 1, 20, "StoreFull"]]], "was never put"),
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20), do(2, 30, "clear"), ok(2, 40)]], "was replaced"),
        # An older one came back to a reader.
        (
            {"a": 2},
            [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2), ok(2, 40)], [saw(50, 60, 1)]],
            "was replaced",
        ),
        # Before it was put.
        ({"a": 1}, [[do(1, 50, a=1), ok(1, 60)], [saw(10, 20, 1)]], "was replaced before"),
        # In doubt, but seen: then it happened, and must not be undone.
        (
            {"a": 1},
            [[do(1, 10, a=1), ok(1, 20), do(2, 30, a=2)], [saw(40, 50, 2)]],
            "saw version 0x1",
        ),
        # Seen before the writer died: what came after that look replaced it.
        (
            {"a": 2},
            [[do(2, 30, a=2)], [saw(40, 50, 2), do(1, 60, a=3), ok(1, 70)]],
            "was replaced",
        ),
        ({"a": 1}, [[do(1, 10, a=1), ok(1, 20)], [saw(1, 5, SOME)]], "told that there is a value"),
        # Halves: of a put_many by what is seen, of the others by what is left.
        ({"a": 1}, [[do(1, 10, "put_many", a=1, b=2)]], "saw nothing"),
        (
            {"b": 2},
            [[do(1, 10, "put_many", a=1, b=2), ok(1, 20), do(2, 30, "delete_many", a=0, b=0)]],
            "happened to",
        ),
        (
            {"b": 2},
            [[do(1, 10, "put_many", a=1, b=2), ok(1, 20), do(2, 30, "clear")]],
            "happened to",
        ),
    ],
)
def test_what_must_not_be_is_a_fault(
    found: dict[str, int], ledgers: list[list[list[Any]]], complaint: str
) -> None:
    """Lost, stale, invented, resurrected and half values are told, with their history."""
    faults = judged(found, *ledgers)
    assert any(complaint in fault.text for fault in faults), faults
    assert all(fault.history for fault in faults)


def test_what_stood_before_the_round_counts() -> None:
    """A value of an earlier round stays until it is replaced, and does not come back."""
    assert judged({"a": 5}, [], stood=5) == []
    assert judged({}, [], stood=5)[0].text.endswith("though nobody removed what there was")
    replaced = [do(1, 10, a=6), ok(1, 20)]
    assert judged({"a": 6}, replaced, stood=5) == []
    assert judged({"a": 5}, replaced, stood=5)


def test_a_value_tells_what_it_should_be() -> None:
    """Every kind of value is recognised, and a flipped bit in any of them, too."""
    kinds = set()
    for version in range(1, 200):
        value = values.make(3, "dag", "id", version)
        kinds.add(type(value))
        assert values.check(3, "dag", "id", value) == version
        with pytest.raises(values.WrongValueError):
            values.check(3, "dag", "other", value)
        with pytest.raises(values.WrongValueError):
            values.check(3, "dag", "id", _damaged(value))
    assert len(kinds) == 4


def _damaged(value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bytes):
        return value + b"x"
    damaged = value.copy()
    damaged[len(damaged) // 2] ^= 1
    return damaged
