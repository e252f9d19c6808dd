"""``shmstore dags``: every DAG of a namespace in one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from shmstore.cli.answer import CORRUPT, FAILED, JSON, document, fault, head
from shmstore.cli.place import looked_at, snapshot
from shmstore.errors import CorruptValue
from shmstore.inspection.snapshot import Unreadable
from shmstore.shown import ago, columns, count, cut, safe, size, utc

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot
    from shmstore.inspection.snapshot import Snapshot

_NAME_WIDTH = 40
_HEADS = ("DAG", "VALUES", "BYTES", "LOG", "INDEX", "DEAD", "LAST USED", "KEPT FOR")


@click.command()
@looked_at
@JSON
def dags(root: str | None, namespace: str | None, at: str | None, as_json: bool) -> None:
    """Shows all DAGs: their values, what they take, and when they were last used."""
    looked = snapshot(root, namespace, at)
    told: list[Any] = []
    broken: list[Unreadable] = []
    for dag in looked.dags():  # one at a time: each has its files open
        if isinstance(dag, Unreadable):
            broken.append(dag)
        else:
            told.append(dag_facts(dag) if as_json else _row(dag))
    if as_json:
        document("dags", _facts(looked, told, broken))
    else:
        for number, line in enumerate(columns(_HEADS, told, right=(1, 2, 3, 4, 5, 6))):
            click.echo(line if number else head(line))
    sys.exit(told_faults(looked, broken))


def told_faults(looked: Snapshot, broken: Sequence[Unreadable]) -> int:
    """Says on stderr what of a namespace could not be read; returns the exit code."""
    code = 0
    if looked.fault is not None:
        fault(f"The control page of {safe(looked.path)} is damaged: {looked.fault}.")
        code = CORRUPT
    for dag in broken:
        fault(safe(str(dag.error)))
        code = CORRUPT if isinstance(dag.error, CorruptValue) else max(code, FAILED)
    return code


def _row(dag: DagSnapshot) -> tuple[str, ...]:
    totals, control = dag.totals, dag.control
    return (
        cut(safe(dag.dag_id), _NAME_WIDTH),
        f"{totals.live:,}",
        size(totals.nbytes),
        size(dag.log_bytes),
        size(dag.index_bytes),
        size(totals.dead),
        f"{ago(_passed_s(control.touched_ns))} ago",
        "ever" if not control.ttl_s else count(control.ttl_s, "s", "s"),
    )


def _passed_s(boottime_ns: int) -> float:
    return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boottime_ns) / 1e9


def _facts(
    looked: Snapshot, dags: list[dict[str, Any]], broken: list[Unreadable]
) -> dict[str, Any]:
    settings = looked.settings
    return {
        "root": looked.root,
        "namespace": looked.name,
        "capacity": settings.capacity or None if settings else None,
        "fault": looked.fault,
        "dags": dags,
        "unreadable": [{"dag_id": dag.dag_id, "why": str(dag.error)} for dag in broken],
    }


def dag_facts(dag: DagSnapshot) -> dict[str, Any]:
    """A DAG for JSON."""
    totals, control = dag.totals, dag.control
    return {
        "dag_id": dag.dag_id,
        "values": totals.live,
        "nbytes": totals.nbytes,
        "log_bytes": dag.log_bytes,
        "index_bytes": dag.index_bytes,
        "dead_bytes": totals.dead,
        "records": totals.sequence,
        "created_at": utc(control.created_ns),
        "unused_s": round(_passed_s(control.touched_ns), 3),
        "kept_s": control.ttl_s or None,
        "epoch": control.epoch,
        "pending_bytes": dag.pending,
        "index_fault": dag.index_fault,
    }
