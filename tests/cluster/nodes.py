"""What the tests of the network share: connections and registries that end with their test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from shmstore.node.connection import Connection
from shmstore.node.registry import Entry, Registry
from shmstore.node.settings import Settings

#: Until when what must come has to have come, seconds.
DEADLINE_S = 30.0


@asynccontextmanager
async def connected(
    url: str, node: str = "a", namespace: str = "test", env: dict[str, str] | None = None
) -> AsyncIterator[Connection]:
    """A connection."""
    connection = await Connection.open(Settings.parse(url, env or {}), namespace, node)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def registered(
    url: str, node: str = "a", namespace: str = "test", incarnation: str = "1"
) -> AsyncIterator[Registry]:
    """A registry that is prepared."""
    async with connected(url, node, namespace) as connection:
        registry = Registry(connection, namespace, node, incarnation)
        await registry.prepare()
        yield registry


def entry(dag_id: str, id: str, node: str = "a", epoch: int = 0, nbytes: int = 1) -> Entry:
    """An entry."""
    return Entry(dag_id, id, node, "1", epoch, nbytes, "plain")


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Returns when a condition holds, which nothing else tells of; fails at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(what)


def run(work: Awaitable[None]) -> None:
    """Runs the steps of a test in an event loop of its own, bounded in time."""

    async def bounded() -> None:
        await asyncio.wait_for(work, 4 * DEADLINE_S)

    asyncio.run(bounded())


async def nobodys() -> None:
    """For a publisher without a claim, whose name nobody takes."""
