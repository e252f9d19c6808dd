"""A node's two connections to NATS: one for control and small values, one for bulk.

Converts the errors of nats' client; nothing of nats but its messages goes further up. A
connection that was opened once is never given up: what is asked of it meanwhile fails with
``RegistryUnavailable``, subscriptions are made again by themselves, and ``on_reconnect`` tells
those who may have missed something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from nats import errors as nats_errors

from shmstore.errors import RegistryUnavailable
from shmstore.node.large import LargeAnswers, Loan
from shmstore.node.link import Callback, Link, Subscribed
from shmstore.node.nats_client import (
    Forbidden,
    Message,
    NatsClient,
    NoAnswer,
    NoResponders,
    Refused,
)
from shmstore.node.settings import Settings
from shmstore.node.subjects import inbox_prefix

__all__ = [
    "Connection",
    "Loan",
    "Message",
    "NoAnswer",
    "NoResponders",
    "Refused",
    "Settings",
    "Subscribed",
    "TooLarge",
]

#: How long a node tries to reach NATS when it starts, seconds.
_PATIENCE_S = 10.0


class TooLarge(Exception):
    """A message is larger than the server takes now; nothing was sent."""


class Connection:
    """The connections of a node. ``open`` makes one; used in one event loop only."""

    def __init__(self, settings: Settings, namespace: str, node: str) -> None:
        self.settings = settings
        self.namespace = namespace
        self.node = node
        self.inbox_prefix = inbox_prefix(namespace, node)
        name = f"shmstore {namespace} {node}"
        self._control = Link(settings, f"{name} control", self.inbox_prefix)
        self._bulk = Link(settings, f"{name} bulk", self.inbox_prefix)
        self._inboxes = 0
        self._large = LargeAnswers()
        self._bulk.prepare = self._prepare_bulk
        self._listening = asyncio.Lock()

    @classmethod
    async def open(
        cls, settings: Settings, namespace: str, node: str, *, patience_s: float = _PATIENCE_S
    ) -> Connection:
        """Connects, for the first time.

        Args:
            settings: Where to, and as whom.
            namespace: The namespace.
            node: This node's name.
            patience_s: Seconds to try.

        Raises:
            RegistryUnavailable: NATS cannot be reached in that time, or, at once, does not let
                us in.
        """
        self = cls(settings, namespace, node)
        links = (self._control, self._bulk)
        try:
            done = await asyncio.gather(
                *(link.open(patience_s) for link in links), return_exceptions=True
            )
        except BaseException:  # given up: one of them may stand already
            await self.close()
            raise
        for problem in done:
            if problem is not None:
                await self.close()
                if isinstance(problem, (Refused, TimeoutError)):
                    raise self.unavailable(str(problem)) from problem
                raise problem
        return self

    def _prepare_bulk(self, client: NatsClient) -> None:
        client.let_out()
        self._large.sift(client)

    @property
    def control(self) -> NatsClient:
        """The current client for control; a closed one while there is no connection."""
        return self._control.client

    @property
    def bulk(self) -> NatsClient:
        """The current client for bulk."""
        return self._bulk.client

    @property
    def connected(self) -> bool:
        """Whether both connections stand, as far as is known."""
        return self._control.connected and self._bulk.connected

    @property
    def generation(self) -> int:
        """Changes whenever the control connection was made anew."""
        return self._control.generation

    @property
    def max_payload(self) -> int:
        """The largest message, bytes, now; it may shrink when another server is reached."""
        return min(self.control.max_payload, self.bulk.max_payload)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Calls back when the control connection was made anew, subscriptions and all.

        The callback must not block.
        """
        self._control.on_reconnect(callback)

    def new_inbox(self) -> str:
        """A subject of one's own to which others may reply, or the start of such ones."""
        self._inboxes += 1
        return f"{self.control.new_inbox()}-{self._inboxes}"

    def unavailable(self, why: str) -> RegistryUnavailable:
        """The error that NATS or what it keeps cannot be had."""
        return RegistryUnavailable(why, self.settings.shown)

    def forbidden(self, subject: str, bulk: bool = False) -> bool:
        """Whether the server said lately that we may not publish there."""
        return self._client(bulk).forbidden(f'publish to "{subject}"')

    async def subscribe(self, subject: str, callback: Callback, bulk: bool = False) -> Subscribed:
        """Subscribes, until ``stop()`` of what is returned; the server knows on return.

        Args:
            subject: May have wildcards.
            callback: A coroutine function that takes a ``Message``. The messages of one
                subscription come to it one after the other, each when it has done with the last.
            bulk: By which connection.

        Raises:
            RegistryUnavailable: There is no connection, or the server does not allow it.
        """
        link = self._link(bulk)
        try:
            return await link.subscribe(subject, callback)
        except Forbidden:
            raise self.unavailable(f"NATS does not let us subscribe to {subject}") from None
        except (nats_errors.Error, OSError) as error:
            if link.connected:
                raise  # a mistake of ours, and none that will pass
            raise self._lost() from error

    async def publish(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        *,
        headers: dict[str, str] | None = None,
        bulk: bool = False,
    ) -> None:
        """Hands a message to the connection; whether it arrives is not known.

        Raises:
            RegistryUnavailable: There is no connection.
            TooLarge: It is larger than ``max_payload``.
        """
        link = self._link(bulk)
        try:
            await link.client.publish(subject, payload, reply, headers)
        except nats_errors.MaxPayloadError:
            raise TooLarge(
                f"{len(payload):,} bytes, of at most {link.client.max_payload:,}"
            ) from None
        except (nats_errors.Error, OSError) as error:
            if link.connected:
                raise  # a mistake of ours, and none that will pass
            raise self._lost() from error

    async def publish_large(self, subject: str, head: bytes, body: bytes | memoryview) -> None:
        """As ``publish`` by the bulk connection, of what is large, in two parts.

        Args:
            subject: Where to.
            head: What comes first.
            body: What follows; must stay as it is until it is sent, which is after the return.

        Raises:
            RegistryUnavailable: There is no connection.
            TooLarge: It is larger than ``max_payload``.
        """
        link = self._link(True)
        try:
            await link.client.publish_large(subject, head, body)
        except nats_errors.MaxPayloadError:
            size = len(head) + len(body)
            raise TooLarge(f"{size:,} bytes, of at most {link.client.max_payload:,}") from None
        except (nats_errors.Error, OSError) as error:
            if link.connected:
                raise  # a mistake of ours, and none that will pass
            raise self._lost() from error

    async def publish_many(self, messages: Iterable[tuple[str, str, bytes]]) -> None:
        """Hands messages to the control connection at once, which takes less time a message.

        Args:
            messages: Each with its subject, reply subject and payload; the subjects are not
                checked, and the payloads must be small.

        Raises:
            RegistryUnavailable: There is no connection.
        """
        link = self._link(False)
        try:
            await link.client.publish_many(messages)
        except (nats_errors.Error, OSError) as error:
            if link.connected:
                raise  # a mistake of ours, and none that will pass
            raise self._lost() from error

    async def call(
        self,
        subject: str,
        payload: bytes,
        timeout_s: float,
        *,
        headers: dict[str, str] | None = None,
        bulk: bool = False,
    ) -> Message:
        """Sends a request and returns the message that answers it.

        Raises:
            NoResponders: Nobody listens there.
            NoAnswer: Nobody answered in time, the connection was lost, or the server forbids it.
            RegistryUnavailable: There is no connection.
            TooLarge: It is larger than ``max_payload``.
        """
        link = self._link(bulk)
        client = link.client
        try:
            return await client.ask(subject, payload, timeout_s, headers)
        except nats_errors.MaxPayloadError:
            raise TooLarge(f"{len(payload):,} bytes, of at most {client.max_payload:,}") from None
        except (nats_errors.Error, OSError) as error:
            if link.connected:
                raise
            raise NoAnswer("the connection to NATS was lost meanwhile") from error

    async def request(
        self, subject: str, payload: bytes, timeout_s: float, bulk: bool = False
    ) -> bytes:
        """As ``call``; returns the answer's bytes."""
        return (await self.call(subject, payload, timeout_s, bulk=bulk)).data

    async def request_large(self, subject: str, payload: bytes, timeout_s: float) -> Loan:
        """As ``request`` by the bulk connection, for answers that are large.

        Returns:
            The answer, to be given back.
        """
        large = self._large
        async with self._listening:
            if not large.prefix:
                prefix = f"{self.new_inbox()}."
                await self.subscribe(f"{prefix}*", large.on_message, bulk=True)
                large.prefix = prefix

        async def send(reply: str) -> None:
            await self.publish(subject, payload, reply, bulk=True)

        try:
            answer = await large.request(send, timeout_s)
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None
        if answer is None:
            raise NoResponders(f"nobody listens to {subject}")
        return answer

    async def close(self) -> None:
        """Sends what is under way, for a second at most, and ends both connections."""
        await asyncio.gather(self._control.close(), self._bulk.close())

    def _client(self, bulk: bool) -> NatsClient:
        return (self._bulk if bulk else self._control).client

    def _link(self, bulk: bool) -> Link:
        link = self._bulk if bulk else self._control
        if not link.connected:
            raise self._lost()
        return link

    def _lost(self) -> RegistryUnavailable:
        return self.unavailable("there is no connection to NATS; it is made again by itself")
