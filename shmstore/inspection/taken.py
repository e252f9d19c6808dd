"""A consistent look at the log and the index of a DAG, without its lock.

The index is copied while writers may be at work. What it said before that is known by
``indexed``, which is read first; what was committed since is read from the log, up to a
``tail`` that is read last: so nothing is missing, and what is torn is not needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
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
class Taken:
    """A consistent look at the files in use.

    Attributes:
        control: The control page.
        log: The log, mapped to ``tail`` at least.
        tail: Where it ended.
        indexed: Up to where the index reached.
        hashes: The hashes in the index's slots.
        slots: The offsets in them.
        newer: By key, the offsets of newest records that the index may lack.
        stopped: Where reading ``newer`` met a record that fails its check, or None.
        index_bytes: Size of the index's file.
        index_fault: Why the index was done without, or None.
    """

    control: Control
    log: Log
    tail: int
    indexed: int
    hashes: _WORDS
    slots: _WORDS
    newer: dict[bytes, int]
    stopped: int | None
    index_bytes: int
    index_fault: str | None


def take(directory: Descriptor) -> Taken:
    """Looks at the files in use, by the index if it can be used.

    Raises:
        FileNotFoundError: There is no manifest.
        CorruptValue: It, or the log, cannot be read.
        UnusableRoot: Its format is of a newer version.
    """
    for _ in range(_ROUNDS):
        control = read_control(directory)
        try:
            log, index = _open_log(directory, control), _open_index(directory, control)
            hashes, slots, start = _copied(log, index)
        except (CorruptValue, FileNotFoundError, IndexDamagedError) as error:
            if _files(read_control(directory)) != _files(control):
                continue  # replaced as we looked
            why = error.check if isinstance(error, CorruptValue) else str(error)
            if isinstance(error, FileNotFoundError):
                why = "it is missing"
            return _by_log(directory, control, why)
        # What was committed while the index was copied, half of it seen there maybe.
        log = _covering(directory, control, log)
        tail = min(log.words[TAIL], log.size)
        if _files(read_control(directory)) != _files(control):
            continue
        if not PAGE <= start <= tail:
            return _by_log(directory, control, "it reaches further than the log")
        newer, stopped = _newest(log, start, tail)
        indexed, size = min(log.words[INDEXED], tail), len(index.map)
        return Taken(control, log, tail, indexed, hashes, slots, newer, stopped, size, None)
    raise CorruptValue("its current files change without end", names.MANIFEST)


def _by_log(directory: Descriptor, control: Control, fault: str) -> Taken:
    """A look by the log alone: slow, and right whatever the index says."""
    try:
        log = _open_log(directory, control)
    except FileNotFoundError:
        name = names.log_name(control.log_number)
        raise CorruptValue("it is missing", name, control.dag_id) from None
    tail = min(log.words[TAIL], log.size)
    newest, stopped = _newest(log, PAGE, tail)
    if stopped is None and log.words[TAIL] > tail:
        stopped = tail  # the file was cut
    none = np.empty(0, dtype=np.uint64)
    indexed = log.words[INDEXED]
    return Taken(control, log, tail, indexed, none, none, newest, stopped, 0, fault)


def _open_log(directory: Descriptor, control: Control) -> Log:
    file = _open(directory, names.log_name(control.log_number))
    try:
        return Log(file.fd, control.log_number, control.generation, writable=False)
    except CorruptValue as error:
        raise CorruptValue(error.check, error.where, control.dag_id) from None
    finally:
        file.close()


def _covering(directory: Descriptor, control: Control, log: Log) -> Log:
    """The log, mapped anew if it was extended meanwhile."""
    return log if log.words[TAIL] <= log.size else _open_log(directory, control)


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
