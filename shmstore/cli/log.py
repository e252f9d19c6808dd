"""``shmstore log``: what has been stored in a DAG and deleted from it, in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from shmstore import provenance, stored
from shmstore.cli.answer import JSON_LINES, line, stream
from shmstore.cli.ls import told_damage
from shmstore.cli.place import DAG, looked_at, snapshot
from shmstore.record import CHECKPOINT, DELETE, PUT, SPILLED, UNTRUSTED
from shmstore.shown import local, safe, size, utc

if TYPE_CHECKING:
    from shmstore.inspection.dag_snapshot import DagSnapshot
    from shmstore.record import Record, Totals

_WORDS = {PUT: "put", DELETE: "delete", CHECKPOINT: "compacted"}
_Event = tuple[int, "Record", "Totals"]


@click.command()
@looked_at
@DAG
@click.option("-n", "last", type=click.IntRange(1), metavar="N", help="Only the last N.")
@click.option("-r", "--reverse", is_flag=True, help="The newest first.")
@JSON_LINES
def log(
    root: str | None,
    namespace: str | None,
    at: str | None,
    dag_id: str,
    last: int | None,
    reverse: bool,
    as_json: bool,
) -> None:
    """Shows the history of a DAG, as far as its log still has it.

    Compaction leaves out what was overwritten or deleted before it; a line says where.
    """
    dag = snapshot(root, namespace, at).dag(dag_id)
    events: Iterable[_Event] = dag.history()
    if last is not None:
        events = deque(events, maxlen=last)
    if reverse:
        events = reversed(list(events))
    stream(_told(dag, events, as_json))
    sys.exit(told_damage(dag))


def _told(dag: DagSnapshot, events: Iterable[_Event], as_json: bool) -> Iterator[str]:
    for offset, found, totals in events:
        facts = _facts(offset, found, totals)
        yield line("event", {"dag_id": dag.dag_id, **facts}) if as_json else _line(facts)


def _facts(offset: int, found: Record, totals: Totals) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "op": _WORDS.get(found.op, str(found.op)),
        "offset": offset,
        "sequence": totals.sequence,
        "at": utc(found.created_ns),
        "at_ns": found.created_ns,
        "id": found.key.decode(errors="replace") if found.key else None,
        "live_after": totals.live,
    }
    if found.op == PUT:
        by, origin, kind, _ = provenance.parse(found.meta)
        facts |= {
            "nbytes": found.nbytes,
            "type": kind,
            "location": stored.location(found),
            "producer": {"host": by.host, "pid": by.pid},
            "origin": origin,
            "untrusted": bool(found.flags & UNTRUSTED),
            "moved_to_disk": bool(found.flags & SPILLED),
        }
    return facts


def _line(facts: dict[str, Any]) -> str:
    start = f"{facts['sequence']:>8}  {local(facts['at_ns'])}  "
    if facts["op"] == "compacted":
        kept = f"{facts['live_after']:,} values were kept"
        return f"{start}-- the log was compacted here: {kept} --"
    op = "moved" if facts.get("moved_to_disk") else facts["op"]
    if op == "delete":
        return f"{start}{op:<6}  {'':>10}  {safe(facts['id'])}"
    by = f"process {facts['producer']['pid']} on {safe(facts['producer']['host'])}"
    what = f"{safe(facts['id'])}  {safe(facts['type'])}, {by}"
    return f"{start}{op:<6}  {size(facts['nbytes']):>10}  {what}"
