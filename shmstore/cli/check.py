"""``shmstore check``: what is not as it should be, and repairing what can be."""

from __future__ import annotations

import dataclasses
import sys

import click

from shmstore.cli.answer import CORRUPT, JSON, confirmed, document
from shmstore.cli.place import NAMESPACE, ROOT, opened
from shmstore.shown import count, safe


@click.command()
@ROOT
@NAMESPACE
@click.option("--fix", is_flag=True, help="Repair what is derived, and free what is left over.")
@click.option("--force", is_flag=True, help="With --fix: do not ask.")
@JSON
def check(root: str | None, namespace: str | None, fix: bool, force: bool, as_json: bool) -> None:
    """Holds everything against everything else that tells of it.

    Ends with 5 if something is not as it should be, and was not repaired. What is found
    damaged is not repaired: its value is lost, and can be put again.
    """
    with opened(root, namespace) as store:
        if fix:
            confirmed("Repair what is found?", force)
        found = store.check(fix)
    if as_json:
        document("findings", {"fixed": fix, "findings": [dataclasses.asdict(f) for f in found]})
    else:
        for finding in found:
            click.echo(safe(str(finding)))
        click.echo(f"{count(len(found), 'finding')}." if found else "All is as it should be.")
    sys.exit(CORRUPT if any(not finding.fixed for finding in found) else 0)
