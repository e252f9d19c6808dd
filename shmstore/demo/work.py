"""What runs in a worker process.

A worker keeps every part that it has read, as one that needs several inputs would:
its own memory then shows whether reading them has copied them.
"""

from __future__ import annotations

import os
import time
import warnings
from typing import TYPE_CHECKING, Any

import xxhash

from shmstore import codecs
from shmstore.demo import memory
from shmstore.demo.facts import Crossing, Task
from shmstore.demo.stop import let_go_in_worker
from shmstore.demo.summary import SLICE_ROWS, Summary, summarize
from shmstore.errors import StoreError
from shmstore.place import SlowRootWarning
from shmstore.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from shmstore.entry import Entry

_WARM_UP_ROWS = 4 * SLICE_ROWS

_store: Store
_before: memory.Memory
_held: list[Any] = []


def begin(announce: Any, root: str, namespace: str) -> None:
    """Makes a worker ready and says so: its pid, or the reason why it is not.

    Args:
        announce: The connection to say it through.
        root: Where the store is.
        namespace: Its namespace.
    """
    global _store, _before
    let_go_in_worker()
    try:
        import pyarrow as pa

        # The main process has shown this warning.
        warnings.simplefilter("ignore", SlowRootWarning)
        _store = Store(root, namespace)
        # Libraries load code at first use, and allocators take memory in large pieces:
        # neither is part of reading a value, so both happen before it is measured.
        pa.set_cpu_count(1)
        numbers = pa.array(range(_WARM_UP_ROWS))
        trial = pa.table({"integers": numbers, "floats": numbers.cast(pa.float64())})
        summarize(trial)
        digest(b"")
        codec, meta, pieces, _ = codecs.encode(trial)
        codecs.decode(codec, meta, memoryview(bytearray().join(pieces)))
        del numbers, trial, pieces
        _held.clear()
        _before = memory.of_this_process()
    except (StoreError, OSError) as error:
        announce.send(str(error))
    else:
        announce.send(os.getpid())


def from_store(dag_id: str, part: str, result: str) -> Task:
    """Gets a part from the store, works its statistics out and puts them there.

    Args:
        dag_id: The DAG.
        part: The part's id.
        result: The id for the statistics.
    """
    began = time.perf_counter()
    return _stored(dag_id, part, result, _store.get(dag_id, part), began)


def from_hosts(
    dag_id: str, part: str, result: str, host: str, timeout_s: float
) -> tuple[Task, Crossing | None]:
    """As ``from_store``, of a part that may be on another host.

    Args:
        dag_id: The DAG.
        part: The part's id.
        result: The id for the statistics.
        host: The worker's host.
        timeout_s: The longest that the part may take to come.

    Returns:
        What the worker has to report, and the part's way here if it had one.
    """
    began = time.perf_counter()
    table = _store.get_with_fetch(dag_id, part, timeout=timeout_s)
    came = crossing(_store.entry(dag_id, part), host, time.perf_counter() - began)
    return _stored(dag_id, part, result, table, began), came


def crossing(entry: Entry, host: str, seconds: float) -> Crossing | None:
    """The way of a value to a host, or None if it was put there."""
    if entry.origin is None:
        return None
    return Crossing(entry.id, entry.origin, host, entry.nbytes, seconds)


def _stored(dag_id: str, part: str, result: str, table: pa.Table, began: float) -> Task:
    _held.append(table)
    summary = summarize(table)
    _store.put(dag_id, result, summary, deps=(part,))
    seconds = time.perf_counter() - began
    # Statistics read numbers only; this reads every byte of the part.
    stored = _store.get_buffer(dag_id, part)
    return _report(part, result, len(stored), digest(stored), seconds)


def from_pipe(part: str, table: pa.Table) -> tuple[Task, dict[str, Summary]]:
    """Works the statistics of a part out that came, pickled, through the pool's pipe.

    Args:
        part: The part's name.
        table: The part.
    """
    began = time.perf_counter()
    _held.append(table)
    summary = summarize(table)
    return _report(part, "", table.nbytes, "", time.perf_counter() - began), summary


def digest(stored: Any) -> str:
    """A checksum of all bytes of a value."""
    return xxhash.xxh3_128_hexdigest(memoryview(stored))


def _report(part: str, result: str, read: int, checksum: str, seconds: float) -> Task:
    grown = memory.of_this_process().since(_before)
    return Task(os.getpid(), part, result, read, checksum, seconds, grown.own, grown.shared)
