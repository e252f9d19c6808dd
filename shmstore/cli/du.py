"""``shmstore du``: what a store takes, and for what."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from shmstore.cli.answer import JSON, document, head
from shmstore.cli.dags import told_faults
from shmstore.cli.place import looked_at, snapshot
from shmstore.inspection import usage as using
from shmstore.shown import columns, cut, safe, size

if TYPE_CHECKING:
    from shmstore.inspection.usage import DagUsage, Usage

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
    found = using.usage(looked)
    groups = [] if by == "dag" else using.by(looked, by)
    if by == "dag" and as_json:
        document("usage", _facts(found))
    elif by == "dag":
        _print(found)
    elif as_json:
        told = [{by: name, "values": count, "nbytes": n} for name, count, n in groups]
        document("usage_by", {"by": by, "groups": told})
    else:
        rows = [(cut(safe(n), 60), f"{count:,}", size(nbytes)) for n, count, nbytes in groups]
        _table((by.upper(), "VALUES", "BYTES"), rows)
    sys.exit(told_faults(looked, found.unreadable))


def _facts(found: Usage) -> dict[str, Any]:
    return {
        "dags": [
            {
                "dag_id": one.dag_id,
                "values": one.totals.live,
                "payload": one.totals.nbytes,
                "segments": one.segments,
                "log": one.log,
                "dead": one.totals.dead,
                "index": one.index,
                "leftover": one.leftover,
                "spilled": one.spilled,
            }
            for one in found.dags
        ],
        "unreadable": found.damaged,
        "pool": found.pool,
        "trash": found.trash,
        "other": found.other,
        "capacity": found.capacity,
        "account": found.account,
        "file_system": found.file_system,
        "free": found.free,
        "shared": found.shared,
        "reclaimable": found.reclaimable,
    }


def _print(found: Usage) -> None:
    rows = [
        (
            cut(safe(one.dag_id), _NAME_WIDTH),
            f"{one.totals.live:,}",
            *map(size, _sizes(one)),
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
        ("  damaged DAGs", found.damaged),
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


def _sizes(one: DagUsage) -> tuple[int, ...]:
    return one.segments, one.log, one.totals.dead, one.index, one.leftover, one.spilled


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    for number, line in enumerate(columns(heads, rows, right=range(1, len(heads)))):
        click.echo(line if number else head(line))
