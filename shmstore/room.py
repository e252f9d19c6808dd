"""Room for a commit, made before anything is changed: a longer log, a larger index.

Everything here runs under the commit lock, and may fail: then nothing was changed.
"""

from __future__ import annotations

from shmstore import compaction, files, recovery
from shmstore.errors import StoreFull
from shmstore.index import IndexFullError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import TAIL, USED
from shmstore.view import View


def with_room(manifest: Manifest, view: View, size: int, keys: int) -> tuple[View, Log]:
    """The files with room for ``size`` bytes and ``keys`` more keys, compacted if need be.

    A put leaves as much of the file system free as a compaction would take, so that
    what is deleted can be freed. A delete, which needs no more keys, may use that.
    """
    log = view.cover(view.log.words[TAIL])
    tail = log.words[TAIL]
    dead = log.totals(tail).dead
    headroom = tail - dead + len(view.index.map) if keys else 0
    try:
        return _enlarged(manifest, view, log, size, keys, headroom)
    except (StoreFull, OSError):
        if dead < size:
            raise
        # The index may have grown before the log found no room.
        view = manifest.fresh()
        view = compaction.compact(manifest, view, view.cover(tail))
        log = view.log
        headroom = log.words[TAIL] + len(view.index.map) if keys else 0
        return _enlarged(manifest, view, log, size, keys, headroom)


def _enlarged(
    manifest: Manifest, view: View, log: Log, size: int, keys: int, headroom: int
) -> tuple[View, Log]:
    if keys and view.index.head[USED] + keys > view.index.limit:
        files.check_free(manifest.directory, 2 * len(view.index.map), headroom)
        view = recovery.grow(manifest, view, keys, headroom)
    need = log.words[TAIL] + size
    if need > log.size:
        log = view.log = log.extend(manifest.directory, need, headroom, manifest.space.ledger)
    return view, log


def mend(manifest: Manifest, error: Exception, more: int) -> None:
    """Makes the index good for a commit that could not use it. Under the lock."""
    view = recovery.settled(manifest, [])
    if isinstance(error, IndexFullError):
        recovery.grow(manifest, view, more)
    else:
        recovery.rebuild_index(manifest)
