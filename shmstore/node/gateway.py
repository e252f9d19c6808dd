"""The node's Unix socket: what the processes of this host ask their node for.

A frame is its size (u32, little-endian) and a JSON object of at most 64 KiB. A request has a
number ``n``, an operation ``op`` and its fields; each answer carries the number: any number of
``part``s, then ``ok`` or ``error`` with the error's facts. Requests of one connection run at
once; closing it cancels them. Who is not of this user is sent away, and so is who does not
read what it asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from shmstore import names
from shmstore.errors import StoreError
from shmstore.namespace import Namespace
from shmstore.node import protocol
from shmstore.node.protocol import Header, ProtocolError

_log = logging.getLogger("shmstore.node")

_MOST_CLIENTS = 4096
_BACKLOG = 1024
_MOST_REQUESTS = 1024  # of one client at once
_MOST_UNREAD = 4 << 20
_SLOW_S = 10.0
_PEER = struct.Struct("iII")

#: Answers a request: yields parts, the last of which is the answer.
Handler = Callable[[Header], Awaitable[Header]]
Streamer = Callable[[Header], AsyncIterator[Header]]


class Gateway:
    """Serves the Unix socket.

    Args:
        space: The namespace.
        handlers: By operation.
        streamers: Those that answer in parts.
    """

    def __init__(
        self,
        space: Namespace,
        handlers: dict[str, Handler],
        streamers: dict[str, Streamer],
    ) -> None:
        self._space, self._handlers, self._streamers = space, handlers, streamers
        self._server: asyncio.AbstractServer | None = None
        #: The clients, each with what runs for it; who asked last comes last.
        self._clients: dict[asyncio.StreamWriter, set[asyncio.Task[None]]] = {}
        self._ours: tuple[int, int] | None = None
        #: When the last request came.
        self.asked_at = asyncio.get_running_loop().time()

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def open(self) -> None:
        """Listens. The socket takes the place of a dead node's by one rename."""
        directory = self._space.directory.fd
        aside = f"{names.NODE_SOCKET}.{os.urandom(8).hex()}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Through /proc, as the path of a socket has 107 bytes at most.
            listener.bind(f"/proc/self/fd/{directory}/{aside}")
            os.chmod(aside, 0o600, dir_fd=directory)
            listener.setblocking(False)
            status = os.stat(aside, dir_fd=directory)
            self._ours = status.st_dev, status.st_ino
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=protocol.LARGEST_FRAME * 2, backlog=_BACKLOG
            )
            os.rename(aside, names.NODE_SOCKET, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Hears nobody any more, and ends what is under way."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                writer.transport.abort()
            directory = self._space.directory.fd
            try:
                status = os.stat(names.NODE_SOCKET, dir_fd=directory)
                # Another node's, if it serves since our lock file was replaced.
                if (status.st_dev, status.st_ino) == self._ours:
                    os.unlink(names.NODE_SOCKET, dir_fd=directory)
            except FileNotFoundError:
                pass

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():
            _log.warning("sent away a process of uid %d", uid)
            writer.transport.abort()
            return
        if len(self._clients) >= _MOST_CLIENTS and not self._send_one_away():
            _log.warning("sent away a process: %d others are waiting", len(self._clients))
            writer.transport.abort()
            return
        writer.transport.set_write_buffer_limits(high=_MOST_UNREAD)
        running: set[asyncio.Task[None]] = set()
        self._clients[writer] = running
        try:
            while True:
                header = await protocol.read_frame(reader)
                self.asked_at = asyncio.get_running_loop().time()
                if self._clients.pop(writer, None) is None:
                    return
                self._clients[writer] = running
                number = protocol.integer(header, "n")
                if len(running) >= _MOST_REQUESTS:
                    raise ProtocolError("too many requests at once")
                task = asyncio.create_task(self._answer(number, header, writer))
                running.add(task)
                task.add_done_callback(running.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it has gone
        except ProtocolError as error:
            _log.warning("sent away a process that sent no request: %s", str(error))
        finally:
            for task in running:
                task.cancel()
            self._clients.pop(writer, None)
            writer.transport.abort()

    def _send_one_away(self) -> bool:
        """Makes room: hangs up on who has asked for nothing the longest. It may come again."""
        for writer, running in self._clients.items():
            if not running:
                del self._clients[writer]
                writer.transport.abort()
                return True
        return False

    async def _answer(self, number: int, header: Header, writer: asyncio.StreamWriter) -> None:
        try:
            op = protocol.text(header, "op", 64)
            if op in self._streamers:
                async for part in self._streamers[op](header):
                    await self._send(writer, {"n": number, "part": part})
                answer: dict[str, Any] = {"n": number, "ok": {}}
            elif op in self._handlers:
                answer = {"n": number, "ok": await self._handlers[op](header)}
            else:
                raise ProtocolError(f"there is no operation {op!r}")
        except StoreError as error:
            answer = {"n": number, **protocol.pack_error(error)}
        except ProtocolError as error:
            answer = {"n": number, "error": "ValueError", "facts": {"why": str(error)}}
        except Exception as error:
            _log.exception("a request failed")
            why = f"{type(error).__name__}: {error}"
            answer = {"n": number, "error": "RuntimeError", "facts": {"why": why}}
        await self._send(writer, answer)

    async def _send(self, writer: asyncio.StreamWriter, header: Header) -> None:
        try:
            frame = protocol.frame(header)
        except ProtocolError as error:
            why = f"the answer does not fit: {error}"
            facts = {"why": why}
            frame = protocol.frame({"n": header["n"], "error": "RuntimeError", "facts": facts})
        try:
            writer.write(frame)
            if writer.transport.get_write_buffer_size():
                async with asyncio.timeout(_SLOW_S):
                    await writer.drain()
        except TimeoutError:
            _log.warning("sent away a process that does not read")
            writer.transport.abort()
        except ConnectionError:
            pass
