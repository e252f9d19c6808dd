"""What lies in a DAG's directory, and what of it the manifest needs.

For those that look after a DAG, ``sweep`` and ``check``: they open it for themselves,
so that looking at it is no use of it, and hold its lock for a moment only.

Which segments are needed is decided like this. The directory is listed first. Then the
lock is taken: whoever named a listed segment has by now committed its record or died,
as both happens under the lock. Then, without the lock, the live records are looked
through: those that were live under the lock are all among them, or have been
replaced since. So a listed segment that none of them names is garbage, and as numbers
are never used twice, it stays garbage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest as checksum

from shmstore import files, names, recovery
from shmstore.crashpoints import reach
from shmstore.errors import CorruptValue
from shmstore.index import IndexDamagedError
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import (
    CHECKPOINT,
    CURRENT,
    INDEXED,
    LENGTH_WORD,
    PAGE,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    SPILLED,
    TAIL,
)
from shmstore.view import View

_TRIES = 8
_WORDS = Any  # an array of uint64


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a DAG's directory.

    Attributes:
        segments: The numbers of its segments.
        numbered: Its logs and indexes.
        unknown: What is not the store's.
    """

    segments: frozenset[int]
    numbered: frozenset[str]
    unknown: frozenset[str]


def listing(manifest: Manifest) -> Listing:
    """Lists a DAG's directory."""
    segments: set[int] = set()
    numbered: set[str] = set()
    unknown: set[str] = set()
    for name in files.listed(manifest.directory):
        number = names.parse_segment_name(name)
        if number is not None:
            segments.add(number)
        elif names.parse_numbered(name):
            numbered.add(name)
        elif name not in (names.MANIFEST, names.LOCK):
            unknown.add(name)
    return Listing(frozenset(segments), frozenset(numbered), frozenset(unknown))


def current_names(current: int) -> frozenset[str]:
    """The log and the index that a value of ``current`` names."""
    return frozenset((names.log_name(current >> 32), names.index_name(current & 0xFFFFFFFF)))


@dataclass(frozen=True, slots=True)
class Moment:
    """A DAG's files as of a moment at which its lock was held.

    Attributes:
        current: The word that names them.
        view: The files in use; None if the index cannot be used or lags behind.
        log: The log, mapped up to the tail.
        tail: Where it ended.
    """

    current: int
    view: View | None
    log: Log
    tail: int

    def by_log(self) -> Moment:
        """The same, to be looked through by the log alone: slow, and right without an index."""
        return replace(self, view=None)


def moment(manifest: Manifest, redo: bool) -> Moment:
    """Takes note of the files in use. Under the commit lock.

    Args:
        manifest: The DAG.
        redo: Finish what a dead writer left, and repair an index that cannot be opened.

    Raises:
        Superseded: The DAG was cleared or has lost its place.
        CorruptValue: It is damaged.
    """
    manifest.check_live()
    view: View | None
    if redo:
        view = recovery.settled(manifest, [])
        log = view.log
    else:
        try:
            view = manifest.fresh()
            log = view.log
        except IndexDamagedError:
            view, log = None, manifest.open_log(manifest.control[CURRENT])
    tail = log.words[TAIL]
    if tail > log.size:
        log = log.refresh(manifest.directory)
    if view is not None and log.words[INDEXED] != tail:
        view = None
    seen = Moment(manifest.control[CURRENT], view, log, tail)
    reach("sweep:locked")
    return seen


def live_segments(seen: Moment) -> tuple[_WORDS, _WORDS]:
    """The numbers of the segments that live records name: in the DAG, and spilled ones.

    Raises:
        IndexDamagedError: The index contradicts itself or the log.
        CorruptValue: The log is damaged.
        FileNotFoundError: The files have been replaced; look again.
    """
    log, offsets = newest(seen)
    words = np.frombuffer(log.words, dtype=np.uint64)
    at = offsets >> np.uint64(3)
    heads = words[at + np.uint64(LENGTH_WORD)]
    segments = words[at + np.uint64(SEGMENT_WORD)]
    named = ((heads >> np.uint64(32)) & np.uint64(0xFF) == PUT) & (segments != 0)
    spilled = named & (heads >> np.uint64(48) & np.uint64(SPILLED) != 0)
    return segments[named & ~spilled], segments[spilled]


def newest(seen: Moment) -> tuple[Log, _WORDS]:
    """A log and the offsets of the newest records of all keys in it.

    Raises:
        IndexDamagedError: The index contradicts itself or the log.
        CorruptValue: The log is damaged.
        FileNotFoundError: The files have been replaced; look again.
    """
    if seen.view is None:
        return seen.log, _newest_by_log(seen)
    for attempt in range(_TRIES):
        try:
            _, offsets = seen.view.index.entries()
            break
        except IndexDamagedError:
            if attempt == _TRIES - 1:
                raise  # else a writer was storing a slot as it was copied
    if not len(offsets):
        return seen.log, offsets
    # Those of writers that came later, too: what they have replaced is not needed.
    last = int(offsets.max()) + SMALLEST
    log = seen.view.cover(last)
    if last > log.size:
        raise IndexDamagedError("a slot points behind the log")
    # And whole: the last one may begin in what is mapped and end in what was added since.
    end = last - SMALLEST + (log.words[(last - SMALLEST >> 3) + LENGTH_WORD] & 0xFFFFFFFF)
    return seen.view.cover(end) if end > log.size else log, offsets


def _newest_by_log(seen: Moment) -> _WORDS:
    found: dict[bytes, int] = {}
    reached = PAGE
    for offset, one in seen.log.scan(PAGE, seen.tail):
        reached = offset + one.length
        if one.op != CHECKPOINT:
            found[one.key] = offset
    if reached != seen.tail:
        raise CorruptValue("a record fails its check", f"the log at {reached}")
    return np.array([*found.values()], dtype=np.uint64)


def records_sound(seen: Moment) -> bool:
    """Whether every newest record passes its check.

    One that does not may hide what it names.
    """
    log, offsets = newest(seen)
    raw, words, seed = log.map, log.words, log.seed
    for offset in offsets.tolist():
        length = log.length_at(offset)
        if not length or words[offset >> 3] != checksum(raw[offset + 8 : offset + length], seed):
            return False
    return True
