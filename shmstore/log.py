"""The log: records in the order of their commits, and how far it is committed.

One file, mapped once a process and grown in place. Page 0 holds two words that
change: ``tail``, where committed records end, and ``indexed``, where those end that
the index reflects. The file is always allocated to its size, so a store into the
mapping cannot fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from shmstore import files, names, record
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, StoreFull
from shmstore.files import map_shared, write_all
from shmstore.forked import here, refused
from shmstore.ledger import Ledger
from shmstore.record import BASE, INDEXED, LOG_MAGIC, PAGE, SMALLEST, TAIL, Record, Totals, decode

#: A new DAG's log, bytes.
FIRST_SIZE = 16 * PAGE
#: Room that puts leave for deletes, so that a full file system can be relieved.
RESERVE = 2 * PAGE
_LARGEST_STEP = 32 << 20


class Log:
    """One mapped log file.

    Attributes:
        number: n in ``log.<n>``.
        map: The mapping; slicing it copies bytes out.
        view: The mapping as bytes, to store records into.
        words: The mapping as words.
        size: Bytes mapped.
        seed: Seed of the records' checksums, so that no other DAG's records pass.
    """

    __slots__ = ("map", "number", "seed", "size", "view", "words")

    def __init__(self, fd: int, number: int, generation: int, writable: bool = True) -> None:
        size = os.fstat(fd).st_size
        where = names.log_name(number)
        if size < PAGE or size % 8:
            raise CorruptValue(f"its size is {size:,} bytes", where)
        page = os.pread(fd, PAGE, 0)
        fault = record.page_fault(page, LOG_MAGIC)
        if fault is None and page[24:48] != _identity(generation, number):
            fault = "it belongs to another DAG"
        if fault:
            raise CorruptValue(fault, where)
        self.number = number
        self.seed = generation & 0xFFFFFFFFFFFFFFFF
        self.size = size
        self.map = map_shared(fd, size, writable)
        self.view = memoryview(self.map)
        self.words = self.view.cast("Q")

    @classmethod
    def open(cls, directory: Descriptor, number: int, generation: int) -> Log:
        """Maps ``log.<number>``. Raises FileNotFoundError if it has been replaced."""
        file = Descriptor.open(names.log_name(number), os.O_RDWR, within=directory.fd)
        try:
            return cls(file.fd, number, generation)
        finally:
            file.close()

    @property
    def base(self) -> int:
        """Where the records begin that no compaction moved here."""
        base = self.words[BASE]
        return base if PAGE <= base <= self.size else PAGE

    def totals(self, tail: int) -> Totals:
        """The running totals of the record that ends at ``tail``, which is mapped."""
        if tail == PAGE:
            return Totals(0, 0, 0, 0)
        at = (tail - record.TOTALS_SIZE) >> 3
        words = self.words
        return Totals(words[at], words[at + 1], words[at + 2], words[at + 3])

    def length_at(self, offset: int) -> int:
        """The length in the record's header at ``offset``, or 0 if it cannot be one."""
        if not PAGE <= offset <= self.size - record.SMALLEST or offset & 7:
            return 0
        length = self.words[(offset >> 3) + 1] & 0xFFFFFFFF
        if length < record.SMALLEST or length & 7 or offset + length > self.size:
            return 0
        return length

    def read(self, offset: int) -> Record | None:
        """The record at ``offset``, or None if none is there that passes its check."""
        if not PAGE <= offset <= self.size - SMALLEST or offset & 7:
            return None
        length = self.words[(offset >> 3) + 1] & 0xFFFFFFFF
        return decode(self.map[offset : offset + length], self.seed)

    def scan(self, start: int, end: int) -> Iterator[tuple[int, Record]]:
        """The records between two offsets; ends early where one fails its check.

        Nothing beyond a damaged record is given: one that was lost might have
        replaced or deleted what is found elsewhere.
        """
        offset = start
        while offset < end:
            found = self.read(offset)
            if found is None or offset + found.length > end:
                return
            yield offset, found
            offset += found.length

    def extend(self, directory: Descriptor, need: int, headroom: int, ledger: Ledger) -> Log:
        """A mapping of the same file with at least ``need`` bytes, allocated.

        Args:
            directory: The DAG's.
            need: Bytes.
            headroom: Bytes that must stay free on the file system.
            ledger: The account of the namespace.

        Only under the commit lock. If the process dies here, the file is longer
        than it needs to be, which the next writer uses.

        Raises:
            StoreFull: The headroom would be used; nothing has changed.
            OSError: With ENOSPC, if the file system is full; nothing has changed.
        """
        file = Descriptor.open(names.log_name(self.number), os.O_RDWR, within=directory.fd)
        try:
            if file.size < need:
                enough = _whole_pages(need)
                free = files.check_free(directory, enough - file.size, headroom)
                # Generously, as long as that leaves the headroom untouched.
                much = _whole_pages(max(need, file.size + min(file.size, _LARGEST_STEP)))
                if not headroom or free - (much - file.size) < headroom:
                    much = enough
                try:
                    _allocate(file, much, headroom, ledger)
                except (StoreFull, OSError):
                    _allocate(file, enough, headroom, ledger)
                reach("extend:allocated")
            longer = self.remapped(file.fd)
        finally:
            file.close()
        reach("extend:mapped")
        return longer

    def refresh(self, directory: Descriptor) -> Log:
        """A mapping of the same file as long as it is now. Raises FileNotFoundError."""
        file = Descriptor.open(names.log_name(self.number), os.O_RDWR, within=directory.fd)
        try:
            return self.remapped(file.fd)
        finally:
            file.close()

    def remapped(self, fd: int) -> Log:
        """A mapping of the same file, open as ``fd``, as long as it is now."""
        longer = Log.__new__(Log)
        longer.number, longer.seed = self.number, self.seed
        longer.size = os.fstat(fd).st_size
        longer.map = map_shared(fd, longer.size)
        longer.view = memoryview(longer.map)
        longer.words = longer.view.cast("Q")
        return longer


def _allocate(file: Descriptor, size: int, headroom: int, ledger: Ledger) -> None:
    reserved = ledger.reserve(size - file.size, headroom)
    try:
        if here.lost:
            raise refused()
        os.posix_fallocate(file.fd, file.size, size - file.size)
    except BaseException:
        if os.fstat(file.fd).st_size == file.size:
            ledger.cancel(reserved)
        else:
            ledger.settle(reserved)
        raise
    ledger.settle(reserved)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _identity(generation: int, number: int) -> bytes:
    return generation.to_bytes(16, "little") + number.to_bytes(8, "little")


def create(
    directory: Descriptor,
    number: int,
    generation: int,
    body: list[memoryview | bytes],
    body_size: int,
    during: str,
    ledger: Ledger,
    beside: int = 0,
) -> None:
    """Writes ``log.<number>`` with ``body`` as its committed records.

    There is room for a quarter more, if as much again and ``beside`` stay free, else
    for a few deletes.

    Nobody uses the file until the manifest's ``current`` names it; if the process
    dies here, the next writer that needs the number replaces the leftover.
    """
    end = PAGE + body_size
    page = bytearray(
        record.build_page(
            {
                record.MAGIC: LOG_MAGIC,
                record.VERSION: record.FORMAT_VERSION,
                record.GENERATION_LOW: generation & 0xFFFFFFFFFFFFFFFF,
                record.GENERATION_HIGH: generation >> 64,
                record.LOG_NUMBER: number,
                BASE: end,
            }
        )
    )
    for word in (TAIL, INDEXED):
        page[word * 8 : word * 8 + 8] = end.to_bytes(8, "little")
    more = end // 4
    try:
        files.check_free(directory, end + more, more + beside)
        reserved = ledger.reserve(max(FIRST_SIZE, _whole_pages(end + more)), more + beside)
    except StoreFull:
        more = RESERVE
        reserved = ledger.reserve(max(FIRST_SIZE, _whole_pages(end + more)))
    with ledger.new_file(directory, names.log_name(number), reserved) as file:
        reach(f"{during}:log-created")
        write_all(file, [bytes(page), *body])
        os.posix_fallocate(file.fd, 0, max(FIRST_SIZE, _whole_pages(end + more)))
        reach(f"{during}:log-written")
