"""``shmstore du``: what a store takes, and for what."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from shmstore.cli.answer import JSON, document, head
from shmstore.cli.dags import told_faults
from shmstore.cli.place import looked_at, snapshot
from shmstore.inspection import usage as using
from shmstore.inspection.snapshot import Unreadable
from shmstore.shown import columns, cut, safe, size

if TYPE_CHECKING:
    from shmstore.inspection.snapshot import Snapshot
    from shmstore.inspection.usage import Usage

_NAME_WIDTH = 40
_HEADS = ("DAG", "VALUES", "SEGMENTS", "LOG", "DEAD OF IT", "INDEX", "LEFTOVER", "ON DISK")


@click.command()
@looked_at
@click.option(
    "--by",
    type=click.Choice(("dag", "type", "producer", "host", "origin")),
    default="dag",
    show_default=True,
    help="What to group by.",
)
@JSON
def du(root: str | None, namespace: str | None, at: str | None, by: str, as_json: bool) -> None:
    """Shows what a store takes: live, dead, pool, leftover; and its file system."""
    looked = snapshot(root, namespace, at)
    if by == "dag":
        found = using.usage(looked)
        if as_json:
            document(
                "usage",
                {
                    **dataclasses.asdict(found),
                    "shared": found.shared,
                    "reclaimable": found.reclaimable,
                },
            )
        else:
            _print(found)
    else:
        groups = using.by(looked, by)
        if as_json:
            told = [{by: name, "values": count, "nbytes": n} for name, count, n in groups]
            document("usage_by", {"by": by, "groups": told})
        else:
            rows = [(cut(safe(n), 60), f"{count:,}", size(nbytes)) for n, count, nbytes in groups]
            _table((by.upper(), "VALUES", "BYTES"), rows)
    sys.exit(told_faults(looked, _unreadable(looked)))


def _unreadable(looked: Snapshot) -> list[Unreadable]:
    return [dag for dag in looked.dags() if isinstance(dag, Unreadable)]


def _print(found: Usage) -> None:
    rows = [
        (
            cut(safe(one.dag_id), _NAME_WIDTH),
            f"{one.values:,}",
            *map(size, (one.segments, one.log, one.dead, one.index, one.leftover, one.spilled)),
        )
        for one in sorted(found.dags, key=lambda one: -one.shared)
    ]
    _table(_HEADS, rows)
    click.echo()
    lines = [
        ("shared memory taken", found.shared),
        ("  pool, kept for reuse", found.pool),
        ("  trash, on its way out", found.trash),
        ("  pages, locks, notes", found.other),
        ("  damaged DAGs", found.unreadable),
        ("can be reclaimed", found.reclaimable),
        ("capacity", found.capacity),
        ("file system", found.file_system),
        ("  free of it", found.free),
    ]
    for name, nbytes in lines:
        if nbytes or name in ("shared memory taken", "can be reclaimed"):
            click.echo(f"{name:<24}{size(nbytes):>10}")
    if not found.capacity:
        click.echo(f"{'capacity':<24}{'none':>10}")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    for number, line in enumerate(columns(heads, rows, right=range(1, len(heads)))):
        click.echo(line if number else head(line))
