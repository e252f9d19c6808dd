"""Everything else (codec 4): pickle protocol 5, every buffer in its own run.

The pickler writes library values as calls of ``shmstore._wire`` and values that
have a codec of their own through that codec, wherever they sit. ``encode`` also
finds out whether a value needed any of that: one that did not is plain (codec 1).
One that pickle cannot write so that another process can read it (functions and
classes that live in a script or within a function) goes on to ``dilled``.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from typing import Any, Final

from shmstore import _wire, codecs
from shmstore.codecs import plain
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.reading import reader_of
from shmstore.codecs.reductions import REDUCERS, as_it_is, name_of
from shmstore.codecs.refusals import why_refused
from shmstore.codecs.runs import (
    COPIED,
    HANDED_OUT,
    STREAM,
    VIEWED,
    Run,
    Runs,
    parse_runs,
)
from shmstore.errors import CorruptValue, StoreError, Unserializable

PICKLE: Final = 4

#: The names of the script that a process runs; ``__mp_main__`` in a child that
#: multiprocessing started by spawn.
MAIN_MODULES: Final = ("__main__", "__mp_main__")


class NeedsValue(Exception):  # noqa: N818
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
        needs_main: True once something of the running script was met.
    """

    runs: Runs
    last: Any = None
    by_value = False
    needs_main = False
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
        return reduce(self, value)


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
    if root in codecs.FAMILIES or codecs.is_stream(kind):
        return _embed
    if _is_array_subclass(kind):
        from shmstore.codecs import numpy_reductions

        return numpy_reductions.decide(kind)
    return as_it_is


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


def _reduce_definition(pickler: Reducing, value: Any) -> Any:
    if not pickler.by_value:
        module = getattr(value, "__module__", None)
        if module in MAIN_MODULES:
            pickler.needs_main = True
        qualname = value.__qualname__
        if "<" in qualname:
            raise NeedsValue(qualname)
    return NotImplemented


class _Pickler(Reducing, pickle.Pickler):
    def __init__(self, sink: Sink, runs: Runs) -> None:
        super().__init__(sink, 5, buffer_callback=runs.hand_out)
        self.runs = runs
        self._decided = {}


def encode(value: Any) -> Encoded:
    """Encodes any value that can be stored at all: as codec 1, 4 or 5.

    Raises:
        Unserializable: The value cannot be stored; names the type in the way.
    """
    if type(value) is pickle.PickleBuffer:
        raise Unserializable("pickle.PickleBuffer", "store the object that it points to")
    runs, sink = Runs(), Sink()
    pickler = _Pickler(sink, runs)
    try:
        pickler.dump(value)
    except (NeedsValue, pickle.PicklingError, AttributeError, TypeError) as exc:
        if isinstance(exc, StoreError):
            raise
        from shmstore.codecs import dilled

        return dilled.encode(value, None, exc)
    except Exception as exc:
        raise unpicklable(exc, pickler.last, value) from exc
    if pickler.needs_main:
        from shmstore.codecs import dilled

        runs.add_stream(sink)
        return dilled.encode(value, runs, None)
    if pickler.last is None and runs.is_empty():
        return Encoded(plain.PLAIN, b"", sink, sum(map(len, sink)))
    runs.add_stream(sink)
    return runs.finish(PICKLE, b"")


def unpicklable(exc: Exception, last: Any, value: Any) -> Exception:
    """The error for an exception that came up while a value was pickled."""
    if isinstance(exc, (StoreError, MemoryError)):
        return exc
    in_the_way = name_of(type(value if last is None else last))
    if isinstance(exc, RecursionError):
        return Unserializable(name_of(type(value)), "it is nested too deeply to be pickled")
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return Unserializable(in_the_way, f"pickling it failed with {text}")


class Rebuilding:
    """What is common to the unpicklers: which names a pickle may use, and the runs.

    Attributes:
        foreign: The last name outside of ``shmstore._wire`` that was looked up.
    """

    foreign: str | None = None
    _payload: memoryview
    _runs: list[Run]

    def look_up(self, module: str, name: str) -> Any:
        """The function or class that a pickle names; the one place that decides."""
        if module == _wire.MODULE:
            return self._bound.get(name) or _constructor(name)
        self.foreign = f"{module}.{name}"
        return None

    def attach(self, payload: memoryview, runs: list[Run]) -> None:
        """Lets the constructors that reach into the payload do so."""
        self._payload = payload
        self._runs = runs
        self._bound: dict[str, Callable[..., Any]] = {
            "run": self._run,
            "array": self._array,
            "memory": self._memory,
            "embedded": self._embedded,
        }

    def _slice(self, index: Any) -> Run:
        if type(index) is not int or not 0 <= index < len(self._runs):
            raise CorruptValue(f"there is no run {index!r}", "pickle stream")
        return self._runs[index]

    def _run(self, index: Any) -> memoryview:
        run = self._slice(index)
        if run.kind not in (VIEWED, COPIED):
            raise CorruptValue(f"run {index} is no memory", "pickle stream")
        return self._payload[run.offset : run.offset + run.nbytes]

    def _own(self, memory: Any) -> memoryview:
        """Memory that is writable if the payload is."""
        if type(memory) is bytes:
            return memoryview(memory if self._payload.readonly else bytearray(memory))
        if type(memory) is not memoryview:
            raise CorruptValue("memory of an unknown kind", "pickle stream")
        return memory

    def _array(self, meta: Any, memory: Any) -> Any:
        from shmstore.codecs import arrays

        if type(meta) is not bytes:
            raise CorruptValue("an array without meta", "pickle stream")
        return arrays.decode(meta, self._own(memory))

    def _memory(self, format: Any, shape: Any, memory: Any) -> memoryview:
        view = self._own(memory)
        try:
            return view.cast(format, shape)
        except (TypeError, ValueError) as exc:
            raise CorruptValue(f"no such memoryview: {exc}", "pickle stream") from exc

    def _embedded(self, index: Any) -> Any:
        run = self._slice(index)
        if run.kind not in codecs.NAMES:
            raise CorruptValue(f"run {index} is no value", "pickle stream")
        return codecs.decode(
            run.kind, run.meta, self._payload[run.offset : run.offset + run.nbytes]
        )


def _constructor(name: str) -> Any:
    found = _wire.__dict__.get(name)
    if not isinstance(found, types.FunctionType) or found.__module__ != _wire.MODULE:
        raise CorruptValue(f"there is no constructor {name!r}", "pickle stream")
    return found


class _Unpickler(Rebuilding, pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return self.look_up(module, name) or super().find_class(module, name)


def handed_out(runs: list[Run], payload: memoryview) -> list[memoryview]:
    """The buffers that a stream asks for, in order."""
    return [
        payload[run.offset : run.offset + run.nbytes] for run in runs if run.kind == HANDED_OUT
    ]


def decode(meta: bytes, payload: memoryview) -> Any:
    """Rebuilds a pickled value; its buffers are views of the payload.

    Raises:
        CorruptValue: Meta or the pickle is damaged.
        Unserializable: A class is missing here, or its own code raised.
    """
    runs = parse_runs(meta, 0, len(payload))
    stream = runs[-1]
    unpickler = _Unpickler(
        reader_of(payload[stream.offset : stream.offset + stream.nbytes]),
        buffers=handed_out(runs, payload),
    )
    unpickler.attach(payload, runs)
    return load(unpickler, unpickler)


def load(unpickler: Any, names: Rebuilding) -> Any:
    """Runs an unpickler and turns what it raises into the store's errors."""
    try:
        return unpickler.load()
    except (StoreError, MemoryError):
        raise
    except Exception as exc:
        if isinstance(exc, (pickle.UnpicklingError, EOFError)) or names.foreign is None:
            raise CorruptValue(f"the pickle does not load: {exc}", "pickle stream") from exc
        if isinstance(exc, (ImportError, AttributeError)):
            why = f"this process cannot import it ({type(exc).__name__}: {exc})"
        else:
            why = f"rebuilding it failed with {type(exc).__name__}: {exc}"
        raise Unserializable(names.foreign, why) from exc


def explain(meta: bytes, nbytes: int, start: int = 0) -> list[BufferNote]:
    """Says of each run whether it is copied."""
    notes = []
    for index, run in enumerate(parse_runs(meta, start, nbytes)):
        name = f"run {index}"
        if run.kind == STREAM:
            notes.append(
                BufferNote("objects", run.nbytes, True, "Python objects are built anew from it")
            )
        elif run.kind == COPIED:
            notes.append(BufferNote(name, run.nbytes, True, "its owner holds memory of its own"))
        elif run.kind == HANDED_OUT:
            notes.append(
                BufferNote(name, run.nbytes, False, "handed to the object as a view")
            )
        elif run.kind == VIEWED:
            notes.append(BufferNote(name, run.nbytes, False, "viewed in place"))
        else:
            notes += [
                inner._replace(name=f"{name}: {inner.name}")
                for inner in codecs.explain(run.kind, run.meta, run.nbytes)
            ]
    return notes
