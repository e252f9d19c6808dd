"""Freeing what nobody needs: what killed processes left, and what has expired.

``sweep_plan`` decides from what was seen; here is looked and done. Nothing relies on who
is alive: what a live record names is never touched; a directory that is being built is
locked by its builder; everything else is decided under the lock of those who would
change it. So any number of sweeps may run beside any number of users, and one that dies
anywhere has freed something or nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from shmstore import clearing, expiry, files, lookup, names, pool, recovery, survey
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, StoreError
from shmstore.forked import here, refused
from shmstore.index import IndexDamagedError
from shmstore.lock import Lock, LockLost
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.report import GcAction
from shmstore.survey import Listing
from shmstore.sweep_plan import DagSeen, plan_leftovers, plan_orphans
from shmstore.words import among

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_TRIES = 8


@dataclass(frozen=True, slots=True)
class Order:
    """How to sweep.

    Attributes:
        dry_run: Change nothing.
        older_than_s: For DAGs without a time to live of their own; None keeps them.
        patience_s: How long to wait for a lock; None for as long as a writer would.
        deadline: When to stop, ``time.monotonic``; None to go through to the end.
        pool_kept_s: How long emptied segments are kept for reuse.
    """

    dry_run: bool = False
    older_than_s: int | None = None
    patience_s: float | None = None
    deadline: float | None = None
    pool_kept_s: float = pool.KEPT_S

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.deadline is not None and time.monotonic() > self.deadline


#: Looks through one place and frees what it should; yields each thing when it is freed.
Source: TypeAlias = Callable[[Namespace, Order], Iterator[GcAction]]


def dags(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Sweeps every DAG: expired ones whole, of the others what they do not need."""
    try:
        tokens = files.listed(space.dags)
    except OSError:
        tokens = []
    if not tokens:
        lookup.check_space(space)
    for token in sorted(tokens):
        if order.over:
            return
        yield from one_dag(space, token, order)


def one_dag(space: Namespace, token: str, order: Order) -> list[GcAction]:
    """Sweeps the DAG at a place."""
    return guarded(names.parse_dag_token(token), token, lambda: _dag(space, token, order))


def _dag(space: Namespace, token: str, order: Order) -> list[GcAction]:
    manifest = lookup.open_any(space, token, None)
    if manifest is None:
        return []
    manifest.lock.patience_s = order.patience_s
    if manifest.live:
        return _expire(space, manifest, order) or sweep_dag(manifest, order)
    aside = clearing.finish_clearing(space, token, _lifecycle(space, order), order.dry_run)
    if aside is None:
        return []
    nbytes = _free_tree(space, aside, manifest.directory, order)
    why = "it was cleared, and its clearer died"
    return [GcAction("cleared", manifest.dag_id, token, nbytes, why)]


def _lifecycle(space: Namespace, order: Order) -> Lock:
    """A lifecycle lock of our own, with our patience."""
    own = Lock(space.directory, names.LIFECYCLE_LOCK, space.lifecycle.what, rank=0)
    own.patience_s = order.patience_s
    return own


def _expire(space: Namespace, manifest: Manifest, order: Order) -> list[GcAction]:
    """Clears a DAG that has expired.

    That it has is judged again under its lock: a writer or an opener may have come.
    """

    def judge(found: Manifest) -> bool:
        return expiry.expired(found, order.older_than_s)

    if not judge(manifest):
        return []
    token = names.dag_token(manifest.dag_id)
    unused_s = expiry.unused_ns(manifest) / 1e9
    limit_s = expiry.limit_s(manifest, order.older_than_s)
    aside: str | None = token
    if not order.dry_run:
        aside = clearing.clear_if(space, manifest, judge, _lifecycle(space, order))
    if aside is None:
        return []
    nbytes = _free_tree(space, aside, manifest.directory, order)
    why = f"unused for {unused_s:,.0f} seconds, kept for {limit_s:,}"
    return [GcAction("expired", manifest.dag_id, token, nbytes, why)]


def sweep_dag(manifest: Manifest, order: Order) -> list[GcAction]:
    """Frees what a DAG does not need, and finishes what a dead writer left half done."""
    done: list[GcAction] = []
    trust_index = True
    for _ in range(_TRIES):
        listing = survey.listing(manifest)
        seen = manifest.guarded(_look, manifest, order, listing, done)
        if not listing.segments:
            return done
        try:
            actions = _orphans(manifest, listing, seen if trust_index else seen.by_log())
        except FileNotFoundError:  # its files were replaced meanwhile
            done = [] if order.dry_run else done
            continue
        except IndexDamagedError:
            if order.dry_run:
                done, trust_index = [], False
            else:
                manifest.guarded(recovery.rebuild_index, manifest)
            continue
        for action in actions:
            if order.over:
                break
            done.append(_freed(manifest, action, order, "sweep:orphan"))
        return done
    raise CorruptValue("its files change without end", "the DAG's directory", manifest.dag_id)


def _look(
    manifest: Manifest, order: Order, listing: Listing, done: list[GcAction]
) -> survey.Moment:
    """Under the lock. Removes leftovers, too, as a writer might be about to use their names."""
    seen = survey.moment(manifest, redo=not order.dry_run)
    current = survey.current_names(seen.current)
    leftovers = plan_leftovers(DagSeen(manifest.dag_id, listing, current, frozenset()))
    done += [_freed(manifest, one, order, "sweep:leftover") for one in leftovers]
    return seen


def _orphans(manifest: Manifest, listing: Listing, seen: survey.Moment) -> list[GcAction]:
    listed = np.fromiter(listing.segments, dtype=np.uint64, count=len(listing.segments))
    named, _ = survey.live_segments(seen)
    live = frozenset(listed[among(listed, named)].tolist())
    current = survey.current_names(seen.current)
    actions = plan_orphans(DagSeen(manifest.dag_id, listing, current, live))
    if actions and not survey.records_sound(seen):
        raise CorruptValue(
            "a record fails its check, so that it cannot be told which segments are needed",
            names.log_name(seen.log.number),
            manifest.dag_id,
        )
    return actions


def _freed(manifest: Manifest, action: GcAction, order: Order, point: str) -> GcAction:
    nbytes = free_file(manifest.space, manifest.directory, action.name, order.dry_run)
    if not order.dry_run:
        reach(point)
    return replace(action, nbytes=nbytes)


def free_file(space: Namespace, place: Descriptor, name: str, dry_run: bool) -> int:
    """Removes a file of shared memory; the bytes that it took, 0 if somebody was faster."""
    nbytes = files.allocated(place, name)
    if dry_run:
        return nbytes
    # Only a segment is locked by those who view it, and may be cut if nobody does.
    if names.parse_segment_name(name) is None:
        removed = space.ledger.unlink(place, name)
    else:
        removed = pool.discard(space, place, name, nbytes)
    return nbytes if removed else 0


def trash(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Frees cleared DAGs, and those whose creator died: it holds no lock on them any more."""
    try:
        listed = files.listed(space.trash)
    except OSError:
        lookup.check_space(space)
        return
    for name in sorted(listed):
        if name.startswith(f"{names.VIEWED}-"):
            continue
        if order.over:
            return
        yield from guarded(None, f"{names.TRASH}/{name}", partial(_scrap, space, name, order))


def _scrap(space: Namespace, name: str, order: Order) -> list[GcAction]:
    kind, why = "trash", "it was cleared"
    try:
        directory = Descriptor.open(name, _DIRECTORY, within=space.trash.fd, inherit=False)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        nbytes = free_file(space, space.trash, name, order.dry_run)
        return [GcAction(kind, None, f"{names.TRASH}/{name}", nbytes, "it is of no use")]
    if not name.startswith("old-"):
        kind, why = "abandoned", "its creator died"
        if not files.claimed(directory, space.trash, name):
            return []
    nbytes = _free_tree(space, name, directory, order)
    return [GcAction(kind, None, f"{names.TRASH}/{name}", nbytes, why)]


def _free_tree(space: Namespace, name: str, directory: Descriptor, order: Order) -> int:
    if order.dry_run:
        return sum(files.allocated(directory, file) for file in files.listed(directory))
    nbytes = 0
    for file in files.listed(directory):
        nbytes += free_file(space, directory, file, dry_run=False)
        reach("sweep:file")
        if order.over:
            return nbytes
    if here.lost:
        raise refused()
    try:
        os.rmdir(name, dir_fd=space.trash.fd)
    except FileNotFoundError:
        pass  # another sweep was faster
    reach("sweep:directory")
    return nbytes


def pages(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Removes control pages that were to replace the namespace's when their writer died."""
    asides = [n for n in files.listed(space.directory) if n.startswith(names.CONTROL_ASIDE)]
    if not asides:
        return

    def remove(_: None) -> list[GcAction]:
        why = "its writer died"
        return [
            GcAction(
                "page", None, name, free_file(space, space.directory, name, order.dry_run), why
            )
            for name in asides
        ]

    yield from guarded(None, names.CONTROL, lambda: _lifecycle(space, order).run(remove, None))


def emptied(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Frees emptied segments that nobody has claimed for long enough, or views."""
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME) - order.pool_kept_s
    for name, _, emptied_s in pool.listed(space):
        if emptied_s > before_s:
            continue
        nbytes = pool.unviewed(space.pool, name) if order.dry_run else pool.free(space, name)
        if nbytes is not None:
            why = "an emptied segment that was kept for reuse"
            yield GcAction("pool", None, f"{names.POOL}/{name}", nbytes, why)


def viewed(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Frees segments that were viewed when their values died, and are no longer."""
    for name in pool.viewed(space):
        if order.over:
            return
        if order.dry_run:
            nbytes = pool.unviewed(space.trash, name)
        else:
            nbytes = pool.free_viewed(space, name)
        if nbytes is not None:
            why = "a dead value's segment that was viewed until now"
            yield GcAction("viewed", None, f"{names.TRASH}/{name}", nbytes, why)


def guarded(dag_id: str | None, name: str, look: Callable[[], list[GcAction]]) -> list[GcAction]:
    """What ``look`` did. What cannot be looked at is reported and stops nothing else."""
    try:
        return look()
    except Superseded:
        return []  # cleared as we looked
    except (LockLost, IndexDamagedError) as error:
        fault = str(error) or "its lock is missing"
    except (StoreError, OSError) as error:
        if here.lost:
            raise
        fault = str(error)
    return [GcAction("failed", dag_id, name, 0, fault)]
