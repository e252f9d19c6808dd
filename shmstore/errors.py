"""The errors that shmstore raises, and nothing else.

::

    StoreError
    ├─ NotFound (KeyError)          no such value
    ├─ EntryExists                  put(overwrite=False) on an id that has a value
    ├─ StoreFull                    no room; nothing was changed
    ├─ StoreClosed                  used after close(), or while the interpreter ends
    ├─ StoreBusy (TimeoutError)     the holder of a lock did not let go
    ├─ WaitTimeout (TimeoutError)   what was waited for was not stored in time
    │  └─ FetchTimeout              nor brought here from another host; also a RemoteError
    ├─ CorruptValue                 stored bytes fail a check
    ├─ UnsafeValue                  a value of another host that needs what is not allowed
    ├─ Unserializable (TypeError)   a value that cannot be stored, or not be rebuilt here
    ├─ UnusableRoot (ValueError)    the place of the store is not fit for one
    └─ RemoteError                  another host is needed, and it cannot be had
       ├─ NodeNotRunning            there is no node on this host
       ├─ NodeUnreachable           the node that has the value does not answer
       └─ RegistryUnavailable       NATS, or its JetStream, cannot be reached

Each error keeps its facts as fields, says one full sentence as ``str``, and
survives pickling, so that a worker's error reaches its parent whole. Mistakes of
the caller (a wrong type, an id that is too long) stay ``TypeError`` and
``ValueError``.
"""

from __future__ import annotations

from typing import Any

__all__ = [
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
]


_MOST_SHOWN = 10


def _rebuild(cls: type[StoreError], facts: dict[str, Any]) -> StoreError:
    return cls(**facts)


class StoreError(Exception):
    """What every error of shmstore is; catching it catches them all.

    A subclass declares its facts as keyword arguments of ``__init__``, stores
    each as an attribute of that name and writes its sentence in ``_sentence``.
    """

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)
        self._facts = facts
        super().__init__(*facts.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What it is about, by the names of its parameters."""
        return dict(self._facts)

    def _sentence(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return self._sentence()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._facts)


class NotFound(StoreError, KeyError):
    """No value is stored under this id.

    Attributes:
        dag_id: The DAG.
        id: The value.
        where: Where it was looked for.
    """

    dag_id: str
    id: str
    where: str

    def __init__(self, dag_id: str, id: str, where: str = "on this host") -> None:
        super().__init__(dag_id=dag_id, id=id, where=where)

    def _sentence(self) -> str:
        return f"DAG {self.dag_id!r} has no value {self.id!r} {self.where}."


class EntryExists(StoreError):
    """``put(overwrite=False)`` met an id that already has a value."""

    dag_id: str
    id: str

    def __init__(self, dag_id: str, id: str) -> None:
        super().__init__(dag_id=dag_id, id=id)

    def _sentence(self) -> str:
        return (
            f"DAG {self.dag_id!r} already has a value {self.id!r}, and overwrite=False "
            "keeps it; nothing was changed."
        )


class StoreFull(StoreError):
    """Something ran out; nothing that was stored before is harmed.

    Attributes:
        what: What ran out, for example "shared memory".
        asked: Bytes (or pieces) that were needed, if known.
        free: Bytes (or pieces) that were left, if known.
        limit: The size of the whole, if known.
        kept: Bytes that are kept free, so that what is deleted can be freed, if any.
    """

    what: str
    asked: int | None
    free: int | None
    limit: int | None
    kept: int | None

    def __init__(
        self,
        what: str,
        asked: int | None = None,
        free: int | None = None,
        limit: int | None = None,
        kept: int | None = None,
    ) -> None:
        super().__init__(what=what, asked=asked, free=free, limit=limit, kept=kept)

    def _sentence(self) -> str:
        if "descriptor" in self.what:
            return f"Out of {self.what}; close some, or raise the limit (ulimit -n)."
        amounts = [
            f"{name} {amount:,} bytes"
            for name, amount in (
                ("asked", self.asked),
                ("free", self.free),
                ("to be kept free", self.kept),
                ("limit", self.limit),
            )
            if amount is not None
        ]
        figures = f" ({', '.join(amounts)})" if amounts else ""
        return (
            f"Out of {self.what}{figures}; nothing was changed. "
            "Delete or clear values, then try again."
        )


class StoreClosed(StoreError):
    """The store was used after ``close()`` or while the interpreter ends."""

    why: str

    def __init__(self, why: str = "it was closed") -> None:
        super().__init__(why=why)

    def _sentence(self) -> str:
        return f"The store cannot be used: {self.why}."


class StoreBusy(StoreError, TimeoutError):
    """The holder of a lock did not let go in time.

    Attributes:
        what: Which lock.
        waited_s: Seconds waited.
        holder: Who holds it, where the kernel tells, else None.
    """

    what: str
    waited_s: float
    holder: str | None

    def __init__(self, what: str, waited_s: float, holder: str | None = None) -> None:
        super().__init__(what=what, waited_s=waited_s, holder=holder)

    def _sentence(self) -> str:
        by = self.holder or "another process"
        return (
            f"Waited {self.waited_s:.1f} s for the lock of {self.what}, held by {by}; "
            "nothing was changed, try again."
        )


class WaitTimeout(StoreError, TimeoutError):
    """What was waited for was not stored in time.

    Attributes:
        dag_id: The DAG.
        ids: The values that are still missing; none for a ``watch``, which waits for any.
        waited_s: Seconds waited.
    """

    dag_id: str
    ids: tuple[str, ...]
    waited_s: float

    def __init__(self, dag_id: str, ids: tuple[str, ...], waited_s: float) -> None:
        super().__init__(dag_id=dag_id, ids=ids, waited_s=waited_s)

    def _sentence(self) -> str:
        shown = ", ".join(repr(id) for id in self.ids[:_MOST_SHOWN])
        if len(self.ids) > _MOST_SHOWN:
            shown += f" and {len(self.ids) - _MOST_SHOWN:,} more"
        what = f"value {shown}" if len(self.ids) == 1 else f"values {shown}"
        return (
            f"Waited {self.waited_s:.1f} s for {what if self.ids else 'anything new'} "
            f"in DAG {self.dag_id!r}, in vain."
        )


class CorruptValue(StoreError):
    """Stored bytes fail a check; no wrong value is returned instead.

    Attributes:
        check: Which check failed.
        where: In which file or structure, and at which offset.
        dag_id: The DAG, if known.
        id: The value, if known.
    """

    check: str
    where: str
    dag_id: str | None
    id: str | None

    def __init__(
        self, check: str, where: str, dag_id: str | None = None, id: str | None = None
    ) -> None:
        super().__init__(check=check, where=where, dag_id=dag_id, id=id)

    def _sentence(self) -> str:
        if self.id is not None:
            subject = f"Value {self.id!r} of DAG {self.dag_id!r}"
        elif self.dag_id is not None:
            subject = f"DAG {self.dag_id!r}"
        else:
            subject = "What is stored"
        return f"{subject} is damaged: {self.check} ({self.where}). Put it again, or clear the DAG."


class Unserializable(StoreError, TypeError):
    """A value that cannot be stored, or that this process cannot rebuild.

    Attributes:
        type_name: The type that is in the way.
        why: The reason, a clause without a full stop.
    """

    type_name: str
    why: str

    def __init__(self, type_name: str, why: str) -> None:
        super().__init__(type_name=type_name, why=why)

    def _sentence(self) -> str:
        return f"A value of type {self.type_name} cannot be stored or rebuilt: {self.why}."


class UnusableRoot(StoreError, ValueError):
    """The place of a store is not fit for one; nothing was changed there.

    Attributes:
        path: The root, or what in it is in the way.
        why: The reason and what to do, a clause without a full stop.
    """

    path: str
    why: str

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path=path, why=why)

    def _sentence(self) -> str:
        return f"{self.path} cannot hold a store: {self.why}."


class UnsafeValue(StoreError):
    """A value that came from another host, and needs what such values may not use.

    Its bytes stay readable with ``get_buffer``.

    Attributes:
        what: What decoding it asked for, as "module.name" or in words.
        dag_id: The DAG, if known.
        id: The value, if known.
        origin: The node that it came from, if known.
    """

    what: str
    dag_id: str | None
    id: str | None
    origin: str | None

    def __init__(
        self,
        what: str,
        dag_id: str | None = None,
        id: str | None = None,
        origin: str | None = None,
    ) -> None:
        super().__init__(what=what, dag_id=dag_id, id=id, origin=origin)

    def _sentence(self) -> str:
        subject = "A value" if self.id is None else f"Value {self.id!r} of DAG {self.dag_id!r}"
        source = "another host" if self.origin is None else f"node {self.origin!r}"
        return (
            f"{subject} came from {source} and needs {self.what}, which is not allowed to such "
            "values; if it is a class of your own that you trust, name it in Store(allow=[...])."
        )


class RemoteError(StoreError):
    """Another host is needed, and it cannot be had. What is stored here is not touched."""

    def _sentence(self) -> str:
        return "Another host is needed, and it cannot be had."


class NodeNotRunning(RemoteError):
    """There is no node on this host, through which others are reached.

    Attributes:
        root: The store's root.
        namespace: The store's namespace.
        why: What came up when it was looked for or started, if anything.
    """

    root: str
    namespace: str
    why: str | None

    def __init__(self, root: str, namespace: str, why: str | None = None) -> None:
        super().__init__(root=root, namespace=namespace, why=why)

    def _sentence(self) -> str:
        because = f" ({self.why})" if self.why else ""
        return (
            f"No node is running for namespace {self.namespace!r} in {self.root}{because}; start "
            f"one with `shmstore node --nats URL --root {self.root} "
            f"--namespace {self.namespace}`, or give Store(nats=URL)."
        )


class NodeUnreachable(RemoteError):
    """A node that is needed does not answer.

    Attributes:
        node: Its name.
        why: How that shows, a clause without a full stop.
        dag_id: The DAG of the value that was asked for, if any.
        id: The value that was asked for, if any.
    """

    node: str
    why: str
    dag_id: str | None
    id: str | None

    def __init__(
        self, node: str, why: str, dag_id: str | None = None, id: str | None = None
    ) -> None:
        super().__init__(node=node, why=why, dag_id=dag_id, id=id)

    def _sentence(self) -> str:
        wanted = f", which has value {self.id!r} of DAG {self.dag_id!r}," if self.id else ""
        return f"Node {self.node!r}{wanted} cannot be reached: {self.why}."


class RegistryUnavailable(RemoteError):
    """NATS or its JetStream, which tell where values are, cannot be reached.

    Attributes:
        why: How that shows, a clause without a full stop.
        server: The server's address, without credentials, if known.
    """

    why: str
    server: str | None

    def __init__(self, why: str, server: str | None = None) -> None:
        super().__init__(why=why, server=server)

    def _sentence(self) -> str:
        at = f" at {self.server}" if self.server else ""
        return f"The registry{at} cannot be reached: {self.why}."


class FetchTimeout(WaitTimeout, RemoteError):
    """A value was not brought here from another host in time.

    Attributes:
        dag_id: The DAG.
        ids: The values that are still missing.
        waited_s: Seconds waited.
        stage: How far it got, a clause without a full stop.
    """

    stage: str

    def __init__(
        self, dag_id: str, ids: tuple[str, ...], waited_s: float, stage: str = "nothing came"
    ) -> None:
        super().__init__(dag_id, ids, waited_s)
        self._facts["stage"] = self.stage = stage

    def _sentence(self) -> str:
        return f"{super()._sentence().removesuffix('.')}; {self.stage}."
