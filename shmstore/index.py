"""The index: from a key's hash to the offset of its newest record in the log.

Open addressing with linear probing over slots of two words, (hash, offset and
tag). Slots never move and are never reused. A chain does not wrap: behind the
``homes`` slots that a hash can point at there is some padding, and the last slot
stays empty. A slot is written hash first, and whether it is used is judged by its
second word, so a reader needs no lock. Everything here is derived from the log
and can be rebuilt from it.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

from shmstore import files, names, record
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue
from shmstore.files import map_shared, write_all
from shmstore.forked import Again
from shmstore.ledger import Ledger
from shmstore.record import EMPTY, HOMES, INDEX_HEADER, INDEX_MAGIC, ROOM, SLOT, USED

FIRST_HOMES = 256
_PADDING = 1024  # slots behind the homes, at most
_TAG = np.uint64(65521)
_WORDS = Any  # an array of uint64


class IndexDamagedError(Again):
    """The index contradicts itself or the log; it can be rebuilt from the log."""


class IndexFullError(Again):
    """A chain has come to the end of the slots: the index is to be grown."""


class Index:
    """One mapped index file.

    Attributes:
        number: m in ``index.<m>``.
        mask: ``homes - 1``; a hash's first slot is ``hash & mask``.
        room: Slots in all, padding included.
        last: The word of the last slot, which stays unused.
        limit: Used slots from which on the index is to grow.
        slots: The slots as words: hash, word, hash, word, ...
    """

    __slots__ = ("head", "last", "limit", "map", "mask", "number", "room", "slots")

    def __init__(self, fd: int, number: int, generation: int, writable: bool = True) -> None:
        size = os.fstat(fd).st_size
        where = names.index_name(number)
        head = os.pread(fd, INDEX_HEADER, 0)
        if len(head) < INDEX_HEADER:
            raise CorruptValue(f"its size is {size:,} bytes", where)
        fault = record.page_fault(head, INDEX_MAGIC)
        words = memoryview(head).cast("Q")
        homes, room = words[HOMES], words[ROOM]
        expected = generation.to_bytes(16, "little") + number.to_bytes(8, "little")
        if fault is None and head[24:48] != expected:
            fault = "it belongs to another DAG"
        if fault is None and size != INDEX_HEADER + room * SLOT:
            fault = f"its size is {size:,} bytes"
        if fault:
            raise CorruptValue(fault, where)
        self.number = number
        self.mask = homes - 1
        self.room = room
        self.limit = homes * 2 // 3
        self.last = (room - 1) * 2
        self.map: mmap.mmap = map_shared(fd, size, writable)
        whole = memoryview(self.map)
        self.head = whole[:INDEX_HEADER].cast("Q")
        self.slots = whole[INDEX_HEADER:].cast("Q")

    @classmethod
    def open(cls, directory: Descriptor, number: int, generation: int) -> Index:
        """Maps ``index.<number>``. Raises FileNotFoundError if it has been replaced."""
        file = Descriptor.open(names.index_name(number), os.O_RDWR, within=directory.fd)
        try:
            return cls(file.fd, number, generation)
        finally:
            file.close()

    def count(self) -> int:
        """How many slots are used, by looking at all of them."""
        return int(np.count_nonzero(np.frombuffer(self.slots, dtype=np.uint64)[1::2]))

    def entries(self) -> tuple[_WORDS, _WORDS]:
        """Copies of the hashes and offsets of all used slots.

        Raises:
            IndexDamagedError: A slot's tag is wrong.
        """
        table = np.array(self.slots, copy=True).reshape(-1, 2)
        used = table[table[:, 1] != 0]
        hashes, words = used[:, 0], used[:, 1]
        offsets = words >> np.uint64(16)
        if ((offsets ^ hashes) % _TAG != words & np.uint64(0xFFFF)).any():
            raise IndexDamagedError(f"a slot's tag in {names.index_name(self.number)} is wrong")
        return hashes, offsets

    def used(self) -> int:
        """The used slots, counted."""
        words = np.frombuffer(self.slots, dtype=np.uint64)
        return int(np.count_nonzero(words[1::2]))


def homes_for(keys: int) -> int:
    """Home slots for so many keys and some more."""
    homes = FIRST_HOMES
    while homes < keys * 2:
        homes *= 2
    return homes


def size_for(keys: int) -> int:
    """Bytes of an index over so many keys, unless many of them share a home."""
    homes = homes_for(keys)
    return INDEX_HEADER + (homes + min(homes, _PADDING)) * SLOT


def build(hashes: _WORDS, offsets: _WORDS, homes: int, spare: int = 0) -> tuple[_WORDS, int, int]:
    """Places distinct keys into a table of at least ``homes`` home slots.

    Args:
        hashes: uint64, one a key; equal hashes of different keys are fine.
        offsets: uint64, the keys' records.
        homes: A power of two.
        spare: Unused slots that are to follow the last chain, besides the usual.

    Returns:
        The table as words (room, 2), the homes and the room.
    """
    count = len(hashes)
    while homes * 2 < count * 3 or homes < FIRST_HOMES:
        homes *= 2
    home = hashes & np.uint64(homes - 1)
    order = np.argsort(home, kind="stable")
    rank = np.arange(count, dtype=np.int64)
    # Linear probing in one pass: each key lies at its home or right behind the key
    # before it, whichever is further.
    places = np.maximum.accumulate(home[order].astype(np.int64) - rank) + rank
    # Chains do not wrap, so however many keys share a home, they must fit behind it.
    end = int(places[-1]) + 1 if count else 0
    room = max(homes, end) + min(homes, _PADDING) + spare
    table = np.empty((room, 2), dtype=np.uint64)
    table[:, 0] = EMPTY
    table[:, 1] = 0
    sorted_hashes, sorted_offsets = hashes[order], offsets[order]
    table[places, 0] = sorted_hashes
    table[places, 1] = sorted_offsets << np.uint64(16) | (sorted_offsets ^ sorted_hashes) % _TAG
    return table, homes, room


def create(
    directory: Descriptor,
    number: int,
    generation: int,
    hashes: _WORDS,
    offsets: _WORDS,
    homes: int,
    during: str,
    ledger: Ledger,
    spare: int = 0,
    headroom: int = 0,
) -> None:
    """Writes ``index.<number>`` over the given keys.

    Nobody uses the file until the manifest's ``current`` names it; if the process
    dies here, the next writer that needs the number replaces the leftover.

    Raises:
        StoreFull: No room; nothing has changed.
    """
    table, homes, room = build(hashes, offsets, homes, spare)
    files.check_free(directory, table.nbytes)
    head = bytearray(
        record.build_page(
            {
                record.MAGIC: INDEX_MAGIC,
                record.VERSION: record.FORMAT_VERSION,
                record.GENERATION_LOW: generation & 0xFFFFFFFFFFFFFFFF,
                record.GENERATION_HIGH: generation >> 64,
                record.INDEX_NUMBER: number,
                HOMES: homes,
                ROOM: room,
            },
            size=INDEX_HEADER,
        )
    )
    head[USED * 8 : USED * 8 + 8] = len(hashes).to_bytes(8, "little")
    reserved = ledger.reserve(len(head) + table.nbytes, headroom)
    with ledger.new_file(directory, names.index_name(number), reserved) as file:
        reach(f"{during}:index-created")
        write_all(file, [bytes(head), memoryview(table).cast("B")])
        reach(f"{during}:index-written")
