"""Checking a namespace: everything that can be held against something else.

A DAG's lock is held only to take note of what changes: ``tail``, the files in use, a
copy of the index, the names in the directory. The rest is looked through without it.
What then looks wrong only because a writer has gone on is looked at again, before it is
called a finding; and what a process at work is about to free is given time to go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shmstore import (
    audit,
    clearing,
    expiry,
    files,
    lookup,
    names,
    record,
    repair,
    survey,
    sweep,
    sweep_disk,
)
from shmstore.audit import Kept, LogRead
from shmstore.errors import CorruptValue, StoreBusy, StoreError, UnusableRoot
from shmstore.forked import Again, here
from shmstore.index import IndexDamagedError
from shmstore.lock import LockLost
from shmstore.log import Log
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace, control_fault, read_control
from shmstore.record import (
    CURRENT,
    HOMES,
    INDEXED,
    PUT,
    SPILLED,
    SWEPT,
    TAIL,
    TOUCHED,
    USED,
)
from shmstore.report import FREED_BY_GC, Finding, GcAction
from shmstore.retired import segment_place
from shmstore.survey import Listing
from shmstore.sweep import Order
from shmstore.sweep_plan import DagSeen, plan

#: How long what looks like a leftover may still be freed by a process at work, seconds.
PATIENCE_S = 1.0
_LOOK_S = 0.005
_TRIES = 8
_SECOND_NS = 1_000_000_000


def check(space: Namespace, fix: bool) -> list[Finding]:
    """What is not as it should be in a namespace; repaired, where it is derived.

    If the process dies here, what was repaired is, and the rest waits.

    Raises:
        UnusableRoot: The namespace has been removed.
    """
    found = [
        *_namespace(space),
        *_account(space, fix),
        *_scraps(space, fix, (sweep.trash, sweep.pages)),
    ]
    tokens = sorted(files.listed(space.dags)) if space.dags.intact() else []
    if not tokens:
        lookup.check_space(space)
    for token in tokens:
        found += _dag(space, token, fix)
    # After the DAGs, whose gaps decide which spilled segments are needed.
    return found + _scraps(space, fix, (sweep_disk.spilled,))


# --- The namespace ------------------------------------------------------------------------


def _namespace(space: Namespace) -> Iterator[Finding]:
    try:
        fault = control_fault(read_control(space.directory))
    except FileNotFoundError:
        lookup.check_space(space)
        fault = "it is missing"
    if fault:
        yield Finding("namespace", None, None, names.CONTROL, fault)


def _account(space: Namespace, fix: bool) -> Iterator[Finding]:
    """An account that is too low, by which a capacity would be exceeded.

    Too high it may be: what died may have reserved, and a recount precedes StoreFull.
    """
    deadline = time.monotonic() + PATIENCE_S
    fixed = False
    try:
        # Who was writing when the capacity was given adds that when he has named it.
        while missing := space.ledger.missing():
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        if not missing:
            return
        what = f"its account lacks {missing:,} bytes that files take"
        if fix:
            space.ledger.recount()
            fixed = not space.ledger.missing()
    except StoreBusy as error:
        what = str(error)
    yield Finding("account", None, None, names.CONTROL, what, fixed)


def _scraps(space: Namespace, fix: bool, sources: tuple[sweep.Source, ...]) -> list[Finding]:
    """What gc would free outside the DAGs' directories, without anybody at work on it."""
    looking = Order(dry_run=True)
    suspects = [action for source in sources for action in source(space, looking)]
    left = _staying(suspects, lambda one: _exists(space.directory.fd, one.name))
    freed: set[str] = set()
    if left and fix:
        freed = {one.name for source in sources for one in source(space, Order())}
    return [_finding(one, one.name in freed) for one in left]


def _finding(action: GcAction, fixed: bool) -> Finding:
    kind = action.kind if action.kind in FREED_BY_GC else "dag"
    return Finding(kind, action.dag_id, None, action.name, action.why, fixed)


def _staying(suspects: list[GcAction], there: Callable[[GcAction], bool]) -> list[GcAction]:
    """Those that are still there after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while suspects := [one for one in suspects if there(one)]:
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    return suspects


def _exists(place: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


# --- One DAG ------------------------------------------------------------------------------


def _dag(space: Namespace, token: str, fix: bool) -> list[Finding]:
    dag_id = names.parse_dag_token(token)
    try:
        manifest = lookup.open_any(space, token, None)
        if manifest is None:
            return []
        dag_id = manifest.dag_id
        if not manifest.live:
            return _cleared(space, token, fix)
        found = _audited(manifest)
        if fix and found:
            repair.repair(manifest, found)
            found = _compared(found, _audited(manifest))
        return found
    except (Superseded, LockLost):
        if not _exists(space.dags.fd, token):
            return []  # cleared as we looked
        if _exists(space.dags.fd, f"{token}/{names.LOCK}"):
            return []  # and made anew
        return [Finding("dag", dag_id, None, names.LOCK, "it is missing")]
    except CorruptValue as error:
        return [Finding("dag", dag_id, error.id, error.where, error.check)]
    except (StoreError, OSError) as error:
        if here.lost:
            raise
        return [Finding("dag", dag_id, None, token, str(error))]


def _cleared(space: Namespace, token: str, fix: bool) -> list[Finding]:
    if clearing.finish_clearing(space, token, look_only=True) is None:
        return []
    if fix:
        sweep.one_dag(space, token, Order())
    what = "it was cleared, and its clearer died"
    return [Finding("cleared", names.parse_dag_token(token), None, token, what, fix)]


def _compared(before: list[Finding], after: list[Finding]) -> list[Finding]:
    """The findings of before a repair, those marked that are not found again."""
    left = {(one.kind, one.id) for one in after}
    known = {(one.kind, one.id) for one in before}
    marked = [replace(one, fixed=(one.kind, one.id) not in left) for one in before]
    return marked + [one for one in after if (one.kind, one.id) not in known]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was taken note of under a DAG's lock."""

    current: int
    log: Log
    indexed: int
    tail: int
    table: Any
    homes: int
    used: int
    index_fault: str | None
    listing: Listing
    holes: bool

    @property
    def log_name(self) -> str:
        return names.log_name(self.current >> 32)

    @property
    def index_name(self) -> str:
        return names.index_name(self.current & 0xFFFFFFFF)


def _take(manifest: Manifest) -> _Taken:
    """Under the commit lock."""
    manifest.check_live()
    current = manifest.control[CURRENT]
    table, homes, used, fault = None, 0, 0, None
    try:
        view = manifest.fresh()
        log, index = view.log, view.index
        table = np.array(index.slots, copy=True).reshape(-1, 2)
        homes, used = index.head[HOMES], index.head[USED]
    except IndexDamagedError as error:
        log = manifest.open_log(current)
        fault = str(error.__cause__ or "it cannot be used")
    tail, indexed = log.words[TAIL], log.words[INDEXED]
    if tail > log.size:
        log = log.refresh(manifest.directory)
    listing = survey.listing(manifest)
    status = os.stat(names.log_name(log.number), dir_fd=manifest.directory.fd)
    holes = status.st_blocks * 512 < status.st_size
    return _Taken(current, log, indexed, tail, table, homes, used, fault, listing, holes)


def _audited(manifest: Manifest) -> list[Finding]:
    """What is wrong with a DAG. Changes nothing."""
    for _ in range(_TRIES):
        found: list[Finding] = []
        try:
            taken = manifest.guarded(_take, manifest)
            found += _stamps(manifest)
            found += _log_and_index(manifest, taken)
            return found
        except _Outrun:
            continue
    return found


class _Outrun(Again):
    """The log was compacted as it was looked through."""


def _stamps(manifest: Manifest) -> Iterator[Finding]:
    now = expiry.now_ns() + _SECOND_NS
    for word, done in ((TOUCHED, "used"), (SWEPT, "swept")):
        if manifest.control[word] > now:
            what = f"it says that it was last {done} in the future"
            yield Finding("stamp", manifest.dag_id, None, names.MANIFEST, what)


def _log_and_index(manifest: Manifest, taken: _Taken) -> Iterator[Finding]:
    dag_id = manifest.dag_id
    for name in sorted(taken.listing.unknown):
        yield Finding("unknown", dag_id, None, name, "it is no file of the store's")
    if taken.holes:
        yield Finding("log", dag_id, None, taken.log_name, "it has holes")
    if not record.PAGE <= taken.indexed <= taken.tail <= taken.log.size:
        ends = f"tail {taken.tail:,}, indexed {taken.indexed:,}, size {taken.log.size:,}"
        what = f"its ends cannot be: {ends}"
        yield Finding("log", dag_id, None, taken.log_name, what)
        return
    read = audit.read_log(taken.log, taken.indexed, taken.tail)
    if taken.index_fault is not None:
        yield Finding("index", dag_id, None, taken.index_name, taken.index_fault)
    if read.end != taken.tail:
        yield from _damaged_records(dag_id, taken, read)
        return
    if taken.indexed != taken.tail:
        what = f"{len(read.gap):,} records of a dead writer are not in the index"
        yield Finding("gap", dag_id, None, f"{taken.log_name} at {taken.indexed}", what)
    if read.wrong_totals is not None:
        offset, said = read.wrong_totals
        what = f"they are {tuple(said)}, and should end as {tuple(read.totals)}"
        yield Finding("totals", dag_id, None, f"{taken.log_name} at {offset}", what)
    if taken.table is not None:
        for what in audit.index_faults(taken.table, taken.homes, taken.used, read):
            yield Finding("index", dag_id, None, taken.index_name, what)
    newest = read.newest
    yield from _segments(manifest, taken, newest)
    yield from _not_needed(manifest, taken, newest)


def _damaged_records(dag_id: str, taken: _Taken, read: LogRead) -> Iterator[Finding]:
    """The records that fail their check: those that the index knows, else the first."""
    where = f"{taken.log_name} at "
    needed = [] if taken.table is None else list(audit.unreadable(taken.log, taken.table))
    for offset, hashed in sorted(needed):
        id = audit.id_at(taken.log, offset, hashed)
        yield Finding("record", dag_id, id, f"{where}{offset}", "it fails its check: lost")
    if not needed:
        what = "it fails its check; nothing behind it can be held against the index"
        yield Finding("record", dag_id, None, f"{where}{read.end}", what)


def _segments(manifest: Manifest, taken: _Taken, newest: dict[bytes, Kept]) -> Iterator[Finding]:
    """Values whose segment is missing or too short."""
    suspects = [
        (key, one)
        for key, one in newest.items()
        if one.op == PUT and one.segment and _segment_fault(manifest, one) is not None
    ]
    if not suspects:
        return
    for key, one, fault in manifest.guarded(_again, manifest, taken, suspects):
        name = names.segment_name(one.segment, spilled=bool(one.flags & SPILLED))
        yield Finding("segment", manifest.dag_id, key.decode(), name, fault)


def _segment_fault(manifest: Manifest, one: Kept) -> str | None:
    try:
        place, name = segment_place(manifest, one.segment, one.flags)
        size = os.stat(name, dir_fd=place.fd, follow_symlinks=False).st_size
    except UnusableRoot as error:
        return str(error)
    except FileNotFoundError:
        return "it is missing; its value is lost"
    if size < one.nbytes:
        return f"it holds {size:,} of the value's {one.nbytes:,} bytes; the value is lost"
    return None


def _again(
    manifest: Manifest, taken: _Taken, suspects: list[tuple[bytes, Kept]]
) -> list[tuple[bytes, Kept, str]]:
    """Those of the suspects that are still their keys' values. Under the commit lock."""
    manifest.check_live()
    if manifest.control[CURRENT] != taken.current:
        raise _Outrun
    tail = taken.log.words[TAIL]
    log = taken.log if tail <= taken.log.size else taken.log.refresh(manifest.directory)
    since = {found.key for _, found in log.scan(taken.tail, tail)}
    faults = [(k, one, _segment_fault(manifest, one)) for k, one in suspects if k not in since]
    return [(key, one, fault) for key, one, fault in faults if fault is not None]


def _not_needed(manifest: Manifest, taken: _Taken, newest: dict[bytes, Kept]) -> Iterator[Finding]:
    """What gc would free."""
    named = {one.segment for one in newest.values() if one.op == PUT and not one.flags & SPILLED}
    seen = DagSeen(
        manifest.dag_id, taken.listing, survey.current_names(taken.current), frozenset(named)
    )
    left = _staying(plan(seen), lambda one: _exists(manifest.directory.fd, one.name))
    if left:
        manifest.check_place()  # else it was cleared meanwhile
        # Another log and index may have become current, of the names of leftovers.
        current = survey.current_names(manifest.control[CURRENT])
        yield from (_finding(one, False) for one in left if one.name not in current)
