"""A consistent look at the log and the index of a DAG, without its lock.

The index is copied while writers may be at work. What it said before that is known by
``indexed``, which is read first; what was committed since is read from the log, up to a
``tail`` that is read last: so nothing is missing, and what is torn is not needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shmstore import names
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue
from shmstore.index import Index, IndexDamagedError
from shmstore.inspection.control_page import Control, read_control
from shmstore.log import Log
from shmstore.record import CHECKPOINT, INDEXED, PAGE, TAIL

_ROUNDS = 32
_WORDS = Any  # an array of uint64


@dataclass(frozen=True, slots=True)
class Look:
    """The files in use, opened: what costs the same however many values there are.

    Attributes:
        control: The control page.
        log: The log, mapped to ``tail`` at least.
        tail: Where it ended; where the file ends, if it is cut.
        cut: Whether the log's file ends before its records do.
        index: The index; None if it cannot be used.
        index_fault: Why it cannot, or None.
    """

    control: Control
    log: Log
    tail: int
    cut: bool
    index: Index | None
    index_fault: str | None

    @property
    def indexed(self) -> int:
        """Up to where the index reaches, as its writers say."""
        return min(self.log.words[INDEXED], self.tail)


@dataclass(frozen=True, slots=True)
class Taken:
    """Where the records are that are live as of one moment.

    Attributes:
        look: The files, as of that moment.
        hashes: The hashes in the index's slots.
        slots: The offsets in them.
        newer: By key, the offsets of newest records that the index may lack.
        stopped: Where reading ``newer`` met a record that fails its check, or None.
    """

    look: Look
    hashes: _WORDS
    slots: _WORDS
    newer: dict[bytes, int]
    stopped: int | None


def look(directory: Descriptor) -> Look:
    """Opens the files in use.

    Raises:
        FileNotFoundError: There is no manifest.
        CorruptValue: It, or the log, cannot be read.
        UnusableRoot: Its format is of a newer version.
    """
    for _ in range(_ROUNDS):
        control = read_control(directory)
        log, index, fault = None, None, None
        try:
            log = _open_log(directory, control)
            index = _open_index(directory, control)
        except FileNotFoundError:
            fault = "it is missing"
        except CorruptValue as error:
            fault = error.check
        tail, cut = 0, False
        if log is not None:
            # Read once: what is committed while the log is mapped anew is not looked at.
            tail = log.words[TAIL]
            log = _covering(directory, control, log, tail)
            cut = tail > log.size
            tail = min(tail, log.size)
        if _files(read_control(directory)) != _files(control):
            continue  # replaced as we looked
        if log is None:
            name = names.log_name(control.log_number)
            raise CorruptValue(fault or "it cannot be used", name, control.dag_id)
        if fault is None and not PAGE <= log.words[INDEXED] <= log.words[TAIL]:
            index, fault = None, "it reaches further than the log"
        return Look(control, log, tail, cut, index, fault)
    raise CorruptValue("its current files change without end", names.MANIFEST)


def take(directory: Descriptor, seen: Look) -> Taken:
    """Finds the live records, by the index if it can be used.

    Args:
        directory: The DAG's.
        seen: Its files, as they were opened. If they are being freed, since the DAG has been
            cleared, what is mapped of them is what counts.

    Raises:
        CorruptValue: They are replaced without end.
    """
    for _ in range(_ROUNDS):
        if seen.index is None:
            return _by_log(seen)
        try:
            hashes, slots, start = _copied(seen.log, seen.index)
        except IndexDamagedError as error:
            return _by_log(replace(seen, index=None, index_fault=str(error)))
        # What was committed while the index was copied, half of it seen there maybe.
        try:
            after = look(directory)
        except (FileNotFoundError, CorruptValue):
            return _as_mapped(seen, hashes, slots, start)
        if after.control.live < seen.control.live:
            return _as_mapped(seen, hashes, slots, start)
        if _files(after.control) == _files(seen.control):
            newer, stopped = _newest(after.log, start, after.tail)
            return Taken(after, hashes, slots, newer, stopped)
        seen = after
    raise CorruptValue("its current files change without end", names.MANIFEST)


def _as_mapped(seen: Look, hashes: _WORDS, slots: _WORDS, start: int) -> Taken:
    """What is mapped of files that are being freed, up to the last whole record."""
    log = seen.log
    end = min(log.words[TAIL], log.size)
    newer, stopped = _newest(log, start, end)
    whole = replace(seen, tail=end if stopped is None else stopped)
    kept = slots < whole.tail
    return Taken(whole, hashes[kept], slots[kept], newer, None)


def _by_log(seen: Look) -> Taken:
    """By the log alone: slow, and right whatever the index says."""
    newest, stopped = _newest(seen.log, PAGE, seen.tail)
    if stopped is None and seen.cut:
        stopped = seen.tail
    none = np.empty(0, dtype=np.uint64)
    return Taken(seen, none, none, newest, stopped)


def _open_log(directory: Descriptor, control: Control) -> Log:
    file = _open(directory, names.log_name(control.log_number))
    try:
        return Log(file.fd, control.log_number, control.generation, writable=False)
    finally:
        file.close()


def _covering(directory: Descriptor, control: Control, log: Log, tail: int) -> Log:
    """The log, mapped anew if it was extended meanwhile; as it is if it was replaced."""
    try:
        return log if tail <= log.size else _open_log(directory, control)
    except (FileNotFoundError, CorruptValue):
        return log


def _open_index(directory: Descriptor, control: Control) -> Index:
    file = _open(directory, names.index_name(control.index_number))
    try:
        return Index(file.fd, control.index_number, control.generation, writable=False)
    finally:
        file.close()


def _open(directory: Descriptor, name: str) -> Descriptor:
    return Descriptor.open(name, os.O_RDONLY, within=directory.fd)


def _files(control: Control) -> tuple[int, bool, int, int]:
    return control.generation, control.live, control.log_number, control.index_number


def _copied(log: Log, index: Index) -> tuple[_WORDS, _WORDS, int]:
    """Hashes and offsets of an index, and up to where it reached before they were copied."""
    for attempt in range(_ROUNDS):
        start = log.words[INDEXED]
        try:
            return *index.entries(), start
        except IndexDamagedError:
            if attempt == _ROUNDS - 1:
                raise  # else a writer was storing a slot as it was copied
    raise AssertionError


def _newest(log: Log, start: int, tail: int) -> tuple[dict[bytes, int], int | None]:
    """The newest records by key between two offsets, and where reading stopped too early."""
    reached, found = start, {}
    for offset, one in log.scan(start, tail):
        reached = offset + one.length
        if one.op != CHECKPOINT:
            found[one.key] = offset
    return found, None if reached == tail else reached
