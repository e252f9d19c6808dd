"""A value on its way in from another node: its memory, its checksum, its commit.

What comes was made by a stranger. So the record is built anew here, flagged as
untrusted, and nothing of it can be seen before all of it is here and has the checksum that
the other node told. A value of this host is never replaced, and what was cleared
meanwhile stays cleared.

If the process dies before the commit, nothing is left: memory without a name is freed
by the kernel, that of the pool is an emptied segment again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from xxhash import xxh3_128

from shmstore import names, provenance, reading, writing
from shmstore.commit import Change, Replaced, commit
from shmstore.errors import EntryExists, StoreBusy
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace
from shmstore.opened import OpenDags
from shmstore.record import LARGEST, PUT, SMALLEST, UNTRUSTED, Record, key_hash, middle
from shmstore.relief import with_relief
from shmstore.stored import INLINE_LIMIT
from shmstore.writing import Written

#: The most bytes of a record's meta that are taken from another host.
LARGEST_META = 256 << 20
#: The most bytes of a value.
LARGEST_VALUE = 1 << 46

_COMMITS = 64  # tries, when others keep changing the entry
_READ_BACK = 4 << 20

R = TypeVar("R")
Bytes: TypeAlias = bytes | bytearray | memoryview


class Original(Exception):
    """This host has a value of its own there, which nothing that is fetched replaces."""


class Cleared(Exception):
    """The DAG was cleared on this host after the landing had begun."""


class Damaged(Exception):
    """What came is not what was announced; says how."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a node tells about a value before it sends it.

    Attributes:
        codec: Number of the codec.
        created_ns: When it was stored, Unix time.
        meta_bytes: Size of the record's meta, which comes first.
        nbytes: Size of the payload, which follows.
    """

    codec: int
    created_ns: int
    meta_bytes: int
    nbytes: int

    @property
    def total(self) -> int:
        """Bytes of meta and payload."""
        return self.meta_bytes + self.nbytes


class Landing:
    """One value, from its head to its commit. Not for two threads at once.

    Its bytes are counted from the start of the meta, with the payload behind it, and
    come in any order, each at least once. ``begin`` it first, ``end`` it in any case.

    Args:
        dags: The open DAGs.
        dag_id: The DAG; created if need be.
        id: The value's id.
        head: What is to come.
        origin: The node that sends it.
        at_once: Fail rather than make room, or wait for a lock; for an event loop.
    """

    def __init__(
        self,
        dags: OpenDags,
        dag_id: str,
        id: str,
        head: Head,
        origin: str,
        *,
        at_once: bool = False,
    ) -> None:
        self._with_relief = _as_it_is if at_once else with_relief
        self._dags = dags
        self._dag_id = dag_id
        self._key = names.encode_id(id, "id")
        self._origin = origin
        self.head = head
        self._generation = -1
        self._meta = bytearray(head.meta_bytes)  # takes memory as it is written
        self._inline: bytearray | None = None
        self._written: Written | None = None
        self._spans: list[tuple[int, int]] = []  # what has come, sorted, none touching
        self._checksum = xxh3_128()
        self._summed = 0

    def begin(self) -> None:
        """Looks whether it is wanted, and makes room.

        Raises:
            Original: This host has a value of its own there.
            StoreFull: No room.
            StoreBusy: The DAG's lock is held up.
        """
        dags, nbytes = self._dags, self.head.nbytes
        self._generation, standing = self._with_relief(
            dags.space, lambda: dags.write(self._dag_id, _look, self._key)
        )
        if standing is not None and not is_copy(standing):
            raise Original
        if nbytes <= INLINE_LIMIT:
            self._inline = bytearray(nbytes)
        else:
            space = dags.space
            self._written = self._with_relief(space, lambda: writing.begin(space, nbytes))

    @property
    def whole(self) -> bool:
        """Whether all bytes are here."""
        return not self.head.total or self._spans == [(0, self.head.total)]

    def write(self, at: int, data: Bytes) -> None:
        """Takes bytes in.

        Args:
            at: Where they belong, the meta and the payload taken together.
            data: The bytes.

        Raises:
            Damaged: They belong nowhere.
            StoreFull: No room; see ``write_with_relief``.
        """
        view = memoryview(data)
        end = at + len(view)
        if not 0 <= at <= end <= self.head.total:
            raise Damaged(f"{len(view):,} bytes at {at:,} are not within {self.head.total:,}")
        border = self.head.meta_bytes
        if at < border:
            self._meta[at : min(end, border)] = view[: border - at]
        if end > border:
            skipped = max(border - at, 0)
            self._write_payload(at + skipped - border, view[skipped:])
        if at == self._summed:  # as it usually is: then the bytes are still in the cache
            self._checksum.update(view)
            self._summed = end
        self._spans = _with_span(self._spans, at, end)

    def _write_payload(self, at: int, piece: memoryview) -> None:
        if self._inline is not None:
            self._inline[at : at + len(piece)] = piece
        elif self._written is not None:
            self._written.write_at(at, piece)

    def write_with_relief(self, at: int, data: Bytes) -> None:
        """As ``write``, after making room, which may take long.

        Raises:
            Damaged: They belong nowhere.
            StoreFull: No room.
        """
        self._with_relief(self._dags.space, lambda: self.write(at, data))

    def checksum(self) -> str:
        """The xxh3_128 of all bytes, in hexadecimal. Reads back what came out of order.

        Raises:
            Damaged: Not all of them are here.
        """
        if not self.whole:
            raise Damaged("it is not whole")
        border = self.head.meta_bytes
        while self._summed < self.head.total:
            at = self._summed
            if at < border:
                piece: Bytes = self._meta[at:border]
            elif self._inline is not None:
                piece = self._inline[at - border :]
            else:
                assert self._written is not None
                piece = self._written.read_at(at - border, _READ_BACK)
                if not piece:
                    raise Damaged("its memory was cut short")
            self._checksum.update(piece)
            self._summed += len(piece)
        return self._checksum.hexdigest()

    def commit(self) -> Record:
        """Makes the value visible to every process of the host.

        Returns:
            Its record.

        Raises:
            Damaged: It is not whole, or its meta is none.
            Original: A value of this host has come to stand there meanwhile.
            Cleared: The DAG was cleared meanwhile.
            StoreFull: No room.
            StoreBusy: The DAG's lock is held up, or others change the entry all the time.

        If the process dies here, the value is there or it is not, as with a put.
        """
        if not self.whole:
            raise Damaged("it is not whole")
        try:
            meta = provenance.received(bytes(self._meta), self._origin)
        except ValueError as error:
            raise Damaged(f"its meta is damaged: {error}") from error
        change = self._change(meta)
        dags = self._dags
        # Not ``write``: it would make a DAG that was cleared anew.
        record = self._with_relief(
            dags.space, lambda: dags.read(self._dag_id, self._commit, change)
        )
        if record is None:
            raise Cleared
        return record

    def _change(self, meta: bytes) -> Change:
        head, key = self.head, self._key
        payload = b"" if self._inline is None else bytes(self._inline)
        rest = middle(key, meta, payload)
        if len(rest) > LARGEST:
            raise Damaged("its meta is too large")
        number = 0 if self._written is None else names.new_segment_number()
        return (
            PUT,
            head.codec,
            UNTRUSTED,
            key,
            key_hash(key),
            len(meta),
            rest,
            head.nbytes,
            number,
            self._written,
            head.created_ns,
        )

    def _commit(self, manifest: Manifest, change: Change) -> Record:
        for _ in range(_COMMITS):
            if manifest.generation != self._generation:
                raise Cleared
            standing = reading.find(manifest, self._key)
            if standing is not None and not is_copy(standing):
                raise Original
            try:
                commit(manifest, (change,), overwrite=standing is not None, judged=standing)
            except (Replaced, EntryExists):
                continue  # stored, deleted or moved to disk between the look and the commit
            return _committed(change)
        raise StoreBusy(f"value {self._key.decode()!r} of DAG {self._dag_id!r}", 0.0)

    def end(self) -> None:
        """Lets go of what was not committed. Committed or not, call it."""
        written, self._written = self._written, None
        if written is not None:
            written.end()


def _as_it_is(_: Namespace, call: Callable[[], R]) -> R:
    return call()


def is_copy(record: Record) -> bool:
    """Whether a value was fetched from another node."""
    return bool(record.flags & UNTRUSTED) or provenance.parse(record.meta).origin is not None


def _look(manifest: Manifest, key: bytes) -> tuple[int, Record | None]:
    return manifest.generation, reading.find(manifest, key)


def _committed(change: Change) -> Record:
    _, codec, flags, key, hashed, meta_size, rest, nbytes, number, _, created_ns = change
    meta_at = len(key)
    payload_at = meta_at + meta_size
    payload = b"" if number else rest[payload_at : payload_at + nbytes]
    meta = rest[meta_at:payload_at]
    length = SMALLEST + len(rest)
    return Record(length, PUT, codec, flags, hashed, created_ns, nbytes, number, key, meta, payload)


def _with_span(spans: list[tuple[int, int]], at: int, end: int) -> list[tuple[int, int]]:
    """Spans with one more, joined where they touch."""
    kept = []
    for start, stop in spans:
        if stop < at or start > end:
            kept.append((start, stop))
        else:
            at, end = min(at, start), max(end, stop)
    if end > at:
        kept.append((at, end))
        kept.sort()
    return kept
