"""Following the log of one DAG: its PUTs in the order of their commits, none missed.

A follower has the log's file open, so that it can go on reading one that has been
replaced by compaction or cleared: what was committed to it before that is read to its
end. The next log then begins with what compaction moved, which the follower knows, up
to ``base``. Needs no lock, and is one thread's.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from shmstore import names, reading, recovery
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue
from shmstore.log import Log
from shmstore.manifest import Manifest
from shmstore.record import (
    CREATED_WORD,
    CURRENT,
    DELETE,
    LIVE,
    PAGE,
    PUT,
    SPILLED,
    STATE,
    TAIL,
    Record,
)

# Records taken at once.
_MOST = 128
_RETRIES = 64


class Taken(NamedTuple):
    """A PUT, or a DELETE if those are asked for, and its number in the history of the DAG."""

    sequence: int
    record: Record


class Follower:
    """A place in the log of a DAG.

    Attributes:
        manifest: The DAG.
        began: The number of the last record before the first one that is followed.
        missed: DELETEs may have been missed, as compaction drops them, and it was done
            twice since the last look. Whoever needs them compares whole states, and sets
            it back.
    """

    __slots__ = (
        "_deletes",
        "_file",
        "_log",
        "_newer",
        "_offset",
        "_sequence",
        "_stored",
        "began",
        "manifest",
        "missed",
    )

    _file: Descriptor
    _log: Log

    def __init__(self, manifest: Manifest, deletes: bool = False) -> None:
        """Follows what is committed from now on.

        Args:
            manifest: The DAG.
            deletes: Take the DELETEs, too.

        Raises:
            Superseded: The DAG was cleared or has lost its place.
            CorruptValue: The log is damaged.
        """
        self.manifest = manifest
        self.missed = False
        self._deletes = deletes
        # What was stored before: offsets of records, and see ``reading.Snapshot``.
        self._stored: list[int] = []
        self._newer: dict[bytes, int] = {}
        self._open()
        end = self._end()
        self._offset = end
        self.began = self._sequence = self._log.totals(end).sequence

    @classmethod
    def after(cls, manifest: Manifest, sequence: int) -> Follower:
        """Follows what was committed behind the record of that number, and is in the log."""
        follower = cls(manifest)
        follower.began = follower._sequence = sequence
        follower._seek()
        return follower

    @classmethod
    def stored_since(cls, manifest: Manifest, created_ns: int, deletes: bool = False) -> Follower:
        """Follows what is stored and was created then or later, and what comes after that."""
        follower = cls(manifest, deletes)
        log, offsets, newer, end = follower._snapshot()
        created = np.frombuffer(log.words, dtype=np.int64)[
            (offsets >> np.uint64(3)) + np.uint64(CREATED_WORD)
        ]
        chosen = offsets[created >= created_ns].tolist()
        follower._offset = end
        follower._sequence = log.totals(end).sequence
        follower.began = log.totals(chosen[0] if chosen else end).sequence
        follower._stored, follower._newer = chosen[::-1], newer
        return follower

    def take(self) -> list[Taken]:
        """The next PUTs, some of them if there are many; none if there are none yet.

        Raises:
            Superseded: The DAG was cleared or has lost its place, and its log has been
                read to the end.
            CorruptValue: The log is damaged.
        """
        while self._stored:
            taken = self._take_stored()
            if taken:
                return taken
        control = self.manifest.control
        while True:
            # Before the tail: a log that was replaced by then has its last tail.
            replaced = control[STATE] != LIVE or control[CURRENT] >> 32 != self._log.number
            end = self._end()
            if self._offset < end:
                taken = self._take_until(end)
                if taken:
                    return taken
            elif not replaced:
                return []
            else:
                self.manifest.check_live()
                self._go_on()

    def _take_until(self, end: int) -> list[Taken]:
        log, base, sequence = self._log, self._log.base, self._sequence
        taken: list[Taken] = []
        offset = self._offset
        while offset < end and len(taken) < _MOST:
            found = self._read(offset)
            offset += found.length
            number = log.totals(offset).sequence
            # What compaction moved keeps its number, and a CHECKPOINT has that of the
            # record before it. A spilled record is an old value, unless it is all that
            # compaction has left of it.
            if number > sequence:
                sequence = number
                if (found.op == PUT and (not found.flags & SPILLED or offset <= base)) or (
                    found.op == DELETE and self._deletes
                ):
                    taken.append(Taken(number, found))
        self._offset, self._sequence = offset, sequence
        return taken

    def _take_stored(self) -> list[Taken]:
        taken: list[Taken] = []
        while self._stored and len(taken) < _MOST:
            offset = self._stored.pop()
            found = self._read(offset)
            if found.op == PUT and self._newer.get(found.key, offset) == offset:
                taken.append(Taken(self._log.totals(offset + found.length).sequence, found))
        return taken

    def _read(self, offset: int) -> Record:
        """The record at ``offset``, which was committed: looked at twice, if need be."""
        found = self._log.read(offset)
        if found is None:
            self._settle()
            found = self._log.read(offset)
        if found is None:
            raise CorruptValue(
                "a record fails its check",
                f"{names.log_name(self._log.number)} at {offset}",
                self.manifest.dag_id,
            )
        return found

    def _end(self) -> int:
        """Where the log ends, up to which it is mapped."""
        for attempt in range(2):
            end = self._log.words[TAIL]
            if end > self._log.size and self._file.ours():
                self._log = self._log.remapped(self._file.fd)
            if PAGE <= end <= self._log.size and not end & 7:
                return end
            if not attempt:
                self._settle()
        raise CorruptValue("its tail is damaged", names.log_name(self._log.number))

    def _settle(self) -> None:
        """Lets a writer finish that explains what looks odd, or repairs it."""
        if self.manifest.control[CURRENT] >> 32 == self._log.number and self.manifest.live:
            self.manifest.guarded(recovery.settled, self.manifest, [])

    def _go_on(self) -> None:
        """Opens the log that has taken the place of ours, which has been read."""
        before = self._log.number
        self._open()
        if self._log.number == before + 1:
            self._offset = self._log.base
        else:
            # Ours was replaced by one that has been replaced, too.
            self.missed = True
            self._seek()

    def _seek(self) -> None:
        """Goes to a record before all those with a number above ``_sequence``."""
        if not self._sequence:
            self._offset = PAGE
            return
        _, offsets, _, _ = self._snapshot()

        def number_at(place: int) -> int:
            offset = int(offsets[place])
            return self._log.totals(offset + self._read(offset).length).sequence

        place = bisect_right(range(len(offsets)), self._sequence, key=number_at)
        self._offset = int(offsets[place - 1]) if place else PAGE

    def _snapshot(self) -> reading.Snapshot:
        """A snapshot of the log that we have open, which is the current one."""
        for _ in range(_RETRIES):
            snapshot = reading.snapshot(self.manifest)
            if snapshot[0].number == self._log.number:
                self._end()
                return snapshot
            self._open()
        raise self._endless()

    def _open(self) -> None:
        """Opens the current log and keeps the file open.

        Raises:
            Superseded: The DAG was cleared or has lost its place.
        """
        manifest = self.manifest
        for _ in range(_RETRIES):
            current = manifest.control[CURRENT]
            try:
                file = Descriptor.open(
                    names.log_name(current >> 32), os.O_RDWR, within=manifest.directory.fd
                )
                self._log = Log(file.fd, current >> 32, manifest.generation)
            except (FileNotFoundError, CorruptValue) as error:
                manifest.check_place()
                if manifest.control[CURRENT] != current:
                    continue
                check = error.check if isinstance(error, CorruptValue) else "it is missing"
                raise CorruptValue(check, names.log_name(current >> 32), manifest.dag_id) from None
            except OSError as error:
                raise manifest.converted(error) from error
            self._file = file
            return
        raise self._endless()

    def _endless(self) -> CorruptValue:
        return CorruptValue(
            "its current files change without end", names.MANIFEST, self.manifest.dag_id
        )
