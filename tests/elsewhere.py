"""Values as if a node had fetched them: stored with an origin, and so marked."""

from __future__ import annotations

import pickle
from typing import Any

import shmstore
from shmstore import codecs, provenance, stored
from shmstore.codecs.encoded import Encoded
from shmstore.codecs.runs import Runs
from shmstore.entry import Entry
from shmstore.names import encode_id

ORIGIN = "far-away"


def put(store: shmstore.Store, dag_id: str, id: str, value: Any, origin: str = ORIGIN) -> Entry:
    """Stores a value as one that came from another host."""
    return put_encoded(store, dag_id, id, codecs.encode(value), value, origin)


def put_encoded(
    store: shmstore.Store,
    dag_id: str,
    id: str,
    encoded: Encoded,
    value: Any = None,
    origin: str = ORIGIN,
) -> Entry:
    """Stores what another host says that it has encoded."""
    item = (id, encode_id(id, "id"), value, encoded, ())
    return stored.store(store._dags, dag_id, [item], origin=origin)[0]


def pickled(stream: bytes, *memory: bytes) -> Encoded:
    """A value of the codec for pickles with this stream, behind runs of memory."""
    runs = Runs()
    for each in memory:
        runs._add((each,), len(each), 202)
    runs.add_stream((stream,))
    return runs.finish(4, b"")


class Calling:
    """Pickles as a call of any function, and of its result."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def call_of(function: Any, *args: Any, state: Any = None) -> Encoded:
    """A pickle that calls a function."""
    return pickled(pickle.dumps(Calling(function, *args, state=state), 5))


def named(module: str, name: str, *rest: bytes) -> bytes:
    """A stream that looks a name up, then goes on with ``rest`` to its end."""
    texts = b"".join(
        b"\x8c" + bytes([len(text)]) + text for text in (module.encode(), name.encode())
    )
    return b"\x80\x05" + texts + b"\x93" + b"".join(rest) + b"."


def origin_of(store: shmstore.Store, dag_id: str, id: str) -> str | None:
    """The origin in the record."""
    record = store._record(dag_id, id)
    assert record is not None
    return provenance.parse(record.meta).origin
