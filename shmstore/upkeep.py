"""When a store is swept: asked for, by itself on opening a DAG, and when it is full.

By itself at most once a minute a DAG and a namespace, whoever opens it: a stamp in the page,
raised before the work, keeps others from doing it again. If the process dies after
that, what it meant to free waits for another minute.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace

from shmstore import expiry, files, lookup, names, sweep, sweep_disk
from shmstore.crashpoints import reach
from shmstore.errors import StoreError
from shmstore.forked import here
from shmstore.ledger import SWEPT as NAMESPACE_SWEPT
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace
from shmstore.record import CURRENT, SLOT, SWEPT
from shmstore.report import GcAction, GcReport
from shmstore.sweep import Order

#: What sweeping other DAGs may add to opening one, seconds.
BUDGET_S = 0.005
_EVERY_NS = 60_000_000_000
# About what looking at a slot of the index takes, and at a name in the directory, whose
# size on tmpfs is so many bytes a name.
_SLOT_S, _NAME_S = 30e-9, 1e-6
_NAME_SIZE = 20


#: What a sweep looks through: DAGs first, as what expires there comes to the trash.
SOURCES: tuple[sweep.Source, ...] = (
    sweep.dags,
    sweep.trash,
    sweep.pages,
    sweep.emptied,
    sweep.viewed,
    sweep_disk.spilled,
    sweep_disk.notes,
)


def gc(space: Namespace, order: Order) -> GcReport:
    """Frees what nobody needs in a namespace, and says what was freed.

    If the process dies here, what is left waits for the next sweep.

    Raises:
        UnusableRoot: The namespace has been removed.
    """
    report = GcReport(order.dry_run, tuple(_sweep(space, order)))
    if not order.dry_run:
        space.ledger.recount()  # what dead processes had reserved is nobody's
    return report


def _sweep(space: Namespace, order: Order) -> Iterator[GcAction]:
    for source in SOURCES:
        yield from source(space, order)


def on_opening(space: Namespace, manifest: Manifest) -> None:
    """Sweeps the DAG that was opened, and of the namespace as much as the budget allows.

    Waits for no lock. Whatever goes wrong is left to a gc that is asked for.
    """
    order = Order(patience_s=0.0)
    try:
        if _due(manifest):
            _stamp(manifest.control, SWEPT)
            # Through to the end: cut short, a large one would never get there.
            sweep.one_dag(space, names.dag_token(manifest.dag_id), order)
        if not _elapsed(space.control[NAMESPACE_SWEPT], 1.0):
            return
        _stamp(space.control, NAMESPACE_SWEPT)
        order = replace(order, deadline=time.monotonic() + BUDGET_S)
        for source in SOURCES:
            if source is not sweep.dags:
                for _ in source(space, order):
                    pass
        _sweep_others(space, order)
    except (StoreError, OSError):
        if here.lost:
            raise


def _sweep_others(space: Namespace, order: Order) -> None:
    tokens = files.listed(space.dags)
    random.shuffle(tokens)  # so that in time it is everyone's turn
    for token in tokens:
        if order.over:
            return
        try:
            manifest = lookup.open_any(space, token, None)
        except StoreError:
            continue
        if manifest is not None and _due(manifest):
            _stamp(manifest.control, SWEPT)
            sweep.one_dag(space, token, order)


def on_full(space: Namespace) -> int:
    """Sweeps everything, since room is short; returns the bytes of memory freed."""
    swept = _sweep(space, Order(patience_s=0.0, pool_kept_s=0.0))
    return sum(one.nbytes for one in swept if not one.name.startswith(f"{names.SPILL}/"))


def _stamp(control: memoryview, word: int) -> None:
    if not here.lost:
        control[word] = expiry.now_ns()
    reach("sweep:stamped")


def _due(manifest: Manifest) -> bool:
    """Whether a minute has gone by; more, where sweeping takes longer than the budget."""
    swept = manifest.control[SWEPT]
    return _elapsed(swept, 1.0) and _elapsed(swept, _cost_s(manifest) / BUDGET_S)


def _elapsed(swept: int, times: float) -> bool:
    # A stamp of the future is damage, not a reason never to sweep again.
    return not 0 <= expiry.now_ns() - swept < _EVERY_NS * max(times, 1.0)


def _cost_s(manifest: Manifest) -> float:
    """About how long sweeping a DAG takes."""
    directory = manifest.directory
    index = names.index_name(manifest.control[CURRENT] & 0xFFFFFFFF)
    try:
        index_size = os.stat(index, dir_fd=directory.fd).st_size
        return index_size / SLOT * _SLOT_S + os.fstat(directory.fd).st_size / _NAME_SIZE * _NAME_S
    except OSError:
        return 0.0
