"""Room for a commit, made before anything is changed: a longer log, a larger index.

Everything here runs under the commit lock, and may fail: then nothing was changed.
"""

from __future__ import annotations

from shmstore import compaction, files, index, recovery
from shmstore.errors import StoreFull
from shmstore.index import IndexFullError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import PAGE, TAIL, USED
from shmstore.view import View


def with_room(manifest: Manifest, size: int, keys: int) -> tuple[View, Log]:
    """The files with room for ``size`` bytes and ``keys`` more keys, compacted if need be.

    A put leaves as much of the file system free as a compaction would take, so that
    what is deleted can be freed. A delete, which needs no more keys, may use that.

    The caller must keep no reference to the files that it had: as long as an old log is
    mapped, a compaction does not free its memory.
    """
    view = manifest.fresh()
    log = view.cover(view.log.words[TAIL])
    tail = log.words[TAIL]
    dead = log.totals(tail).dead
    try:
        return _enlarged(manifest, view, log, size, keys, tail - dead)
    except (StoreFull, OSError):
        if dead < size:
            raise
    # Only here, outside of the handler, is the error gone with all that it referred to.
    # The index may have grown before the log found no room.
    view = manifest.fresh()
    view = compaction.compact(manifest, view, view.cover(tail))
    log = view.log
    return _enlarged(manifest, view, log, size, keys, log.words[TAIL])


def _enlarged(
    manifest: Manifest, view: View, log: Log, size: int, keys: int, live: int
) -> tuple[View, Log]:
    headroom = 0
    if keys:
        # What a compaction would take after this put.
        wanted = view.index.head[USED] + keys
        index_bytes = index.size_for(wanted)
        # Pages: the log's first one, its reserve, and what roundings take.
        headroom = live + size + index_bytes + 5 * PAGE
        if wanted > view.index.limit:
            files.check_free(manifest.directory, index_bytes, headroom)
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
