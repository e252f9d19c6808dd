"""``shmstore watch``: follows what is stored and deleted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from shmstore import names, stored
from shmstore.cli.answer import JSON_LINES, entry_facts, line, say
from shmstore.cli.place import NAMESPACE, ROOT, snapshot
from shmstore.inspection.changes import Changes
from shmstore.shown import local, safe, size, utc

if TYPE_CHECKING:
    from shmstore.inspection.changes import Change

_LOOK_S = 0.1


@click.command()
@ROOT
@NAMESPACE
@click.argument("dag_id", metavar="[DAG]", required=False)
@click.option("-n", "most", type=click.IntRange(1), metavar="N", help="End after N changes.")
@JSON_LINES
def watch(
    root: str | None, namespace: str | None, dag_id: str | None, most: int | None, as_json: bool
) -> None:
    """Prints what happens from now on: in a DAG, which need not be there yet, or in all.

    Until Ctrl-C. What is stored and overwritten between two looks, ten a second, is told
    all the same, unless a compaction came between.
    """
    if dag_id is not None:
        names.encode_id(dag_id, "DAG")
    changes = Changes(snapshot(root, namespace, None), dag_id)
    if not as_json:
        say(f"Watching {'all DAGs' if dag_id is None else f'DAG {safe(dag_id)}'}; Ctrl-C ends it.")
    told = 0
    while True:
        for change in changes.look():
            click.echo(line("change", _facts(change)) if as_json else _line(change))
            told += 1
            if told == most:
                return
        time.sleep(_LOOK_S)  # to be woken, it would have to write into the DAGs' pages


def _facts(change: Change) -> dict[str, Any]:
    facts: dict[str, Any] = {"what": change.what, "dag_id": change.dag_id}
    found = change.record
    if found is not None and change.what == "delete":
        facts |= {"id": found.key.decode(errors="replace"), "at": utc(found.created_ns)}
    elif found is not None:
        facts |= entry_facts(stored.entry_of(change.dag_id, found))
    if change.why is not None:
        facts["why"] = change.why
    return facts


def _line(change: Change) -> str:
    found = change.record
    if found is None:
        why = f": {safe(change.why)}" if change.why else ""
        return f"{local(time.time_ns())}  {change.what:<10}  {safe(change.dag_id)}{why}"
    at = f"{local(found.created_ns)}  {change.what:<10}  {safe(change.dag_id)}"
    nbytes = "" if change.what == "delete" else f"  {size(found.nbytes)}"
    return f"{at}  {safe(found.key.decode(errors='replace'))}{nbytes}"
