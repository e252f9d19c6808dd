"""``shmstore gc``: frees what nobody needs, or says what that would be."""

from __future__ import annotations

import dataclasses
import re
import sys

import click

from shmstore.cli.answer import FAILED, JSON, document
from shmstore.cli.place import NAMESPACE, ROOT, opened
from shmstore.shown import safe

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _span(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds of a time span: a number, with s, m, h, d or w behind it."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time span like 90, 15m, 12h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


@click.command()
@ROOT
@NAMESPACE
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@click.option(
    "--older-than",
    callback=_span,
    metavar="SPAN",
    help="Let DAGs go, too, that nobody has written to or opened for so long (15m, 12h, 7d).",
)
@JSON
def gc(
    root: str | None,
    namespace: str | None,
    dry_run: bool,
    older_than: float | None,
    as_json: bool,
) -> None:
    """Frees what nobody needs: what killed processes have left, and what has expired.

    Safe beside processes that use the store, and when all of them are dead.
    """
    with opened(root, namespace) as store:
        report = store.gc(dry_run, older_than=older_than)
    if as_json:
        document("gc", {**dataclasses.asdict(report), "freed_bytes": report.freed_bytes})
    else:
        for line in str(report).splitlines():
            click.echo(safe(line))
    sys.exit(FAILED if report.failed else 0)
