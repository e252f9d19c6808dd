"""Who is which node: a name belongs to one living node at a time.

A claim is a key that the registry forgets by itself when it is not renewed, so that one that
is there is that of a living node, or of one that died a moment ago. It is written by
compare-and-set. A node of the same store takes over its predecessor's at once: of one store
only one node runs, by its lock. Another store's is refused: two nodes of one name would
answer for each other's values.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass

from shmstore.errors import RemoteError
from shmstore.names import check_name
from shmstore.node import protocol
from shmstore.node.bucket import Bucket
from shmstore.node.kept import Kept, WrongRevision

#: How long a claim holds that is not renewed, and how often to renew it, seconds.
HOLDS_S = 10.0
RENEW_S = 2.0
_ROUNDS = 10


@dataclass(frozen=True)
class Claim:
    """A living node, as it says of itself."""

    node: str
    store_id: str
    """Which store it serves."""
    incarnation: str
    host: str
    pid: int
    started: float
    """When it claimed its name, seconds of the Unix epoch by its clock."""
    term: str
    """Tells this claim from the same node's one before."""

    def packed(self) -> bytes:
        """Its bytes in the bucket."""
        return json.dumps(vars(self), separators=(",", ":")).encode()


class NameTaken(RemoteError):
    """The name belongs to another living node.

    Attributes:
        node: The name.
        host: The host of the other.
        pid: Its process there.
        started: When it claimed the name, seconds of the Unix epoch.
    """

    node: str
    host: str
    pid: int
    started: float

    def __init__(self, node: str, host: str, pid: int, started: float) -> None:
        super().__init__(node=node, host=host, pid=pid, started=started)

    def _sentence(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.started))
        return (
            f"The name {self.node!r} belongs to another node, process {self.pid} on host "
            f"{self.host!r}, since {since} UTC; give each node a name of its own "
            "(--name NAME, or SHMSTORE_NODE)."
        )


class Claims:
    """The claims of a namespace, and one's own. Calls raise ``RegistryUnavailable``, too."""

    def __init__(self, bucket: Bucket, node: str, incarnation: str) -> None:
        self._bucket = bucket
        self._node = node
        self._incarnation = incarnation
        self._mine: Claim | None = None
        self._revision = 0

    async def claim(self, store_id: str) -> Claim:
        """Takes the name.

        Raises:
            NameTaken: Another store's node has it, and lives.
        """
        mine = Claim(
            node=self._node,
            store_id=store_id,
            incarnation=self._incarnation,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.time(),
            term=secrets.token_hex(8),
        )
        for _ in range(_ROUNDS):
            kept = await self._bucket.last(self._node)
            other = _claim(kept)
            if other is not None and other.store_id != store_id:
                raise _taken(other)
            try:
                self._revision = await self._bucket.write(
                    self._node, mine.packed(), kept.revision if kept else 0
                )
            except WrongRevision:
                continue
            self._mine = mine
            return mine
        raise _taken(other or mine)

    async def renew(self) -> bool:
        """Says that this node lives; to be called every ``RENEW_S``.

        Returns:
            Whether the claim was still there. If not, it was made again, and whatever made
            the registry forget it may have cost it more.

        Raises:
            NameTaken: Another node has the name by now, of whatever store; this one has
                to stop.
        """
        mine = self._mine
        if mine is None:
            raise RuntimeError("renew() before claim()")
        for _ in range(_ROUNDS):
            try:
                self._revision = await self._bucket.write(self._node, mine.packed(), self._revision)
            except WrongRevision:
                kept = await self._bucket.last(self._node)
                other = _claim(kept)
                if other is None:
                    await self.claim(mine.store_id)
                    return False
                if other.term != mine.term:
                    raise _taken(other) from None
                assert kept is not None
                self._revision = kept.revision  # ours, whose acknowledgement was lost
                continue
            return True
        raise _taken(mine)

    async def release(self) -> None:
        """Gives the name up, if it still is ours."""
        if self._mine is None:
            return
        self._mine = None
        try:
            await self._bucket.remove(self._node, self._revision)
        except WrongRevision:
            pass

    async def of(self, node: str) -> Claim | None:
        """The claim of a living node, or None."""
        return _claim(await self._bucket.last(node))

    async def all(self) -> list[Claim]:
        """Every living node, by name."""
        found = {}
        async for kept in self._bucket.walk("*"):
            claim = _claim(kept)
            if claim is not None:
                found[claim.node] = claim
        return [found[name] for name in sorted(found)]


def _taken(claim: Claim) -> NameTaken:
    return NameTaken(claim.node, claim.host, claim.pid, claim.started)


def _claim(kept: Kept | None) -> Claim | None:
    """The claim that a key has, or None if it is none of that key."""
    if kept is None or kept.removed:
        return None
    try:
        header = json.loads(kept.value)
        if type(header) is not dict:
            return None
        claim = Claim(
            node=check_name(header.get("node"), "node"),
            store_id=protocol.text(header, "store_id", 128),
            incarnation=protocol.text(header, "incarnation", 64),
            host=protocol.text(header, "host", 255),
            pid=protocol.integer(header, "pid"),
            started=protocol.seconds(header, "started", most=1e11),
            term=protocol.text(header, "term", 64),
        )
    except (TypeError, ValueError, RecursionError, protocol.ProtocolError):
        return None
    return claim if claim.node == kept.key else None
