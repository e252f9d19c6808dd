"""``shmstore graph``: which values were computed from which."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from shmstore.cli.answer import JSON, document, say, stream
from shmstore.cli.ls import told_damage
from shmstore.cli.place import DAG, looked_at, snapshot
from shmstore.inspection import graph as drawing
from shmstore.shown import safe, size


@click.command()
@looked_at
@DAG
@click.option(
    "--format",
    "form",
    type=click.Choice(("tree", "mermaid", "dot")),
    default="tree",
    show_default=True,
    help="A drawing for the terminal, or text for mermaid or Graphviz.",
)
@click.option("--most", type=click.IntRange(1), default=1000, show_default=True, help="Values.")
@JSON
def graph(
    root: str | None,
    namespace: str | None,
    at: str | None,
    dag_id: str,
    form: str,
    most: int,
    as_json: bool,
) -> None:
    """Draws a DAG's graph from the deps that were given to put."""
    dag = snapshot(root, namespace, at).dag(dag_id)
    values = ((entry.id, entry.nbytes, entry.deps) for entry in dag.entries())
    nodes = drawing.nodes(values, most)
    sizes = {id: size(one.nbytes) for id, one in nodes.items() if one.nbytes is not None}
    if as_json:
        told = [one._asdict() for one in nodes.values()]
        document("graph", {"dag_id": dag_id, "nodes": told, "values": dag.totals.live})
    elif form == "mermaid":
        stream(drawing.mermaid(nodes, sizes))
    elif form == "dot":
        stream(drawing.dot(nodes, sizes))
    else:
        stream(_tree(nodes, sizes))
    if len(sizes) < dag.totals.live and len(sizes) >= most:
        say(f"Only the first {most:,} of {dag.totals.live:,} values; --most shows more.")
    sys.exit(told_damage(dag))


def _tree(nodes: dict[str, drawing.Node], sizes: dict[str, str]) -> Iterator[str]:
    for lead, id, again in drawing.tree(nodes):
        told = sizes.get(id, "not here")
        yield f"{lead}{safe(id)}  {told}{'  (as above)' if again else ''}"
