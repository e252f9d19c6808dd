"""Going on where a dead writer stopped, and repairing what is derived.

Everything here runs under the commit lock. A writer may die at any point: what it
wrote to the log behind ``tail`` is overwritten by the next one; what it committed
but did not finish is redone here. The index is rebuilt from the log when the two
contradict each other. The log itself cannot be rebuilt from anything: where it is
damaged, CorruptValue says so, since guessing might bring back a replaced value.
"""

from __future__ import annotations

import numpy as np

from shmstore import index, names, record
from shmstore.crashpoints import reach
from shmstore.errors import CorruptValue
from shmstore.forked import here, refused
from shmstore.index import Index, IndexDamagedError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import (
    CHECKPOINT,
    COUNTER,
    CURRENT,
    FLAGS_SHIFT,
    INDEXED,
    LENGTH_WORD,
    NBYTES_WORD,
    PAGE,
    PUT,
    SEGMENT_WORD,
    TAIL,
    USED,
)
from shmstore.retired import Retired
from shmstore.view import View


def settled(manifest: Manifest, freed: list[Retired]) -> View:
    """The current files with every committed record in the index.

    Args:
        manifest: The DAG, whose lock the caller holds.
        freed: Takes the segments that redone records replaced.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
        CorruptValue: The log is damaged where it must be read.
    """
    try:
        view = manifest.fresh()
    except IndexDamagedError:
        return rebuild_index(manifest)
    words = view.log.words
    if words[TAIL] != words[INDEXED]:
        view = _redo(manifest, view, freed)
    else:
        tail = words[TAIL]
        if not PAGE <= tail <= view.cover(tail).size or tail & 7:
            view = _repair_positions(manifest, view)
    return view


def _redo(manifest: Manifest, view: View, freed: list[Retired]) -> View:
    """Puts committed records into the index that a dead writer left out of it.

    Doing it twice does no harm, so this may die anywhere and be done again.
    """
    reach("redo:begin")
    words = view.log.words
    start, end = words[INDEXED], words[TAIL]
    if not PAGE <= start < end:
        return _repair_positions(manifest, view)
    log = view.cover(end)
    pending = list(log.scan(start, end))
    if not pending or pending[-1][0] + pending[-1][1].length != end:
        return _repair_positions(manifest, view)
    try:
        if view.index.head[USED] + len(pending) > view.index.limit:
            view = grow(manifest, view, len(pending))
        for offset, found in pending:
            if found.op == CHECKPOINT:
                continue
            at, old = view.locate(log, found.key, found.key_hash)
            if at >= view.index.last:
                view = grow(manifest, view, len(pending))
                at, old = view.locate(log, found.key, found.key_hash)
            old_words = log.words
            if old and old != offset and (old_words[(old >> 3) + LENGTH_WORD] >> 32) & 0xFF == PUT:
                segment = old_words[(old >> 3) + SEGMENT_WORD]
                if segment:
                    if here.lost:
                        # What a child finds without the lock may be the newest value.
                        raise refused()
                    head = old_words[(old >> 3) + LENGTH_WORD]
                    nbytes = old_words[(old >> 3) + NBYTES_WORD]
                    freed.append((segment, nbytes, head >> FLAGS_SHIFT))
            place(view.index, at, found.key_hash, offset)
            reach("redo:slot")
    except IndexDamagedError:
        return rebuild_index(manifest)
    # The dead writer may have counted a slot and not come to use it.
    used = view.index.used()
    if here.lost:
        raise refused()
    view.index.head[USED] = used
    log.words[INDEXED] = end
    manifest.control[COUNTER] += 1
    reach("redo:done")
    return view


def place(found: Index, at: int, hashed: int, offset: int) -> None:
    """Points a slot at a record: the hash first, as the second word makes it count."""
    slots = found.slots
    new = not slots[at + 1]
    word = record.slot_word(offset, hashed)
    if here.lost:
        raise refused()
    slots[at] = hashed
    reach("commit:slot-hash")
    if here.lost:
        raise refused()
    slots[at + 1] = word
    if new:
        found.head[USED] += 1


def _repair_positions(manifest: Manifest, view: View) -> View:
    """Finds out which of ``tail`` and ``indexed`` is damaged, and repairs it.

    They differ, but what lies between them is no run of whole records. As long as
    no writer died at that very moment, the sound one of the two is the true end.
    """
    log = view.log.refresh(manifest.directory)
    words = log.words
    ends = {PAGE}
    for offset, found in log.scan(PAGE, log.size):
        ends.add(offset + found.length)
    tail, indexed = words[TAIL], words[INDEXED]
    sound = [end for end in (tail, indexed) if end in ends]
    if not sound:
        raise CorruptValue(
            "a record that was committed fails its check",
            f"{names.log_name(log.number)} between {max(ends)} and {max(tail, indexed)}",
            manifest.dag_id,
        )
    found_tail = max(sound)
    if here.lost:
        raise refused()
    words[TAIL] = found_tail
    view.log = log
    return rebuild_index(manifest)


def rebuild_index(manifest: Manifest) -> View:
    """Builds a new index from the log and makes it current.

    If the process dies here, the damaged index stays current and the next one
    that meets the damage rebuilds it.
    """
    current = manifest.control[CURRENT]
    log = manifest.open_log(current)
    tail = log.words[TAIL]
    newest: dict[bytes, tuple[int, int]] = {}
    reached = PAGE
    for offset, found in log.scan(PAGE, tail):
        reached = offset + found.length
        if found.op != CHECKPOINT:
            newest[found.key] = (found.key_hash, offset)
    if reached != tail:
        raise CorruptValue(
            "its index is damaged, and the log from which to rebuild it, too",
            f"{names.log_name(log.number)} at {reached}",
            manifest.dag_id,
        )
    pairs = np.array([*newest.values()], dtype=np.uint64).reshape(-1, 2)
    view = switch_index(manifest, log, pairs[:, 0], pairs[:, 1], len(newest), "rebuild")
    if here.lost:
        raise refused()
    log.words[INDEXED] = tail
    return view


def grow(manifest: Manifest, view: View, more: int, headroom: int = 0) -> View:
    """Makes an index with room for ``more`` keys current.

    Leaves ``headroom`` bytes of a capacity free.

    Built from the old index alone: its slots hold one newest record a key.

    Raises:
        IndexDamagedError: The old index contradicts itself.
    """
    hashes, offsets = view.index.entries()
    wanted = len(hashes) + more
    return switch_index(manifest, view.log, hashes, offsets, wanted, "grow", headroom)


def switch_index(
    manifest: Manifest,
    log: Log,
    hashes: np.typing.NDArray[np.uint64],
    offsets: np.typing.NDArray[np.uint64],
    wanted: int,
    during: str,
    headroom: int = 0,
) -> View:
    """Writes an index over the given keys and stores ``current``.

    If the process dies before that store, nothing has changed; after it, only the
    old file is left over.
    """
    current = manifest.control[CURRENT]
    old = current & 0xFFFFFFFF
    homes = index.homes_for(wanted)
    ledger = manifest.space.ledger
    index.create(
        manifest.directory,
        old + 1,
        manifest.generation,
        hashes,
        offsets,
        homes,
        during,
        ledger,
        spare=wanted - len(hashes),
        headroom=headroom,
    )
    built = Index.open(manifest.directory, old + 1, manifest.generation)
    view = View(manifest.directory, current + 1, log, built)
    manifest.switch(view)
    reach(f"{during}:switched")
    # The one before the old one may be left over from a writer that died here.
    for number in (old, old - 1):
        ledger.unlink(manifest.directory, names.index_name(number))
    if during == "grow":
        reach("grow:done")
    return view
