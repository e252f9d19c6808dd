"""Asking this host's node from an event loop: as ``client``, without a thread a call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from shmstore.node import client, protocol
from shmstore.node.client import NodeClient, Overdue
from shmstore.node.protocol import Header


async def call(asking: NodeClient, op: str, timeout_s: float, **fields: Any) -> Header:
    """What the node answers; see ``NodeClient.call``."""
    return ([part async for part in stream(asking, op, timeout_s, **fields)] or [{}])[0]


async def stream(
    asking: NodeClient, op: str, timeout_s: float, **fields: Any
) -> AsyncIterator[Header]:
    """The parts of an answer; see ``NodeClient.stream``. Cancelling it cancels the call."""
    deadline = time.monotonic() + min(timeout_s, client.LONGEST_S)
    given, started = 0, False
    while True:
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(
                sock=client.connect(asking.space), limit=protocol.LARGEST_FRAME * 2
            )
            left_s = max(0.0, deadline - time.monotonic())
            writer.write(protocol.frame({"n": 1, "op": op, **fields, "timeout": left_s}))
            at = 0
            while True:
                header = await _receive(asking, reader, deadline + client.ANSWER_S)
                if "part" in header:
                    at += 1
                    if at > given:
                        given += 1
                        yield header["part"]
                elif "ok" in header:
                    if header["ok"]:
                        yield header["ok"]
                    return
                else:
                    raise protocol.unpack_error(header)
        except (client.Gone, OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                raise
            started = await asyncio.to_thread(asking.revive, started)
            asking.check_time(deadline, str(error))
            await asyncio.sleep(client.RETRY_S)
        finally:
            if writer is not None:
                writer.transport.abort()


async def _receive(asking: NodeClient, reader: asyncio.StreamReader, deadline: float) -> Header:
    reading = asyncio.ensure_future(protocol.read_frame(reader))
    try:
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Overdue
            done, _ = await asyncio.wait((reading,), timeout=min(left_s, client.LOOK_S))
            if done:
                return reading.result()
            client.check_beat(asking.space)
    finally:
        reading.cancel()
