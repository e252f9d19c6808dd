"""``shmstore nodes``, ``where`` and ``fetch``: what the other hosts have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shmstore.cli.answer import JSON, document, entry_facts, head, say
from shmstore.cli.place import DAG, ID, NAMESPACE, ROOT, opened
from shmstore.errors import UnsafeValue, Unserializable
from shmstore.shown import columns, safe, size

if TYPE_CHECKING:
    from shmstore.store import Store

NATS = click.option("--nats", metavar="URL", help="NATS server(s).  [default: $SHMSTORE_NATS]")


@click.command()
@ROOT
@NAMESPACE
@NATS
@JSON
def nodes(root: str | None, namespace: str | None, nats: str | None, as_json: bool) -> None:
    """Lists the living nodes of the namespace, through the node of this host."""
    with opened(root, namespace, nats) as store:
        found = store.nodes()
    if as_json:
        told = [
            {
                "node": one.node,
                "host": one.host,
                "pid": one.pid,
                "started_at": f"{one.started_at:%Y-%m-%dT%H:%M:%S.%fZ}",
                "incarnation": one.incarnation,
            }
            for one in found
        ]
        document("nodes", {"nodes": told})
        return
    rows = [
        (safe(one.node), safe(one.host), str(one.pid), f"{one.started_at:%Y-%m-%d %H:%M:%S} UTC")
        for one in found
    ]
    for number, line in enumerate(columns(("NODE", "HOST", "PID", "SINCE"), rows, right=(2,))):
        click.echo(line if number else head(line))


@click.command()
@ROOT
@NAMESPACE
@NATS
@DAG
@ID
@JSON
def where(
    root: str | None, namespace: str | None, nats: str | None, dag_id: str, id: str, as_json: bool
) -> None:
    """Says which node has a value, by the registry, and whether this host has it."""
    with opened(root, namespace, nats) as store:
        node = store.registry.lookup(dag_id, id)
        here = store.has_value(dag_id, id)
    if as_json:
        document("where", {"dag_id": dag_id, "id": id, "node": node, "here": here})
    else:
        click.echo(f"{safe(node)}{'  (and on this host)' if here else ''}")


@click.command()
@ROOT
@NAMESPACE
@NATS
@DAG
@ID
@click.option("--from", "from_node", metavar="NODE", help="Ask this node, not the registry.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds.",
)
@JSON
def fetch(
    root: str | None,
    namespace: str | None,
    nats: str | None,
    dag_id: str,
    id: str,
    from_node: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Brings a value here from the host that has it, unless it is here."""
    with opened(root, namespace, nats) as store:
        _bring(store, dag_id, id, from_node, timeout)
        entry = store.entry(dag_id, id)
    if as_json:
        document("entry", entry_facts(entry))
    else:
        came = f"from node {safe(entry.origin)}" if entry.origin else "of this host"
        say(f"{safe(id)} of DAG {safe(dag_id)} is here: {size(entry.nbytes)}, {came}.")


def _bring(store: Store, dag_id: str, id: str, from_node: str | None, timeout: float) -> None:
    try:
        store.get_with_fetch(dag_id, id, from_node=from_node, timeout=timeout)
    except (UnsafeValue, Unserializable):
        pass  # it is here; that this process may not or cannot decode it is no matter
