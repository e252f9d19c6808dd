"""The async twins of the store's calls: the same calls, in a thread.

Writing and reading shared memory is work for the processor, not waiting, so a
thread of the event loop's pool does it. A cancelled task does not undo what its
thread has begun: the put may still happen, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    import pyarrow as pa

    from shmstore.entry import ClearReport, Entry
    from shmstore.report import Finding, GcReport
    from shmstore.store import Store


P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls something that is work, not waiting, in a thread of the loop's pool."""
    import asyncio  # half of what importing shmstore would cost otherwise

    return await asyncio.to_thread(call, *args, **kwargs)


class AsyncCalls:
    """What ``Store`` inherits: ``<call>_async`` for each call that may take long."""

    def _sync(self) -> Store:
        return cast("Store", self)

    async def put_async(
        self,
        dag_id: str,
        id: str,
        value: Any,
        *,
        deps: Iterable[str] = (),
        overwrite: bool = True,
        publish: bool = False,
    ) -> Entry:
        """As ``put``."""
        put = self._sync().put
        return await in_thread(
            put, dag_id, id, value, deps=deps, overwrite=overwrite, publish=publish
        )

    async def put_many_async(
        self, dag_id: str, values: Mapping[str, Any], *, overwrite: bool = True
    ) -> list[Entry]:
        """As ``put_many``."""
        return await in_thread(self._sync().put_many, dag_id, values, overwrite=overwrite)

    async def get_async(self, dag_id: str, id: str, **options: Any) -> Any:
        """As ``get``, with its options."""
        return await in_thread(self._sync().get, dag_id, id, **options)

    async def get_buffer_async(self, dag_id: str, id: str) -> pa.Buffer:
        """As ``get_buffer``."""
        return await in_thread(self._sync().get_buffer, dag_id, id)

    async def get_many_async(
        self, dag_id: str, ids: Iterable[str], **options: Any
    ) -> dict[str, Any]:
        """As ``get_many``, with its options."""
        return await in_thread(self._sync().get_many, dag_id, ids, **options)

    async def delete_async(self, dag_id: str, id: str) -> None:
        """As ``delete``."""
        await in_thread(self._sync().delete, dag_id, id)

    async def delete_many_async(self, dag_id: str, ids: Iterable[str]) -> None:
        """As ``delete_many``."""
        await in_thread(self._sync().delete_many, dag_id, ids)

    async def clear_async(self, dag_id: str, *, all_nodes: bool = False) -> ClearReport:
        """As ``clear``."""
        return await in_thread(self._sync().clear, dag_id, all_nodes=all_nodes)

    async def gc_async(self, dry_run: bool = False, *, older_than: float | None = None) -> GcReport:
        """As ``gc``."""
        return await in_thread(self._sync().gc, dry_run, older_than=older_than)

    async def check_async(self, fix: bool = False) -> list[Finding]:
        """As ``check``."""
        return await in_thread(self._sync().check, fix)
