"""``shmstore show``: the beginning of a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shmstore.cli.answer import JSON, document, head
from shmstore.cli.place import DAG, ID, looked_at, snapshot
from shmstore.errors import UnsafeValue
from shmstore.inspection import shape
from shmstore.inspection.preview import preview
from shmstore.shown import columns as table
from shmstore.shown import safe

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot
    from shmstore.inspection.preview import Preview


class NeedsUnsafe(UnsafeValue):
    """A value that is shown only by running what its pickle says."""

    def _sentence(self) -> str:
        return (
            f"Value {self.id!r} of DAG {self.dag_id!r} is a pickle that asks for {self.what}; to "
            "show it runs what it says. If you trust who stored it, say --unsafe."
        )


@click.command()
@looked_at
@DAG
@ID
@click.option(
    "-n",
    "rows",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="Rows, or items.",
)
@click.option(
    "--columns", type=click.IntRange(1, 1000), default=12, show_default=True, help="Columns."
)
@click.option("--unsafe", is_flag=True, help="Run what a pickle of this host says.")
@JSON
def show(
    root: str | None,
    namespace: str | None,
    at: str | None,
    dag_id: str,
    id: str,
    rows: int,
    columns: int,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Shows the first rows of a table, a corner of an array, the beginning of anything else.

    Nothing that a value holds is run, unless --unsafe says so.
    """
    dag = snapshot(root, namespace, at).dag(dag_id)
    shown = preview(value_of(dag, id, unsafe), rows, columns)
    if as_json:
        document(
            "preview",
            {
                "dag_id": dag_id,
                "id": id,
                "title": shown.title,
                "columns": list(shown.heads),
                "rows": [list(row) for row in shown.rows],
                "text": list(shown.text),
                **shown.facts,
                "left_out": shown.more,
            },
        )
    else:
        _print(shown)


def value_of(dag: DagSnapshot, id: str, unsafe: bool) -> Any:
    """A value; without ``unsafe``, none that would run something. Raises as ``shape.value_of``."""
    try:
        return shape.value_of(dag, id, unsafe)
    except UnsafeValue as error:
        if unsafe:
            raise
        raise NeedsUnsafe(error.what, dag.dag_id, id, error.origin) from None


def _print(shown: Preview) -> None:
    click.echo(head(safe(shown.title)))
    if shown.heads:
        rows = [[safe(cell) for cell in row] for row in shown.rows]
        lines = table([safe(one) for one in shown.heads], rows)
        for line in lines if any(shown.heads) else list(lines)[1:]:
            click.echo(line)
    for line in shown.text:
        click.echo(safe(line))
    for name, fact in shown.facts.items():
        if fact not in ({}, 0) or name != "nulls":
            told = (
                ", ".join(f"{safe(k)} {v:,}" for k, v in fact.items())
                if isinstance(fact, dict)
                else fact
            )
            click.echo(f"{name}: {told}")
    if shown.more:
        click.echo(f"({shown.more})")
