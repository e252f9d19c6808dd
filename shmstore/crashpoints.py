"""Named points at which tests kill a process.

Each step that changes shared state has a name here. A test sets ``hook`` in a
child process to something that kills it with SIGKILL at one of them; in
production ``hook`` is None and a point costs one comparison. Every name must be
hit by a fault test, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], None] | None = None

POINTS = (
    # writing a value's segment, before any lock is taken
    "segment:opened",
    "segment:written",
    # the commit, under the DAG's lock
    "commit:locked",
    "commit:written",  # the record is in the log, beyond the tail
    "commit:named",  # its segment has its name
    "commit:tail",  # the commit point has passed, the index is behind
    "commit:slot-hash",  # a new slot has its hash but no offset
    "commit:slot",  # the index is done, `indexed` is behind
    "commit:indexed",  # everything is done but the commit counter
    "commit:counted",
    "commit:unlocked",  # the replaced segment is still there
    # redoing what a dead writer left
    "redo:begin",
    "redo:slot",
    "redo:done",
    # extending the log
    "extend:allocated",  # the file is longer, nobody uses it
    "extend:mapped",
    # building a larger index
    "grow:index-created",
    "grow:index-written",
    "grow:switched",  # the new one is current, the old one still there
    "grow:done",
    # rebuilding a damaged index from the log
    "rebuild:index-created",
    "rebuild:index-written",
    "rebuild:switched",
    # compaction
    "compact:begin",
    "compact:log-created",
    "compact:log-written",
    "compact:index-created",
    "compact:index-written",
    "compact:switched",
    "compact:done",
    # creating a DAG
    "create:directory",
    "create:claimed",
    "create:log-created",
    "create:log-written",
    "create:index-created",
    "create:index-written",
    "create:whole",  # built, not yet at its place
    "create:renamed",
    # clearing a DAG
    "clear:locked",
    "clear:marked",  # CLEARED is stored, the directory is still at its path
    "clear:counted",  # waiters will see it, none has been woken
    "clear:renamed",
    "clear:freed",
    # reusing emptied segments
    "pool:claimed",  # the writer holds its lock
    "pool:written",  # half or all of a new payload is in it
    "pool:retired",  # a dead record's segment has come to the pool
    "pool:emptied",  # its memory is free, its name is still there
    # the account of a capacity
    "ledger:limited",  # the capacity holds, the account is not known yet
    "ledger:reserved",  # bytes are taken, and not noted as this process's
    "ledger:counting",  # counted, not yet stored
    # choosing a directory on disk
    "spill:owned",  # it is told whose the directory will be
    "spill:made",
    "spill:linked",
    # waiting
    "wait:announced",  # committers are asked to ring
    # sweeping
    "sweep:stamped",  # by itself: nobody else does it for a minute
    "sweep:locked",  # under the DAG's lock, a dead writer's gap redone
    "sweep:leftover",  # a log or index that is not current has been removed
    "sweep:orphan",  # a segment of no live record has been removed
    "sweep:file",  # a file of a directory in the trash has been removed
    "sweep:directory",  # that directory has been removed
    # keeping a DAG for a time only
    "ttl:stored",
)


def reach(name: str) -> None:
    """Tells the hook, if there is one, that ``name`` has been reached."""
    if hook is not None:
        hook(name)
