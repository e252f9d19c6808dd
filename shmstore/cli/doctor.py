"""``shmstore doctor``: what of this machine is in a store's way, and what mends it."""

from __future__ import annotations

import os
import sys

import click

from shmstore import names
from shmstore.cli.answer import FAILED, JSON, document
from shmstore.cli.nodes import NATS
from shmstore.cli.place import NAMESPACE, ROOT, chosen
from shmstore.inspection import doctor as judging
from shmstore.inspection import machine
from shmstore.shown import colours_wanted, safe

_COLOURS = {judging.OK: "green", judging.WARNING: "yellow", judging.BAD: "red"}


@click.command()
@ROOT
@NAMESPACE
@NATS
@JSON
def doctor(root: str | None, namespace: str | None, nats: str | None, as_json: bool) -> None:
    """Looks at shared memory, limits, permissions, versions, and at NATS if a URL is given.

    Ends with 1 if something is bad: if a store does not work here, or would lose data.
    """
    place = chosen(root, namespace)
    found = judging.verdicts(machine.facts(*place))
    url = nats or os.environ.get("SHMSTORE_NATS")
    if url:
        from shmstore.node.probe import probe
        from shmstore.node.settings import Settings

        answer = probe(Settings.parse(url), place[1], names.default_node())
        found.append(judging.nats(*answer))
    if as_json:
        document("doctor", {"verdicts": [one._asdict() for one in found]})
    else:
        for one in found:
            level = f"{one.level:<7}"
            shown = click.style(level, fg=_COLOURS[one.level]) if colours_wanted() else level
            click.echo(f"{shown}  {one.what:<17}  {safe(one.found)}")
            if one.mend:
                click.echo(f"{'':<28}{safe(one.mend)}")
    sys.exit(FAILED if any(one.level == judging.BAD for one in found) else 0)
