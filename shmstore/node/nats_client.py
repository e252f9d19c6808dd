"""One client of NATS, from its connect to its end: made once, never mended.

With ``link`` and ``connection``, the only module that imports nats' client. It uses some of
its inside, for what the client has no way to: an end that waits for nobody, a refusal to
send a password in the clear, many small messages in one piece, and requests that end as soon
as it is known that they will not be answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Iterable
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from shmstore.node.outlet import Outlet
from shmstore.node.settings import Settings

Message = Msg

#: How long making a connection to one server may take, seconds.
CONNECT_S = 3
#: Room for publishing while the socket is full, bytes, and how long that may block, seconds.
_PENDING_BYTES = 2 << 20
_FLUSH_S = 5.0
_NEVER_S = 86_400
_REFUSALS = ("authorization", "authentication", "revoked", "nkey", "certificate")
_MOST_VIOLATIONS = 100

_log = logging.getLogger(__name__)


class NoAnswer(Exception):
    """Nothing answered a request; says why, a clause without a full stop."""


class NoResponders(NoAnswer):
    """Nobody listens there, says the server."""


class Refused(Exception):
    """The server does not let us in, and trying again would not change that; says why."""


class Forbidden(Exception):
    """The server does not let us subscribe there; says so."""


class Failed(Exception):
    """An attempt failed; raised from inside nats' connect, which would go on trying."""


class NatsClient(Client):
    """nats' client, to be made, used, and thrown away.

    Attributes:
        served: Whether it was connected once.
        violations: What the server forbade lately, and when, by the loop's clock.
    """

    def __init__(self, wants_tls: bool) -> None:
        super().__init__()
        self._wants_tls = wants_tls
        self.served = False
        self.violations: dict[str, float] = {}
        self._asked: dict[str, tuple[str, asyncio.Future[Message | NoAnswer]]] = {}
        self._answers = ""
        self._made = 0

    async def begin(self, server: str, settings: Settings, **options: Any) -> None:
        """Connects to one server.

        Raises:
            Refused: It does not let us in.
            Failed: It cannot be reached.
        """
        try:
            await self.connect(
                [server],
                allow_reconnect=False,
                connect_timeout=CONNECT_S,
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
                raise Failed("it closed the connection")
            self.served = True
            self._answers = f"{self.new_inbox()}."
            await self.subscribe(f"{self._answers}*", cb=self._answered)
            await asyncio.wait_for(asyncio.shield(self.ping()), CONNECT_S)
        except TimeoutError:
            raise Failed("it does not answer") from None
        except Exception as error:
            # The files of credentials are read in there, by libraries with errors of their own.
            reason = _reason(error)
            if isinstance(reason, Failed) and self._server_info.get("tls_verify"):
                # Its objection may be lost with the connection that it closes.
                reason = Refused(f"TLS failed (it asks for a certificate; then: {reason})")
            raise reason from error

    async def _on_error(self, error: Exception) -> None:
        if not self.served:
            raise _reason(error) from error
        text = str(error)
        if "permissions violation" in text:
            self._violated(text)
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

    def _violated(self, text: str) -> None:
        self.violations.pop(text, None)
        self.violations[text] = asyncio.get_running_loop().time()
        if len(self.violations) > _MOST_VIOLATIONS:
            del self.violations[next(iter(self.violations))]
        for subject, future in self._asked.values():
            if f'publish to "{subject.lower()}"' in text and not future.done():
                future.set_result(NoAnswer(f"NATS does not let us publish to {subject}"))

    def forbidden(self, what: str, since: float = 0.0) -> bool:
        """Whether the server forbade something since a time, for example 'publish to "x"'."""
        return any(what.lower() in text for text, at in self.violations.items() if at >= since)

    async def ask(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None
    ) -> Message:
        """Sends a request, and returns the message that answers it.

        Raises:
            NoAnswer: There is none; says why.
            nats.errors.Error: It could not be sent.
        """
        loop = asyncio.get_running_loop()
        self._made += 1
        name = str(self._made)
        future: asyncio.Future[Message | NoAnswer] = loop.create_future()
        self._asked[name] = subject, future
        timer = loop.call_later(timeout_s, _late, future, timeout_s)
        try:
            await self.publish(subject, payload, f"{self._answers}{name}", headers)
            answer = await future
        finally:
            timer.cancel()
            del self._asked[name]
        if isinstance(answer, NoAnswer):
            raise answer
        if not answer.data and (answer.headers or {}).get("Status") == "503":
            raise NoResponders(f"nobody listens to {subject}")
        return answer

    async def _answered(self, message: Message) -> None:
        _, future = self._asked.get(message.subject[len(self._answers) :], ("", None))
        if future is not None and not future.done():
            future.set_result(message)

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

    def let_out(self) -> None:
        """Sends large messages without copies from now on; nothing may just be on its way."""
        if type(self._transport) is TcpTransport:
            self._transport = Outlet(self._transport)

    async def publish_large(self, subject: str, head: bytes, body: bytes | memoryview) -> None:
        """Publishes a message in two parts. The body must stay as it is until it is sent.

        Raises:
            nats.errors.Error: There is no connection, or it is larger than ``max_payload``.
        """
        if not isinstance(self._transport, Outlet):
            await self.publish(subject, head + body)
            return
        size = len(head) + len(body)
        if not self.is_connected:
            raise nats_errors.ConnectionClosedError
        if size > self.max_payload:
            raise nats_errors.MaxPayloadError
        pending: list[Any] = self._pending
        pending += (f"PUB {subject} {size}\r\n".encode() + head, body, b"\r\n")
        self._pending_data_size += size
        await self._flush_pending(force_flush=self._pending_data_size > _PENDING_BYTES)

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
        for _, future in self._asked.values():
            if not future.done():
                future.set_result(NoAnswer("the connection to NATS was lost meanwhile"))
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(nats_errors.ConnectionClosedError())
                pong.exception()  # who gave it up does not take it: no complaint for that
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


def _reason(error: Exception) -> Exception:
    """What came up in connecting, in words: a refusal, or a failure that may pass."""
    if isinstance(error, (Refused, Failed)):
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
        # asyncio's own words for a refused connection are "Connect call failed (…)".
        number = error.errno or 0
        return Failed(os.strerror(number).lower() if number > 0 else text)
    return Failed(text) if isinstance(error, nats_errors.Error) else Refused(text)


def _late(future: asyncio.Future[Message | NoAnswer], timeout_s: float) -> None:
    if not future.done():
        future.set_result(NoAnswer(f"no answer within {timeout_s:g} s"))
