"""Share the results of a pipeline between processes through shared memory.

Importing this loads next to nothing: each name is imported as it is first used, so that
a tool which needs few of them starts quickly. A store then loads numpy and the hash
library and nothing heavier; pyarrow, pandas and polars are loaded when a value of theirs
turns up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_WHERE = {
    "shmstore.codecs": ("register_codec",),
    "shmstore.codecs.encoded": ("BufferNote",),
    "shmstore.dag": ("Dag",),
    "shmstore.entry": (
        "ClearReport",
        "DagInfo",
        "Entry",
        "Explanation",
        "NodeInfo",
        "StoreStats",
        "Synchronized",
    ),
    "shmstore.errors": (
        "CorruptValue",
        "EntryExists",
        "FetchTimeout",
        "NodeNotRunning",
        "NodeUnreachable",
        "NotFound",
        "RegistryUnavailable",
        "RemoteError",
        "StoreBusy",
        "StoreClosed",
        "StoreError",
        "StoreFull",
        "UnsafeValue",
        "Unserializable",
        "UnusableRoot",
        "WaitTimeout",
    ),
    "shmstore.node.spawn": ("Node",),
    "shmstore.place": ("SlowRootWarning",),
    "shmstore.provenance": ("Producer",),
    "shmstore.ref": ("Ref",),
    "shmstore.registered": ("Registered",),
    "shmstore.report": (
        "Finding",
        "GcAction",
        "GcReport",
    ),
    "shmstore.store": ("Store",),
    "shmstore.waiting": ("Position",),
    "shmstore.watch": (
        "AsyncWatch",
        "Watch",
    ),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
