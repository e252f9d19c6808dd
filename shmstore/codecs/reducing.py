"""How the picklers reduce objects: which call of ``shmstore._wire`` stands for each.

``REDUCERS`` names the types of the standard library, of numpy and those with a
registered codec; ``decide`` finds the rest out, once a type and pickler.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Final

from shmstore import _wire, codecs
from shmstore.codecs.reductions import AS_THEY_ARE, REDUCERS, name_of
from shmstore.codecs.refusals import why_refused
from shmstore.codecs.runs import Runs
from shmstore.errors import StoreError, Unserializable

#: The names of the script that a process runs; ``__mp_main__`` in a child that
#: multiprocessing started by spawn.
MAIN_MODULES: Final = ("__main__", "__mp_main__")


class NeedsValue(Exception):
    """A function or class that no other process can import."""


class Sink(list[Any]):
    """Takes what a pickler writes, without joining it."""

    write = list.append


class Reducing:
    """What is common to the picklers: how they reduce objects.

    Attributes:
        runs: Where the value's memory goes.
        last: The object that was reduced last; None if none was, so that the
            value is plain. If pickling fails, it is the one in the way.
        by_value: True if functions and classes are written themselves.
        ordinary: True once an object was left to pickle's own ways, by which it may be
            written and yet not be rebuilt.
        needs_main: True once something of the running script was met.
    """

    runs: Runs
    last: Any = None
    by_value = False
    needs_main = False
    ordinary = False
    _decided: dict[type, Callable[[Any, Any], Any]]

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for each object that is not of an exact builtin type."""
        kind = type(value)
        self.last = value
        reduce = REDUCERS.get(kind)
        if reduce is None:
            reduce = self._decided.get(kind)
            if reduce is None:
                reduce = self._decided[kind] = decide(kind)
        reduced = reduce(self, value)
        if reduced is NotImplemented and kind not in AS_THEY_ARE:
            # Functions and classes go by their name, which dumping has looked up.
            self.ordinary = self.ordinary or reduce is not _reduce_definition
        return reduced


def decide(kind: type) -> Callable[[Any, Any], Any]:
    """Finds out how objects of a type are reduced that no table names."""
    if issubclass(kind, type) or kind is types.FunctionType:
        return _reduce_definition
    why = why_refused(kind)
    if why is not None:
        return _refuse
    root = root_of(kind)
    if root == "numpy":
        from shmstore.codecs import numpy_reductions

        return numpy_reductions.decide(kind)
    if root == "pandas":
        from shmstore.codecs import pandas_reductions

        reducer = pandas_reductions.REDUCERS.get(kind)
        if reducer is not None:
            return reducer
    if root in ("dateutil", "pytz"):
        from shmstore.codecs import zone_reductions

        return zone_reductions.decide(kind)
    if root in codecs.FAMILIES or codecs.is_stream(kind):
        return _embed
    if _is_array_subclass(kind):
        from shmstore.codecs import numpy_reductions

        return numpy_reductions.decide(kind)
    return _as_found


def root_of(kind: type) -> str:
    """The package that defines a type."""
    module = kind.__module__
    return module.partition(".")[0] if type(module) is str else ""


def _is_array_subclass(kind: type) -> bool:
    return any(base.__name__ == "ndarray" and base.__module__ == "numpy" for base in kind.__mro__)


def _refuse(pickler: Reducing, value: Any) -> Any:
    raise Unserializable(name_of(type(value)), why_refused(type(value)) or "")


def _embed(pickler: Reducing, value: Any) -> Any:
    index = pickler.runs.embed(value, codecs.encode_by_family)
    return NotImplemented if index is None else (_wire.embedded, (index,))


def _as_found(pickler: Reducing, value: Any) -> Any:
    # Some objects pickle as a name in their module: type variables, cached functions.
    if getattr(value, "__module__", None) in MAIN_MODULES:
        pickler.needs_main = True
    return NotImplemented


def _reduce_definition(pickler: Reducing, value: Any) -> Any:
    if not pickler.by_value:
        module = getattr(value, "__module__", None)
        if module in MAIN_MODULES:
            pickler.needs_main = True
        qualname = value.__qualname__
        if "<" in qualname:
            raise NeedsValue(qualname)
    return NotImplemented


def unpicklable(exc: Exception, last: Any, value: Any) -> Exception:
    """The error for an exception that came up while a value was pickled."""
    if isinstance(exc, (StoreError, MemoryError)):
        return exc
    in_the_way = name_of(type(value if last is None else last))
    if isinstance(exc, RecursionError):
        return Unserializable(name_of(type(value)), "it is nested too deeply to be pickled")
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return Unserializable(in_the_way, f"pickling it failed with {text}")
