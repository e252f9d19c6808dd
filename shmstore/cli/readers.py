"""``shmstore readers``: which processes view which values."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from shmstore import stored
from shmstore.cli.answer import JSON, document, head
from shmstore.cli.dags import told_faults
from shmstore.cli.place import looked_at, snapshot
from shmstore.inspection.holders import Inode, holders, inode_of
from shmstore.inspection.snapshot import Unreadable
from shmstore.shown import columns, cut, safe, size

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot

_COMMAND_WIDTH = 48


@click.command()
@looked_at
@click.argument("what", metavar="[DAG[/ID]]", required=False)
@JSON
def readers(
    root: str | None, namespace: str | None, at: str | None, what: str | None, as_json: bool
) -> None:
    """Shows which processes have views of values: these keep their memory until they go.

    Only processes of this pid namespace that you may look at are told by name.
    """
    looked = snapshot(root, namespace, at)
    wanted = None
    broken: list[Unreadable] = []
    dags: list[DagSnapshot] = []
    if what is not None:
        dag, wanted = looked.named(what)
        dags = [dag]
        if wanted is not None:
            dag.find(wanted)
    else:
        for one in looked.dags():
            (broken if isinstance(one, Unreadable) else dags).append(one)  # type: ignore[arg-type]
    found = _viewed(dags, wanted)
    if as_json:
        document("readers", {"views": found})
    else:
        rows = [
            (
                str(one["pid"]) if one["pid"] else "outside",
                safe(f"{one['dag_id']}/{one['id'] or '(replaced or deleted)'}"),
                size(one["nbytes"]),
                one["how"],
                cut(safe(one["command"]), _COMMAND_WIDTH),
            )
            for one in found
        ]
        heads = ("PID", "VALUE", "BYTES", "HOW", "COMMAND")
        for number, line in enumerate(columns(heads, rows, right=(0, 2))):
            click.echo(line if number else head(line))
    sys.exit(told_faults(looked, broken))


def _viewed(dags: list[DagSnapshot], wanted: str | None) -> list[dict[str, Any]]:
    """Each view, of live values and of dead ones that are still there, by DAG."""
    places: dict[Inode, tuple[str, str | None, int]] = {}
    for dag in dags:
        by_number = {one.segment: one for one in dag.records() if one.segment}
        for number, status in dag.segments().items():
            one = by_number.get(number)
            id = None if one is None else stored.entry_of(dag.dag_id, one).id
            if wanted is None or id == wanted:
                places[inode_of(status)] = (dag.dag_id, id, status.st_size)
    views = []
    for inode, holding in holders(places).items():
        dag_id, id, nbytes = places[inode]
        views += [
            {"dag_id": dag_id, "id": id, "nbytes": nbytes, **one._asdict()}
            for one in holding
            if one.pid != os.getpid()
        ]
    return sorted(views, key=lambda one: (one["dag_id"], one["id"] or "", one["pid"]))
