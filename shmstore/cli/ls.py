"""``shmstore ls``: DAGs, or the values of one, as they are now."""

from __future__ import annotations

import fnmatch
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

from shmstore.cli.answer import CORRUPT, FAILED, JSON_LINES, entry_facts, fault, line, stream
from shmstore.cli.place import looked_at, snapshot
from shmstore.errors import CorruptValue
from shmstore.inspection.changes import Changes
from shmstore.inspection.snapshot import NoDag, Unreadable
from shmstore.shown import cut, local, safe, size

if TYPE_CHECKING:
    from shmstore.entry import Entry
    from shmstore.inspection.dag_snapshot import DagSnapshot
    from shmstore.inspection.snapshot import Snapshot

_ORDERS = {"age": "stored", "size": "size", "name": "name"}
_TYPE_WIDTH = 28
_LOOK_S = 0.2


@click.command()
@looked_at
@click.argument("what", metavar="[DAG[/GLOB]]", required=False)
@click.option("-l", "--long", "long", is_flag=True, help="Size, time, type and place, too.")
@click.option(
    "--sort",
    type=click.Choice(list(_ORDERS)),
    default="age",
    show_default=True,
    help="age: the oldest first; size: the smallest first.",
)
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("--watch", "watching", is_flag=True, help="List again whenever it has changed.")
@JSON_LINES
def ls(
    root: str | None,
    namespace: str | None,
    at: str | None,
    what: str | None,
    long: bool,
    sort: str,
    reverse: bool,
    watching: bool,
    as_json: bool,
) -> None:
    """Lists the DAGs, or the values of a DAG: those whose id matches GLOB (*, ?, [a-z]).

    With --at DIRECTORY of one DAG, its values.
    """
    how = _How(long, _ORDERS[sort], reverse, as_json)
    looked = snapshot(root, namespace, at)
    if watching:
        _watch(looked, what, how)
    sys.exit(_list(looked, what, how))


class _How(NamedTuple):
    """How values are listed."""

    long: bool
    by: str
    reverse: bool
    as_json: bool


def _list(looked: Snapshot, what: str | None, how: _How) -> int:
    """Prints DAGs, or the values of one; returns the exit code."""
    if what is None and looked.whole:
        return _dags(looked, how.as_json)
    dag, glob = (looked.alone(), None) if what is None else looked.named(what)
    entries = _matching(dag, glob, how.by, how.reverse)
    if how.as_json:
        stream(line("entry", entry_facts(entry)) for entry in entries)
    else:
        stream(_long(entry) if how.long else safe(entry.id) for entry in entries)
    return told_damage(dag)


def _watch(looked: Snapshot, what: str | None, how: _How) -> NoReturn:
    """Lists again and again, on a screen cleared before; until Ctrl-C or the store is gone."""
    changes = Changes(looked)
    while True:
        click.clear()  # does nothing where there is no terminal
        try:
            _list(looked, what, how)
        except NoDag as error:
            fault(safe(str(error)))  # it may come, or come back
        while not list(changes.look()):
            time.sleep(_LOOK_S)  # to be woken, it would have to write into the DAGs' pages


def _dags(looked: Snapshot, as_json: bool) -> int:
    """Prints the names of DAGs; returns the exit code."""
    code = 0
    for dag in looked.dags():
        if isinstance(dag, Unreadable):
            fault(safe(str(dag.error)))
            code = CORRUPT if isinstance(dag.error, CorruptValue) else max(code, FAILED)
        elif as_json:
            click.echo(line("dag", {"dag_id": dag.dag_id}))
        else:
            click.echo(safe(dag.dag_id))
    return code


def _matching(dag: DagSnapshot, glob: str | None, by: str, reverse: bool) -> Iterator[Entry]:
    entries = dag.entries(by, reverse)
    if glob is None:
        return entries
    matches = re.compile(fnmatch.translate(glob)).match
    return (entry for entry in entries if matches(entry.id))


def _long(entry: Entry) -> str:
    kind = cut(safe(entry.type_name), _TYPE_WIDTH)
    where = entry.location if entry.location == "inline" else "segment"
    if entry.origin is not None:
        where = f"from {entry.origin}"
    cells = (f"{size(entry.nbytes):>10}", local(entry.created_ns), f"{kind:<{_TYPE_WIDTH}}")
    return "  ".join((*cells, f"{where:<9}", safe(entry.id)))


def told_damage(dag: DagSnapshot) -> int:
    """Says on stderr what of a DAG could not be read; returns the exit code."""
    if dag.index_fault is not None:
        fault(f"The index of DAG {dag.dag_id!r} cannot be used: {safe(dag.index_fault)}.")
    if dag.damaged:
        places = ", ".join(map(str, sorted(dag.damaged)[:5]))
        more = f" and {len(dag.damaged) - 5:,} more" if len(dag.damaged) > 5 else ""
        fault(f"Records of DAG {dag.dag_id!r} fail their check, at {places}{more} of its log.")
    return CORRUPT if dag.damaged or dag.index_fault is not None else 0
