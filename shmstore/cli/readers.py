"""``shmstore readers``: which processes view which values."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from shmstore.cli.answer import JSON, document, head
from shmstore.cli.dags import told_faults
from shmstore.cli.place import looked_at, snapshot
from shmstore.inspection.holders import Inode, holders, inode_of
from shmstore.inspection.snapshot import Unreadable
from shmstore.shown import columns, cut, safe, size

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot

_COMMAND_WIDTH = 48
#: By file: the DAG, the value's id or None, the size.
_Places = dict[Inode, tuple[str, str | None, int]]


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
    broken: list[Unreadable] = []
    places: _Places = {}
    if what is not None:
        dag, wanted = looked.named(what)
        if wanted is not None:
            dag.find(wanted)
        places = _places(dag, wanted)
    else:
        for one in looked.dags():  # one at a time: each has its files open
            if isinstance(one, Unreadable):
                broken.append(one)
            else:
                places |= _places(one, None)
    found = _viewed(places)
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


def _places(dag: DagSnapshot, wanted: str | None) -> _Places:
    """The segments of a DAG, of live values and of dead ones that are still there."""
    ids = {one.segment: one.key.decode(errors="replace") for one in dag.records() if one.segment}
    return {
        inode_of(status): (dag.dag_id, ids.get(number), status.st_size)
        for number, status in dag.segments().items()
        if wanted is None or ids.get(number) == wanted
    }


def _viewed(places: _Places) -> list[dict[str, Any]]:
    """Each view by another process, by DAG and id."""
    views = []
    for inode, holding in holders(places).items():
        dag_id, id, nbytes = places[inode]
        views += [
            {"dag_id": dag_id, "id": id, "nbytes": nbytes, **one._asdict()}
            for one in holding
            if one.pid != os.getpid()
        ]
    return sorted(views, key=lambda one: (one["dag_id"], one["id"] or "", one["pid"]))
