"""The floors: the least that the same must cost, with no store around it."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import Peer, dumps

_SLOT = 256
_SLOTS = 4096


class SmallFloor(Peer):
    """A ``flock`` pair, a pickle and a ``pwrite``; to read, a slice of a mapping and a pickle.

    Finds nothing and checks nothing: one slot after the other, whatever the id.
    """

    name = "floor"
    note = "floor: put = flock, pickle.dumps, pwrite, flock; get = pickle.loads of mapped memory"

    @classmethod
    def start(cls, place: str) -> SmallFloor:
        """Makes the file."""
        path = os.path.join(place, cls.__name__)
        with open(path, "xb") as file:
            file.write(dumps(None).ljust(_SLOT, b"\0") * _SLOTS)
        return cls(path)

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.fd = os.open(address, os.O_RDWR | os.O_CLOEXEC)
        self.view = memoryview(mmap.mmap(self.fd, _SLOT * _SLOTS))
        self.written = self.read = 0

    def put(self, id: str, value: Any) -> None:
        """Writes into the next slot."""
        at = self.written % _SLOTS * _SLOT
        self.written += 1
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            os.pwrite(self.fd, dumps(value), at)
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def get(self, id: str) -> Any:
        """Reads the next slot."""
        at = self.read % _SLOTS * _SLOT
        self.read += 1
        return pickle.loads(self.view[at : at + _SLOT])

    def close(self) -> None:
        """Closes the file."""
        os.close(self.fd)


class NewFile(Peer):
    """``os.write`` of a value's bytes to a new file of tmpfs."""

    name = "os.write, new file"
    reads = False

    @classmethod
    def start(cls, place: str) -> NewFile:
        """Makes a directory."""
        path = os.path.join(place, cls.__name__)
        os.mkdir(path)
        return cls(path)

    def put(self, id: str, value: Any) -> None:
        """Writes a buffer."""
        path = os.path.join(self.address, id)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(value).cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)

    def delete(self, ids: Sequence[str]) -> None:
        """Removes files."""
        for id in ids:
            os.unlink(os.path.join(self.address, id))


class WarmCopy(Peer):
    """``memcpy`` of a value's bytes into memory that was touched before."""

    name = "memcpy, warm memory"
    reads = False

    @classmethod
    def start(cls, place: str) -> WarmCopy:
        """Has no place."""
        return cls(None)

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.target = bytearray()

    def put(self, id: str, value: Any) -> None:
        """Copies a buffer."""
        source = memoryview(value).cast("B")
        if len(self.target) < len(source):
            self.target = bytearray(b"\1") * len(source)
        memoryview(self.target)[: len(source)] = source

    def delete(self, ids: Sequence[str]) -> None:
        """Keeps its memory warm."""
