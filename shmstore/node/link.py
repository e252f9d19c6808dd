"""One connection to NATS that is made anew for as long as it takes.

With ``connection``, the only module that imports nats' client. The client's own reconnecting
is not used: it hangs in the closing of a socket whose peer does not read, forgets a task that
meets an exception it did not foresee, gives up a client that the server refused once, and
goes deaf when a pong comes after its flush was given up. Here a client that is closed, or
silent, is thrown away and another one takes its place, by the same steps as the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from shmstore.node.settings import Settings

Message = Msg
Callback = Callable[[Message], Awaitable[None]]

#: How long making a connection to one server may take, seconds.
_CONNECT_S = 3
#: How often a connection is looked at, an idle one asked, and how long a silent one kept, seconds.
_LOOK_S = 0.5
_PING_S = 2.0
_SILENT_S = 6.0
#: The longest pause between two rounds of trying, seconds.
_LONGEST_PAUSE_S = 2.0
#: Room for publishing while the socket is full, bytes, and how long that may block, seconds.
_PENDING_BYTES = 2 << 20
_FLUSH_S = 5.0
_NEVER_S = 86_400
_REFUSALS = ("authorization", "authentication", "revoked", "nkey", "certificate")

_log = logging.getLogger(__name__)


class Refused(Exception):
    """The server does not let us in, and trying again would not change that; says why."""


class Forbidden(Exception):
    """The server does not let us subscribe there; says so."""


class _Failed(Exception):
    """An attempt failed; raised from inside nats' connect, which would go on trying."""


class _Client(Client):
    """nats' client, made once and thrown away, with what that needs of its inside."""

    def __init__(self, wants_tls: bool) -> None:
        super().__init__()
        self._wants_tls = wants_tls
        self.served = False
        self.violations: list[str] = []

    async def begin(self, server: str, settings: Settings, **options: Any) -> None:
        """Connects to one server.

        Raises:
            Refused: It does not let us in.
            _Failed: It cannot be reached.
        """
        try:
            await self.connect(
                [server],
                allow_reconnect=False,
                connect_timeout=_CONNECT_S,
                ping_interval=_NEVER_S,  # whether the server is there is judged by ``silent``
                pending_size=_PENDING_BYTES,
                flush_timeout=_FLUSH_S,
                error_cb=self._on_error,
                tls=settings.tls() if settings.wants_tls else None,
                user=settings.user,
                password=settings.password,
                token=settings.token,
                user_credentials=settings.creds,
                nkeys_seed=settings.nkey,
                **options,
            )
            if not self.is_connected:  # the server hung up instead of answering our CONNECT
                raise _Failed("it closed the connection")
            self.served = True
            await asyncio.wait_for(asyncio.shield(self.ping()), _CONNECT_S)
        except (Refused, _Failed):
            raise
        except TimeoutError:
            raise _Failed("it does not answer") from None
        except Exception as error:
            # The files of credentials are read in there, by libraries with errors of their own.
            raise _reason(error) from error

    async def _on_error(self, error: Exception) -> None:
        if not self.served:
            raise _reason(error) from error
        text = str(error)
        if "permissions violation" in text:
            self.violations.append(text)
            del self.violations[:-100]
        if not isinstance(error, nats_errors.UnexpectedEOF):
            _log.warning("nats: %s", text or type(error).__name__)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # nats-py encrypts only if the server demands it, whatever the URL says: someone in
        # between could ask for the password in the clear.
        if initial_connection and self._wants_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise Refused("it does not encrypt, and TLS was asked for")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    @property
    def alive(self) -> bool:
        """Whether it is connected, and its tasks are at work."""
        tasks = (self._reading_task, self._flusher_task)
        return self.served and self.is_connected and all(one and not one.done() for one in tasks)

    def ping(self) -> asyncio.Task[None]:
        """Is done when the server has handled all that was sent before, or the client has ended.

        It must not be cancelled while the client lives: nats-py stops reading when a pong
        comes for a future that was cancelled.
        """
        task = asyncio.create_task(self.flush(_NEVER_S))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def publish_many(self, messages: Iterable[tuple[str, str, bytes]]) -> None:
        """Publishes many small messages, each with its reply subject, in one piece."""
        if not self.is_connected:
            raise nats_errors.ConnectionClosedError
        parts: list[bytes] = []
        for subject, reply, payload in messages:
            parts += (f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n")
        await self._send_command(b"".join(parts))
        await self._flush_pending()

    def abandon(self) -> None:
        """Ends it at once, without waiting for a peer; requests under way fail."""
        self._status = Client.CLOSED
        self._pending = []
        self._pending_data_size = 0
        tasks = [self._reading_task, self._ping_interval_task, self._flusher_task]
        tasks += [one._wait_for_msgs_task for one in self._subs.values()]
        for task in tasks:
            if task is not None and not task.done():
                task.cancel()
        self._subs.clear()
        for future in [*self._resp_map.values(), *self._pongs]:
            if not future.done():
                future.set_exception(nats_errors.ConnectionClosedError())
                future.exception()  # who gave it up does not take it: no complaint for that
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


def _reason(error: Exception) -> Exception:
    """What came up in connecting, in words: a refusal, or a failure that may pass."""
    if isinstance(error, (Refused, _Failed)):
        return error
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"its certificate is not trusted ({error.verify_message.rstrip('.')})")
    if isinstance(error, ssl.SSLError):
        said = (error.reason or text).replace("_", " ").lower()
        return Refused(f"TLS failed ({said})")
    if any(word in text.lower() for word in _REFUSALS):
        return Refused(f"it refuses our credentials ({text})")
    if isinstance(error, OSError):
        return _Failed(error.strerror or text)
    return _Failed(text) if isinstance(error, nats_errors.Error) else Refused(text)


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
        self.client: _Client = _Client(False)
        self.generation = 0
        self.subscriptions: set[Subscribed] = set()
        self.prepare: Callable[[Client], None] | None = None
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
            except _Failed as failed:
                if loop.time() + pause > deadline:
                    raise TimeoutError(str(failed)) from failed
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
        before = len(self.client.violations)
        subscribed.current = await self.client.subscribe(subject, cb=callback)
        self.subscriptions.add(subscribed)
        try:
            await self.flush()
            for text in self.client.violations[before:]:
                if f'subscription to "{subject.lower()}"' in text:
                    raise Forbidden(text)
        except BaseException:
            await subscribed.stop()
            raise
        return subscribed

    def forbidden(self, subject: str) -> bool:
        """Whether the server said lately that we may not publish there."""
        wanted = f'publish to "{subject.lower()}"'
        return any(wanted in one for one in self.client.violations)

    async def _round(self) -> _Client:
        """Tries each server once."""
        failed = _Failed("there is no server")
        for server in list(self._known):
            client = _Client(self._settings.wants_tls)
            host = urlsplit(server).hostname or ""
            if server not in self._settings.servers and re.fullmatch(r"[0-9.]+|.*:.*", host):
                # Servers of a cluster tell addresses; certificates have names.
                host = urlsplit(self._settings.servers[0]).hostname or host
            try:
                await client.begin(server, self._settings, tls_hostname=host, **self._options)
            except _Failed as error:
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

    def _learn(self, client: _Client) -> None:
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

    async def _again(self, client: _Client) -> None:
        """Gives a new client the subscriptions of the old one, and makes it the current one."""
        try:
            for subscribed in list(self.subscriptions):
                subscribed.current = await client.subscribe(
                    subscribed.subject, cb=subscribed.callback
                )
            await asyncio.wait_for(asyncio.shield(client.ping()), _CONNECT_S)
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
