"""Share the results of a pipeline between processes through shared memory.

Importing this loads numpy and the hash library and nothing heavier; pyarrow,
pandas and polars are loaded when a value of theirs turns up.
"""

from shmstore.codecs import register_codec
from shmstore.codecs.encoded import BufferNote
from shmstore.dag import Dag
from shmstore.entry import (
    ClearReport,
    DagInfo,
    Entry,
    Explanation,
    NodeInfo,
    StoreStats,
    Synchronized,
)
from shmstore.errors import (
    CorruptValue,
    EntryExists,
    FetchTimeout,
    NodeNotRunning,
    NodeUnreachable,
    NotFound,
    RegistryUnavailable,
    RemoteError,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFull,
    UnsafeValue,
    Unserializable,
    UnusableRoot,
    WaitTimeout,
)
from shmstore.node.spawn import Node
from shmstore.place import SlowRootWarning
from shmstore.provenance import Producer
from shmstore.ref import Ref
from shmstore.registered import Registered
from shmstore.report import Finding, GcAction, GcReport
from shmstore.store import Store
from shmstore.waiting import Position
from shmstore.watch import AsyncWatch, Watch

__version__ = "0.1.0"

__all__ = [
    "AsyncWatch",
    "BufferNote",
    "ClearReport",
    "CorruptValue",
    "Dag",
    "DagInfo",
    "Entry",
    "EntryExists",
    "Explanation",
    "FetchTimeout",
    "Finding",
    "GcAction",
    "GcReport",
    "Node",
    "NodeInfo",
    "NodeNotRunning",
    "NodeUnreachable",
    "NotFound",
    "Position",
    "Producer",
    "Ref",
    "Registered",
    "RegistryUnavailable",
    "RemoteError",
    "SlowRootWarning",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreError",
    "StoreFull",
    "StoreStats",
    "Synchronized",
    "UnsafeValue",
    "Unserializable",
    "UnusableRoot",
    "WaitTimeout",
    "Watch",
    "register_codec",
]
