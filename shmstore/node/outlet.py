"""Sends large messages on a connection to NATS straight from where they are.

nats-py copies what is published into a message, its transport copies the messages of a flush
into one, and asyncio copies what the socket does not take at once: for a megabyte each of them
is new memory from the kernel, page by page, which is most of what a fetch cost its owner. This
stands in the place of the client's transport, and gives the socket the parts as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nats.aio.transport import TcpTransport

# What asyncio copies, if the socket does not take it at once, is less than this.
_SLICE = 128 << 10
_SMALL = 4 << 10


class Outlet(TcpTransport):
    """A client's transport, once it is connected. Only the client's flusher writes to it.

    Args:
        other: The one it had, whose connection this takes over; nothing may wait in it.
    """

    def __init__(self, other: TcpTransport) -> None:
        self.__dict__.update(other.__dict__)
        writer = other._io_writer
        assert writer is not None  # it is connected
        self._writer = writer
        self._parts: list[bytes | memoryview] = []
        # Draining then waits until all is sent, not only most of it.
        writer.transport.set_write_buffer_limits(high=0)

    def writelines(self, payload: Sequence[bytes | memoryview]) -> None:
        """Takes what ``drain``, which follows, is to send."""
        self._parts += payload

    async def drain(self) -> None:
        """Sends it.

        Raises:
            OSError: The connection was lost.
        """
        parts, self._parts = self._parts, []
        writer = self._writer
        for piece in _pieces(parts):
            writer.write(piece)
            if writer.transport.get_write_buffer_size():
                await writer.drain()
        await writer.drain()  # tells if the connection was lost


def _pieces(parts: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in the pieces in which to send them: small parts in one, large ones cut."""
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) <= _SMALL:
            small.append(part)
            continue
        if small:
            yield b"".join(small)
            small = []
        view = memoryview(part)
        for at in range(0, len(view), _SLICE):
            yield view[at : at + _SLICE]
    if small:
        yield b"".join(small)
