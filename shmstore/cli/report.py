"""``shmstore report``: a page about a store, to look at in a browser."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from shmstore.cli.answer import CORRUPT, fault, say
from shmstore.cli.place import looked_at, snapshot
from shmstore.errors import StoreError
from shmstore.inspection.overview import overview
from shmstore.inspection.page import page
from shmstore.shown import safe, size, utc
from shmstore.whole import write_whole

if TYPE_CHECKING:
    from shmstore.inspection.snapshot import Snapshot
    from shmstore.report import Finding


@click.command()
@looked_at
@click.option("-o", "--output", "path", required=True, metavar="FILE", help="The HTML file.")
@click.option("--no-check", is_flag=True, help="Do not check the store.")
def report(
    root: str | None, namespace: str | None, at: str | None, path: str, no_check: bool
) -> None:
    """Writes one self-contained HTML page: memory, times, graphs, the largest values, findings.

    It needs no network. A file that is there is replaced.
    """
    looked = snapshot(root, namespace, at)
    found = overview(looked)
    findings = "it was not wanted." if no_check else _checked(looked, at)
    text = page(found, findings, utc(time.time_ns())[:19].replace("T", " ") + " UTC").encode()
    try:
        write_whole(path, lambda out: out.write(text))
    except OSError as error:
        raise click.ClickException(f"{safe(path)} cannot be written: {error.strerror}") from None
    for sentence in found.faults:
        fault(safe(sentence))
    say(f"Wrote {safe(path)}, {size(len(text))}.")
    sys.exit(CORRUPT if found.faults else 0)


def _checked(looked: Snapshot, at: str | None) -> list[Finding] | str:
    """What ``check`` finds, or why it cannot look."""
    if at is not None or not looked.whole:
        return "a copy is read only."
    if looked.settings is None or not looked.settings.this_start:
        return "the namespace is from before the machine's last start, or damaged."
    from shmstore.store import Store

    try:
        with Store(looked.root, looked.name) as store:
            return store.check()
    except StoreError as error:
        return str(error)
