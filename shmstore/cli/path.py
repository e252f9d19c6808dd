"""``shmstore path``: where a value's bytes are, for other programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from shmstore import codecs, names, provenance
from shmstore.cli.answer import JSON, document
from shmstore.cli.place import DAG, ID, looked_at, snapshot
from shmstore.record import HEAD_SIZE, SPILLED

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot


@click.command()
@looked_at
@DAG
@ID
@JSON
def path(
    root: str | None, namespace: str | None, at: str | None, dag_id: str, id: str, as_json: bool
) -> None:
    """Prints the file with a value's bytes, their offset in it and their number.

    The file is there until the value is overwritten or deleted: take a shared flock on it
    before you read it, and look whether it still has its name, to read what does not change.
    """
    looked = snapshot(root, namespace, at)
    facts = _facts(looked.dag(dag_id), id)
    if as_json:
        document("path", facts)
    else:
        click.echo(f"{facts['path']}\t{facts['offset']}\t{facts['nbytes']}")


def _facts(dag: DagSnapshot, id: str) -> dict[str, Any]:
    offset, found = dag.locate(id)
    where, start = dag.segment_path(found), 0
    if where is None:
        where = os.path.join(dag.path, names.log_name(dag.control.log_number))
        start = offset + HEAD_SIZE + len(found.key) + len(found.meta)
    return {
        "dag_id": dag.dag_id,
        "id": id,
        "path": where,
        "offset": start,
        "nbytes": found.nbytes,
        "codec": codecs.NAMES.get(found.codec, str(found.codec)),
        "codec_meta": provenance.codec_meta(found.meta).hex(),
        "spilled": bool(found.flags & SPILLED),
    }
