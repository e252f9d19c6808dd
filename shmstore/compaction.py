"""Compaction: a new log without what is dead in the old one.

Readers are not disturbed: they go on with the old files until they see that
``current`` has changed. A failure is swallowed, as the old files still hold.
"""

from __future__ import annotations

import numpy as np

from shmstore import files, index, log, names, record
from shmstore.crashpoints import reach
from shmstore.forked import here
from shmstore.index import Index, IndexDamagedError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import CHECKPOINT, CURRENT, LENGTH_WORD, PAGE, PUT, TAIL, Totals
from shmstore.view import View

#: Dead bytes of a log below which compacting it is not worth it.
FLOOR = 1 << 20


def when_worth_it(manifest: Manifest, view: View, old_log: Log, dead: int) -> None:
    """Compacts if dead bytes exceed live ones. Under the commit lock."""
    if dead * 2 < old_log.words[TAIL] - PAGE or dead < manifest.compact_at:
        return
    try:
        compact(manifest, view, old_log)
        manifest.compact_at = 0
    except Exception:
        if here.lost:
            raise
        # The commit before it stands, and so do the old files.
        manifest.compact_at = dead + FLOOR  # not again at once


def compact(manifest: Manifest, view: View, old_log: Log, recounted: Totals | None = None) -> View:
    """Writes a new log of the live records and an index over it; makes them current.

    Records are moved as they are; only a checkpoint with the new totals is added.

    Args:
        manifest: The DAG.
        view: Its current files.
        old_log: The log, mapped up to its tail.
        recounted: The totals, where those in the log are not to be believed.

    If the process dies before ``current`` is stored, nothing has changed; after
    that, only the old files are left over.
    """
    reach("compact:begin")
    if manifest.control[CURRENT] != view.current:
        raise IndexDamagedError("these files are not the current ones")
    tail = old_log.words[TAIL]
    hashes, offsets, sizes = _live_records(view, old_log, tail)
    starts = np.cumsum(sizes) - sizes
    totals = recounted or old_log.totals(tail)
    if len(hashes) != totals.live:
        # Something is damaged. In the old files it can be seen, so they are kept.
        raise IndexDamagedError("the index and the totals count differently")
    homes, index_bytes = index.homes_for(len(hashes)), index.size_for(len(hashes))
    directory, generation = manifest.directory, manifest.generation
    files.check_free(directory, int(sizes.sum()) + 4 * PAGE + index_bytes)
    length = record.SMALLEST
    checksum, body = record.encode(
        CHECKPOINT, 0, 0, 0, 0, 0, 0, 0, 0, b"",
        (totals.sequence, totals.live, totals.nbytes, length),
        old_log.seed,
    )  # fmt: skip
    runs = _runs(old_log, offsets, sizes)
    runs.append(checksum.to_bytes(8, "little") + body)

    ledger = manifest.space.ledger
    current = view.current
    log_number, index_number = (current >> 32) + 1, (current & 0xFFFFFFFF) + 1
    try:
        log.create(
            directory,
            log_number,
            generation,
            runs,
            int(sizes.sum()) + length,
            "compact",
            ledger,
            beside=index_bytes,
        )
        index.create(
            directory,
            index_number,
            generation,
            hashes,
            (starts + PAGE).astype(np.uint64),
            homes,
            "compact",
            ledger,
        )
        compacted = View(
            directory,
            log_number << 32 | index_number,
            Log.open(directory, log_number, generation),
            Index.open(directory, index_number, generation),
        )
        manifest.switch(compacted)
    except BaseException:
        if not here.lost and manifest.control[CURRENT] == current:
            ledger.unlink(directory, names.log_name(log_number))
            ledger.unlink(directory, names.index_name(index_number))
        raise
    reach("compact:switched")
    # Those before the old ones may be left over from a writer that died here.
    for before in (1, 2):
        ledger.unlink(directory, names.log_name(log_number - before))
        ledger.unlink(directory, names.index_name(index_number - before))
    reach("compact:done")
    return compacted


def _live_records(view: View, old_log: Log, tail: int) -> tuple[np.typing.NDArray[np.uint64], ...]:
    """Hashes, offsets and lengths of the live records, in the order of the log."""
    hashes, offsets = view.index.entries()
    order = np.argsort(offsets)
    hashes, offsets = hashes[order], offsets[order]
    if len(offsets) and int(offsets[-1]) + record.SMALLEST > tail:
        raise IndexDamagedError("a slot points behind the tail")
    words = np.frombuffer(old_log.words, dtype=np.uint64)
    heads = words[(offsets >> np.uint64(3)) + np.uint64(LENGTH_WORD)]
    live = (heads >> np.uint64(32)) & np.uint64(0xFF) == PUT
    hashes, offsets = hashes[live], offsets[live]
    sizes = heads[live] & np.uint64(0xFFFFFFFF)
    if len(offsets) and (
        (offsets + sizes > tail).any() or (offsets[1:] < (offsets + sizes)[:-1]).any()
    ):
        raise IndexDamagedError("a record overlaps the next")
    return hashes, offsets, sizes


def _runs(
    source: Log, offsets: np.typing.NDArray[np.uint64], sizes: np.typing.NDArray[np.uint64]
) -> list[memoryview | bytes]:
    """The stretches of the log that the given records cover, neighbours joined."""
    if not len(offsets):
        return []
    ends = offsets + sizes
    breaks = np.flatnonzero(offsets[1:] != ends[:-1])
    firsts = offsets[np.concatenate(([0], breaks + 1))].tolist()
    lasts = ends[np.concatenate((breaks, [len(ends) - 1]))].tolist()
    return [source.view[first:last] for first, last in zip(firsts, lasts, strict=True)]
