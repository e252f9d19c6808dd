"""What of a DAG nobody needs: decided from what was seen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shmstore import names
from shmstore.report import GcAction
from shmstore.survey import Listing


@dataclass(frozen=True, slots=True)
class DagSeen:
    """What a sweep goes by.

    Attributes:
        dag_id: The DAG.
        listing: The names in its directory, listed before its lock was held.
        current: The log and the index in use when the lock was held.
        live: The listed segments that live records name.
    """

    dag_id: str
    listing: Listing
    current: frozenset[str]
    live: frozenset[int]


def plan(seen: DagSeen) -> list[GcAction]:
    """What of a DAG nobody needs. Sizes are found when it is freed."""
    return [*plan_leftovers(seen), *plan_orphans(seen)]


def plan_leftovers(seen: DagSeen) -> list[GcAction]:
    """Logs and indexes that are not current: of a writer that died as it replaced them."""
    why = "a writer died as it replaced the log or the index"
    return [
        GcAction("leftover", seen.dag_id, name, 0, why)
        for name in sorted(seen.listing.numbered - seen.current)
    ]


def plan_orphans(seen: DagSeen) -> list[GcAction]:
    """Segments of no live value: of a writer that died as it put or replaced one."""
    why = "no value needs it; the writer that put or replaced its value died"
    return [
        GcAction("orphan", seen.dag_id, names.segment_name(number), 0, why)
        for number in sorted(seen.listing.segments - seen.live)
    ]
