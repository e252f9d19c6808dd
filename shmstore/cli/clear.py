"""``shmstore clear``: removes a whole DAG, here or on all nodes."""

from __future__ import annotations

import sys

import click

from shmstore.cli.answer import JSON, UNREACHABLE, confirmed, document, fault, say
from shmstore.cli.nodes import NATS
from shmstore.cli.place import DAG, NAMESPACE, ROOT, opened, snapshot
from shmstore.shown import count, safe


@click.command()
@ROOT
@NAMESPACE
@NATS
@DAG
@click.option("--all-nodes", is_flag=True, help="On every host of this namespace.")
@click.option("--force", is_flag=True, help="Do not ask.")
@JSON
def clear(
    root: str | None,
    namespace: str | None,
    nats: str | None,
    dag_id: str,
    all_nodes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Removes a DAG and all its values. Who views them keeps them until done.

    With --all-nodes: those that are away now clear it when they are back, and the command
    ends with 4.
    """
    with opened(root, namespace, nats) as store:
        if not all_nodes:
            snapshot(root, namespace, None).dag(dag_id)
        where = "on all nodes" if all_nodes else "on this host"
        confirmed(f"Clear DAG {safe(dag_id)} {where}?", force)
        report = store.clear(dag_id, all_nodes=all_nodes)
    if as_json:
        document(
            "cleared",
            {"dag_id": dag_id, "cleared": report.cleared, "unreachable": list(report.unreachable)},
        )
    else:
        say(f"Cleared DAG {safe(dag_id)} {where}.")
    if report.unreachable:
        away = ", ".join(map(safe, report.unreachable))
        fault(f"{count(len(report.unreachable), 'node')} did not answer: {away}.")
        sys.exit(UNREACHABLE)
