"""Clearing a DAG on all nodes: asking them, and obeying.

Raising the DAG's epoch in the registry is the commit point: from then on all entries of
before are dead, and a node that hears of it only when it returns clears its DAG before it
registers anything. Whoever dies later than that only leaves work to the others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shmstore import clearing
from shmstore.errors import RegistryUnavailable, StoreError
from shmstore.node import protocol, subjects
from shmstore.node.connection import Message, NoAnswer, TooLarge
from shmstore.node.protocol import ProtocolError

if TYPE_CHECKING:
    from shmstore.namespace import Namespace
    from shmstore.node.connection import Connection
    from shmstore.node.publisher import Publisher
    from shmstore.node.registry import Registry

_log = logging.getLogger("shmstore.node")

_CALL = "clear"
# How long a node may take to clear a DAG.
PATIENCE_S = 5.0


class Everywhere:
    """Clears DAGs on all nodes.

    Args:
        space: This host's namespace.
        connection: The connection to NATS.
        registry: The registry.
        publisher: What obeys here.
        node: This node's name.
    """

    def __init__(
        self,
        space: Namespace,
        connection: Connection,
        registry: Registry,
        publisher: Publisher,
        node: str,
    ) -> None:
        self._space, self._connection, self._registry = space, connection, registry
        self._publisher, self._node = publisher, node

    async def start(self) -> None:
        """Takes the requests of other nodes."""
        subject = subjects.call_subject(self._space.name, self._node, _CALL)
        await self._connection.subscribe(subject, self._asked)

    async def clear(self, dag_id: str, patience_s: float) -> tuple[bool, list[str]]:
        """Clears a DAG on all nodes.

        Args:
            dag_id: The DAG.
            patience_s: How long the others may take.

        Returns:
            Whether there was anything to be cleared, as far as is known, and the nodes that
            did not answer. These clear it when they are back.

        Raises:
            RegistryUnavailable: Nothing was changed.
        """
        owners = {entry.node async for entry in self._registry.get_all(dag_id)}
        others = (owners | {one.node for one in await self._registry.nodes()}) - {self._node}
        epoch = await self._registry.raise_epoch(dag_id)
        here = await asyncio.to_thread(clearing.clear_dag, self._space, dag_id)
        there = await asyncio.gather(
            *(self._tell(node, dag_id, epoch, min(patience_s, PATIENCE_S)) for node in others)
        )
        await self._registry.purge(dag_id)
        unreachable = sorted(node for node, done in zip(others, there, strict=True) if done is None)
        return bool(here or owners or any(there)), unreachable

    async def _tell(self, node: str, dag_id: str, epoch: int, patience_s: float) -> bool | None:
        """Whether a node had anything to clear; None if it does not answer."""
        subject = subjects.call_subject(self._space.name, node, _CALL)
        request = protocol.pack({"dag": dag_id, "epoch": epoch})
        try:
            reply = await self._connection.request(subject, request, patience_s)
            header, _ = protocol.unpack(reply)
            if "fault" in header:
                raise ProtocolError(protocol.text(header, "fault"))
            return header.get("cleared") is True
        except (NoAnswer, TooLarge, RegistryUnavailable, ProtocolError) as error:
            _log.warning("node %r has not cleared DAG %r: %s", node, dag_id, str(error))
            return None

    async def _asked(self, message: Message) -> None:
        if not subjects.is_inbox(self._space.name, message.reply):
            return
        try:
            header, _ = protocol.unpack(message.data)
            dag_id = protocol.id_of(header, "dag")
            epoch = protocol.integer(header, "epoch", 1)
            # Believed only if the registry says so, too.
            epoch = min(epoch, await self._registry.read_epoch(dag_id))
            reply: dict[str, object] = {"cleared": await self._publisher.obey(dag_id, epoch)}
        except ProtocolError as error:
            reply = {"fault": str(error)}
        except StoreError as error:
            _log.warning("a DAG could not be cleared: %s", str(error))
            reply = {"fault": str(error)[:1000]}
        try:
            await self._connection.publish(message.reply, protocol.pack(reply))
        except RegistryUnavailable:
            pass  # who asked has lost us, too
