"""One connection to NATS that is made anew for as long as it takes.

The reconnecting of nats' client is not used: it hangs in the closing of a socket whose peer
does not read, forgets a task that meets an exception it did not foresee, gives up a client
that the server refused once, and goes deaf when a pong comes after its flush was given up.
Here a client that is closed, or silent, is thrown away and another one takes its place, by
the same steps as the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from nats import errors as nats_errors
from nats.aio.subscription import Subscription

from shmstore.node.nats_client import CONNECT_S, Failed, Forbidden, Message, NatsClient
from shmstore.node.settings import Settings

Callback = Callable[[Message], Awaitable[None]]

#: How often a connection is looked at, an idle one asked, and how long a silent one kept, seconds.
_LOOK_S = 0.5
_PING_S = 2.0
_SILENT_S = 6.0
#: The longest pause between two rounds of trying, seconds.
_LONGEST_PAUSE_S = 2.0

_log = logging.getLogger(__name__)


class Subscribed:
    """A subscription, which each new client makes again."""

    def __init__(self, link: Link, subject: str, callback: Callback) -> None:
        self._link = link
        self.subject = subject
        self.callback = callback
        self.current: Subscription | None = None

    async def stop(self) -> None:
        """Ends it; needs no connection."""
        self._link.subscriptions.discard(self)
        current, self.current = self.current, None
        if current is not None and not self._link.client.is_closed:
            with contextlib.suppress(nats_errors.Error):
                await current.unsubscribe()


class Link:
    """A client, its successors, and what they have to do with each other.

    Attributes:
        client: The current one; a closed one while there is no connection.
        generation: How many clients there were; a change of it is a reconnect.
        prepare: What is done with each new client, before it has any subscription.
    """

    def __init__(self, settings: Settings, name: str, inbox_prefix: str) -> None:
        self._settings = settings
        self._options: dict[str, Any] = {"name": name, "inbox_prefix": inbox_prefix}
        self.name = name
        self.client: NatsClient = NatsClient(False)
        self.generation = 0
        self.subscriptions: set[Subscribed] = set()
        self.prepare: Callable[[NatsClient], None] | None = None
        self._known = list(settings.servers)
        self._reconnected: list[Callable[[], None]] = []
        self._keeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self.client.alive

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Calls back after each new connection but the first; the callback must not block."""
        self._reconnected.append(callback)

    async def open(self, patience_s: float) -> None:
        """Makes the first connection.

        Raises:
            Refused: A server does not let us in.
            TimeoutError: None could be reached in time; says what came up.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        pause = 0.1
        while True:
            try:
                self.client = await self._round()
                break
            except Failed as failed:
                if loop.time() + pause > deadline:
                    raise TimeoutError(str(failed)) from failed
                _log.info(
                    "%s: no connection to %s: %s", self.name, self._settings.shown, str(failed)
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        self.generation += 1
        self._keeper = asyncio.create_task(self._keep(), name=f"nats {self.name}")

    async def close(self) -> None:
        """Sends what is under way, for a second at most, and ends."""
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            # More than once: wait_for of Python 3.11 loses a cancellation that comes together
            # with the end of what it waits for, and nats-py one that comes while it flushes.
            keeper.cancel()
            await asyncio.wait([keeper], timeout=_LOOK_S)
        if self.connected:
            await asyncio.wait([self.client.ping()], timeout=1)
        self.subscriptions.clear()
        self.client.abandon()
        await asyncio.sleep(0)  # the transport closes its socket in the next turn of the loop

    async def flush(self) -> None:
        """Returns when the server has handled all that was sent before.

        Raises:
            nats.errors.ConnectionClosedError: The connection was lost.
        """
        await asyncio.shield(self.client.ping())

    async def subscribe(self, subject: str, callback: Callback) -> Subscribed:
        """Subscribes, and waits until the server knows.

        Raises:
            nats.errors.Error: There is no connection.
            Forbidden: The server does not allow it.
        """
        subscribed = Subscribed(self, subject, callback)
        client, began = self.client, asyncio.get_running_loop().time()
        subscribed.current = await client.subscribe(subject, cb=callback)
        self.subscriptions.add(subscribed)
        try:
            await self.flush()
            if client.forbidden(f'subscription to "{subject}"', began):
                raise Forbidden(subject)
        except BaseException:
            await subscribed.stop()
            raise
        return subscribed

    async def _round(self) -> NatsClient:
        """Tries each server once."""
        failed = Failed("there is no server")
        for server in list(self._known):
            client = NatsClient(self._settings.wants_tls)
            host = urlsplit(server).hostname or ""
            if server not in self._settings.servers and re.fullmatch(r"[0-9.]+|.*:.*", host):
                # Servers of a cluster tell addresses; certificates have names.
                host = urlsplit(self._settings.servers[0]).hostname or host
            try:
                await client.begin(server, self._settings, tls_hostname=host, **self._options)
            except Failed as error:
                failed = error
            except BaseException:
                client.abandon()
                raise
            else:
                self._learn(client)
                if self.prepare is not None:
                    self.prepare(client)
                return client
            client.abandon()
            self._known.append(self._known.pop(0))
        raise failed

    def _learn(self, client: NatsClient) -> None:
        """Remembers the servers of the cluster, which may outlive those that we were given."""
        scheme = urlsplit(self._settings.servers[0]).scheme
        found = [f"{scheme}://{one.hostname}:{one.port}" for one in client.discovered_servers]
        self._known = [*self._settings.servers, *found[:64]]

    async def _keep(self) -> None:
        """Sees to it that there is a connection, forever."""
        while True:
            await self._lost()
            self.client.abandon()
            _log.warning("%s: the connection to %s is lost", self.name, self._settings.shown)
            pause = 0.05
            while True:
                try:
                    client = await self._round()
                    await self._again(client)
                    break
                except Exception as error:
                    _log.info("%s: no connection to %s: %s", self.name, self._settings.shown, error)
                # Many nodes lose the server at once; they should not all come at once.
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            _log.warning("%s: connected to %s again", self.name, self._settings.shown)
            for callback in self._reconnected:
                try:
                    callback()
                except Exception:
                    _log.exception("%s: what was to be done after a reconnect failed", self.name)

    async def _again(self, client: NatsClient) -> None:
        """Gives a new client the subscriptions of the old one, and makes it the current one."""
        try:
            for subscribed in list(self.subscriptions):
                subscribed.current = await client.subscribe(
                    subscribed.subject, cb=subscribed.callback
                )
            await asyncio.wait_for(asyncio.shield(client.ping()), CONNECT_S)
        except BaseException:
            client.abandon()
            raise
        self.client = client
        self.generation += 1

    async def _lost(self) -> None:
        """Returns when the client is closed, or nothing has come from the server for long."""
        client = self.client
        loop = asyncio.get_running_loop()
        heard, messages, pong = loop.time(), client.stats["in_msgs"], client.ping()
        while client.alive and loop.time() - heard < _SILENT_S:
            await asyncio.sleep(_LOOK_S)
            now = loop.time()
            # Whatever comes will do: a pong may stand behind much data on a slow line.
            if client.stats["in_msgs"] != messages:
                heard, messages = now, client.stats["in_msgs"]
            if pong.done() and now - heard >= _PING_S:
                heard, pong = now, client.ping()
