"""One DAG's manifest, read as it is now: without its lock, and without changing it.

A manifest can be read at any time, as readers of the store do. Here nothing is put
right either: what a dead writer left between ``indexed`` and ``tail`` is read from the
log, an index that cannot be used is done without, and what is damaged is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from shmstore import files, names, segment, stored
from shmstore.descriptor import Descriptor
from shmstore.entry import Entry
from shmstore.errors import CorruptValue, NotFound, UnusableRoot
from shmstore.inspection.control_page import Control
from shmstore.inspection.taken import Taken, look, take
from shmstore.record import (
    CREATED_WORD,
    DELETE,
    FLAGS_SHIFT,
    LENGTH_WORD,
    NBYTES_WORD,
    PAGE,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    SPILLED,
    Record,
    Totals,
    key_hash,
)
from shmstore.words import union

_ROUNDS = 32
_READ_FILES = os.O_RDONLY | os.O_DIRECTORY
_WORDS = Any  # an array of uint64


class DagSnapshot:
    """A DAG as of one moment. ``refresh`` looks anew.

    Opening it costs the same however many values it has. Where they are is looked up when
    that is first needed: from then on everything is as of that moment.

    Attributes:
        token: The name of its directory.
        directory: The open directory.
        damaged: Where records were found that fail their check, as far as was read.
    """

    def __init__(self, directory: Descriptor, token: str, spill: str | None = None) -> None:
        """Reads the manifest in ``directory``.

        Args:
            directory: The DAG's, or a copy of it.
            token: Its name.
            spill: The directory on disk to which the namespace's values are moved.

        Raises:
            FileNotFoundError: There is no manifest in it.
            CorruptValue: It cannot be read.
            UnusableRoot: Its format is of a newer version.
        """
        self.token = token
        self.directory = directory
        self.damaged: list[int] = []
        self._spill = spill
        self._look = look(directory)
        self._known: Taken | None = None

    def refresh(self) -> None:
        """Looks at how it is now. Raises as the class."""
        self.damaged.clear()
        self._look = look(self.directory)
        self._known = None

    def _taken(self) -> Taken:
        if self._known is None:
            self._known = take(self.directory, self._look)
            self._look = self._known.look
        return self._known

    @property
    def control(self) -> Control:
        """Its control page."""
        return self._look.control

    @property
    def dag_id(self) -> str:
        """Its name."""
        return self._look.control.dag_id

    @property
    def totals(self) -> Totals:
        """The running totals as of the last commit."""
        log, tail = self._look.log, self._look.tail
        return log.totals(tail) if tail >= PAGE and not tail & 7 else Totals(0, 0, 0, 0)

    @property
    def tail(self) -> int:
        """Where the log ended."""
        return self._look.tail

    @property
    def log_bytes(self) -> int:
        """Size of the log's file."""
        return self._look.log.size

    @property
    def index_bytes(self) -> int:
        """Size of the index's file; 0 if it cannot be used."""
        index = self._look.index
        return 0 if index is None else len(index.map)

    @property
    def pending(self) -> int:
        """Bytes of committed records that the index lacks: a dead writer's, or of one at work."""
        return self._look.tail - self._look.indexed

    @property
    def index_fault(self) -> str | None:
        """Why the index cannot be used, or None."""
        return self._look.index_fault

    def records(self, by: str = "stored", reverse: bool = False) -> Iterator[Record]:
        """The live records.

        Args:
            by: "stored" for the order in which they were stored, "size" or "name".
            reverse: The other way round.

        What fails its check is left out and noted in ``damaged``.
        """
        taken = self._taken()
        log = taken.look.log
        offsets, damaged = self._live()
        self.damaged += damaged
        if by == "size":
            sizes = self._words()[(offsets >> np.uint64(3)) + np.uint64(NBYTES_WORD)]
            offsets = offsets[np.argsort(sizes, kind="stable")]
        elif by == "name":
            # Damaged ones last; they are noted when they are read below.
            read = ((log.read(offset), offset) for offset in offsets.tolist())
            keys = sorted((one.key if one else b"\xff", offset) for one, offset in read)
            offsets = np.array([offset for _, offset in keys], dtype=np.uint64)
        if reverse:
            offsets = offsets[::-1]
        for start in range(0, len(offsets), 4096):
            for offset in offsets[start : start + 4096].tolist():
                found = log.read(offset)
                if found is None:
                    self.damaged.append(offset)
                elif taken.newer.get(found.key, offset) == offset:
                    yield found

    def _words(self) -> _WORDS:
        return np.frombuffer(self._look.log.words, dtype=np.uint64)

    def _live(self) -> tuple[_WORDS, list[int]]:
        """The offsets of live records in the order of storing, and those that cannot be."""
        taken = self._taken()
        more = np.array(sorted(taken.newer.values()), dtype=np.uint64)
        offsets = union(taken.slots, more)
        inside = (offsets >= PAGE) & (offsets <= taken.look.log.size - SMALLEST)
        inside &= offsets & np.uint64(7) == 0
        damaged = offsets[~inside].tolist()
        if taken.stopped is not None:
            damaged.append(taken.stopped)
        offsets = offsets[inside]
        words = self._words()
        at = offsets >> np.uint64(3)
        heads = words[at + np.uint64(LENGTH_WORD)]
        # What is neither a PUT nor a DELETE is damage, which reading it will tell.
        kept = heads >> np.uint64(32) & np.uint64(0xFF) != DELETE
        offsets, heads, at = offsets[kept], heads[kept], at[kept]
        if (heads & np.uint64(SPILLED << FLAGS_SHIFT)).any():
            # Moving a value to disk wrote its record anew, at another place.
            created = words[at + np.uint64(CREATED_WORD)]
            offsets = offsets[np.argsort(created, kind="stable")]
        return offsets, damaged

    def named_segments(self) -> tuple[set[int], int]:
        """The segments in shared memory that live records name, and the bytes moved to disk.

        Without reading the records: what is damaged, or replaced by a commit under way, counts.
        """
        offsets, _ = self._live()
        words = self._words()
        at = offsets >> np.uint64(3)
        segments = words[at + np.uint64(SEGMENT_WORD)]
        flags = words[at + np.uint64(LENGTH_WORD)] >> np.uint64(FLAGS_SHIFT)
        spilled = (flags & np.uint64(SPILLED) != 0) & (segments != 0)
        on_disk = words[at[spilled] + np.uint64(NBYTES_WORD)]
        return set(segments[~spilled].tolist()) - {0}, int(on_disk.sum())

    def entries(self, by: str = "stored", reverse: bool = False) -> Iterator[Entry]:
        """The entries of its values; see ``records``."""
        return (stored.entry_of(self.dag_id, one) for one in self.records(by, reverse))

    def find(self, id: str) -> Record:
        """The live record of a value; see ``locate``."""
        return self.locate(id)[1]

    def locate(self, id: str) -> tuple[int, Record]:
        """The offset in the log of a value's live record, and the record.

        Raises:
            NotFound: There is none.
            CorruptValue: It fails its check.
        """
        taken = self._taken()
        log = taken.look.log
        key = names.encode_id(id, "id")
        at = taken.newer.get(key)
        suspects = taken.slots[taken.hashes == np.uint64(key_hash(key))].tolist()
        for offset in suspects if at is None else [at]:
            found = log.read(offset)
            if found is None:
                where = f"{names.log_name(log.number)} at {offset}"
                raise CorruptValue("its record fails its check", where, self.dag_id, id)
            if found.key == key and found.op == PUT:
                return offset, found
        raise NotFound(self.dag_id, id)

    def history(self, start: int = PAGE) -> Iterator[tuple[int, Record, Totals]]:
        """The log's records in the order of their commits, dead ones included.

        Args:
            start: The offset to begin at.

        Yields:
            Offset, record, and the running totals after it. A CHECKPOINT ends what
            compaction moved into this log: what came before has lost its dead records.
        """
        log, tail = self._look.log, self._look.tail
        reached = start
        for offset, found in log.scan(start, tail):
            reached = offset + found.length
            yield offset, found, log.totals(reached)
        if reached != tail:
            self.damaged.append(reached)

    def payload(self, id: str) -> tuple[Record, memoryview]:
        """A value's record and its stored bytes, viewed; both as of now.

        The view holds a lease as any reader's does: it keeps nobody waiting.

        Raises:
            NotFound: There is none.
            CorruptValue: The record fails its check, or the payload is not there.
            UnusableRoot: It was moved to a directory on disk that is not there.
        """
        for _ in range(_ROUNDS):
            found = self.find(id)
            try:
                return found, self.bytes_of(found)
            except segment.SegmentGone:
                self.refresh()  # replaced meanwhile, unless it is missing
        raise CorruptValue("its segment is missing", stored.location(found), self.dag_id, id)

    def bytes_of(self, found: Record) -> memoryview:
        """The stored bytes of a record. Raises SegmentGone if they are no longer there."""
        if not found.segment:
            return memoryview(found.payload)
        place, spilled = self._place(found)
        return segment.attach(place, found.segment, found.nbytes, spilled=spilled)

    def _place(self, found: Record) -> tuple[Descriptor, bool]:
        if not found.flags & SPILLED:
            return self.directory, False
        if self._spill is None:
            raise UnusableRoot("the spill directory", "it is not known where it is")
        path = os.path.join(self._spill, names.generation_name(self.control.generation))
        try:
            return Descriptor.open(path, _READ_FILES), True
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            raise UnusableRoot(
                path, f"values were moved there, and it cannot be read: {why}"
            ) from None

    def segment_path(self, found: Record) -> str | None:
        """The path of the file of a record's payload; None if that is in the log."""
        if not found.segment:
            return None
        place, _ = self._place(found)
        return os.path.join(_path_of(place), stored.location(found))

    @property
    def path(self) -> str:
        """The path of its directory."""
        return _path_of(self.directory)

    def segments(self) -> dict[int, os.stat_result]:
        """The segments that lie in its directory, by number, named by a record or not."""
        found = {}
        for name in files.listed(self.directory):
            number = names.parse_segment_name(name)
            if number is not None:
                try:
                    found[number] = os.stat(name, dir_fd=self.directory.fd, follow_symlinks=False)
                except FileNotFoundError:
                    pass  # freed as we looked
        return found


def _path_of(directory: Descriptor) -> str:
    return os.readlink(f"/proc/self/fd/{directory.fd}")
