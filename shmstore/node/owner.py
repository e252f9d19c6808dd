"""Answers the value requests of other nodes.

A request names a value and gets what is needed to take it in, with all of it if it is
small. What is larger is asked for in pieces of one *version*: while they come, a lease keeps
that version in memory, whatever becomes of the value. A version that is no longer there is
gone, and whoever asks starts again.

Requests are made by strangers. Each is held to its form, and answered only on subjects
that belong to nodes of the namespace: else this node could be made to write where the
sender may not. Nothing is decoded here.

If the process dies, its leases end with it; who was fetching asks the next node of this
host, which finds the same version if the value is still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from shmstore import reading, segment, stored
from shmstore.errors import RegistryUnavailable, StoreError
from shmstore.manifest import Superseded
from shmstore.names import encode_id
from shmstore.node import protocol
from shmstore.node.connection import Connection, Message, Subscribed, TooLarge
from shmstore.node.leases import Lease, Leases
from shmstore.node.protocol import LARGEST_PIECE, MARGIN, Header, ProtocolError
from shmstore.node.subjects import call_subject, is_inbox
from shmstore.opened import OpenDags
from shmstore.record import SPILLED
from shmstore.view import DOUBTFUL

#: Values up to this size, with their meta, come whole with the first answer.
SMALL = 128 << 10

# Up to here the checksum is told with the first answer: it takes less than a round trip.
_SUMMED_FIRST = 2 << 20
_MOST_TASKS = 256
_SWEEP_S = 1.0
_SHRUNK = 3  # tries, when the largest message becomes smaller as it is sent

Answer: TypeAlias = tuple[Header, bytes | memoryview]
#: Answers a request with at most so many bytes of a value in the answer.
Quick: TypeAlias = Callable[[Header, int], Answer | None]
Slow: TypeAlias = Callable[[Header, int], Awaitable[Answer]]

_GONE: Answer = ({"status": "gone"}, b"")


class Owner:
    """The part of a node that gives out values. In one event loop.

    Args:
        connection: To NATS.
        dags: The open DAGs.
        namespace: The namespace.
        node: This node's name.
    """

    def __init__(self, connection: Connection, dags: OpenDags, namespace: str, node: str) -> None:
        self._connection = connection
        self._dags = dags
        self._namespace = namespace
        self._node = node
        self._leases = Leases()
        self._subscribed: list[Subscribed] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to answer.

        Raises:
            RegistryUnavailable: There is no connection.
        """
        calls: tuple[tuple[str, Quick, Slow, bool], ...] = (
            ("get", self._get, self._get_slowly, False),
            ("chunk", self._chunk, self._chunk_slowly, True),
            ("sum", self._sum, self._sum_slowly, False),
        )
        for call, quick, slow, bulk in calls:
            subject = call_subject(self._namespace, self._node, call)
            serve = self._server(quick, slow, bulk)
            self._subscribed.append(await self._connection.subscribe(subject, serve, bulk=bulk))
        self._spawn(self._end_leases())

    async def stop(self) -> None:
        """Ends answering, and all leases."""
        for subscribed in self._subscribed:
            await subscribed.stop()
        self._subscribed.clear()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._leases.clear()

    # --- Requests --------------------------------------------------------------------

    def _server(self, quick: Quick, slow: Slow, bulk: bool) -> Callable[[Message], Awaitable[None]]:
        """What takes the requests of one kind.

        Args:
            quick: Answers what can be answered at once; None for the rest.
            slow: Answers the rest, in a task of its own, so that others need not wait.
            bulk: By which connection.
        """

        async def serve(message: Message) -> None:
            reply = message.reply
            if not is_inbox(self._namespace, reply):
                return
            try:
                header, _ = protocol.unpack(message.data)
                if await self._answered(reply, quick, header, bulk):
                    return
            except (ProtocolError, StoreError) as error:
                await self._send(reply, _failure(error), bulk)
                return
            if len(self._tasks) < _MOST_TASKS:
                self._spawn(self._serve_slowly(reply, slow, header, bulk))
            else:
                await self._send(reply, ({"status": "busy"}, b""), bulk)

        return serve

    async def _answered(self, reply: str, quick: Quick, header: Header, bulk: bool) -> bool:
        """Whether a request could be answered at once."""
        for _ in range(_SHRUNK):
            answer = quick(header, self._most)
            if answer is None:
                return False
            if await self._send(reply, answer, bulk):
                break
        return True

    async def _serve_slowly(self, reply: str, slow: Slow, header: Header, bulk: bool) -> None:
        try:
            for _ in range(_SHRUNK):
                if await self._send(reply, await slow(header, self._most), bulk):
                    break
        except (ProtocolError, StoreError) as error:
            await self._send(reply, _failure(error), bulk)

    async def _send(self, reply: str, answer: Answer, bulk: bool) -> bool:
        """Sends an answer; False if it is larger than what the server takes by now."""
        try:
            if bulk:
                header, body = answer
                await self._connection.publish_large(reply, protocol.pack(header), body)
            else:
                await self._connection.publish(reply, protocol.pack(*answer))
        except TooLarge:
            return False
        except RegistryUnavailable:
            pass  # who asked asks again
        return True

    @property
    def _most(self) -> int:
        """Bytes of a value that a message may hold now."""
        return max(1, self._connection.max_payload - MARGIN)

    # --- What a value is, and small ones -------------------------------------------------

    def _get(self, header: Header, most: int) -> Answer | None:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        found, lease = self._find_at_once(dag_id, id)
        return self._told(lease, most) if found else None

    async def _get_slowly(self, header: Header, most: int) -> Answer:
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        lease = await asyncio.to_thread(self._find, dag_id, id)
        if lease is not None and lease.total <= _SUMMED_FIRST:
            await lease.summed()
        return self._told(lease, most)

    def _told(self, lease: Lease | None, most: int) -> Answer:
        if lease is None:
            return {"status": "not-found"}, b""
        record, total = lease.record, lease.total
        header: Header = {
            "status": "value",
            "version": lease.version,
            "codec": record.codec,
            "created": record.created_ns,
            "meta": len(record.meta),
            "nbytes": record.nbytes,
        }
        if total <= _SUMMED_FIRST:
            header["sum"] = lease.sum()
        most = min(SMALL, most)
        # Of a large one only the meta, so that the pieces of the payload lie on its pages.
        size = total if total <= most else min(len(record.meta), most)
        piece = lease.piece(0, size)
        if size < total:
            self._leases.keep(lease).sent(0, piece)  # so that what follows is in order
        return header, piece

    def _find_at_once(self, dag_id: str, id: str) -> tuple[bool, Lease | None]:
        """Whether it could be found out without waiting for anything, and what it is."""
        manifest = self._dags.manifests.get(dag_id)
        if manifest is None:
            return False, None
        try:
            record = reading.find_at_once(manifest, encode_id(id, "id"))
            if record is DOUBTFUL or (record is not None and record.flags & SPILLED):
                return False, None
            if record is None:
                return True, None
            payload = memoryview(record.payload)
            if record.segment:
                payload = segment.attach(manifest.directory, record.segment, record.nbytes)
        except (Superseded, StoreError, segment.SegmentGone, OSError):
            return False, None
        return True, Lease(record, payload)

    def _find(self, dag_id: str, id: str) -> Lease | None:
        found = stored.find(self._dags, dag_id, encode_id(id, "id"), segment.READ)
        return None if found is None else Lease(*found)

    # --- Pieces of large ones ------------------------------------------------------------

    def _chunk(self, header: Header, most: int) -> Answer | None:
        lease = self._leases.find(protocol.text(header, "version", 64))
        if lease is None or lease.on_disk:
            return None
        at, size = _range(lease, header, most)
        return _piece(lease, at, lease.piece(at, size))

    async def _chunk_slowly(self, header: Header, most: int) -> Answer:
        lease = await self._lease(header)
        if lease is None:
            return _GONE
        at, size = _range(lease, header, most)
        return _piece(lease, at, await asyncio.to_thread(bytes, lease.piece(at, size)))

    def _sum(self, header: Header, _: int) -> Answer | None:
        lease = self._leases.find(protocol.text(header, "version", 64))
        if lease is None or not lease.is_summed:
            return None
        return {"status": "sum", "sum": lease.sum()}, b""

    async def _sum_slowly(self, header: Header, _: int) -> Answer:
        lease = await self._lease(header)
        if lease is None:
            return _GONE
        return {"status": "sum", "sum": await lease.summed()}, b""

    async def _lease(self, header: Header) -> Lease | None:
        """The lease of a version; a new one if the value still is that version."""
        version = protocol.text(header, "version", 64)
        dag_id, id = protocol.id_of(header, "dag"), protocol.id_of(header, "id")
        lease = self._leases.find(version)
        if lease is None:
            lease = await asyncio.to_thread(self._find, dag_id, id)
            if lease is None or lease.version != version:
                return None
            lease = self._leases.keep(lease)
        return lease

    # --- Tasks ---------------------------------------------------------------------------

    async def _end_leases(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._leases.end_unused()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _range(lease: Lease, header: Header, most: int) -> tuple[int, int]:
    at = protocol.integer(header, "at", most=lease.total - 1)
    size = protocol.integer(header, "size", 1)
    return at, min(size, lease.total - at, LARGEST_PIECE, most)


def _piece(lease: Lease, at: int, piece: bytes | memoryview) -> Answer:
    header: Header = {"status": "chunk", "at": at}
    lease.sent(at, piece)
    if at + len(piece) == lease.total and lease.is_summed:
        header["sum"] = lease.sum()
    return header, piece


def _failure(error: Exception) -> Answer:
    return {"status": "error", "why": str(error)[:1000]}, b""
