"""Following DAGs from outside: what has been committed since the last look.

Nothing is announced in their pages, so that nothing is changed and committers pay nothing:
whoever follows looks again and again. A look opens each DAG's files, and reads what was
added to its log. What compaction dropped before it was looked at is not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shmstore import names
from shmstore.errors import CorruptValue, StoreError
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.inspection.snapshot import NoDag, Snapshot, Unreadable
from shmstore.record import CHECKPOINT, PAGE, PUT, SPILLED, Record


class Change(NamedTuple):
    """One thing that happened.

    Attributes:
        what: "put", "delete", "created" or "cleared" (of a DAG), "moved" (to disk),
            "unreadable".
        dag_id: The DAG.
        record: The record of a put, a delete or a move; else None.
        why: Why it is unreadable; else None.
    """

    what: str
    dag_id: str
    record: Record | None = None
    why: str | None = None


class _Followed:
    """How far one DAG was followed."""

    def __init__(self, dag: DagSnapshot) -> None:
        self.dag_id = dag.dag_id
        self.generation = dag.control.generation
        self.sequence = dag.totals.sequence
        self.log_number = dag.control.log_number
        self.offset = dag.tail


class Changes:
    """Follows one DAG, or all of a namespace."""

    def __init__(self, looked: Snapshot, only: str | None = None) -> None:
        """Begins now.

        Args:
            looked: The namespace.
            only: One DAG, which need not be there yet; None for all.
        """
        self._looked = looked
        self._only = only
        self._followed: dict[str, _Followed] = {}
        self._told: set[str] = set()  # tokens of DAGs that were said to be unreadable
        for dag in self._dags():
            if not isinstance(dag, Unreadable):
                self._followed[dag.token] = _Followed(dag)

    def look(self) -> Iterator[Change]:
        """What has happened since the last look.

        Raises:
            UnusableRoot: The namespace has been removed.
        """
        self._looked.check_there()
        there = set()
        for dag in self._dags():
            there.add(dag.token)
            if isinstance(dag, Unreadable):
                if dag.token not in self._told:
                    self._told.add(dag.token)
                    yield Change("unreadable", dag.dag_id, why=str(dag.error))
                continue
            self._told.discard(dag.token)
            yield from self._news(dag)
        for token in [token for token in self._followed if token not in there]:
            yield Change("cleared", self._followed.pop(token).dag_id)

    def _dags(self) -> Iterator[DagSnapshot | Unreadable]:
        if self._only is None:
            yield from self._looked.dags()
            return
        try:
            yield self._looked.dag(self._only)
        except NoDag:
            pass  # not yet, or not any more
        except StoreError as error:
            yield Unreadable(names.dag_token(self._only), self._only, error)

    def _news(self, dag: DagSnapshot) -> Iterator[Change]:
        before = self._followed.get(dag.token)
        now = self._followed[dag.token] = _Followed(dag)
        start = PAGE
        if before is None or before.generation != now.generation:
            if before is not None:
                yield Change("cleared", dag.dag_id)
            yield Change("created", dag.dag_id)
            after = 0
        else:
            after = before.sequence
            if now.sequence == after:
                return
            if before.log_number == now.log_number:
                start = before.offset
        for _, found, totals in dag.history(start):
            if totals.sequence > after and found.op != CHECKPOINT:
                yield Change(_word(found), dag.dag_id, found)
        if dag.damaged:
            raise CorruptValue("a record fails its check", "its log", dag.dag_id)


def _word(found: Record) -> str:
    if found.op != PUT:
        return "delete"
    return "moved" if found.flags & SPILLED else "put"
