"""Hosts for tests of what goes between them: a root, a store, a node's parts, one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import shmstore
from shmstore.node import transfer
from shmstore.node.connection import Connection
from shmstore.node.owner import Owner
from shmstore.node.transfer import Fetched
from tests.cluster.nodes import DEADLINE_S, connected

_NAMESPACE = "default"


class Host:
    """A host with its own root, whose node gives out values and fetches them.

    Attributes:
        name: Of its node.
        root: The root.
        store: A store there.
        connection: The node's, to NATS.
        owner: The part of the node that gives out values.
    """

    def __init__(
        self, name: str, root: str, connection: Connection, capacity: int | None = None
    ) -> None:
        self.name = name
        self.root = root
        self.store = shmstore.Store(root, capacity=capacity)
        self.connection = connection
        self.owner = Owner(connection, self.store._dags, _NAMESPACE, name)

    async def fetch(self, node: str, id: str, dag_id: str = "dag", **options: Any) -> Fetched:
        """Fetches a value from another host's node."""
        async with asyncio.timeout(DEADLINE_S):
            return await transfer.fetch(
                self.connection, node, dag_id, id, self.store._dags, **options
            )


@asynccontextmanager
async def host(
    url: str,
    root: str,
    name: str,
    capacity: int | None = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[Host]:
    """A host whose root is a directory within ``root``."""
    async with connected(url, name, _NAMESPACE, env) as connection:
        one = Host(name, str(Path(root) / name), connection, capacity)
        with one.store:
            await one.owner.start()
            try:
                yield one
            finally:
                await one.owner.stop()


@asynccontextmanager
async def hosts(url: str, root: str, *names: str) -> AsyncIterator[list[Host]]:
    """Several hosts."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(host(url, root, name)) for name in names]
