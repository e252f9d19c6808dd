"""What a node keeps mapped for those who fetch it: one version of a value each.

A version is named by all that its bytes follow from. So it cannot mean another value's
bytes, also after the value was replaced, moved to disk, or another node took over.
"""

from __future__ import annotations

import asyncio
import struct
import time

from xxhash import xxh3_128, xxh3_128_hexdigest

from shmstore.record import SPILLED, Record

#: Seconds that a version is kept after it was last asked for.
KEPT_S = 10.0

_MOST = 256
_AT_ONCE = 4 << 20
_FACTS = struct.Struct("<QqQQ")


class Lease:
    """One version of a value: its meta and its payload, one behind the other.

    Attributes:
        record: The value's record.
        payload: A view of its payload, which holds it in memory.
        version: The version's name.
        on_disk: Whether looking at the payload may wait for a disk.
        used_at: When it was last asked for, seconds, monotonic.
    """

    __slots__ = (
        "_checksum",
        "_summed",
        "_turn",
        "on_disk",
        "payload",
        "record",
        "used_at",
        "version",
    )

    def __init__(self, record: Record, payload: memoryview) -> None:
        self.record = record
        self.payload = payload
        self.version = _version(record)
        self.on_disk = bool(record.flags & SPILLED)
        self.used_at = time.monotonic()
        self._checksum = xxh3_128()
        self._summed = 0
        self._turn = asyncio.Lock()

    @property
    def total(self) -> int:
        """Bytes of both."""
        return len(self.record.meta) + len(self.payload)

    def piece(self, at: int, size: int) -> bytes | memoryview:
        """Some of the bytes, counted from the start of the meta."""
        meta = self.record.meta
        border = len(meta)
        if at >= border:
            return self.payload[at - border : at - border + size]
        if at + size <= border:
            return meta[at : at + size]
        return meta[at:] + bytes(self.payload[: at + size - border])

    @property
    def is_summed(self) -> bool:
        """Whether the checksum is known."""
        return self._summed == self.total

    def sent(self, at: int, piece: bytes | memoryview) -> None:
        """Adds a piece to the checksum, if it comes in order: it is in the cache just now."""
        if at == self._summed and not self._turn.locked():
            self._checksum.update(piece)
            self._summed += len(piece)

    def sum(self) -> str:
        """The xxh3_128 of all, in hexadecimal; takes long if it is large and not known."""
        while self._summed < self.total:
            piece = self.piece(self._summed, _AT_ONCE)
            self._checksum.update(piece)
            self._summed += len(piece)
        return self._checksum.hexdigest()

    async def summed(self) -> str:
        """As ``sum``, in a thread."""
        async with self._turn:
            return await asyncio.to_thread(self.sum)


class Leases:
    """The leases of a node, by version."""

    def __init__(self) -> None:
        self._kept: dict[str, Lease] = {}  # the one used least recently first

    def keep(self, lease: Lease) -> Lease:
        """Keeps a lease; returns the one of that version."""
        kept = self._kept.pop(lease.version, lease)
        kept.used_at = time.monotonic()
        self._kept[lease.version] = kept
        while len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return kept

    def find(self, version: str) -> Lease | None:
        """The lease of a version, kept for longer; None if there is none."""
        lease = self._kept.get(version)
        return None if lease is None else self.keep(lease)

    def end_unused(self) -> None:
        """Ends those that were not asked for in a while."""
        before = time.monotonic() - KEPT_S
        for version, lease in [*self._kept.items()]:
            if lease.used_at < before:
                del self._kept[version]

    def clear(self) -> None:
        """Ends all."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


def _version(record: Record) -> str:
    facts = _FACTS.pack(record.segment, record.created_ns, record.nbytes, record.key_hash)
    return xxh3_128_hexdigest(b"".join((facts, record.meta, record.payload)))
