"""Values that tell what they should be: every one can be computed anew from its place.

A value follows from the seed, its place and its version. It carries the version, so that
who reads it can compute the whole of it again and compare. Pure.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

#: Who puts (upper bits) and the how-manieth of his values it is (lower ones).
COUNTER_BITS = 24
#: Versions that no value has: nothing is there; something is there.
GONE, SOME = 0, -1

#: What ids begin with whose values are of one kind.
TINY, LINE, LARGE = "tiny", "line", "large"

_SMALLEST_ARRAY = 1 << 10
_KINDS = {TINY: 0.1, LINE: 0.4, LARGE: 0.9}
_DOUBLINGS = 12  # up to 4 MiB
_ODD = 0x9E3779B97F4A7C15


class WrongValueError(Exception):
    """A value is not what was put at its place."""


def make(seed: int, dag_id: str, id: str, version: int) -> Any:
    """The value with this version at this place: inline and in segments, of many types.

    Ids that begin with ``TINY`` or ``LINE`` and a dash have values that are always inline,
    those that begin with ``LARGE`` arrays in segments.
    """
    mark = xxh3_64_intdigest(f"{seed}/{dag_id}/{id}/{version}".encode())
    chance = random.Random(mark)
    kind = _KINDS.get(id.partition("-")[0]) or chance.random()
    if kind < 0.35:
        return {"version": version, "mark": mark, "text": "t" * chance.randrange(400)}
    if kind < 0.5:
        return f"{version}:{mark}:" + "s" * chance.randrange(14 << 10)
    if kind < 0.6:
        return version.to_bytes(8, "little") + mark.to_bytes(8, "little") * chance.randrange(9000)
    if kind < 0.7:
        return {"version": version, "one": _array(version, mark, chance), "other": np.arange(9)}
    return _array(version, mark, chance, 9 if id.startswith(LARGE) else 0)


def check(seed: int, dag_id: str, id: str, value: Any) -> int:
    """The version of a value that was read.

    Raises:
        WrongValueError: It differs from what was put in any bit.
    """
    try:
        version = _version(value)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise WrongValueError(f"it carries no version: {value!r:.200}") from error
    expected = make(seed, dag_id, id, version)
    if not same(value, expected):
        raise WrongValueError(f"it is {value!r:.200}, version {version} is {expected!r:.200}")
    return version


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, types and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other))
    return bool(one == other)


def writer_of(version: int) -> int:
    """Who put it."""
    return version >> COUNTER_BITS


def _array(version: int, mark: int, chance: random.Random, least: int = 0) -> np.ndarray[Any, Any]:
    # The smaller of two, so that memory is not all for the largest.
    doublings = min(chance.randint(least, _DOUBLINGS), chance.randint(least, _DOUBLINGS))
    values = np.arange(_SMALLEST_ARRAY * 2**doublings // 8, dtype=np.uint64)
    values *= np.uint64(_ODD)
    values += np.uint64(mark)
    values[0] = version
    return values


def _version(value: Any) -> int:
    if isinstance(value, dict):
        return int(value["version"])
    if isinstance(value, str):
        return int(value.partition(":")[0])
    if isinstance(value, bytes):
        return int.from_bytes(value[:8], "little")
    return int(value[0])
