"""The store: what a user calls. Orders the steps, holds no mechanism.

A put encodes the value, writes it, and commits a record; a get finds the record,
maps what it names, and decodes. Locking, recovery and mapping are below.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from shmstore import codecs, lifecycle, names, provenance, reading, record, segment
from shmstore.commit import Change, commit
from shmstore.dag import Dag
from shmstore.entry import INLINE, ClearReport, DagInfo, Entry, Explanation, StoreStats
from shmstore.errors import CorruptValue, NotFound, StoreClosed, StoreError
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import DELETE, PUT, Record
from shmstore.ref import Ref
from shmstore.segment import READ
from shmstore.store_async import AsyncCalls

if TYPE_CHECKING:
    import pyarrow as pa

#: Payloads up to this many bytes lie in the log and are copied out by get; larger
#: ones get a segment. About where both cost the same (docs/performance.md).
INLINE_LIMIT = 16 << 10

# More open DAGs than this, and the one opened first is closed again; each holds
# about five descriptors.
_MOST_OPEN = 64
_ROUNDS = 16
_MISSING: Final = object()


class Store(AsyncCalls):
    """Results of DAGs, shared by all processes of the host that open the same place.

    Cheap to create, usable from any thread, after a fork in parent and child, and
    picklable: a process that unpickles it opens the same place. Nothing needs to be
    running, and nothing is lost when a process is killed.

    Args:
        root: Directory in shared memory; ``$SHMSTORE_ROOT`` or
            ``/dev/shm/shmstore-<uid>`` if not given.
        namespace: A store within the root; ``$SHMSTORE_NAMESPACE`` or "default".

    Raises:
        UnusableRoot: The place is not fit for a store.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None = None, namespace: str | None = None
    ) -> None:
        self._given_root = None if root is None else os.path.abspath(os.fspath(root))
        name = names.default_namespace() if namespace is None else namespace
        names.check_name(name, "namespace")
        self._space = Namespace(self._given_root or names.default_root(), name)
        self._manifests: dict[str, Manifest] = {}
        self._closed = False

    @property
    def root(self) -> str:
        """The root directory."""
        return self._space.root

    @property
    def namespace(self) -> str:
        """The namespace's name."""
        return self._space.name

    # --- Storing -------------------------------------------------------------------

    def put(
        self,
        dag_id: str,
        id: str,
        value: Any,
        *,
        deps: Iterable[str] = (),
        overwrite: bool = True,
    ) -> Entry:
        """Stores a value; returns once every process of the host can read it.

        Args:
            dag_id: The DAG, created if need be.
            id: The value's id; a value already there is replaced.
            value: Anything of docs/values.md.
            deps: Ids of the values that it was computed from, to be noted.
            overwrite: If False, an id that has a value is refused.

        Raises:
            Unserializable: The value cannot be stored.
            EntryExists: ``overwrite`` is False and the id has a value.
            StoreFull: No room.
            StoreBusy: A writer of this DAG was held up while it held the lock.

        Whichever is raised, nothing was changed. If the process dies here, the value
        is either whole or absent, and what was there before stays until it is.
        """
        names.encode_id(dag_id, "dag_id")
        key = names.encode_id(id, "id")
        noted = [names.encode_id(dep, "a dep") for dep in deps] if deps else ()
        change, entry = self._prepare(dag_id, id, key, value, codecs.encode(value), noted)
        self._commit(dag_id, (change,), overwrite)
        return entry

    def put_many(
        self, dag_id: str, values: Mapping[str, Any], *, overwrite: bool = True
    ) -> list[Entry]:
        """Stores several values at once: all or none, also if the process is killed.

        Args:
            dag_id: The DAG, created if need be.
            values: The values by id.
            overwrite: If False, nothing is stored if one of the ids has a value.

        Raises:
            Unserializable: One of the values cannot be stored.
            EntryExists: ``overwrite`` is False and one of the ids has a value.
            StoreFull: No room for all of them.
            StoreBusy: A writer of this DAG was held up while it held the lock.
        """
        names.encode_id(dag_id, "dag_id")
        keys = [names.encode_id(id, "id") for id in values]
        encoded = [codecs.encode(value) for value in values.values()]
        prepared = [
            self._prepare(dag_id, id, key, value, one, ())
            for (id, value), key, one in zip(values.items(), keys, encoded, strict=True)
        ]
        if prepared:
            self._commit(dag_id, [change for change, _ in prepared], overwrite)
        else:
            self._check_open()
        return [entry for _, entry in prepared]

    def _prepare(
        self,
        dag_id: str,
        id: str,
        key: bytes,
        value: Any,
        encoded: codecs.Encoded,
        deps: Sequence[bytes],
    ) -> tuple[Change, Entry]:
        """Writes a payload, if it is large, and makes the record's parts."""
        codec, codec_meta, parts, nbytes = encoded
        kind = type(value)
        meta = provenance.build_meta(codec_meta, kind, deps)
        number, file, location = 0, None, INLINE
        if nbytes <= INLINE_LIMIT:
            payload = parts[0] if len(parts) == 1 else b"".join(parts)
            middle = record.middle(key, meta, payload)
        else:
            self._check_open()
            middle = record.middle(key, meta)
            number = names.new_segment_number()
            location = names.segment_name(number)
            file = segment.write(self._space.directory, parts, nbytes)
        now = time.time_ns()
        change = Change(
            PUT, codec, 0, key, record.key_hash(key), len(meta), middle, nbytes, number, file, now
        )
        entry = Entry(
            dag_id,
            id,
            codecs.NAMES[codec],
            provenance.type_name(kind),
            nbytes,
            location,
            now,
            provenance.producer(),
            None,
            tuple(dep.decode() for dep in deps) if deps else (),
        )
        return change, entry

    def _commit(self, dag_id: str, changes: Sequence[Change], overwrite: bool) -> None:
        while True:
            manifest = self._manifests.get(dag_id)
            if manifest is None or self._closed:
                manifest = self._open(dag_id, create=True)
            try:
                return commit(manifest, changes, overwrite)
            except Superseded:
                self._forget(dag_id, manifest)

    # --- Getting -------------------------------------------------------------------

    def get(self, dag_id: str, id: str, *, mode: str = READ, default: Any = _MISSING) -> Any:
        """Returns a value of this host.

        Args:
            dag_id: The DAG.
            id: The value's id.
            mode: "read": views of shared memory, read-only. "cow": the same, but
                writable; what is written to is copied, page by page, and private.
                "copy": private memory.
            default: Returned if there is no such value, instead of an error.

        Returns:
            The value, of the type that was stored. It stays as it is whatever
            happens to the store, for as long as it is held.

        Raises:
            NotFound: There is no such value.
            CorruptValue: What is stored fails a check.
            Unserializable: This process lacks a class or library that the value needs.
        """
        if mode not in segment.MODES:
            raise ValueError(f"mode must be 'read', 'cow' or 'copy', not {mode!r}")
        key = names.encode_id(id, "id")
        found = self._find(dag_id, key, mode)
        if found is None:
            if default is _MISSING:
                raise NotFound(dag_id, id)
            return default
        stored, payload = found
        try:
            return codecs.decode(stored.codec, provenance.codec_meta(stored.meta), payload)
        except CorruptValue as error:
            raise CorruptValue(error.check, error.where, dag_id, id) from error

    def get_buffer(self, dag_id: str, id: str) -> pa.Buffer:
        """The stored bytes of a value, undecoded; zero-copy unless they are inline.

        Raises:
            NotFound: There is no such value.
        """
        import pyarrow as pa

        found = self._find(dag_id, names.encode_id(id, "id"), READ)
        if found is None:
            raise NotFound(dag_id, id)
        return pa.py_buffer(found[1])

    def get_many(
        self, dag_id: str, ids: Iterable[str], *, mode: str = READ, default: Any = _MISSING
    ) -> dict[str, Any]:
        """Returns several values by id, each as ``get`` does.

        Raises:
            NotFound: One of them is missing and no ``default`` is given.
        """
        return {id: self.get(dag_id, id, mode=mode, default=default) for id in ids}

    def has_value(self, dag_id: str, id: str) -> bool:
        """True if this host has a value under this id."""
        return self._record(dag_id, names.encode_id(id, "id")) is not None

    def _record(self, dag_id: str, key: bytes) -> Record | None:
        while True:
            manifest = self._manifests.get(dag_id)
            if manifest is None or self._closed:
                manifest = self._open(dag_id)
                if manifest is None:
                    return None
            try:
                return reading.find(manifest, key)
            except Superseded:
                self._forget(dag_id, manifest)

    def _find(self, dag_id: str, key: bytes, mode: str) -> tuple[Record, memoryview] | None:
        """A record and its payload, mapped or copied as ``mode`` says."""
        for _ in range(_ROUNDS):
            stored = self._record(dag_id, key)
            if stored is None:
                return None
            if not stored.segment:
                payload = stored.payload
                return stored, memoryview(payload if mode == READ else bytearray(payload))
            manifest = self._manifests.get(dag_id)
            if manifest is None:
                continue
            try:
                directory = manifest.directory
                return stored, segment.attach(directory, stored.segment, stored.nbytes, mode)
            except segment.SegmentGone:
                continue  # replaced or cleared since the record was read
            except OSError as error:
                raise manifest.converted(error) from error
        return self._find_under_lock(dag_id, key, mode)

    def _find_under_lock(
        self, dag_id: str, key: bytes, mode: str
    ) -> tuple[Record, memoryview] | None:
        """What ``_find`` does if writers were faster each time: without any at work."""
        while True:
            manifest = self._open(dag_id)
            if manifest is None:
                return None
            try:
                return manifest.guarded(_find_segment, manifest, key, mode)
            except Superseded:
                self._forget(dag_id, manifest)

    # --- Deleting ------------------------------------------------------------------

    def delete(self, dag_id: str, id: str) -> None:
        """Removes a value. Views of it that are held stay as they are.

        Raises:
            NotFound: There is no such value.
        """
        self.delete_many(dag_id, (id,))

    def delete_many(self, dag_id: str, ids: Iterable[str]) -> None:
        """Removes several values: all or none.

        Raises:
            NotFound: One of them is missing; nothing was changed.
        """
        keys = dict.fromkeys(names.encode_id(id, "id") for id in ids)
        now = time.time_ns()
        changes = [
            Change(
                DELETE, 0, 0, key, record.key_hash(key), 0, record.middle(key, b""), 0, 0, None, now
            )
            for key in keys
        ]
        while changes:
            manifest = self._open(dag_id)
            if manifest is None:
                raise NotFound(dag_id, changes[0].key.decode())
            try:
                return commit(manifest, changes)
            except Superseded:
                self._forget(dag_id, manifest)
        self._check_open()
        return None

    def clear(self, dag_id: str) -> ClearReport:
        """Removes a DAG with all its values; an unknown one is no error.

        Views that are held stay as they are. The DAG may be used again at once. If
        the process dies here, the DAG is either untouched or gone.
        """
        names.encode_id(dag_id, "dag_id")
        self._check_open()
        cleared = lifecycle.clear_dag(self._space, dag_id)
        self._manifests.pop(dag_id, None)
        return ClearReport(cleared)

    # --- Looking -------------------------------------------------------------------

    def entry(self, dag_id: str, id: str) -> Entry:
        """What is known about a value, without reading it.

        Raises:
            NotFound: There is no such value.
        """
        stored = self._record(dag_id, names.encode_id(id, "id"))
        if stored is None:
            raise NotFound(dag_id, id)
        return _entry(dag_id, stored)

    def entries(self, dag_id: str) -> Iterator[Entry]:
        """The entries of a DAG as of now, in the order in which they were stored."""
        for stored in self._records(dag_id):
            yield _entry(dag_id, stored)

    def ids(self, dag_id: str, prefix: str = "", *, newest_first: bool = False) -> Iterator[str]:
        """The ids of a DAG's values as of now, in the order in which they were stored.

        Args:
            dag_id: The DAG; an unknown one has none.
            prefix: What the ids begin with.
            newest_first: The other way round.
        """
        wanted = prefix.encode()
        for stored in self._records(dag_id, newest_first=newest_first):
            if stored.key.startswith(wanted):
                yield stored.key.decode()

    def _records(self, dag_id: str, *, newest_first: bool = False) -> Iterator[Record]:
        manifest = self._open(dag_id)
        while manifest is not None:
            try:
                return reading.records(manifest, newest_first=newest_first)
            except Superseded:
                self._forget(dag_id, manifest)
                manifest = self._open(dag_id)
        return iter(())

    def count(self, dag_id: str) -> int:
        """How many values a DAG has."""
        while True:
            manifest = self._open(dag_id)
            if manifest is None:
                return 0
            try:
                return reading.totals(manifest).live
            except Superseded:
                self._forget(dag_id, manifest)

    def dags(self) -> list[DagInfo]:
        """All DAGs of the namespace, by name; damaged ones with their fault."""
        self._check_open()
        found = []
        for token, opened in lifecycle.every_dag(self._space):
            try:
                if isinstance(opened, StoreError):
                    raise opened
                found.append(_dag_info(opened))
            except Superseded:
                continue
            except StoreError as error:
                name = names.parse_dag_token(token) or token
                found.append(DagInfo(name, 0, 0, 0, 0, 0, None, str(error)))
        return found

    def dag(self, dag_id: str) -> Dag:
        """A DAG as a mutable mapping from ids to values."""
        names.encode_id(dag_id, "dag_id")
        return Dag(self, dag_id)

    def ref(self, dag_id: str, id: str) -> Ref:
        """A small, picklable, hashable reference to a value, which need not exist yet."""
        names.encode_id(dag_id, "dag_id")
        names.encode_id(id, "id")
        return Ref(self._given_root, self.namespace, dag_id, id)

    def explain(self, dag_id: str, id: str) -> Explanation:
        """Which buffers of a value ``get`` copies, and why.

        Raises:
            NotFound: There is no such value.
        """
        stored = self._record(dag_id, names.encode_id(id, "id"))
        if stored is None:
            raise NotFound(dag_id, id)
        notes = codecs.explain(stored.codec, provenance.codec_meta(stored.meta), stored.nbytes)
        if not stored.segment:
            why = f"inline: payloads of up to {INLINE_LIMIT:,} bytes are copied out of the log"
            notes = [note._replace(copied=True, why=why) for note in notes]
        return Explanation(
            dag_id,
            id,
            codecs.NAMES.get(stored.codec, str(stored.codec)),
            names.segment_name(stored.segment) if stored.segment else INLINE,
            stored.nbytes,
            tuple(notes),
        )

    def stats(self) -> StoreStats:
        """The state of the namespace and its file system."""
        dags = self.dags()
        status = os.fstatvfs(self._space.directory.fd)
        return StoreStats(
            root=self.root,
            namespace=self.namespace,
            dags=len(dags),
            entries=sum(dag.entries for dag in dags),
            nbytes=sum(dag.nbytes for dag in dags),
            log_bytes=sum(dag.log_bytes for dag in dags),
            index_bytes=sum(dag.index_bytes for dag in dags),
            dead_bytes=sum(dag.dead_bytes for dag in dags),
            mapped_segments=segment.mapped_count(),
            file_system_bytes=status.f_blocks * status.f_frsize,
            free_bytes=status.f_bavail * status.f_frsize,
            damaged=tuple(dag.dag_id for dag in dags if dag.fault),
        )

    # --- The object itself ---------------------------------------------------------

    def close(self) -> None:
        """Ends the use of this object. What it returned stays valid; closing twice is fine."""
        self._closed = True
        self._manifests = {}

    def __enter__(self) -> Store:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Store], tuple[str, str]]:
        return Store, (self.root, self.namespace)

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<shmstore.Store {self._space.path!r}{closed}>"

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed

    @overload
    def _open(self, dag_id: str, create: Literal[True]) -> Manifest: ...
    @overload
    def _open(self, dag_id: str) -> Manifest | None: ...
    def _open(self, dag_id: str, create: bool = False) -> Manifest | None:
        """The open manifest of a DAG; opened, or created, if need be."""
        self._check_open()
        manifest = self._manifests.get(dag_id)
        if manifest is not None:
            return manifest
        names.encode_id(dag_id, "dag_id")
        if create:
            manifest = lifecycle.find_or_create_dag(self._space, dag_id)
        else:
            manifest = lifecycle.find_dag(self._space, dag_id)
            if manifest is None:
                return None
        # Another thread may have opened it, too: all use the same, as threads
        # exclude each other by the object.
        kept = self._manifests.setdefault(dag_id, manifest)
        for oldest in list(self._manifests)[:-_MOST_OPEN]:
            if oldest != dag_id:
                self._manifests.pop(oldest, None)
        return kept

    def _forget(self, dag_id: str, manifest: Manifest) -> None:
        if self._manifests.get(dag_id) is manifest:
            self._manifests.pop(dag_id, None)


def _find_segment(manifest: Manifest, key: bytes, mode: str) -> tuple[Record, memoryview] | None:
    """Under the commit lock: what the log says is what there is."""
    stored = reading.find_settled(manifest, key)
    if stored is None:
        return None
    if not stored.segment:
        payload = stored.payload
        return stored, memoryview(payload if mode == READ else bytearray(payload))
    try:
        return stored, segment.attach(manifest.directory, stored.segment, stored.nbytes, mode)
    except segment.SegmentGone:
        raise CorruptValue(
            "its segment is missing",
            names.segment_name(stored.segment),
            manifest.dag_id,
            key.decode(),
        ) from None


def _entry(dag_id: str, stored: Record) -> Entry:
    producer, origin, type_name, deps = provenance.parse(stored.meta)
    return Entry(
        dag_id,
        stored.key.decode(),
        codecs.NAMES.get(stored.codec, str(stored.codec)),
        type_name,
        stored.nbytes,
        names.segment_name(stored.segment) if stored.segment else INLINE,
        stored.created_ns,
        producer,
        origin,
        deps,
    )


def _dag_info(manifest: Manifest) -> DagInfo:
    totals = reading.totals(manifest)
    log_bytes, index_bytes = reading.footprint(manifest)
    created = datetime.fromtimestamp(manifest.created_ns / 1e9, UTC)
    return DagInfo(
        manifest.dag_id, totals.live, totals.nbytes, log_bytes, index_bytes, totals.dead, created
    )
