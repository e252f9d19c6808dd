"""``shmstore export``: writes a value to a file for other programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import IO

import click

from shmstore.cli.answer import say
from shmstore.cli.place import DAG, ID, looked_at, snapshot
from shmstore.cli.show import value_of
from shmstore.inspection import export as forms
from shmstore.shown import safe, size
from shmstore.whole import write_whole


@click.command()
@looked_at
@DAG
@ID
@click.option(
    "-o", "--output", "path", required=True, metavar="FILE", help="The file; - for stdout."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(forms.FORMS)),
    help="Its form; raw: the stored bytes as they are.  [default: by the suffix]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--unsafe", is_flag=True, help="Run what a pickle of this host says.")
def export(
    root: str | None,
    namespace: str | None,
    at: str | None,
    dag_id: str,
    id: str,
    path: str,
    form: str | None,
    force: bool,
    unsafe: bool,
) -> None:
    """Writes a value to a Parquet, CSV, Arrow IPC or npy file.

    The file appears whole or not at all.
    """
    if form is None:
        if path == "-":
            raise click.UsageError("say the form of what goes to stdout with --format")
        form = forms.form_of(path)
    if path != "-" and os.path.lexists(path) and not force:
        raise click.UsageError(f"{safe(path)} is there; --force replaces it")
    dag = snapshot(root, namespace, at).dag(dag_id)
    write: Callable[[IO[bytes]], object]
    if form == "raw":
        payload = dag.payload(id)[1]
        write = partial(_write_raw, payload)
    else:
        write = partial(forms.write, value_of(dag, id, unsafe), form)
    if path == "-":
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        write_whole(path, write)
    except OSError as error:
        raise click.ClickException(f"{safe(path)} cannot be written: {error.strerror}") from None
    say(f"Wrote {safe(path)}, {size(os.path.getsize(path))}.")


def _write_raw(payload: memoryview, out: IO[bytes]) -> None:
    out.write(payload)
