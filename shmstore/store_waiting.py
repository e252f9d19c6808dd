"""The store's calls that wait: for values, and for whatever is stored next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from shmstore import hub, reading, segment, stored, waiting
from shmstore.codecs.trust import Trust
from shmstore.errors import WaitTimeout
from shmstore.manifest import Manifest
from shmstore.names import encode_id, several
from shmstore.segment import READ
from shmstore.store_async import in_thread
from shmstore.stored import decoded, decoded_record, find_quickly
from shmstore.waiting import Countdown
from shmstore.watch import AsyncWatch, Watch

if TYPE_CHECKING:
    from shmstore.opened import OpenDags
    from shmstore.store import Store

_MISSING: Final = object()

#: Codec, meta, payload of a value, and how far it is trusted.
_Found: TypeAlias = tuple[int, bytes, memoryview, Trust | None]


class WaitingCalls:
    """What ``Store`` inherits: ``wait``, ``wait_many``, ``watch`` and their async twins."""

    _dags: OpenDags
    _hubs: hub.Hubs

    def wait(self, dag_id: str, id: str, timeout: float | None = None, *, mode: str = READ) -> Any:
        """Returns a value as soon as any process of the host has stored it.

        Args:
            dag_id: The DAG; created if need be, as waiting is done in its files. When it is
                cleared meanwhile, the wait goes on in its successor.
            id: The value's id.
            timeout: The longest wait, seconds; 0 looks once, None waits without end.
            mode: As of ``get``.

        Raises:
            WaitTimeout: The value was not there in time.
            StoreClosed: The store was closed meanwhile.
            StoreBusy: The calling thread is in the middle of a change of the store, in a
                signal handler or finalizer, and would wait for itself.

        A sleeping waiter uses no processor time to speak of: it looks once a second, or
        when something is stored in the DAG. If the process dies here, nothing is left
        behind.
        """
        clock = Countdown(timeout)
        value = cast("Store", self).get(dag_id, id, mode=mode, default=_MISSING)
        if value is not _MISSING:
            return value
        if not clock.left_s:
            raise WaitTimeout(dag_id, (id,), clock.passed_s)
        key = encode_id(id, "id")

        def look(manifest: Manifest) -> _Found | None:
            if reading.find(manifest, key) is None:
                return None
            found = stored.find(self._dags, dag_id, key, mode)
            if found is None:
                return None
            record, payload = found
            return record.codec, record.meta, payload, stored.trust_in(self._dags, record)

        def glance(manifest: Manifest) -> _Found | None:
            found = find_quickly(manifest, key)
            return None if found is None else (*found, None)

        found = waiting.until(
            self._dags, dag_id, look, clock, lambda: (id,), glance if mode == READ else None
        )
        return decoded(dag_id, id, *found)

    def wait_many(
        self, dag_id: str, ids: Iterable[str], timeout: float | None = None, *, mode: str = READ
    ) -> dict[str, Any]:
        """Returns several values as soon as all of them are there.

        Args:
            dag_id: The DAG, as of ``wait``.
            ids: The values' ids.
            timeout: The longest wait for all of them together, as of ``wait``.
            mode: As of ``get``.

        Returns:
            The values by id, in the order of ``ids``, each as it is when all are there.

        Raises:
            WaitTimeout: Some are missing, which it names.
            StoreClosed: The store was closed meanwhile.
        """
        clock = Countdown(timeout)
        keys = _keys(self._dags, dag_id, ids, mode)
        if not keys:
            return {}
        if not clock.left_s:
            return self._there(dag_id, keys, clock, mode)
        looking = waiting.Several(self._dags, dag_id, keys, mode)
        found = waiting.until(
            self._dags,
            dag_id,
            looking.look,
            clock,
            lambda: (keys[key] for key in looking.missing),
        )
        return {
            keys[key]: decoded_record(self._dags, dag_id, keys[key], record, view)
            for key, (record, view) in found.items()
        }

    def _there(
        self, dag_id: str, keys: dict[bytes, str], clock: Countdown, mode: str
    ) -> dict[str, Any]:
        """The values if all are there.

        Raises:
            WaitTimeout: Some are not.
        """
        store = cast("Store", self)
        missing = [id for id in keys.values() if not store.has_value(dag_id, id)]
        if not missing:
            values = store.get_many(dag_id, keys.values(), mode=mode, default=_MISSING)
            missing = [id for id, value in values.items() if value is _MISSING]
            if not missing:
                return values
        raise WaitTimeout(dag_id, tuple(missing), clock.passed_s)

    def watch(self, dag_id: str, *, since: object = None, timeout: float | None = None) -> Watch:
        """Iterates over the entries of a DAG as they are stored, by whatever process.

        ::

            with store.watch("dag") as entries:
                for entry in entries:
                    print(entry.id, store.get("dag", entry.id))

        Args:
            dag_id: The DAG; created if need be. When it is cleared, the iteration reads what
                was stored before and goes on in its successor.
            since: None: from now on, that is from this call on. 0: first all that is
                stored, oldest first, then on. A ``position`` of another watch: behind the
                entry that it gave last. A datetime with a time zone: first what is stored
                and was created then or later, then on.
            timeout: The longest wait for the next entry, seconds; None waits without end.

        Returns:
            An iterator without an end. It waits in ``next``, which raises WaitTimeout when
            ``timeout`` is over; after that it may be gone on with.

        Every put is given once, in the order of the commits. Values that were replaced or
        deleted while nobody was reading may be left out, as compaction frees them; so may
        all those of a DAG that was cleared, after a successor was cleared, too. The newest
        value of an id is never left out.
        """
        return Watch(self._dags, dag_id, since, timeout)

    # --- In an event loop ------------------------------------------------------------

    async def wait_async(
        self, dag_id: str, id: str, timeout: float | None = None, *, mode: str = READ
    ) -> Any:
        """As ``wait``. Any number may wait: they share one thread a DAG."""
        clock = Countdown(timeout)
        keys = _keys(self._dags, dag_id, (id,), mode)
        return (await self._until_there(dag_id, keys, clock, mode))[id]

    async def wait_many_async(
        self, dag_id: str, ids: Iterable[str], timeout: float | None = None, *, mode: str = READ
    ) -> dict[str, Any]:
        """As ``wait_many``."""
        clock = Countdown(timeout)
        keys = _keys(self._dags, dag_id, ids, mode)
        return await self._until_there(dag_id, keys, clock, mode) if keys else {}

    async def _until_there(
        self, dag_id: str, keys: dict[bytes, str], clock: Countdown, mode: str
    ) -> dict[str, Any]:
        missing = WaitTimeout(dag_id, (), 0.0)

        async def look() -> dict[str, Any] | None:
            nonlocal missing
            try:
                return await in_thread(self._there, dag_id, keys, clock, mode)
            except WaitTimeout as error:
                missing = error
                return None

        values = await look()
        while values is None:
            if not clock.left_s:
                raise missing
            with await self._hubs.join(dag_id, frozenset(keys)) as waiter:
                values = await look()
                if values is None:
                    waiter.miss(encode_id(id, "id") for id in missing.ids)
                    await waiter.ring(clock.left_s)
                    values = await look()
        return values

    def watch_async(
        self, dag_id: str, *, since: object = None, timeout: float | None = None
    ) -> AsyncWatch:
        """As ``watch``, for ``async for`` and ``async with``. Not to be awaited itself."""
        return AsyncWatch(self._dags, self._hubs, dag_id, since, timeout)


def _keys(dags: OpenDags, dag_id: str, ids: Iterable[str], mode: str) -> dict[bytes, str]:
    """The ids by their bytes, all that a caller gave having been checked."""
    dags.check_open()
    encode_id(dag_id, "dag_id")
    if mode not in segment.MODES:
        raise ValueError(f"mode must be 'read', 'cow' or 'copy', not {mode!r}")
    return {encode_id(id, "id"): id for id in several(ids, "ids")}
