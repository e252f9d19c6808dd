"""Takes large answers out of what a connection to NATS receives, before nats' client does.

nats-py copies each byte that comes some six times in Python's memory, which is most of what a
fetch costs its receiver. This stands between the transport and the client: it follows the
lines of the protocol, hands on all that it is not asked to take, unchanged and in order, and
receives the payloads that are wanted straight into the buffers meant for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

# More than a line of a message may have; the longer lines of INFO are handed on in parts.
_SCRATCH_BYTES = 64 << 10
_END = b"\r\n"


class Taking(Protocol):
    """A payload that is wanted."""

    @property
    def buffer(self) -> memoryview:
        """Where it is to be written; exactly of its size, and not empty."""

    def done(self) -> None:
        """Called when all of it is there."""


#: Tells what to do with a message, by its subject and its size: None hands it on.
Take = Callable[[bytes, int], Taking | None]


class Sieve(asyncio.BufferedProtocol):
    """In the place of a client's protocol, which gets the rest.

    Args:
        inner: The client's protocol.
        take: Asked about each message.
    """

    def __init__(self, inner: asyncio.Protocol, take: Take) -> None:
        self._inner = inner
        self._take = take
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._end = 0  # of what is in the scratch
        self._passing = 0  # bytes that are to be handed on unseen
        self._dropping = 0
        self._inside = False  # a long line, whose start was handed on
        self._taking: Taking | None = None
        self._taken = 0

    # --- From the transport ---------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes is to be written."""
        if self._taking is not None:
            return self._taking.buffer[self._taken :]
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come."""
        if self._taking is not None:
            self._took(nbytes)
            return
        self._end += nbytes
        self._look()

    def eof_received(self) -> bool | None:
        """Nothing more will come."""
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._taking = None
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """The transport is full."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has room again."""
        self._inner.resume_writing()

    # --- Telling apart ----------------------------------------------------------------------

    def _took(self, nbytes: int) -> None:
        taking = self._taking
        assert taking is not None
        self._taken += nbytes
        if self._taken == len(taking.buffer):
            self._taking = None
            self._dropping = len(_END)
            taking.done()

    def _look(self) -> None:
        """Goes through what is in the scratch, and leaves there the start of a line at most."""
        scratch, end = self._scratch, self._end
        at = passed = 0  # what lies between the two is to be handed on
        while at < end:
            if self._passing:
                step = min(self._passing, end - at)
                self._passing -= step
                at += step
                continue
            if self._dropping:
                self._hand_on(passed, at)
                step = min(self._dropping, end - at)
                self._dropping -= step
                at = passed = at + step
                continue
            found = scratch.find(_END, at, end)
            if found < 0:
                if end - at > _SCRATCH_BYTES // 2:  # no message's line; it ends somewhere
                    at, self._inside = end - 1, True
                break
            if self._inside:
                at, self._inside = found + len(_END), False
                continue
            taking, size = self._judge(bytes(self._view[at:found]))
            found += len(_END)
            if taking is None:
                self._passing = found - at + size
                continue
            self._hand_on(passed, at)
            step = min(size, end - found)
            taking.buffer[:step] = self._view[found : found + step]
            at = passed = found + step
            self._taking, self._taken = taking, 0
            self._took(step)
        self._hand_on(passed, at)
        left = end - at
        scratch[:left] = scratch[at:end]
        self._end = left

    def _judge(self, line: bytes) -> tuple[Taking | None, int]:
        """What is to be taken of a message; and the bytes that follow its line."""
        if not line.startswith((b"MSG ", b"HMSG ")):
            return None, 0
        fields = line.split()
        try:
            size = int(fields[-1])
        except ValueError:
            return None, 0  # the client will complain
        if size > 0 and line.startswith(b"MSG ") and len(fields) in (4, 5):
            taking = self._take(fields[1], size)
            if taking is not None:
                return taking, size
        return None, max(size, 0) + len(_END)

    def _hand_on(self, start: int, end: int) -> None:
        if end > start:
            self._inner.data_received(bytes(self._view[start:end]))
