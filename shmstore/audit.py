"""Holding a log and the index over it against each other, and against their own sums.

Works on what was taken while the DAG's lock was held: the log up to its tail, which
never changes again, and a copy of the index. Reads, decides, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shmstore.log import Log
from shmstore.record import CHECKPOINT, EMPTY, HEAD_SIZE, PAGE, PUT, Totals, key_hash, slot_offset
from shmstore.words import among

_TAG = np.uint64(65521)
_NOTHING = Totals(0, 0, 0, 0)
_TABLE = Any  # an array of uint64, (slots, 2)


class Kept(NamedTuple):
    """What is remembered of a record."""

    offset: int
    op: int
    flags: int
    nbytes: int
    segment: int
    length: int
    key_hash: int


@dataclass(slots=True)
class LogRead:
    """What a log says.

    Attributes:
        end: Where its sound records end; less than the tail if one fails its check.
        before: The newest record of each key up to where the index reaches.
        gap: The keys and records behind that, in order.
        totals: The running totals, counted.
        wrong_totals: The first record that says otherwise: its offset and its totals.
    """

    end: int = PAGE
    before: dict[bytes, Kept] = field(default_factory=dict)
    gap: list[tuple[bytes, Kept]] = field(default_factory=list)
    totals: Totals = _NOTHING
    wrong_totals: tuple[int, Totals] | None = None

    @property
    def newest(self) -> dict[bytes, Kept]:
        """The newest record of each key."""
        return {**self.before, **dict(self.gap)}


def read_log(log: Log, indexed: int, tail: int) -> LogRead:
    """Reads every record of a log up to ``tail``, and counts what their totals should be."""
    read = LogRead()
    live: dict[bytes, Kept] = {}
    sequence = nbytes = dead = 0
    for offset, found in log.scan(PAGE, tail):
        read.end = offset + found.length
        kept = Kept(
            offset,
            found.op,
            found.flags,
            found.nbytes,
            found.segment,
            found.length,
            found.key_hash,
        )
        said = log.totals(read.end)
        old = live.pop(found.key, None)
        if old is not None:
            nbytes -= old.nbytes
            dead += old.length
        sequence += 1
        if found.op == PUT:
            live[found.key] = kept
            nbytes += found.nbytes
        else:
            dead += found.length
        if found.op == CHECKPOINT:
            # What compaction moved before it keeps totals of its own.
            sequence, read.wrong_totals = said.sequence, None
        elif offset < indexed:
            read.before[found.key] = kept
        else:
            read.gap.append((found.key, kept))
        read.totals = Totals(sequence, len(live), nbytes, dead)
        if said != read.totals and read.wrong_totals is None:
            read.wrong_totals = offset, said
    return read


def index_faults(table: _TABLE, homes: int, used: int, read: LogRead) -> Iterator[str]:
    """What is wrong with an index over a log that was read to its end.

    Args:
        table: Its slots, copied.
        homes: How many of them are homes.
        used: How many it says are used.
        read: The log.
    """
    hashes, words = table[:, 0], table[:, 1]
    taken = words != 0
    places = np.flatnonzero(taken)
    offsets, hashed = words[taken] >> np.uint64(16), hashes[taken]

    tags = (offsets ^ hashed) % _TAG != words[taken] & np.uint64(0xFFFF)
    yield from _told(places[tags], "has a wrong tag")

    # A key whose dead writer had come to its slot points at the newer record already.
    records = [*read.before.values(), *(kept for _, kept in read.gap)]
    expected = np.array([one.offset for one in records], dtype=np.uint64)
    expected_hashes = np.array([one.key_hash for one in records], dtype=np.uint64)
    if len(expected):
        order = np.argsort(expected)
        at = np.minimum(np.searchsorted(expected[order], offsets), len(expected) - 1)
        right = (expected[order][at] == offsets) & (expected_hashes[order][at] == hashed)
    else:
        right = np.zeros(len(offsets), dtype=bool)
    yield from _told(places[~right & ~tags], "does not point at its key's newest record")

    there = set(offsets.tolist())
    again = {key for key, _ in read.gap}
    missing = [k for k, one in read.before.items() if one.offset not in there and k not in again]
    if missing:
        yield f"{_count(len(missing), 'key')} of the log cannot be found in it"
    if len(there) != len(offsets):
        yield f"{_count(len(offsets) - len(there), 'record')} is pointed at twice"

    empties = np.concatenate(([0], np.cumsum(~taken)))
    home = (hashed & np.uint64(homes - 1)).astype(np.int64)
    cut_off = (home > places) | (empties[places] != empties[np.minimum(home, places)])
    yield from _told(places[cut_off & ~tags], "cannot be reached from its home")

    half = ~taken & (hashes != np.uint64(EMPTY))
    if read.gap:  # its dead writer may have come to the hash only
        half &= ~among(hashes, np.array([one.key_hash for _, one in read.gap], dtype=np.uint64))
    yield from _told(np.flatnonzero(half), "is half written")
    if taken[-1]:
        yield "its last slot is used"
    if used != len(places) and not read.gap:
        yield f"it says that {used:,} slots are used, and {len(places):,} are"


def _told(places: Any, what: str) -> Iterator[str]:
    if len(places):
        more = f", and {len(places) - 1:,} more like it" if len(places) > 1 else ""
        yield f"slot {int(places[0]):,} {what}{more}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def id_at(log: Log, offset: int, hashed: int) -> str | None:
    """The id in a record that fails its check, if its hash shows that it is still the one."""
    start = offset + HEAD_SIZE
    size = int.from_bytes(log.map[offset + 48 : offset + 50], "little")
    key = log.map[start : start + size]
    if key_hash(key) != hashed:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def unreadable(log: Log, table: _TABLE) -> Iterator[tuple[int, int]]:
    """Offsets and hashes of slots whose record fails its check."""
    for hashed, word in table[table[:, 1] != 0].tolist():
        offset = slot_offset(word, hashed)
        if offset < 0 or log.read(offset) is None:
            yield offset, hashed
