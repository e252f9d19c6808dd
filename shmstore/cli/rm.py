"""``shmstore rm``: deletes values."""

from __future__ import annotations

import fnmatch
import re

import click

from shmstore.cli.answer import JSON, confirmed, document, say
from shmstore.cli.place import DAG, NAMESPACE, ROOT, completed_ids, opened, snapshot
from shmstore.errors import NotFound
from shmstore.shown import count, safe


@click.command()
@ROOT
@NAMESPACE
@DAG
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=completed_ids)
@click.option("--glob", "globbing", is_flag=True, help="Take each ID for a pattern (*, ?, [a-z]).")
@click.option("--force", is_flag=True, help="Do not ask.")
@JSON
def rm(
    root: str | None,
    namespace: str | None,
    dag_id: str,
    ids: tuple[str, ...],
    globbing: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Deletes values of a DAG, all or none. Who views them keeps them until done."""
    with opened(root, namespace) as store:
        dag = snapshot(root, namespace, None).dag(dag_id)
        wanted = list(dict.fromkeys(ids))
        if globbing:
            match = re.compile("|".join(map(fnmatch.translate, ids))).match
            wanted = [entry.id for entry in dag.entries() if match(entry.id)]
            if not wanted:
                raise NotFound(dag_id, " ".join(ids))
        shown = safe(wanted[0]) if len(wanted) == 1 else count(len(wanted), "value")
        confirmed(f"Delete {shown} of DAG {safe(dag_id)}?", force)
        store.delete_many(dag_id, wanted)
    if as_json:
        document("deleted", {"dag_id": dag_id, "ids": wanted})
    else:
        say(f"Deleted {count(len(wanted), 'value')}.")
