"""What the registry says of one value: where it is. Made, written down and read here. Pure.

Whoever may publish to the registry may have written it: what is read is held to its form,
and an entry counts only under the key of the dag_id and id that it names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from shmstore.names import check_name
from shmstore.node import protocol, subjects

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True)
class Entry:
    """Where a value is."""

    dag_id: str
    id: str
    node: str
    incarnation: str
    """Which life of that node: a host that was restarted has lost its values."""
    epoch: int
    """How often the DAG had been cleared everywhere; below the DAG's epoch, it is dead."""
    nbytes: int
    codec: str
    created_ns: int = 0
    """When the value was stored, Unix time: of two nodes that have it, the later one counts."""

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return subjects.entry_key(self.dag_id, self.id)

    def packed(self) -> bytes:
        """Its bytes in the bucket."""
        return _encode(vars(self)).encode()


def unpacked(key: str, value: bytes) -> Entry | None:
    """The entry that a key has, or None if it is none of that key."""
    try:
        header = json.loads(value)
        if type(header) is not dict:
            return None
        entry = Entry(
            dag_id=protocol.id_of(header, "dag_id"),
            id=protocol.id_of(header, "id"),
            node=protocol.text(header, "node", 32),
            incarnation=protocol.text(header, "incarnation", 64),
            epoch=protocol.integer(header, "epoch"),
            nbytes=protocol.integer(header, "nbytes"),
            codec=protocol.text(header, "codec", 255),
            created_ns=protocol.integer(header, "created_ns"),
        )
        check_name(entry.node, "node")
    except (ValueError, RecursionError, protocol.ProtocolError):
        return None
    return entry if entry.key == key else None
