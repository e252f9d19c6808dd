"""What processes have reserved: a note of each, in a file that it keeps locked.

A note whose lock can be had is a dead process's and counts for nothing. Everything here
runs under the account's lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from weakref import WeakSet

from shmstore import files, names
from shmstore.descriptor import Descriptor


class Reservation:
    """Bytes that are about to be written and have no name yet.

    Attributes:
        nbytes: How many.
        counted: False if there was no capacity when they were reserved.
    """

    __slots__ = ("__weakref__", "counted", "nbytes")

    def __init__(self, nbytes: int, counted: bool = True) -> None:
        self.nbytes = nbytes
        self.counted = counted


class Reservations:
    """Those of this process, and the notes of all.

    What is dropped without a word, by an interrupt say, is no longer reserved.

    Args:
        directory: The namespace's.
    """

    __slots__ = ("_directory", "_note", "_own")

    def __init__(self, directory: Descriptor) -> None:
        self._directory = directory
        self._note: Descriptor | None = None
        self._own: WeakSet[Reservation] = WeakSet()

    def __contains__(self, reserved: Reservation) -> bool:
        return reserved in self._own

    def add(self, reserved: Reservation) -> None:
        """Takes up one of this process's; to be noted."""
        self._own.add(reserved)

    def discard(self, reserved: Reservation) -> None:
        """Drops one; to be noted."""
        self._own.discard(reserved)

    def after_fork(self) -> None:
        """In a child, in which the note is closed: what the parent reserved is the parent's."""
        if self._note is not None and self._note.fd < 0:
            self._note = None
            self._own.clear()

    @property
    def noted(self) -> bool:
        """Whether ``note`` would need no new file."""
        return not self._own or (self._note is not None and self._note.ours())

    def note(self) -> None:
        """Writes down what this process has reserved."""
        total = sum(reserved.nbytes for reserved in self._own)
        if self._note is None or not self._note.ours():
            if not total:
                return
            self._note = self._new()
        files.write_all(self._note, [total.to_bytes(8, "little")])

    def _new(self) -> Descriptor:
        place = self._place()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            note = Descriptor.open(os.urandom(8).hex(), flags, within=place.fd, inherit=False)
        finally:
            place.close()
        fcntl.flock(note.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return note

    def of_all(self) -> Iterator[tuple[str, int | None]]:
        """The name of each note, and what it says; None for a dead process's."""
        place = self._place()
        try:
            for name in files.listed(place):
                try:
                    note = Descriptor.open(name, os.O_RDWR, within=place.fd, inherit=False)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(note.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield name, None
                except BlockingIOError:
                    yield name, int.from_bytes(os.pread(note.fd, 8, 0), "little")
                finally:
                    note.close()
        finally:
            place.close()

    def drop(self, name: str) -> None:
        """Removes a dead process's note."""
        place = self._place()
        try:
            files.unlink(place, name)
        finally:
            place.close()

    def _place(self) -> Descriptor:
        flags = os.O_RDONLY | os.O_DIRECTORY
        return Descriptor.open(names.RESERVATIONS, flags, within=self._directory.fd)
