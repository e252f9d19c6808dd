"""Requests whose answers are large: each answer is received straight into a buffer that is lent.

They come on a subject of their own. What is not large, a refusal or the server's word that
nobody listens, comes the usual way, through nats' client.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg

from shmstore.node.protocol import LARGEST_PIECE, MARGIN
from shmstore.node.sieve import Sieve

# Below this, the copies cost less than the telling apart.
_LEAST = 16 << 10
_MOST_KEPT = 4
_NO_RESPONDERS = "503"


class Loan:
    """An answer; its memory is used again once it is given back.

    Attributes:
        data: Its bytes.
    """

    __slots__ = ("_buffer", "_kept", "data")

    def __init__(
        self, data: memoryview, buffer: bytearray | None = None, kept: list[bytearray] | None = None
    ) -> None:
        self.data = data
        self._buffer = buffer
        self._kept = kept

    def give_back(self) -> None:
        """Ends the use of ``data``."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None and self._kept is not None and len(self._kept) < _MOST_KEPT:
            self._kept.append(buffer)


class _Taking:
    """An answer that is being received."""

    __slots__ = ("_buffer", "_owner", "_token", "buffer")

    def __init__(self, owner: LargeAnswers, token: bytes, size: int) -> None:
        self._owner = owner
        self._token = token
        kept = owner._kept
        self._buffer = kept.pop() if kept else bytearray(LARGEST_PIECE + MARGIN)
        self.buffer = memoryview(self._buffer)[:size]

    def done(self) -> None:
        loan = Loan(self.buffer, self._buffer, self._owner._kept)
        if not self._owner._answer(self._token, loan):
            loan.give_back()


class LargeAnswers:
    """The requests of one connection that wait for large answers.

    Attributes:
        prefix: How the subjects begin to which they are answered.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self._kept: list[bytearray] = []
        self._numbers = itertools.count()
        self._waiting: dict[bytes, asyncio.Future[Loan | None]] = {}

    def sift(self, client: Client) -> None:
        """Begins to take answers out of what a new client receives, which must just be idle.

        What the one before it was asked for will not be answered.
        """
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(TimeoutError())
        writer = getattr(client._transport, "_io_writer", None)
        if writer is None:
            return  # a web socket: all goes the usual way

        def take(subject: bytes, size: int) -> _Taking | None:
            taking = self._take(subject, size)
            if taking is not None:
                client.stats["in_msgs"] += 1  # by which it is judged whether the server is there
                client.stats["in_bytes"] += size
            return taking

        transport: asyncio.Transport = writer.transport
        inner = transport.get_protocol()
        assert isinstance(inner, asyncio.Protocol)
        transport.set_protocol(Sieve(inner, take))

    async def request(
        self, send: Callable[[str], Awaitable[None]], timeout_s: float
    ) -> Loan | None:
        """Sends a request and waits for its answer.

        Args:
            send: Sends it, given the subject on which to answer.
            timeout_s: How long to wait.

        Returns:
            The answer, to be given back; None if nobody listens.

        Raises:
            TimeoutError: None came.
        """
        token = str(next(self._numbers))
        key = token.encode()
        answer = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        try:
            await send(self.prefix + token)
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._waiting[key]

    async def on_message(self, message: Msg) -> None:
        """Takes the answers that come the usual way."""
        token = message.subject.removeprefix(self.prefix).encode()
        nobody = message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS
        self._answer(token, None if nobody else Loan(memoryview(message.data)))

    def _take(self, subject: bytes, size: int) -> _Taking | None:
        if not _LEAST <= size <= LARGEST_PIECE + MARGIN or not self.prefix:
            return None
        prefix = self.prefix.encode()
        token = subject.removeprefix(prefix)
        if token == subject or token not in self._waiting or self._waiting[token].done():
            return None
        return _Taking(self, token, size)

    def _answer(self, token: bytes, answer: Loan | None) -> bool:
        waiting = self._waiting.get(token)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(answer)
        return True
