"""A line between a node and a server on loopback, which can be cut, slow, or both.

What is under way on a line that is cut is held, and goes on when it is mended, as what TCP
sends again does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

#: The directions of a line: from the node to the server, and back.
UP, DOWN = "up", "down"

_PIECE = 64 << 10
_ENDING_S = 10.0


class Line:
    """A TCP proxy in a thread of its own; a context manager.

    Attributes:
        port: Where it listens on 127.0.0.1.
        carried: Bytes that it has carried, by direction.
        delay_s: How much later what comes goes on.
        bytes_s: How much goes on a second, either way; None for all that comes.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self._target = host, port
        self.port = 0
        self.carried = {UP: 0, DOWN: 0}
        self.delay_s = 0.0
        self.bytes_s: float | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line")
        self._open: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self, *directions: str) -> None:
        """Lets nothing through any more, in some directions."""
        for direction in directions:
            self._loop.call_soon_threadsafe(self._open[direction].clear)

    def mend(self) -> None:
        """Lets everything through again."""
        for event in self._open.values():
            self._loop.call_soon_threadsafe(event.set)

    def __enter__(self) -> Line:
        self._thread.start()
        self._wait_for(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait_for(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ENDING_S)
        self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(_ENDING_S)

    async def _start(self) -> None:
        for direction in (UP, DOWN):
            self._open[direction] = asyncio.Event()
            self._open[direction].set()
        self._server = await asyncio.start_server(self._came, "127.0.0.1", 0, limit=_PIECE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        try:
            # A first packet that is lost is sent again until there is a way.
            await self._open[UP].wait()
            far_reader, far_writer = await asyncio.open_connection(
                self.host, self._target, limit=_PIECE
            )
            writers.append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, far_writer, UP))
                both.create_task(self._carry(far_reader, writer, DOWN))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            while True:
                due, piece = await under_way.get()
                if not piece:
                    await self._open[direction].wait()
                    raise ConnectionAbortedError
                await asyncio.sleep(due - loop.time())
                await self._open[direction].wait()
                writer.write(piece)
                self.carried[direction] += len(piece)
                await writer.drain()
                if self.bytes_s is not None:
                    await asyncio.sleep(len(piece) / self.bytes_s)

        delivering = asyncio.create_task(deliver())
        try:
            while True:
                piece = b""
                with contextlib.suppress(ConnectionError):
                    piece = await reader.read(_PIECE)
                await under_way.put((loop.time() + self.delay_s, piece))
                if not piece:
                    await delivering
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)
