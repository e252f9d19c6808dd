"""Fetches one value from another node: asks, takes the pieces in, checks, commits.

The receiver drives. It asks for what a value is, then for its pieces, as many at a time as
``window`` lets it, all of one version; and again for what did not come. Whatever comes was made
by a stranger: an answer that is not what was asked for ends the fetch, and nothing else.

If the process dies here, nothing of the value is stored (``landing``).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from shmstore.errors import NodeUnreachable, NotFound, RegistryUnavailable, StoreBusy, StoreFull
from shmstore.lock import impatience
from shmstore.node import protocol
from shmstore.node.connection import Connection, Loan, NoAnswer, NoResponders, TooLarge
from shmstore.node.landing import (
    LARGEST_META,
    LARGEST_VALUE,
    Cleared,
    Damaged,
    Head,
    Landing,
    Original,
)
from shmstore.node.protocol import LARGEST_PIECE, MARGIN, Header, ProtocolError
from shmstore.node.subjects import call_subject
from shmstore.node.window import Room, Window
from shmstore.opened import OpenDags
from shmstore.record import Record
from shmstore.stored import INLINE_LIMIT

__all__ = ["Cleared", "Fetched", "Original", "fetch"]

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds without a sign of life of the owner after which it counts as unreachable.
PATIENCE_S = 5.0
#: Seconds for which nobody may listen there: another node may be taking over, or the
#: server has been restarted and the owner has not found it yet.
ABSENCE_S = 2.0

# A piece that takes so many times the usual, and so many seconds, is asked for again.
_LATE = 4.0
_LATE_S = 1.5
_LEAST_PIECE = 32 << 10
_AGAIN_S = 0.1
_STARTS = 8
_DAMAGED_STARTS = 2
_SUM = re.compile(r"[0-9a-f]{32}")

#: Called with the bytes that have come and how many there are in all.
Progress = Callable[[int, int], None]

_windows: WeakKeyDictionary[Connection, Window] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A value that was fetched and is stored here now.

    Attributes:
        record: Its record.
        nbytes: Bytes of values that came, more than it has if something came twice.
        seconds: How long it took.
    """

    record: Record
    nbytes: int
    seconds: float


class _Gone(Exception):
    """The version is no longer there; start again."""


async def fetch(
    connection: Connection,
    node: str,
    dag_id: str,
    id: str,
    dags: OpenDags,
    progress: Progress | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> Fetched:
    """Fetches a value from a node and stores it here, as a copy.

    Takes as long as something comes now and then; whoever has a deadline cancels it. However it
    ends, nothing is left but what it committed.

    Args:
        connection: To NATS.
        node: The node that has it.
        dag_id: The DAG.
        id: The value's id.
        dags: Where to store it.
        progress: Told how far it got.
        patience_s: How long the node may be silent, seconds.

    Raises:
        NotFound: The node says that it has no such value.
        Original: This host has a value of its own there.
        Cleared: The DAG was cleared here meanwhile.
        NodeUnreachable: The node is silent, nobody listens there, or its answers make no sense.
        RegistryUnavailable: This node has lost NATS for longer than ``patience_s``.
        StoreFull: No room here.
        StoreBusy: The DAG's lock is held up.
    """
    one = _Fetch(connection, node, dag_id, id, dags, progress, patience_s)
    damaged = 0
    for _ in range(_STARTS):
        try:
            record = await one.run()
        except _Gone:
            continue
        except (Damaged, ProtocolError) as error:
            damaged += 1
            if damaged == _DAMAGED_STARTS:
                raise one.unreachable(f"what it sends is damaged: {error}") from error
        else:
            return Fetched(record, one.came, monotonic() - one.began)
    raise one.unreachable("it keeps losing the version that is being fetched")


class _Fetch:
    """One fetch, over all its starts."""

    def __init__(
        self,
        connection: Connection,
        node: str,
        dag_id: str,
        id: str,
        dags: OpenDags,
        progress: Progress | None,
        patience_s: float,
    ) -> None:
        self.connection = connection
        self.node = node
        self.value = {"dag": dag_id, "id": id}
        self._dag_id = dag_id
        self._id = id
        self._dags = dags
        self._progress = progress
        self._patience_s = patience_s
        self.window = _windows.setdefault(connection, Window())
        self.flow = self.window.flow(node)
        self._heard = self.began = monotonic()
        self.came = 0

    def unreachable(self, why: str) -> NodeUnreachable:
        """The error that the owner cannot be had."""
        return NodeUnreachable(self.node, why, self._dag_id, self._id)

    async def run(self) -> Record:
        """Fetches it from the start."""
        header, body = await self.ask("get", self.value)
        status = protocol.text(header, "status", 32)
        if status == "not-found":
            raise NotFound(self._dag_id, self._id)
        if status != "value":
            raise self.strange(header, status)
        head = Head(
            protocol.integer(header, "codec", 1, 255),
            protocol.integer(header, "created"),
            protocol.integer(header, "meta", most=LARGEST_META),
            protocol.integer(header, "nbytes", most=LARGEST_VALUE),
        )
        version = protocol.text(header, "version", 64)
        checksum = _checksum(header)
        self.took_in(len(body), len(body), head.total)
        if len(body) == head.total:
            if head.nbytes <= INLINE_LIMIT and self._dag_id in self._dags.manifests:
                # A thread would cost more than all there is to do, if nothing is in the way.
                try:
                    with impatience():
                        return self._land(head, body, checksum, at_once=True)
                except (StoreBusy, StoreFull):
                    pass
            return await _in_thread(self._land, head, body, checksum)
        landing = Landing(self._dags, self._dag_id, self._id, head, self.node)
        try:
            await _in_thread(landing.begin)
            landing.write(0, body)
            pieces = _Pieces(self, landing, version, len(body))
            checksum = await pieces.run() or checksum or await self._ask_sum(version)
            return await _in_thread(_finish, landing, checksum)
        finally:
            landing.end()

    def _land(
        self, head: Head, body: memoryview, checksum: str | None, at_once: bool = False
    ) -> Record:
        """Stores what came whole with the first answer."""
        landing = Landing(self._dags, self._dag_id, self._id, head, self.node, at_once=at_once)
        try:
            landing.begin()
            landing.write_with_relief(0, body)
            return _finish(landing, checksum)
        finally:
            landing.end()

    async def _ask_sum(self, version: str) -> str | None:
        header, _ = await self.ask("sum", {**self.value, "version": version})
        status = protocol.text(header, "status", 32)
        if status == "gone":
            raise _Gone
        if status != "sum":
            raise self.strange(header, status)
        return _checksum(header)

    def strange(self, header: Header, status: str) -> Exception:
        if status == "error":
            return self.unreachable(f"it answers: {protocol.text(header, 'why', 1000)}")
        return ProtocolError(f"its answer's status is {status!r}")

    def took_in(self, nbytes: int, done: int, total: int) -> None:
        self.came += nbytes
        if self._progress is not None:
            self._progress(done, total)

    async def ask(self, call: str, header: Header) -> tuple[Header, memoryview]:
        """Asks the owner, again and again while there is hope. Raises as ``ask_once``."""
        while True:
            try:
                answer, body, _ = await self.ask_once(call, header)
            except NoAnswer:
                continue
            return answer, body

    async def ask_once(
        self, call: str, header: Header, *, large: bool = False
    ) -> tuple[Header, memoryview, Loan]:
        """Asks the owner, and again if it is busy or not there yet.

        Args:
            call: What it is asked for.
            header: The question.
            large: Whether the answer is; it then comes by the bulk connection.

        Returns:
            The answer's header and body, and the body's memory, to be given back.

        Raises:
            NoAnswer: None came in time; ask again.
            NodeUnreachable: It has been silent for too long.
            RegistryUnavailable: As said.
            ProtocolError: It answers nonsense.
        """
        connection = self.connection
        subject = call_subject(connection.namespace, self.node, call)
        packed = protocol.pack(header)
        absent_since: float | None = None
        lost: RegistryUnavailable | None = None
        while True:
            left = self._heard + self._patience_s - monotonic()
            if left <= 0:
                if not connection.connected:
                    lost = lost or connection.unavailable("the connection was lost meanwhile")
                raise lost or self.unreachable(f"it does not answer, for {self._patience_s:g} s")
            late = min(left, max(_LATE_S, _LATE * (self.flow.usual_s or 0.0)))
            try:
                if large:
                    loan = await connection.request_large(subject, packed, late)
                else:
                    loan = Loan(memoryview(await connection.request(subject, packed, late)))
            except NoResponders:
                now = monotonic()
                absent_since = absent_since or now
                if now - absent_since > ABSENCE_S:
                    raise self.unreachable("no node of that name is connected") from None
                lost = None
            except RegistryUnavailable as error:
                lost, absent_since = error, None
            except TooLarge as error:
                raise self.unreachable(f"the question is too large: {error}") from error
            else:
                self._heard = monotonic()
                answer, body = protocol.unpack(loan.data)
                if answer.get("status") != "busy":
                    return answer, body, loan
            await asyncio.sleep(_AGAIN_S)


class _Pieces:
    """The pieces of one version: which are missing, and bringing them."""

    def __init__(self, fetch: _Fetch, landing: Landing, version: str, start: int) -> None:
        self._fetch = fetch
        self._landing = landing
        self._version = version
        self._total = landing.head.total
        self._missing: deque[tuple[int, int]] = deque([(start, self._total)])
        self._most = min(LARGEST_PIECE, max(1, fetch.connection.max_payload - MARGIN))
        self._done = start
        self._writing = asyncio.Lock()
        self._checksum: str | None = None

    async def run(self) -> str | None:
        """Brings all; returns the checksum if it came with the last one."""
        window, flow = self._fetch.window, self._fetch.flow
        first = self._total <= LARGEST_PIECE
        tasks: set[asyncio.Task[None]] = set()
        try:
            while self._missing or tasks:
                if self._missing:
                    most = min(self._most, flow.piece)
                    room = await window.take(flow, most, first=first)
                    task = asyncio.create_task(self._bring(most, room))
                    # Also if it is cancelled before it has begun.
                    task.add_done_callback(room.give_back)
                    tasks.add(task)
                else:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in tasks if task.done()]:
                    tasks.remove(task)
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await _ended(tasks)
        return self._checksum

    async def _bring(self, most: int, room: Room) -> None:
        """Brings the next piece that is missing; gives its room back as soon as it is here."""
        fetch = self._fetch
        try:
            if not self._missing:
                return
            at, end = self._missing.popleft()
            size = min(most, end - at)
            if at + size < end:
                self._missing.appendleft((at + size, end))
            came = await self._piece(at, size)
        finally:
            room.give_back()
        if came is None:
            self._missing.appendleft((at, at + size))
            return
        body, loan = came
        if len(body) < size:
            # What the owner can send at once is less than was thought.
            self._most = min(self._most, len(body))
            self._missing.appendleft((at + len(body), at + size))
        await self._write(at, body)
        loan.give_back()
        self._done += len(body)
        fetch.took_in(len(body), self._done, self._total)

    async def _piece(self, at: int, size: int) -> tuple[memoryview, Loan] | None:
        """Asks for a piece; None if it does not come in time."""
        fetch = self._fetch
        wanted = {**fetch.value, "version": self._version, "at": at, "size": size}
        sent = monotonic()
        try:
            header, body, loan = await fetch.ask_once("chunk", wanted, large=True)
        except NoAnswer:
            fetch.flow.lost()
            # Once for all that were lost together.
            self._most = min(self._most, max(size // 4, _LEAST_PIECE))
            return None
        status = protocol.text(header, "status", 32)
        if status == "gone":
            raise _Gone
        if status != "chunk":
            raise fetch.strange(header, status)
        if protocol.integer(header, "at") != at or not 0 < len(body) <= size:
            raise ProtocolError(f"{len(body):,} bytes came where {size:,} at {at:,} were wanted")
        fetch.flow.came(len(body), monotonic() - sent)
        self._checksum = _checksum(header) or self._checksum
        return body, loan

    async def _write(self, at: int, body: memoryview) -> None:
        async with self._writing:
            try:
                self._landing.write(at, body)
            except StoreFull:
                await _in_thread(self._landing.write_with_relief, at, body)


def _finish(landing: Landing, checksum: str | None) -> Record:
    found = landing.checksum()
    if found != checksum:
        raise Damaged(f"its checksum is {found}, not {checksum}")
    return landing.commit()


def _checksum(header: Header) -> str | None:
    if "sum" not in header:
        return None
    told = protocol.text(header, "sum", 32)
    if _SUM.fullmatch(told) is None:
        raise ProtocolError("its checksum is none")
    return told


async def _in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls in a thread, and waits for its end in any case.

    What it works on may be let go of afterwards; a thread that goes on with a closed
    descriptor would write into another's file.
    """
    # Not ``asyncio.to_thread``, which needs a task to be waited for: twice the price.
    done = asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))
    try:
        return await asyncio.shield(done)
    finally:
        await _ended({done})


async def _ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Waits for the end of tasks, also if it is cancelled once more, and drops their errors."""
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            continue  # the one that came first is on its way
    for task in tasks:
        if not task.cancelled():
            task.exception()
