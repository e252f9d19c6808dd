"""What a namespace takes and does, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from shmstore.inspection.snapshot import Snapshot
from shmstore.inspection.usage import usage
from shmstore.shown import safe

#: DAGs that have lines of their own, the largest first; the others are only in the sums.
MOST_DAGS = 100

_PREFIX = "shmstore_"


def lines(looked: Snapshot) -> Iterator[str]:
    """The lines of one reading."""
    found = usage(looked)
    space = {"namespace": looked.name}
    unreadable = len(found.unreadable)
    yield from _gauge("dags", "DAGs that can be read.", [(space, len(found.dags))])
    yield from _gauge("dags_unreadable", "DAGs that cannot be read.", [(space, unreadable)])
    yield from _gauge("bytes", "Shared memory taken, bytes.", [(space, found.shared)])
    parts = (
        ("segment", sum(one.segments for one in found.dags)),
        ("log", sum(one.log for one in found.dags)),
        ("index", sum(one.index for one in found.dags)),
        ("leftover", sum(one.leftover for one in found.dags)),
        ("pool", found.pool),
        ("trash", found.trash),
        ("other", found.other + found.damaged),
    )
    yield from _gauge(
        "part_bytes",
        "Shared memory taken by its use, bytes.",
        [({**space, "part": name}, nbytes) for name, nbytes in parts],
    )
    spilled = sum(one.spilled for one in found.dags)
    yield from _gauge("spilled_bytes", "Values moved to disk, bytes.", [(space, spilled)])
    yield from _gauge("reclaimable_bytes", "What gc would free.", [(space, found.reclaimable)])
    yield from _gauge("capacity_bytes", "Capacity, 0 for none.", [(space, found.capacity)])
    yield from _gauge(
        "file_system_bytes", "Size of the root's file system.", [(space, found.file_system)]
    )
    yield from _gauge("free_bytes", "What is free of it.", [(space, found.free)])
    largest = sorted(found.dags, key=lambda one: -one.shared)[:MOST_DAGS]
    of_dags = [({**space, "dag": one.dag_id}, one) for one in largest]
    yield from _gauge("dag_values", "Values.", [(at, one.totals.live) for at, one in of_dags])
    yield from _gauge(
        "dag_bytes", "Shared memory of a DAG.", [(at, one.shared) for at, one in of_dags]
    )
    records = [(at, one.totals.sequence) for at, one in of_dags]
    yield from _family("dag_records_total", "counter", "Puts and deletes committed.", records)
    settings = looked.settings
    if settings is not None and settings.node_beat_ns:
        age = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - settings.node_beat_ns) / 1e9
        yield from _gauge("node_beat_age_seconds", "Since the node was alive.", [(space, age)])


def _gauge(name: str, what: str, samples: Sequence[tuple[dict[str, str], float]]) -> Iterator[str]:
    return _family(name, "gauge", what, samples)


def _family(
    name: str, kind: str, what: str, samples: Sequence[tuple[dict[str, str], float]]
) -> Iterator[str]:
    if not samples:
        return
    yield f"# HELP {_PREFIX}{name} {what}"
    yield f"# TYPE {_PREFIX}{name} {kind}"
    for labels, value in samples:
        told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        yield f"{_PREFIX}{name}{{{told}}} {shown}"


def _escaped(text: str) -> str:
    # Also what a terminal might obey; a backslash is then doubled, as the format wants it.
    return safe(text).replace("\\", "\\\\").replace('"', '\\"')
