"""Classes that a reader can import, for tests of pickles."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.content == other.content


class Text(str):
    pass


class Units(np.ndarray[Any, Any]):
    """An array with an attribute, which numpy's own pickle would lose."""

    def __array_finalize__(self, obj: Any) -> None:
        if "unit" not in self.__dict__:
            self.unit = getattr(obj, "unit", None)


class Buffered:
    """An object that hands its memory out when it is pickled."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        import pickle

        return Buffered, (pickle.PickleBuffer(self.memory),)


class Explosive:
    """Raises what it was made with, when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Dud:
    """Raises when it is rebuilt."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("no such state")

    def __getstate__(self) -> Any:
        return {"a": 1}


def double(x: Any) -> Any:
    return x * 2
