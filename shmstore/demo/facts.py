"""What a run of the demo finds out: plain facts, for printing or for JSON. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class DemoError(Exception):
    """The demo cannot go on; its text is one sentence for the person who ran it."""


class InputError(DemoError):
    """What the person asked for cannot be done: a mistake in the call, not a failure."""


class Task(NamedTuple):
    """What a worker reports about one part.

    Attributes:
        pid: The worker.
        part: Id of the part it read.
        result: Id of the value it stored; empty if it sent the result back.
        read_bytes: Size of the part.
        digest: Checksum of the part's stored bytes, all of which were read.
        seconds: From asking for the part to having handed in the result.
        own_bytes: By how much its own memory (RssAnon) has grown since it was
            ready for its first task; it keeps all parts that it has read.
        mapped_bytes: By how much the shared pages that it has touched have grown.
    """

    pid: int
    part: str
    result: str
    read_bytes: int
    digest: str
    seconds: float
    own_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One value that a step of the DAG has stored.

    Attributes:
        step: "load", "split", "statistics" or "merge".
        process: "main" or "worker".
        pid: The process.
        id: The value's id.
        nbytes: Its stored size.
        seconds: Time to work it out and store it.
        copied_bytes: How much of it a get copies.
        note: Why it copies, empty if it does not.
        host: The host of the process; empty if there is only one.
    """

    step: str
    process: str
    pid: int
    id: str
    nbytes: int
    seconds: float
    copied_bytes: int
    note: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process at the end of its work; sizes as in ``Task``, host as in ``Step``."""

    pid: int
    parts: int
    read_bytes: int
    own_bytes: int
    mapped_bytes: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """The DAG done in one way: through the store, or by pickling.

    Attributes:
        workers: Its worker processes, those without work as well.
        seconds: From the table to the merged result, workers being ready.
    """

    workers: tuple[Worker, ...]
    seconds: float

    @property
    def read_bytes(self) -> int:
        """What all workers read together."""
        return sum(worker.read_bytes for worker in self.workers)

    @property
    def own_bytes(self) -> int:
        """By how much the own memory of all workers grew together."""
        return sum(worker.own_bytes for worker in self.workers)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that came from one host to another.

    Attributes:
        id: The value.
        source: The host that it came from.
        target: The host that it came to.
        nbytes: Its size.
        seconds: From asking for it to having it.
    """

    id: str
    source: str
    target: str
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """What there was of a network.

    Attributes:
        roots: Each host's name, and the root of its store.
        crossings: The values that crossed, in the order of the DAG.
        server_bytes: All that the NATS server took in meanwhile, the requests and what the
            registry was told as well.
    """

    roots: dict[str, str]
    crossings: tuple[Crossing, ...]
    server_bytes: int

    @property
    def nbytes(self) -> int:
        """What all values that crossed have together."""
        return sum(crossing.nbytes for crossing in self.crossings)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        source: What was loaded, in words.
        by: The column that it was split by.
        rows: Rows of the table.
        columns: Columns of the table.
        nbytes: Stored size of the table.
        start_method: How the workers were started.
        steps: Each stored value, in the order of the DAG.
        store: The run through the store.
        pickled: The run by pickling, or None.
        pickled_skipped: Why there is none, or None.
        checked_columns: Numeric columns whose merged statistics were checked.
        differences: What the check found, empty if all is well.
        same_bytes: True if each worker read the very bytes that were stored.
        dag_id: The DAG.
        root: Where the store is.
        namespace: Its namespace.
        kept: True if it was left there.
        network: What there was between hosts, or None if there is only one; then ``root`` is
            that of the host which loads and merges.
    """

    source: str
    by: str
    rows: int
    columns: int
    nbytes: int
    start_method: str
    steps: tuple[Step, ...]
    store: Way
    pickled: Way | None
    pickled_skipped: str | None
    checked_columns: int
    differences: tuple[str, ...]
    same_bytes: bool
    dag_id: str
    root: str
    namespace: str
    kept: bool
    network: Network | None = None

    @property
    def ok(self) -> bool:
        """True if the workers' result is right."""
        return self.same_bytes and not self.differences
