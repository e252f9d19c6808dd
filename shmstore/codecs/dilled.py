"""Values that need code written with them (codec 5), by dill.

Functions and classes of the running script, lambdas, closures and what is
defined within functions cannot be imported by other processes, so dill writes
their code. Rebuilt from code, a class is a new one each time, and two of its
values are of different types. So a second stream stands beside dill's where one
can be made: plain pickle, which names the script's classes. A process that runs
the same script reads that one and gets the very classes it knows.

Meta: identity of the script, then the table of runs. (dill takes a pickler for one of
its own by the word "dill" in the name of the pickler's module; this module's
name has it.)
"""

from __future__ import annotations

import os
import pickle
import sys
import types
from hashlib import blake2b
from typing import Any, Final, TypeVar

import dill

from shmstore import codecs
from shmstore.codecs import definitions, pickled
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.reading import reader_of
from shmstore.codecs.rebuilding import Rebuilding, handed_out, load
from shmstore.codecs.reducing import MAIN_MODULES, Reducing, Sink, unpicklable
from shmstore.codecs.reductions import AS_THEY_ARE, name_of
from shmstore.codecs.runs import STREAM, Run, Runs, parse_runs
from shmstore.codecs.trust import Trust, unsafe
from shmstore.errors import CorruptValue, StoreError, Unserializable

DILL: Final = 5

_IDENTITY_BYTES = 16
_NO_IDENTITY = bytes(_IDENTITY_BYTES)


def script_identity() -> bytes:
    """Sixteen bytes that are equal in processes that run the same script."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None:
        return codecs.SESSION
    try:
        facts = os.stat(path)
    except OSError:
        return codecs.SESSION
    text = f"{os.path.realpath(path)}\0{facts.st_size}\0{facts.st_mtime_ns}"
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_IDENTITY_BYTES).digest()


#: What dill meets inside of functions and classes, and knows how to write.
_DILLS_OWN: Final = AS_THEY_ARE | {
    types.CodeType,
    types.CellType,
    types.ModuleType,
    types.MethodType,
}


class _Pickler(Reducing, dill.Pickler):  # type: ignore[misc]
    by_value = True

    def __init__(self, sink: Sink, runs: Runs) -> None:
        super().__init__(sink, 5, buffer_callback=runs.hand_out, byref=False, recurse=True)
        self.runs = runs
        self._decided = {}
        main = sys.modules["__main__"]
        if main.__name__ != "__main__":
            # A child under spawn runs the script as __mp_main__, which dill
            # takes for a module that can be imported, except in a session.
            self._session, self._first_pass, self._main = True, False, main

    def reducer_override(self, value: Any) -> Any:
        if type(value) in _DILLS_OWN:
            return NotImplemented
        if type(value) is TypeVar and value.__module__ in MAIN_MODULES:
            return definitions.reduce_type_variable(value)
        if isinstance(value, type) and is_of_script(value):
            reduced = definitions.reduce(value)
            if reduced is not NotImplemented:
                return reduced
        return super().reducer_override(value)


def is_of_script(kind: type) -> bool:
    """True if other processes cannot import a class."""
    return kind.__module__ in MAIN_MODULES or "<" in kind.__qualname__


def encode(value: Any, runs: Runs | None, failure: Exception | None) -> Encoded:
    """Encodes a value with its code, and loads it once to see that it can be read.

    Args:
        value: The value.
        runs: Holds the stream that names the script's classes, if one was made.
        failure: Why plain pickle failed, if it did.

    Raises:
        Unserializable: The value can be neither written nor read back.
    """
    identity = script_identity() if runs is not None else _NO_IDENTITY
    runs = Runs() if runs is None else runs
    sink = Sink()
    pickler = _Pickler(sink, runs)
    try:
        pickler.dump(value)
    except Exception as exc:
        raise unpicklable(exc, pickler.last, value) from exc
    runs.add_stream(sink)
    encoded = runs.finish(DILL, identity)
    payload = memoryview(b"".join(encoded.parts))
    table = parse_runs(encoded.meta, _IDENTITY_BYTES, len(payload))
    try:
        trial = _load(_ByValue, table, len(table) - 1, payload)
    except (StoreError, MemoryError) as exc:
        if isinstance(exc, MemoryError):
            raise
        why = exc.why if isinstance(exc, Unserializable) else str(exc)
        raise Unserializable(name_of(type(value)), f"it cannot be read back: {why}") from (
            failure or exc
        )
    if type(trial).__qualname__ != type(value).__qualname__:
        raise Unserializable(name_of(type(value)), f"it would come back as {name_of(type(trial))}")
    return encoded


class _Missing(Exception):
    """The script has changed: it has no such name any more."""


class _ByName(Rebuilding, pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = self.look_up(module, name)
        if found is not None:
            return found
        if module not in MAIN_MODULES:
            return super().find_class(module, name)
        found = sys.modules["__main__"]
        try:
            for part in name.split("."):
                found = getattr(found, part)
        except AttributeError as exc:
            raise _Missing(name) from exc
        return found


class _ByValue(Rebuilding, dill.Unpickler):  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        # dill would turn the outermost value into one of the reader's class
        # of the same name, whatever that is.
        super().__init__(*args, ignore=True, **options)

    def find_class(self, module: str, name: str) -> Any:
        found = self.look_up(module, name)
        if found is not None:
            return found
        if module in MAIN_MODULES:
            raise Unserializable(f"{module}.{name}", "dill writes it by name only")
        return super().find_class(module, name)


def _load(kind: Any, runs: list[Run], stream: int, payload: memoryview) -> Any:
    run = runs[stream]
    first = next((i for i in reversed(range(stream)) if runs[i].kind == STREAM), -1) + 1
    unpickler = kind(
        reader_of(payload[run.offset : run.offset + run.nbytes]),
        buffers=handed_out(runs[first:stream], payload),
    )
    unpickler.attach(payload, runs)
    return load(unpickler, unpickler)


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Rebuilds a value, with the classes of this process where it runs the same script.

    Raises:
        CorruptValue: Meta or the pickle is damaged.
        UnsafeValue: The value came from another host: code is what it consists of.
        Unserializable: A module is missing here, or a class's own code raised.
    """
    if trust is not None:
        raise unsafe("functions or classes that are stored with their code")
    runs = parse_runs(meta, _IDENTITY_BYTES, len(payload))
    if len(meta) >= _IDENTITY_BYTES and meta[:_IDENTITY_BYTES] == script_identity():
        streams = [index for index, run in enumerate(runs) if run.kind == STREAM]
        if len(streams) != 2:
            raise CorruptValue("there is no stream by name", "meta of a dilled value")
        try:
            return _load(_ByName, runs, streams[0], payload)
        except Unserializable as exc:
            if not isinstance(exc.__cause__, _Missing):
                raise
    return _load(_ByValue, runs, len(runs) - 1, payload)


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says of each run whether it is copied."""
    return pickled.explain(meta, nbytes, _IDENTITY_BYTES)
