"""``Store.registry``: where values are, on all hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmstore import names
from shmstore.errors import NotFound
from shmstore.names import encode_id
from shmstore.store_async import in_thread

if TYPE_CHECKING:
    from shmstore.node.client import NodeClient
    from shmstore.opened import OpenDags

_PATIENCE_S = 10.0
_LONG_PATIENCE_S = 300.0  # for what grows with the number of entries


class Registered:
    """The registry's entries, asked for through this host's node.

    What is put on a host is registered by itself. All calls raise NodeNotRunning if no node
    runs here, and RegistryUnavailable if NATS cannot be reached.
    """

    def __init__(self, dags: OpenDags, node: NodeClient) -> None:
        self._dags, self._node = dags, node

    def register(self, dag_id: str, id: str, node: str) -> None:
        """Says that a node has a value. Only needed for what is kept outside of a store."""
        _check(dag_id, id)
        names.check_name(node, "node")
        self._call("register", dag=dag_id, id=id, node=node)

    def lookup(self, dag_id: str, id: str) -> str:
        """The name of the node that has a value.

        Raises:
            NotFound: None has it.
        """
        _check(dag_id, id)
        node = self._call("lookup", dag=dag_id, id=id)["node"]
        if node is None:
            raise NotFound(dag_id, id, "on any host that the registry knows of")
        return str(node)

    def get_all(self, dag_id: str) -> dict[str, str]:
        """The nodes that have a DAG's values, by id."""
        encode_id(dag_id, "dag_id")
        self._dags.check_open()
        found: dict[str, str] = {}
        for part in self._node.registry_stream("get-all", _LONG_PATIENCE_S, dag=dag_id):
            found.update(part["entries"])
        return found

    def clear(self, dag_id: str) -> None:
        """Forgets where a DAG's values are. The values stay; what is put later is registered."""
        encode_id(dag_id, "dag_id")
        self._call("clear-registry", dag=dag_id)

    async def register_async(self, dag_id: str, id: str, node: str) -> None:
        """As ``register``."""
        await in_thread(self.register, dag_id, id, node)

    async def lookup_async(self, dag_id: str, id: str) -> str:
        """As ``lookup``."""
        return await in_thread(self.lookup, dag_id, id)

    async def get_all_async(self, dag_id: str) -> dict[str, str]:
        """As ``get_all``."""
        return await in_thread(self.get_all, dag_id)

    async def clear_async(self, dag_id: str) -> None:
        """As ``clear``."""
        await in_thread(self.clear, dag_id)

    def _call(self, op: str, **fields: Any) -> Any:
        self._dags.check_open()
        return self._node.registry_call(op, _PATIENCE_S, **fields)


def _check(dag_id: str, id: str) -> None:
    encode_id(dag_id, "dag_id")
    encode_id(id, "id")
