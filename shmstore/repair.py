"""Repairing what a check has found, as far as it is derived from the log.

Each repair goes by what it finds itself, under the DAG's lock, and not by what the check
saw. If the process dies here, each of them is done or not.
"""

from __future__ import annotations

import numpy as np

from shmstore import audit, compaction, expiry, recovery, sweep
from shmstore.errors import StoreError
from shmstore.forked import here, refused
from shmstore.index import IndexDamagedError
from shmstore.manifest import Manifest
from shmstore.record import SWEPT, TAIL, TOUCHED
from shmstore.report import FREED_BY_GC, Finding
from shmstore.sweep import Order


def repair(manifest: Manifest, found: list[Finding]) -> None:
    """Repairs what it can. What it could not is found again."""
    kinds = {one.kind for one in found}
    for for_kinds, repair in _REPAIRS:
        if kinds & for_kinds:
            try:
                repair(manifest)
            except (StoreError, OSError, IndexDamagedError):
                if here.lost:
                    raise


def _settle(manifest: Manifest) -> None:
    manifest.guarded(recovery.settled, manifest, [])


def _rebuild_index(manifest: Manifest) -> None:
    manifest.guarded(recovery.rebuild_index, manifest)


def _leave_behind(manifest: Manifest) -> None:
    manifest.guarded(_compact_sound, manifest)


def _compact_sound(manifest: Manifest) -> None:
    """Under the commit lock: compacts a log whose damaged records no value needs any more."""
    view = recovery.settled(manifest, [])
    log = view.cover(view.log.words[TAIL])
    table = np.array(view.index.slots, copy=True).reshape(-1, 2)
    if next(audit.unreadable(log, table), None) is None:
        compaction.compact(manifest, view, log)


def _recount(manifest: Manifest) -> None:
    manifest.guarded(_compact_recounted, manifest)


def _compact_recounted(manifest: Manifest) -> None:
    """Under the commit lock: a compaction whose checkpoint says what was counted."""
    view = recovery.settled(manifest, [])
    tail = view.log.words[TAIL]
    log = view.cover(tail)
    read = audit.read_log(log, tail, tail)
    if read.end == tail and read.wrong_totals is not None:
        compaction.compact(manifest, view, log, read.totals)


def _reset_stamps(manifest: Manifest) -> None:
    now = expiry.now_ns()
    for word in (TOUCHED, SWEPT):
        if here.lost:
            raise refused()
        manifest.control[word] = min(manifest.control[word], now)


def _free(manifest: Manifest) -> None:
    sweep.sweep_dag(manifest, Order())


_REPAIRS = (
    ({"gap", "index", "log", "record"}, _settle),
    ({"index"}, _rebuild_index),
    ({"record"}, _leave_behind),
    ({"totals"}, _recount),
    ({"stamp"}, _reset_stamps),
    (set(FREED_BY_GC), _free),
)
