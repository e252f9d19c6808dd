"""What happens in a namespace a second: two looks at its running totals, and the time between."""

from __future__ import annotations

import time
from typing import NamedTuple

from shmstore.inspection.snapshot import Snapshot
from shmstore.inspection.usage import Usage, usage


class DagRates(NamedTuple):
    """One DAG.

    Attributes:
        dag_id: The DAG.
        values: How many live.
        shared: Shared memory that it takes, bytes.
        commits: Puts and deletes a second.
        growth: Bytes of payloads that it gains a second; negative if it loses some.
        waited_for: Whether somebody waits for a value of it.
    """

    dag_id: str
    values: int
    shared: int
    commits: float
    growth: float
    waited_for: bool


class Rates(NamedTuple):
    """A namespace.

    Attributes:
        dags: Its DAGs.
        usage: What it takes, and what cannot be read.
        commits: Puts and deletes a second.
        growth: Bytes of payloads that it gains a second.
        node_age_s: Seconds since its node was alive, None for never.
    """

    dags: tuple[DagRates, ...]
    usage: Usage
    commits: float
    growth: float
    node_age_s: float | None


class Meter:
    """Looks at a namespace again and again; rates are those since the last look."""

    def __init__(self, root: str, name: str) -> None:
        self._place = root, name
        self._before: dict[tuple[str, int], tuple[int, int]] = {}
        self._at = 0.0

    def look(self) -> Rates:
        """How it is now.

        Raises:
            NoStore: It has been removed.
        """
        looked = Snapshot(*self._place)
        now, boot = time.monotonic(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        passed = now - self._at if self._at else 0.0
        taken = usage(looked)
        seen: dict[tuple[str, int], tuple[int, int]] = {}
        dags = []
        for one in taken.dags:
            key, totals = (one.dag_id, one.control.generation), one.totals
            seen[key] = totals.sequence, totals.nbytes
            # A DAG that has come since the last look began at nothing.
            sequence, nbytes = self._before.get(key, (0, 0) if passed else seen[key])
            commits = (totals.sequence - sequence) / passed if passed else 0.0
            growth = (totals.nbytes - nbytes) / passed if passed else 0.0
            waited = one.control.wait_until_ns > boot
            dags.append(DagRates(one.dag_id, totals.live, one.shared, commits, growth, waited))
        self._before, self._at = seen, now
        settings = looked.settings
        beat = settings.node_beat_ns if settings else 0
        return Rates(
            tuple(dags),
            taken,
            sum(one.commits for one in dags),
            sum(one.growth for one in dags),
            (boot - beat) / 1e9 if beat else None,
        )
