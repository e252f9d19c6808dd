"""Everything else (codec 4): pickle protocol 5, every buffer in its own run.

The pickler writes library values as calls of ``shmstore._wire`` and values that
have a codec of their own through that codec, wherever they sit. ``encode`` also
finds out whether a value needed any of that: one that did not is plain (codec 1).
One that pickle cannot write so that another process can read it (functions and
classes that live in a script or within a function) goes on to ``dilled``.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from shmstore import codecs
from shmstore.codecs import plain
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.reading import reader_of
from shmstore.codecs.rebuilding import Rebuilding, handed_out, load
from shmstore.codecs.reducing import NeedsValue, Reducing, Sink, unpicklable
from shmstore.codecs.reductions import name_of
from shmstore.codecs.runs import COPIED, HANDED_OUT, STREAM, VIEWED, Runs, parse_runs
from shmstore.codecs.trust import Trust
from shmstore.errors import StoreError, Unserializable

PICKLE: Final = 4

#: Values up to this size are rebuilt once when they are put, if pickle's own ways
#: were used for anything in them; it takes a copy in memory.
_TRIAL_BYTES: Final = 64 << 20


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
    if pickler.last is None:
        if runs.asked:
            # No object handed it out, so it is itself the value or an element.
            raise Unserializable("pickle.PickleBuffer", "store the object that it points to")
        return Encoded(plain.PLAIN, b"", sink, sum(map(len, sink)))
    runs.add_stream(sink)
    encoded = runs.finish(PICKLE, b"")
    if pickler.ordinary and encoded.nbytes <= _TRIAL_BYTES:
        _try_out(value, encoded)
    return encoded


def _try_out(value: Any, encoded: Encoded) -> None:
    """Rebuilds a value once, as its class may be one whose pickles do not load.

    Exceptions with an ``__init__`` of their own are the commonest of these.
    """
    try:
        decode(encoded.meta, memoryview(b"".join(encoded.parts)))
    except StoreError as exc:
        why = exc.why if isinstance(exc, Unserializable) else str(exc)
        raise Unserializable(name_of(type(value)), f"it cannot be read back: {why}") from exc


class _Unpickler(Rebuilding, pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return self.look_up(module, name) or super().find_class(module, name)


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Rebuilds a pickled value; its buffers are views of the payload.

    Raises:
        CorruptValue: Meta or the pickle is damaged.
        UnsafeValue: The value came from another host and asks for what it may not have.
        Unserializable: A class is missing here, or its own code raised.
    """
    runs = parse_runs(meta, 0, len(payload))
    stream = runs[-1]
    if trust is not None:
        from shmstore.codecs import stranger

        return stranger.load(stream, runs, payload, trust)
    unpickler = _Unpickler(
        reader_of(payload[stream.offset : stream.offset + stream.nbytes]),
        buffers=handed_out(runs, payload),
    )
    unpickler.attach(payload, runs)
    return load(unpickler, unpickler)


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
            notes.append(BufferNote(name, run.nbytes, False, "handed to the object as a view"))
        elif run.kind == VIEWED:
            notes.append(BufferNote(name, run.nbytes, False, "viewed in place"))
        else:
            notes += [
                inner._replace(name=f"{name}: {inner.name}")
                for inner in codecs.explain(run.kind, run.meta, run.nbytes)
            ]
    return notes
