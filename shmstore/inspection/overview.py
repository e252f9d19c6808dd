"""What a report tells of a namespace, gathered in one pass over its logs; bounded in size."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from shmstore.entry import Entry
from shmstore.errors import StoreError
from shmstore.inspection import graph
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.inspection.graph import Node
from shmstore.inspection.snapshot import Snapshot, Unreadable
from shmstore.inspection.usage import Usage, usage

#: The most values in the table, nodes in a drawing, DAGs with a section of their own.
MOST_VALUES, MOST_NODES, MOST_DAGS = 100, 60, 40
_BINS = 60


@dataclass(frozen=True, slots=True)
class DagOverview:
    """One DAG.

    Attributes:
        dag_id: The DAG.
        values: How many live.
        nbytes: Their payloads.
        shared: Shared memory that it takes.
        created_ns: When it was created, Unix time.
        largest: Its largest values.
        graph: Its largest values and their deps; empty if no value has any.
        types: Bytes by the values' types, the largest first.
    """

    dag_id: str
    values: int
    nbytes: int
    shared: int
    created_ns: int
    largest: tuple[Entry, ...]
    graph: dict[str, Node]
    types: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """A namespace.

    Attributes:
        root: The root.
        namespace: Its name.
        usage: What it takes.
        dags: Its DAGs, the largest first, at most ``MOST_DAGS``.
        left_out: How many more there are.
        largest: The largest values of all.
        first_ns: When the oldest live value was stored, Unix time.
        last_ns: When the newest was.
        counts: Values stored in each of equal spans between these.
        nbytes: Their bytes.
        faults: What cannot be read, sentences.
    """

    root: str
    namespace: str
    usage: Usage
    dags: tuple[DagOverview, ...]
    left_out: int
    largest: tuple[Entry, ...]
    first_ns: int
    last_ns: int
    counts: tuple[int, ...]
    nbytes: tuple[int, ...]
    faults: tuple[str, ...]


def overview(looked: Snapshot) -> Overview:
    """Looks at everything once."""
    taken = usage(looked)
    shared = {one.dag_id: one.shared for one in taken.dags}
    faults: list[str] = []
    dags: list[DagOverview] = []
    moments: list[tuple[int, int]] = []
    if looked.fault is not None:
        faults.append(f"The control page is damaged: {looked.fault}.")
    for dag in looked.dags():
        if isinstance(dag, Unreadable):
            faults.append(str(dag.error))
            continue
        try:
            dags.append(_of_dag(dag, shared.get(dag.dag_id, 0), moments))
        except StoreError as error:
            faults.append(str(error))
        if dag.index_fault is not None:
            faults.append(f"The index of DAG {dag.dag_id!r} cannot be used: {dag.index_fault}.")
        if dag.damaged:
            faults.append(f"{len(dag.damaged):,} records of DAG {dag.dag_id!r} fail their check.")
    dags.sort(key=lambda one: -one.shared)
    largest = _largest(entry for dag in dags for entry in dag.largest)
    first, last, counts, nbytes = _binned(moments)
    return Overview(
        looked.root, looked.name, taken, tuple(dags[:MOST_DAGS]), len(dags) - MOST_DAGS
        if len(dags) > MOST_DAGS else 0, largest, first, last, counts, nbytes, tuple(faults),
    )  # fmt: skip


def _of_dag(dag: DagSnapshot, shared: int, moments: list[tuple[int, int]]) -> DagOverview:
    types: dict[str, list[int]] = {}
    linked = False
    entries: list[Entry] = []

    def seen() -> Iterable[Entry]:
        nonlocal linked
        for entry in dag.entries():
            moments.append((entry.created_ns, entry.nbytes))
            known = types.setdefault(entry.type_name, [0, 0])
            known[0] += 1
            known[1] += entry.nbytes
            linked = linked or bool(entry.deps)
            yield entry

    entries = list(_largest(seen()))
    nodes: dict[str, Node] = {}
    if linked:
        # The largest, in the order in which they were stored.
        shown = sorted(entries[:MOST_NODES], key=lambda one: one.created_ns)
        nodes = graph.nodes(((one.id, one.nbytes, one.deps[:20]) for one in shown), MOST_NODES)
        nodes = _only_known(nodes, dag)
    by_size = sorted(types.items(), key=lambda one: -one[1][1])
    return DagOverview(
        dag.dag_id,
        dag.totals.live,
        dag.totals.nbytes,
        shared,
        dag.control.created_ns,
        tuple(entries),
        nodes,
        tuple((name, count, nbytes) for name, (count, nbytes) in by_size[:20]),
    )


def _only_known(nodes: dict[str, Node], dag: DagSnapshot) -> dict[str, Node]:
    """Deps that are there but small are told by their size, not as missing."""
    return {
        id: node if node.nbytes is not None else _looked_up(node, dag) for id, node in nodes.items()
    }


def _looked_up(node: Node, dag: DagSnapshot) -> Node:
    try:
        return node._replace(nbytes=dag.find(node.id).nbytes)
    except (StoreError, ValueError):
        return node  # it is not there, or no id at all


def _largest(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(heapq.nlargest(MOST_VALUES, entries, key=lambda one: one.nbytes))


def _binned(moments: list[tuple[int, int]]) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    if not moments:
        return 0, 0, (), ()
    first = min(at for at, _ in moments)
    last = max(at for at, _ in moments)
    counts, nbytes = [0] * _BINS, [0] * _BINS
    span = (last - first) // _BINS + 1
    for at, size in moments:
        place = min((at - first) // span, _BINS - 1)
        counts[place] += 1
        nbytes[place] += size
    return first, last, tuple(counts), tuple(nbytes)
