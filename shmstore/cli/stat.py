"""``shmstore stat``: all that is known about one value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from shmstore import describing, stored
from shmstore.cli.answer import JSON, document, entry_facts
from shmstore.cli.place import DAG, ID, looked_at, snapshot
from shmstore.errors import CorruptValue, StoreError
from shmstore.inspection import shape
from shmstore.inspection.holders import Holder, holders, inode_of
from shmstore.record import SPILLED, UNTRUSTED
from shmstore.shown import safe, size

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot
    from shmstore.record import Record

_MOST_DEPS = 8


@click.command()
@looked_at
@DAG
@ID
@JSON
def stat(
    root: str | None, namespace: str | None, at: str | None, dag_id: str, id: str, as_json: bool
) -> None:
    """Shows what is known about a value: type, schema, place, producer, and who views it."""
    dag = snapshot(root, namespace, at).dag(dag_id)
    found = dag.find(id)
    facts = _facts(dag, found)
    if as_json:
        document("stat", facts)
        return
    for name, value in _lines(facts):
        click.echo(f"{name:>10}  {value}")


def _facts(dag: DagSnapshot, found: Record) -> dict[str, Any]:
    """All that is known, as it is told to machines."""
    facts = entry_facts(stored.entry_of(dag.dag_id, found))
    explained = describing.explanation(dag.dag_id, facts["id"], found)
    facts["untrusted"] = bool(found.flags & UNTRUSTED)
    facts["spilled"] = bool(found.flags & SPILLED)
    facts["path"] = dag.segment_path(found)
    facts["readers"] = [one._asdict() for one in _readers(facts["path"])]
    facts["buffers"] = [one._asdict() for one in explained.buffers]
    facts["copied_bytes"] = explained.copied_bytes
    facts["value"], facts["not_told"] = _told(dag, found, facts["id"])
    return facts


def _told(dag: DagSnapshot, found: Record, id: str) -> tuple[dict[str, Any], str | None]:
    """Schema, or dtype and shape; and why they cannot be told, or None."""
    array = shape.of_array(found)
    if array is not None:
        return {"dtype": array[0], "shape": list(array[1])}, None
    try:
        return shape.described(shape.value_of(dag, id)), None
    except CorruptValue:
        raise
    except StoreError as error:
        return {}, str(error)


def _readers(path: str | None) -> list[Holder]:
    if path is None:
        return []
    try:
        inode = inode_of(os.stat(path))
    except OSError:
        return []
    return [one for one in holders([inode]).get(inode, []) if one.pid != os.getpid()]


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    value = facts["value"]
    lines = [
        ("value", f"{safe(facts['id'])} of DAG {safe(facts['dag_id'])}"),
        ("type", safe(facts["type"])),
    ]
    if "dtype" in value:
        lines.append(("dtype", safe(value["dtype"])))
    if "shape" in value:
        lines.append(("shape", " × ".join(map(str, value["shape"])) or "a scalar"))
    if "rows" in value:
        lines.append(("rows", f"{value['rows']:,}"))
    if "length" in value:
        lines.append(("length", f"{value['length']:,}"))
    for number, field in enumerate(value.get("schema", ())):
        lines.append(("" if number else "columns", f"{safe(field['name'])}: {safe(field['type'])}"))
    if facts["not_told"]:
        lines.append(("not told", safe(facts["not_told"])))
    lines += [
        ("bytes", f"{facts['nbytes']:,} ({size(facts['nbytes'])}), codec {facts['codec']}"),
        ("place", safe(facts["path"] or "inline, in the log")),
        ("get copies", f"{size(facts['copied_bytes'])} of it"),
    ]
    lines += [("", _buffer(note)) for note in facts["buffers"]]
    by = facts["producer"]
    lines.append(("stored", f"{facts['created_at']} by process {by['pid']} on {safe(by['host'])}"))
    if facts["origin"] is not None:
        lines.append(("origin", f"fetched from node {safe(facts['origin'])}"))
    deps = [safe(dep) for dep in facts["deps"]]
    if deps:
        more = f" and {len(deps) - _MOST_DEPS:,} more" if len(deps) > _MOST_DEPS else ""
        lines.append(("deps", ", ".join(deps[:_MOST_DEPS]) + more))
    for number, one in enumerate(facts["readers"]):
        who = f"process {one['pid']}" if one["pid"] else "a process outside this pid namespace"
        lines.append(("" if number else "viewed by", f"{who}  {safe(one['command'])}".rstrip()))
    return lines


def _buffer(note: dict[str, Any]) -> str:
    verb = "copied" if note["copied"] else "viewed"
    return f"{safe(note['name'])}: {size(note['nbytes'])} {verb}: {safe(note['why'])}"
