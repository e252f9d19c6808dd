"""The errors that shmstore raises, and nothing else.

::

    StoreError
    ├─ NotFound (KeyError)          no such value
    ├─ EntryExists                  put(overwrite=False) on an id that has a value
    ├─ StoreFull                    no room; nothing was changed
    ├─ StoreClosed                  used after close(), or while the interpreter ends
    ├─ StoreBusy (TimeoutError)     the holder of a lock did not let go
    ├─ WaitTimeout (TimeoutError)   what was waited for was not stored in time
    ├─ CorruptValue                 stored bytes fail a check
    ├─ Unserializable (TypeError)   a value that cannot be stored, or not be rebuilt here
    └─ UnusableRoot (ValueError)    the place of the store is not fit for one

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
    "NotFound",
    "StoreBusy",
    "StoreClosed",
    "StoreError",
    "StoreFull",
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

    def _sentence(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return self._sentence()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._facts)


class NotFound(StoreError, KeyError):
    """No value is stored under this id."""

    dag_id: str
    id: str

    def __init__(self, dag_id: str, id: str) -> None:
        super().__init__(dag_id=dag_id, id=id)

    def _sentence(self) -> str:
        return f"DAG {self.dag_id!r} has no value {self.id!r} on this host."


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
