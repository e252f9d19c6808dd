"""Reading many keys: a consumer of their stream, of which one page after the other is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from shmstore.errors import RegistryUnavailable
from shmstore.node import subjects
from shmstore.node.connection import Connection, Message, Subscribed
from shmstore.node.kept import OPERATION, Kept

_PAGE = 1_000
#: How long nothing may come, and a consumer that nobody reads is kept, seconds.
_ANSWER_S = 5.0
_IDLE_S = 60


class CutOff(Exception):
    """A page did not come whole."""


class Page:
    """The consumer of a walk, and what it delivers, a page at a time."""

    def __init__(self, connection: Connection, bucket: str, pattern: str) -> None:
        self._connection = connection
        self._bucket = bucket
        self._stream = subjects.stream(bucket)
        self._filter = subjects.key_subject(bucket, pattern)
        self._consumer = f"shmstore-{secrets.token_hex(8)}"
        self._inbox = connection.new_inbox()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._subscribed: Subscribed | None = None

    @property
    def creation(self) -> str:
        """The request that makes the consumer."""
        return f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{self._filter}"

    def config(self, start: int) -> dict[str, Any]:
        """What that asks for: keys from a revision on."""
        config = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "filter_subject": self._filter,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _IDLE_S * 1_000_000_000,
        }
        return {"stream_name": self._stream, "config": config}

    async def start(self) -> None:
        """Listens for what will be delivered."""

        async def came(message: Message) -> None:
            self._messages.put_nowait(message)

        self._subscribed = await self._connection.subscribe(self._inbox, came)

    async def read(self) -> AsyncIterator[tuple[Kept, int]]:
        """The next page: each key, and how many are still to come after it.

        Raises:
            CutOff: It stops before its end.
        """
        wanted = {"batch": _PAGE, "no_wait": True}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._connection.publish(subject, json.dumps(wanted).encode(), self._inbox)
        for _ in range(_PAGE):
            if self._messages.empty():
                try:
                    message = await asyncio.wait_for(self._messages.get(), _ANSWER_S)
                except TimeoutError:
                    raise CutOff from None
            else:
                message = self._messages.get_nowait()
            if not message.reply:  # no key: that is all, or an error
                if (message.headers or {}).get("Status") in ("404", "408"):
                    return
                raise CutOff
            found = self._key(message)
            yield found
            if not found[1]:
                return

    async def end(self) -> None:
        """Stops listening, and removes the consumer, which would go by itself after a minute."""
        if self._subscribed is not None:
            await self._subscribed.stop()
        with contextlib.suppress(RegistryUnavailable):
            await self._connection.publish(
                f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b""
            )

    def _key(self, message: Message) -> tuple[Kept, int]:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<revision>.<number>.<time>.<pending>, or
        # with two more before the stream and one after the end.
        parts = message.reply.split(".")
        shift = 0 if len(parts) == 9 else 2
        key = subjects.subject_key(self._bucket, message.subject)
        if key is None or len(parts) < 9:
            raise CutOff
        removed = OPERATION in (message.headers or {})
        return Kept(key, message.data, int(parts[5 + shift]), removed), int(parts[8 + shift])
