"""Rebuilds pickled and plain values that came from another host.

Which functions the pickle may call, and those of them that need to know the value
they are called for: what reaches into its payload, its stand-ins for types with a
registered codec, and what allocates memory by a number that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from shmstore import _wire
from shmstore.codecs.machine import Machine
from shmstore.codecs.rebuilding import Rebuilding, handed_out
from shmstore.codecs.runs import Run
from shmstore.codecs.trust import CONSTRUCTORS, NOBODY, Trust
from shmstore.errors import CorruptValue

_MISSING: Final = frozenset({"NAType", "NaTType"})  # pandas'

_shared: Final[dict[str, Callable[..., Any]]] = {
    name: getattr(_wire, name) for name in CONSTRUCTORS
}


def load_plain(payload: memoryview) -> Any:
    """A plain value: no names, no calls, no buffers."""
    return Machine(payload, NOBODY, {}, []).run()


def load(stream: Run, runs: list[Run], payload: memoryview, trust: Trust) -> Any:
    """A pickled value.

    Args:
        stream: The run that holds the pickle.
        runs: All runs of the value.
        payload: The value's payload.
        trust: Which classes it may use.

    Raises:
        CorruptValue: It is not what a pickler of ours wrote.
        UnsafeValue: It asks for what it may not have.
    """
    stranger = _Stranger(trust)
    stranger.attach(payload, runs)
    data = payload[stream.offset : stream.offset + stream.nbytes]
    machine = Machine(data, trust, stranger.constructors(len(data)), handed_out(runs, payload))
    stranger.machine = machine
    return machine.run()


class _Stranger(Rebuilding):
    """The constructors of one value."""

    machine: Machine

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self._classes = trust.classes.values()

    def constructors(self, most_cells: int) -> dict[str, Callable[..., Any]]:
        """All functions that the pickle may call.

        Args:
            most_cells: How many cells of object arrays there can be in it.
        """
        self._cells_left = most_cells
        return {
            **_shared,
            **self._bound,
            "custom": self._custom,
            "cells": self._cells,
            "fill_cells": self._fill_cells,
            "set_attributes": self._set_attributes,
            "string_dtype": self._string_dtype,
        }

    def _own(self, memory: Any) -> memoryview:
        view = super()._own(memory)
        if view.format != "B" or view.ndim != 1 or not view.c_contiguous:
            raise CorruptValue("memory that is no run of bytes", "pickle stream")
        return view

    def _custom(self, name: Any, stored: Any) -> Any:
        from shmstore.codecs.custom import rebuild

        return rebuild(name, stored, self.trust)

    def _cells(self, kind: Any, shape: Any, fortran: Any) -> Any:
        """Objects that will follow: each of them is an operation of the stream at least."""
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise CorruptValue("an array of objects without a shape", "pickle stream")
        self._cells_left -= math.prod(shape)
        if self._cells_left < 0:
            raise CorruptValue("more cells than the stream can fill", "pickle stream")
        return _wire.cells(kind, shape, fortran)

    def _fill_cells(self, target: Any, values: Any) -> None:
        if type(values) is list:
            self.machine.nest(target, values)
        _wire.fill_cells(target, values)

    def _string_dtype(self, coerce: Any, *na_object: Any) -> Any:
        """Numpy writes down what is missing as text when it is told, and frees it at any depth."""
        if not all(_is_single(each) for each in na_object):
            raise CorruptValue("a StringDType whose missing value holds others", "pickle stream")
        return _wire.string_dtype(coerce, *na_object)

    def _set_attributes(self, target: Any, attributes: Any) -> None:
        if type(target) not in self._classes:
            raise CorruptValue("attributes of an array that has none", "pickle stream")
        _wire.set_attributes(target, attributes)


def _is_single(value: Any) -> bool:
    """Whether a value holds no others."""
    kind = type(value)
    if kind in (type(None), bool, int, float, complex, str, bytes):
        return True
    # numpy and pandas need not be imported for this.
    return (
        kind.__module__ == "numpy" and not hasattr(value, "__len__")
    ) or kind.__name__ in _MISSING
