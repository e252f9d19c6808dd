"""The store's calls that tell about values, DAGs and itself, and read no value."""

from __future__ import annotations

from collections.abc import Iterator

from shmstore import describing, reading, stored
from shmstore.entry import DagInfo, Entry, Explanation, StoreStats
from shmstore.errors import NotFound
from shmstore.names import encode_id
from shmstore.opened import OpenDags
from shmstore.record import Record


class LookingCalls:
    """What ``Store`` inherits: entries, ids, counts, explanations."""

    _dags: OpenDags

    def has_value(self, dag_id: str, id: str) -> bool:
        """True if this host has a value under this id."""
        return self._record(dag_id, id) is not None

    def _record(self, dag_id: str, id: str) -> Record | None:
        return self._dags.read(dag_id, reading.find, encode_id(id, "id"))

    def entry(self, dag_id: str, id: str) -> Entry:
        """What is known about a value, without reading it.

        Raises:
            NotFound: There is no such value.
        """
        record = self._record(dag_id, id)
        if record is None:
            raise NotFound(dag_id, id)
        return stored.entry_of(dag_id, record)

    def entries(self, dag_id: str) -> Iterator[Entry]:
        """The entries of a DAG as of now, in the order in which they were stored."""
        records = self._records(dag_id)
        return (stored.entry_of(dag_id, record) for record in records)

    def ids(self, dag_id: str, prefix: str = "", *, newest_first: bool = False) -> Iterator[str]:
        """The ids of a DAG's values as of now, in the order in which they were stored.

        Args:
            dag_id: The DAG; an unknown one has none.
            prefix: What the ids begin with.
            newest_first: The other way round.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
        wanted = prefix.encode(errors="surrogatepass")
        records = self._records(dag_id, newest_first=newest_first)
        return (record.key.decode() for record in records if record.key.startswith(wanted))

    def _records(self, dag_id: str, *, newest_first: bool = False) -> Iterator[Record]:
        found = self._dags.read(dag_id, reading.records, newest_first)
        return iter(()) if found is None else found

    def count(self, dag_id: str) -> int:
        """How many values a DAG has."""
        totals = self._dags.read(dag_id, reading.totals)
        return 0 if totals is None else totals.live

    def dags(self) -> list[DagInfo]:
        """All DAGs of the namespace, by name; damaged ones with their fault."""
        return describing.every_dag(self._dags.space)

    def explain(self, dag_id: str, id: str) -> Explanation:
        """Which buffers of a value ``get`` copies, and why.

        Raises:
            NotFound: There is no such value.
        """
        record = self._record(dag_id, id)
        if record is None:
            raise NotFound(dag_id, id)
        return describing.explanation(dag_id, id, record)

    def stats(self) -> StoreStats:
        """The state of the namespace and its file system."""
        return describing.stats(self._dags.space)
