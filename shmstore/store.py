"""The store: what a user calls. Orders the steps, holds no mechanism.

A put encodes the value, writes it, and commits a record; a get finds the record,
maps what it names, and decodes. Locking, recovery and mapping are below.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shmstore import (
    clearing,
    codecs,
    names,
    segment,
    stored,
)
from shmstore.codecs.plain import quick
from shmstore.codecs.trust import parse_allow
from shmstore.commit import KEY, Change, Replaced, commit
from shmstore.commit_small import put_small
from shmstore.dag import Dag
from shmstore.entry import ClearReport, Entry
from shmstore.errors import NotFound
from shmstore.hub import Hubs
from shmstore.manifest import Manifest
from shmstore.names import encode_id, several
from shmstore.namespace import Namespace
from shmstore.node import spawn
from shmstore.opened import OpenDags
from shmstore.pool import set_limit as set_pool_limit
from shmstore.record import DELETE, Record, key_hash, middle
from shmstore.ref import Ref
from shmstore.relief import with_relief
from shmstore.segment import READ
from shmstore.sizes import parse_size
from shmstore.spill import set_place
from shmstore.store_async import AsyncCalls
from shmstore.store_looking import LookingCalls
from shmstore.store_remote import RemoteCalls
from shmstore.store_upkeep import UpkeepCalls
from shmstore.store_waiting import WaitingCalls
from shmstore.stored import INLINE_LIMIT, decoded, decoded_record, find_quickly

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")

_MISSING: Final = object()


class Store(LookingCalls, UpkeepCalls, WaitingCalls, RemoteCalls, AsyncCalls):
    """Results of DAGs, shared by all processes of the host that open the same place.

    Cheap to create, usable from any thread, after a fork in parent and child, and
    picklable: a process that unpickles it opens the same place. Nothing needs to be
    running, and nothing is lost when a process is killed.

    Args:
        root: Directory in shared memory; ``$SHMSTORE_ROOT`` or
            ``/dev/shm/shmstore-<uid>`` if not given.
        namespace: A store within the root; ``$SHMSTORE_NAMESPACE`` or "default".
        capacity: The most bytes of shared memory that the namespace may take, as an int
            or a size ("8GiB"); 0 for no limit but the file system's.
        spill: A directory on disk. When shared memory runs short, values that nobody
            views are moved there; they are read like the others.
        pool: The most bytes of emptied segments that are kept to be written again, as
            for ``capacity``; a quarter of the capacity or 1 GiB, whichever is less, if
            never given.
        nats: The URL of a NATS server, or several with commas between; ``$SHMSTORE_NATS``
            if not given. If no node runs for the namespace, one is started, which ends a
            minute after the last process with such a store. None: this host only, unless a
            node runs here already.
        node: The name of the node that is started; ``$SHMSTORE_NODE`` or the host's name if
            not given.
        allow: Classes of yours, "package.module.Class" each, that values which came from
            other hosts may be made of: besides the types of docs/values.md, which need no
            permission. Their modules are imported. Allow only classes that stand any
            arguments and attributes. Holds for this object alone: a Store that is
            pickled, and a Ref, allow none.

    ``capacity``, ``spill`` and ``pool`` are kept with the namespace: every process that
    uses it obeys what was given last, and None changes nothing.

    Raises:
        UnusableRoot: The place, or ``spill``, is not fit.
        ValueError: ``allow`` names what is no class of that module, or must not be allowed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        *,
        capacity: int | str | None = None,
        spill: str | os.PathLike[str] | None = None,
        pool: int | str | None = None,
        nats: str | None = None,
        node: str | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        trust = parse_allow(allow)
        self._given_root = None if root is None else names.check_path(root, "root")
        name = names.default_namespace() if namespace is None else namespace
        names.check_name(name, "namespace")
        limit = None if capacity is None else parse_size(capacity, "capacity")
        pool_limit = None if pool is None else parse_size(pool, "pool")
        spill_path = None if spill is None else names.check_path(spill, "spill")
        url = spawn.url(nats)
        node_name = names.default_node() if node is None else names.check_name(node, "node")
        space = Namespace(self._given_root or names.default_root(), name)
        if limit is not None:
            space.ledger.set_capacity(limit)
        if pool_limit is not None:
            set_pool_limit(space, pool_limit)
        if spill_path is not None:
            set_place(space, spill_path)
        self._dags = OpenDags(space, trust)
        self._hubs = Hubs(self._dags)
        self._root, self._namespace = space.root, space.name
        self._node = spawn.asking(space, url, node_name)

    @property
    def root(self) -> str:
        """The root directory."""
        return self._root

    @property
    def namespace(self) -> str:
        """The namespace's name."""
        return self._namespace

    # --- Storing -------------------------------------------------------------------

    def put(
        self,
        dag_id: str,
        id: str,
        value: Any,
        *,
        deps: Iterable[str] = (),
        overwrite: bool = True,
        publish: bool = False,
    ) -> Entry:
        """Stores a value; returns once every process of the host can read it.

        Args:
            dag_id: The DAG, created if need be.
            id: The value's id; a value already there is replaced.
            value: Anything of docs/values.md.
            deps: Ids of the values that it was computed from, to be noted.
            overwrite: If False, an id that has a value is refused.
            publish: Return only once other hosts can find it, too.

        Raises:
            Unserializable: The value cannot be stored.
            EntryExists: ``overwrite`` is False and the id has a value.
            StoreFull: No room.
            StoreBusy: A writer of this DAG was held up while it held the lock.
            RemoteError: It is stored, but could not be published in time.

        Whichever other is raised, nothing was changed. If the process dies here, the value
        is either whole or absent, and what was there before stays until it is.
        """
        if publish:
            put = self.put(dag_id, id, value, deps=deps, overwrite=overwrite)
            self.sync()
            return put
        key = encode_id(id, "id")
        dags = self._dags
        if overwrite and deps == () and type(dag_id) is str:
            small = quick(value)
            manifest = dags.manifests.get(dag_id)
            if small is not None and manifest is not None and len(small) <= INLINE_LIMIT:
                entry = put_small(manifest, dag_id, id, key, type(value), small)
                if entry is not None:
                    return entry
        noted = [encode_id(dep, "a dep") for dep in several(deps, "deps")]
        encoded = codecs.encode(value)
        return stored.store(dags, dag_id, [(id, key, value, encoded, noted)], overwrite)[0]

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
        self._dags.check_open()
        encode_id(dag_id, "dag_id")
        if not isinstance(values, Mapping):
            raise TypeError(f"values must be a mapping, not {type(values).__name__}")
        # Taken over once, as what is given may be a Dag that others write to.
        items = {encode_id(id, "id"): (id, value) for id, value in values.items()}
        encoded = [(id, key, value, codecs.encode(value), ()) for key, (id, value) in items.items()]
        return stored.store(self._dags, dag_id, encoded, overwrite) if encoded else []

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
            UnsafeValue: The value came from another host and needs what is not allowed.
            Unserializable: This process lacks a class or library that the value needs.
        """
        key = encode_id(id, "id")
        if mode == READ and type(dag_id) is str:
            manifest = self._dags.manifests.get(dag_id)
            if manifest is not None:
                quickly = find_quickly(manifest, key)
                if quickly is not None:
                    codec, meta, payload = quickly
                    return decoded(dag_id, id, codec, meta, payload)
        elif mode not in segment.MODES:
            raise ValueError(f"mode must be 'read', 'cow' or 'copy', not {mode!r}")
        found = stored.find(self._dags, dag_id, key, mode)
        if found is None:
            if default is _MISSING:
                raise NotFound(dag_id, id)
            return default
        record, view = found
        return decoded_record(self._dags, dag_id, id, record, view)

    def get_buffer(self, dag_id: str, id: str) -> pa.Buffer:
        """The stored bytes of a value, undecoded; zero-copy unless they are inline.

        Raises:
            NotFound: There is no such value.
        """
        import pyarrow as pa

        found = stored.find(self._dags, dag_id, encode_id(id, "id"), READ)
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
        return {id: self.get(dag_id, id, mode=mode, default=default) for id in several(ids, "ids")}

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
        keys = dict.fromkeys(encode_id(id, "id") for id in several(ids, "ids"))
        changes = _deletes(keys)
        self._dags.check_open()
        encode_id(dag_id, "dag_id")
        dags = self._dags
        if changes and not with_relief(
            dags.space, lambda: dags.read(dag_id, _commit_deletes, changes)
        ):
            raise NotFound(dag_id, changes[0][KEY].decode())

    def take(self, dag_id: str, id: str) -> Any:
        """Removes a value and returns it; of several who try, one gets it.

        The value is mapped read-only, as by ``get``.

        Raises:
            NotFound: There is no such value.
        """
        key = encode_id(id, "id")
        while True:
            found = stored.find(self._dags, dag_id, key, READ)
            if found is None:
                raise NotFound(dag_id, id)
            record, view = found
            value = decoded_record(self._dags, dag_id, id, record, view)
            try:
                changes = _deletes([key])
                if self._dags.read(dag_id, _commit_deletes, changes, record):
                    return value
            except (Replaced, NotFound):
                continue  # somebody else was faster

    def clear(self, dag_id: str, *, all_nodes: bool = False) -> ClearReport:
        """Removes a DAG with all its values; an unknown one is no error.

        Args:
            dag_id: The DAG.
            all_nodes: On all hosts, also on those that cannot be reached now.

        Raises:
            RemoteError: ``all_nodes``, and no node or no registry; nothing was changed.

        Views that are held stay as they are. The DAG may be used again at once. If
        the process dies here, the DAG is either untouched or gone.
        """
        encode_id(dag_id, "dag_id")
        if all_nodes:
            self._dags.check_open()
            return self._clear_everywhere(dag_id)
        cleared = clearing.clear_dag(self._dags.space, dag_id)
        self._dags.forget(dag_id)
        return ClearReport(cleared)

    # --- Ways to it ---------------------------------------------------------------

    def dag(self, dag_id: str) -> Dag:
        """A DAG as a mutable mapping from ids to values."""
        encode_id(dag_id, "dag_id")
        return Dag(self, dag_id)

    def ref(self, dag_id: str, id: str) -> Ref:
        """A small, picklable, hashable reference to a value, which need not exist yet."""
        encode_id(dag_id, "dag_id")
        encode_id(id, "id")
        return Ref(self._given_root, self.namespace, dag_id, id)

    # --- The object itself ---------------------------------------------------------

    def _in_place(self) -> bool:
        """False once the namespace's directory has been removed; then open a new Store."""
        return self._dags.space.directory.intact()

    def close(self) -> None:
        """Ends the use of this object. What it returned stays valid; closing twice is fine."""
        self._dags.close()
        self._node.close()

    def __enter__(self) -> Store:
        self._dags.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Store], tuple[str, str]]:
        return Store, (self.root, self.namespace)

    def __repr__(self) -> str:
        return f"<shmstore.Store {self._namespace!r} in {self._root!r}>"


def _commit_deletes(
    manifest: Manifest, changes: list[Change], judged: Record | None = None
) -> bool:
    commit(manifest, changes, judged=judged)
    return True


def _deletes(keys: Iterable[bytes]) -> list[Change]:
    now = time.time_ns()
    return [
        (DELETE, 0, 0, key, key_hash(key), 0, middle(key, b""), 0, 0, None, now) for key in keys
    ]
