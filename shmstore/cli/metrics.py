"""``shmstore metrics``: figures for Prometheus."""

from __future__ import annotations

import sys

import click

from shmstore.cli.place import looked_at, snapshot
from shmstore.inspection import metrics as figures
from shmstore.shown import safe
from shmstore.whole import write_whole


@click.command()
@looked_at
@click.option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    help="Write to a file, whole or not at all: for the node exporter's textfile collector.",
)
def metrics(root: str | None, namespace: str | None, at: str | None, path: str | None) -> None:
    """Prints what the store takes and does, in Prometheus' text format."""
    text = "\n".join(figures.lines(snapshot(root, namespace, at))) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(path, lambda out: out.write(text.encode()))
    except OSError as error:
        raise click.ClickException(f"{safe(path)} cannot be written: {error.strerror}") from None
