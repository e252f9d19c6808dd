"""How the unpicklers find names and the payload's memory; the one place that decides.

``look_up`` sees every function and class that a pickle names. The constructors
that reach into the payload check each index and size against the table of runs.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from typing import Any

from shmstore import _wire, codecs
from shmstore.codecs.runs import COPIED, HANDED_OUT, VIEWED, Run
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue, StoreError, Unserializable


class Rebuilding:
    """What is common to the unpicklers: which names a pickle may use, and the runs.

    Attributes:
        foreign: The last name outside of ``shmstore._wire`` that was looked up.
        trust: How far the value is trusted; None if this host stored it.
    """

    foreign: str | None = None
    trust: Trust | None = None
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
            raise CorruptValue("it names a run that there is not", "pickle stream")
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
        return arrays.decode(meta, self._own(memory), self.trust)

    def _memory(self, format: Any, shape: Any, memory: Any) -> memoryview:
        view = self._own(memory)
        try:
            return view.cast(format) if shape is None else view.cast(format, shape)
        except (TypeError, ValueError) as exc:
            raise CorruptValue(f"no such memoryview: {exc}", "pickle stream") from exc

    def _embedded(self, index: Any) -> Any:
        run = self._slice(index)
        if run.kind not in codecs.NAMES:
            raise CorruptValue(f"run {index} is no value", "pickle stream")
        piece = self._payload[run.offset : run.offset + run.nbytes]
        return codecs.decode(run.kind, run.meta, piece, self.trust)


def _constructor(name: str) -> Any:
    found = _wire.__dict__.get(name)
    if not isinstance(found, types.FunctionType) or found.__module__ != _wire.MODULE:
        raise CorruptValue(f"there is no constructor {name!r}", "pickle stream")
    return found


def handed_out(runs: list[Run], payload: memoryview) -> list[memoryview]:
    """The buffers that a stream asks for, in order."""
    return [payload[run.offset : run.offset + run.nbytes] for run in runs if run.kind == HANDED_OUT]


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
