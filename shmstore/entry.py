"""What the store tells about values, DAGs and itself: plain, immutable facts.

``Entry`` is made by every put and is therefore a named tuple, which costs a third
of a frozen dataclass; the others are frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from shmstore.codecs.encoded import BufferNote
from shmstore.errors import StoreError
from shmstore.provenance import Producer

INLINE = "inline"


class Entry(NamedTuple):
    """One stored value.

    Attributes:
        dag_id: The DAG.
        id: The value's id.
        codec: Name of the codec.
        type_name: Full name of the value's type.
        nbytes: Size of the stored payload, bytes.
        location: "inline", or the name of the segment in the DAG's directory.
        created_ns: When it was stored, Unix time in nanoseconds.
        producer: Host and pid of the process that stored it.
        origin: The node it was fetched from, or None for a value of this host.
        deps: Ids of the values it was computed from, as the producer said.
    """

    dag_id: str
    id: str
    codec: str
    type_name: str
    nbytes: int
    location: str
    created_ns: int
    producer: Producer
    origin: str | None
    deps: tuple[str, ...]

    @property
    def created_at(self) -> datetime:
        """When it was stored, an aware UTC datetime."""
        return datetime.fromtimestamp(self.created_ns / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class DagInfo:
    """One DAG.

    Attributes:
        dag_id: Its name; the directory's name if that is all that can be read.
        entries: How many values it has.
        nbytes: Their payloads, bytes.
        log_bytes: Shared memory of its log, inline values included.
        index_bytes: Shared memory of its index.
        dead_bytes: Bytes of the log that compaction would free.
        created_at: When it was created.
        fault: Why it cannot be read, or None.
    """

    dag_id: str
    entries: int
    nbytes: int
    log_bytes: int
    index_bytes: int
    dead_bytes: int
    created_at: datetime | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class ClearReport:
    """What a clear did.

    Attributes:
        cleared: True if there was such a DAG.
        unreachable: Nodes that did not answer; they clear it when they are back.
    """

    cleared: bool
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A living node, as it says of itself.

    Attributes:
        node: Its name.
        host: The host it runs on.
        pid: Its process there.
        started_at: When it claimed its name, by its clock.
        incarnation: Which content of its namespace it serves.
    """

    node: str
    host: str
    pid: int
    started_at: datetime
    incarnation: str


class Synchronized(dict[str, Any]):
    """Values that could be had, by id.

    Attributes:
        errors: Why the others could not be had, by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, StoreError] = {}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which buffers of a value ``get`` copies, and why.

    Attributes:
        dag_id: The DAG.
        id: The value's id.
        codec: Name of the codec.
        location: As in ``Entry``.
        nbytes: Size of the payload.
        buffers: One note a buffer.
    """

    dag_id: str
    id: str
    codec: str
    location: str
    nbytes: int
    buffers: tuple[BufferNote, ...]

    @property
    def copied_bytes(self) -> int:
        """Bytes of the payload that a get copies."""
        return sum(note.nbytes for note in self.buffers if note.copied)

    def __str__(self) -> str:
        lines = [
            f"{self.dag_id!r} {self.id!r}: codec {self.codec}, {self.location}, "
            f"{self.nbytes:,} bytes, {self.copied_bytes:,} copied by get"
        ]
        for note in self.buffers:
            verb = "copied" if note.copied else "viewed"
            lines.append(f"  {note.name}: {note.nbytes:,} bytes {verb}: {note.why}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The state of a namespace.

    Attributes:
        root: The root directory.
        namespace: The namespace's name.
        dags: How many DAGs it has.
        entries: How many values.
        nbytes: Their payloads, bytes.
        log_bytes: Shared memory of all logs.
        index_bytes: Shared memory of all indexes.
        dead_bytes: Bytes of logs that compaction would free.
        mapped_segments: Segments that this process has mapped.
        file_system_bytes: Size of the root's file system.
        free_bytes: What is free of it.
        damaged: DAGs that cannot be read.
        capacity: The most bytes of shared memory that it may take, None for no limit.
        pool_bytes: Emptied segments that are kept for reuse.
        spill: The directory on disk to which values are moved, or None.
    """

    root: str
    namespace: str
    dags: int
    entries: int
    nbytes: int
    log_bytes: int
    index_bytes: int
    dead_bytes: int
    mapped_segments: int
    file_system_bytes: int
    free_bytes: int
    damaged: tuple[str, ...]
    capacity: int | None
    pool_bytes: int
    spill: str | None
