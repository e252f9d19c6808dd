"""The store's calls that reach other hosts, through the node of this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from shmstore import names
from shmstore.entry import ClearReport, NodeInfo, Synchronized
from shmstore.errors import (
    FetchTimeout,
    NodeNotRunning,
    NotFound,
    RegistryUnavailable,
    RemoteError,
    StoreError,
    WaitTimeout,
)
from shmstore.names import encode_id, several
from shmstore.node import client, protocol
from shmstore.segment import READ
from shmstore.store_async import in_thread
from shmstore.waiting import Countdown

if TYPE_CHECKING:
    from shmstore.node.client import NodeClient
    from shmstore.opened import OpenDags
    from shmstore.registered import Registered
    from shmstore.store import Store

_MISSING: Final = object()
# Bytes of ids in one request: escaped, they may take six times as many.
_MOST_ID_BYTES = 8 << 10
_CLEAR_S = 30.0
_NODES_S = 10.0
_VANISHED = "it was brought here, and was gone again at once"
_ALONE = "on this host, and no node is running here that could ask others"


class RemoteCalls:
    """What ``Store`` inherits: fetching from other hosts, and the registry."""

    _dags: OpenDags
    _node: NodeClient

    def get_with_fetch(
        self,
        dag_id: str,
        id: str,
        *,
        from_node: str | None = None,
        timeout: float = 30.0,
        mode: str = READ,
    ) -> Any:
        """Returns a value of this host, or brings it here from another one first.

        From the second time on it is here, and read without any network.

        Args:
            dag_id: The DAG.
            id: The value's id.
            from_node: The node that has it; None to ask the registry.
            timeout: The longest that bringing it may take, seconds.
            mode: As of ``get``.

        Raises:
            NotFound: It is nowhere.
            FetchTimeout: It was not here in time.
            NodeUnreachable: The node that has it does not answer.
            RegistryUnavailable: It cannot be found out where it is.
            UnsafeValue: It needs what values of other hosts may not use.
        """
        store = cast("Store", self)
        value = store.get(dag_id, id, mode=mode, default=_MISSING)
        if value is not _MISSING:
            return value
        return self._fetched(dag_id, id, from_node, timeout, mode, refresh=False)

    def fetch_remote(
        self,
        dag_id: str,
        id: str,
        *,
        from_node: str | None = None,
        timeout: float = 30.0,
        mode: str = READ,
    ) -> Any:
        """Brings a value here from another host, also if there is a copy of it here.

        A value that was put on this host is never replaced; it is returned as it is.

        Args and Raises: As of ``get_with_fetch``.
        """
        self._dags.check_open()
        encode_id(dag_id, "dag_id")
        encode_id(id, "id")
        return self._fetched(dag_id, id, from_node, timeout, mode, refresh=True)

    def get_with_timeout(
        self, dag_id: str, id: str, timeout: float = 5.0, *, mode: str = READ
    ) -> Any:
        """Returns a value as soon as any host has stored it.

        Args:
            dag_id: The DAG.
            id: The value's id.
            timeout: The longest wait, seconds.
            mode: As of ``get``.

        Raises:
            FetchTimeout: No host has stored it in time. A WaitTimeout, too.
            StoreFull: It was stored on another host, and there is no room for it here.
        """
        store = cast("Store", self)
        clock = Countdown(timeout)
        value = store.get(dag_id, id, mode=mode, default=_MISSING)
        if value is not _MISSING:
            return value
        # The node brings it here, where it wakes whoever waits, like any value that is put.
        left_s = min(clock.left_s, client.LONGEST_S)
        asked = client.Request(self._node, "await", dag=dag_id, id=id, timeout=left_s)
        trouble: RemoteError | None = None
        try:
            while True:
                try:
                    asked.look()
                    trouble = None
                except RemoteError as error:
                    trouble = error
                try:
                    return store.wait(dag_id, id, min(clock.left_s, client.LOOK_S), mode=mode)
                except WaitTimeout:
                    if not clock.left_s:
                        raise self._in_vain(dag_id, id, clock, trouble) from None
        finally:
            asked.close()

    def synchronize(
        self, dag_id: str, ids: Iterable[str], *, timeout: float = 30.0
    ) -> Synchronized:
        """Brings several values here, and returns those that could be had.

        Args:
            dag_id: The DAG.
            ids: The values' ids.
            timeout: The longest that all of them may take together, seconds.

        Returns:
            A dict of values by id; its ``errors`` say why the others are missing.
        """
        store = cast("Store", self)
        clock = Countdown(timeout)
        wanted = dict.fromkeys(several(ids, "ids"))
        absent = [id for id in wanted if not store.has_value(dag_id, id)]
        errors = self._bring_many(dag_id, absent, clock)
        found = Synchronized()
        for id in wanted:
            try:
                found[id] = store.get(dag_id, id)
            except NotFound:
                if id in errors:
                    found.errors[id] = errors[id]
                    continue
                # It was here, and gave way to another one, say.
                try:
                    found[id] = self._fetched(dag_id, id, None, clock.left_s, READ, refresh=False)
                except StoreError as error:
                    found.errors[id] = error
            except StoreError as error:
                found.errors[id] = error
        return found

    def prefetch(self, dag_id: str, ids: Iterable[str]) -> None:
        """Has values brought here in the background; nothing is decoded, nothing waited for.

        Raises:
            NodeNotRunning: There is no node that could bring them.
        """
        store = cast("Store", self)
        absent = [id for id in several(ids, "ids") if not store.has_value(dag_id, id)]
        for some in _in_portions(absent):
            self._node.call("prefetch", 5.0, dag=dag_id, ids=some)

    def sync(self, timeout: float = 30.0) -> None:
        """Returns once all that was put on this host before is registered.

        Raises:
            NodeNotRunning: There is no node on this host.
            RegistryUnavailable: It was not to be reached in time.
        """
        self._dags.check_open()
        clock = Countdown(timeout)
        try:
            self._node.call("sync", clock.left_s)
        except client.Overdue:
            raise RegistryUnavailable(
                f"what was put was not registered within {clock.passed_s:,.1f} s"
            ) from None

    def nodes(self) -> list[NodeInfo]:
        """The nodes of this namespace that are alive, on all hosts.

        Raises:
            NodeNotRunning: There is no node on this host.
            RegistryUnavailable: It is not to be reached.
        """
        self._dags.check_open()
        return [
            NodeInfo(**{**facts, "started_at": datetime.fromtimestamp(facts["started_at"], UTC)})
            for facts in self._node.registry_stream("nodes", _NODES_S)
        ]

    @property
    def registry(self) -> Registered:
        """Where values are, on all hosts."""
        from shmstore.registered import Registered

        return Registered(self._dags, self._node)

    # --- Asking the node -------------------------------------------------------------------

    def _clear_everywhere(self, dag_id: str) -> ClearReport:
        answer = self._node.registry_call("clear", _CLEAR_S, dag=dag_id)
        self._dags.forget(dag_id)
        return ClearReport(answer["cleared"], tuple(answer["unreachable"]))

    def _fetched(
        self,
        dag_id: str,
        id: str,
        from_node: str | None,
        timeout: float,
        mode: str,
        *,
        refresh: bool,
    ) -> Any:
        """Has the node bring a value, and returns it."""
        store = cast("Store", self)
        clock, fields = _wanted(dag_id, id, from_node, timeout, refresh)
        while True:
            alone = False
            try:
                self._node.call("bring", clock.left_s, **fields)
            except (client.Overdue, NodeNotRunning) as error:
                alone = self._is_alone(error, dag_id, id, from_node, clock)
            value = store.get(dag_id, id, mode=mode, default=_MISSING)
            if value is not _MISSING:
                return value
            self._check_again(dag_id, id, clock, alone)

    def _is_alone(
        self, error: Exception, dag_id: str, id: str, from_node: str | None, clock: Countdown
    ) -> bool:
        """Whether there is no node, and that is no error; raises what is one."""
        if isinstance(error, client.Overdue):
            raise FetchTimeout(dag_id, (id,), clock.passed_s, "the node has not answered") from None
        if from_node is not None or self._node.expected:
            raise error
        return True

    def _check_again(self, dag_id: str, id: str, clock: Countdown, alone: bool) -> None:
        """Raises what is to be told of a value that is not here; else it is to be brought again.

        A copy that has gone before it could be read, as others needed the room, say, or
        deleted theirs, is none the less to be had where it is from.
        """
        if alone:
            raise NotFound(dag_id, id, _ALONE)
        if not clock.left_s:
            raise FetchTimeout(dag_id, (id,), clock.passed_s, _VANISHED)

    def _in_vain(
        self, dag_id: str, id: str, clock: Countdown, trouble: RemoteError | None
    ) -> FetchTimeout:
        if trouble is None or isinstance(trouble, FetchTimeout):
            stage = "no host that could be reached has stored it"
        elif isinstance(trouble, NodeNotRunning) and not self._node.expected:
            stage = f"nobody has stored it {_ALONE}"
        else:
            stage = f"others could not be asked: {str(trouble).removesuffix('.')}"
        return FetchTimeout(dag_id, (id,), clock.passed_s, stage)

    def _bring_many(self, dag_id: str, ids: list[str], clock: Countdown) -> dict[str, StoreError]:
        """Brings values here; the errors of those that could not be had."""
        errors: dict[str, StoreError] = {}
        try:
            for some in _in_portions(ids):
                for failed in self._node.stream("bring-many", clock.left_s, dag=dag_id, ids=some):
                    errors[failed["id"]] = cast(StoreError, protocol.unpack_error(failed))
        except client.Overdue:
            pass
        except NodeNotRunning as error:
            return dict.fromkeys(ids, error) if self._node.expected else {}
        except StoreError as error:
            return {**dict.fromkeys(ids, error), **errors}
        if not clock.left_s:
            for id in ids:
                errors.setdefault(id, FetchTimeout(dag_id, (id,), clock.passed_s))
        return errors

    # --- In an event loop ------------------------------------------------------------

    async def get_with_fetch_async(
        self,
        dag_id: str,
        id: str,
        *,
        from_node: str | None = None,
        timeout: float = 30.0,
        mode: str = READ,
    ) -> Any:
        """As ``get_with_fetch``."""
        store = cast("Store", self)
        value = await store.get_async(dag_id, id, mode=mode, default=_MISSING)
        if value is not _MISSING:
            return value
        return await self._fetched_async(dag_id, id, from_node, timeout, mode, refresh=False)

    async def fetch_remote_async(
        self,
        dag_id: str,
        id: str,
        *,
        from_node: str | None = None,
        timeout: float = 30.0,
        mode: str = READ,
    ) -> Any:
        """As ``fetch_remote``."""
        self._dags.check_open()
        encode_id(dag_id, "dag_id")
        encode_id(id, "id")
        return await self._fetched_async(dag_id, id, from_node, timeout, mode, refresh=True)

    async def get_with_timeout_async(
        self, dag_id: str, id: str, timeout: float = 5.0, *, mode: str = READ
    ) -> Any:
        """As ``get_with_timeout``."""
        import asyncio

        store = cast("Store", self)
        clock = Countdown(timeout)
        value = await store.get_async(dag_id, id, mode=mode, default=_MISSING)
        if value is not _MISSING:
            return value
        from shmstore.node import client_async

        trouble: RemoteError | None = None

        async def ask() -> None:
            nonlocal trouble
            while True:
                try:
                    # Again, too, if it came and was gone before we could read it.
                    await client_async.call(self._node, "await", clock.left_s, dag=dag_id, id=id)
                    trouble = None
                except client.Overdue:
                    return
                except RemoteError as error:
                    trouble = error
                await asyncio.sleep(client.LOOK_S)

        asking = asyncio.create_task(ask())
        waiting = asyncio.create_task(store.wait_async(dag_id, id, clock.left_s, mode=mode))
        try:
            await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not waiting.done():
                asking.result()
            return await waiting
        except WaitTimeout:
            raise self._in_vain(dag_id, id, clock, trouble) from None
        finally:
            asking.cancel()
            waiting.cancel()

    async def synchronize_async(
        self, dag_id: str, ids: Iterable[str], *, timeout: float = 30.0
    ) -> Synchronized:
        """As ``synchronize``."""
        return await in_thread(self.synchronize, dag_id, ids, timeout=timeout)

    async def prefetch_async(self, dag_id: str, ids: Iterable[str]) -> None:
        """As ``prefetch``."""
        await in_thread(self.prefetch, dag_id, ids)

    async def sync_async(self, timeout: float = 30.0) -> None:
        """As ``sync``."""
        await in_thread(self.sync, timeout)

    async def nodes_async(self) -> list[NodeInfo]:
        """As ``nodes``."""
        return await in_thread(self.nodes)

    async def _fetched_async(
        self,
        dag_id: str,
        id: str,
        from_node: str | None,
        timeout: float,
        mode: str,
        *,
        refresh: bool,
    ) -> Any:
        from shmstore.node import client_async

        store = cast("Store", self)
        clock, fields = _wanted(dag_id, id, from_node, timeout, refresh)
        while True:
            alone = False
            try:
                await client_async.call(self._node, "bring", clock.left_s, **fields)
            except (client.Overdue, NodeNotRunning) as error:
                alone = self._is_alone(error, dag_id, id, from_node, clock)
            value = await store.get_async(dag_id, id, mode=mode, default=_MISSING)
            if value is not _MISSING:
                return value
            self._check_again(dag_id, id, clock, alone)


def _wanted(
    dag_id: str, id: str, from_node: str | None, timeout: float, refresh: bool
) -> tuple[Countdown, dict[str, Any]]:
    clock = Countdown(timeout)
    if from_node is not None:
        names.check_name(from_node, "from_node")
    return clock, {"dag": dag_id, "id": id, "from": from_node, "refresh": refresh}


def _in_portions(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, as many at once as fit into a request."""
    some: list[str] = []
    size = 0
    for id in ids:
        size += len(encode_id(id, "id"))
        if some and size > _MOST_ID_BYTES:
            yield some
            some, size = [], len(encode_id(id, "id"))
        some.append(id)
    if some:
        yield some
