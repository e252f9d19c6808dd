"""What the store tells about DAGs, values and itself, put together from records."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from shmstore import codecs, lookup, names, pool, provenance, reading, segment, spill
from shmstore.codecs import BufferNote
from shmstore.entry import DagInfo, Explanation, StoreStats
from shmstore.errors import StoreError
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import UNTRUSTED, Record
from shmstore.stored import INLINE_LIMIT, location

#: Codecs whose metas no library is asked about.
_BARE = frozenset(
    number for number, name in codecs.NAMES.items() if name in ("plain", "bytes", "array")
)


def every_dag(space: Namespace) -> list[DagInfo]:
    """All DAGs of a namespace, by name; damaged ones with their fault."""
    found = []
    for token, opened in lookup.every_dag(space):
        try:
            if isinstance(opened, StoreError):
                raise opened
            found.append(_dag(opened))
        except Superseded:
            continue  # cleared as we looked
        except StoreError as error:
            name = names.parse_dag_token(token) or token
            found.append(DagInfo(name, 0, 0, 0, 0, 0, None, str(error)))
    return found


def _dag(manifest: Manifest) -> DagInfo:
    totals = reading.totals(manifest)
    log_bytes, index_bytes = reading.footprint(manifest)
    created = datetime.fromtimestamp(manifest.created_ns / 1e9, UTC)
    return DagInfo(
        manifest.dag_id, totals.live, totals.nbytes, log_bytes, index_bytes, totals.dead, created
    )


def explanation(dag_id: str, id: str, record: Record) -> Explanation:
    """Which buffers of a value a get copies, and why."""
    if record.flags & UNTRUSTED and record.codec not in _BARE:
        # Its meta is a stranger's, and is looked at only together with its payload.
        notes = [BufferNote("value", record.nbytes, False, "checked, then viewed where it can be")]
    else:
        notes = codecs.explain(record.codec, provenance.codec_meta(record.meta), record.nbytes)
    if not record.segment:
        why = f"inline: up to {INLINE_LIMIT:,} bytes are copied out of the log"
        notes = [note._replace(copied=True, why=why) for note in notes]
    return Explanation(
        dag_id,
        id,
        codecs.NAMES.get(record.codec, str(record.codec)),
        location(record),
        record.nbytes,
        tuple(notes),
    )


def stats(space: Namespace) -> StoreStats:
    """The state of a namespace and its file system."""
    dags = every_dag(space)
    status = os.fstatvfs(space.directory.fd)
    try:
        kept = pool.kept(space)
    except OSError as error:
        raise lookup.converted(space, error) from error
    return StoreStats(
        root=space.root,
        namespace=space.name,
        dags=len(dags),
        entries=sum(dag.entries for dag in dags),
        nbytes=sum(dag.nbytes for dag in dags),
        log_bytes=sum(dag.log_bytes for dag in dags),
        index_bytes=sum(dag.index_bytes for dag in dags),
        dead_bytes=sum(dag.dead_bytes for dag in dags),
        mapped_segments=segment.mapped_count(),
        file_system_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        damaged=tuple(dag.dag_id for dag in dags if dag.fault),
        capacity=space.ledger.capacity or None,
        pool_bytes=kept,
        spill=spill.place(space),
    )
