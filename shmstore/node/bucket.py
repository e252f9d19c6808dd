"""One bucket of keys kept by JetStream: reading, writing, counting acknowledgements.

A bucket is a stream of the form that NATS calls a key-value store, so that its tools can read
it. Everything goes by JetStream's own requests, which need fewer permissions and fewer round
trips than the client's API, and whose every answer is looked at.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shmstore.errors import RegistryUnavailable
from shmstore.node import subjects
from shmstore.node.connection import Connection, Message, NoAnswer, NoResponders, TooLarge

#: How long JetStream may take to answer, seconds.
_ANSWER_S = 5.0
#: Messages published and not acknowledged yet: a stream refuses more than 10,000 of all its
#: clients together.
_WINDOW = 2_000
#: Keys a page of a walk; how often a walk is begun again where it was cut off.
_PAGE = 1_000
_WALKS = 5
#: How long what marks a removed key stays, so that buckets do not grow by them.
_MARKER_TTL = "60s"
_OPERATION = "KV-Operation"
_NANOSECONDS = 1_000_000_000

_NO_MESSAGE = 10037
_NO_STREAM = 10059
_NAME_IN_USE = 10058
_WRONG_REVISION = (10071, 10164)


@dataclass(frozen=True)
class Kept:
    """What a bucket says of a key."""

    key: str
    value: bytes
    revision: int
    removed: bool
    """Whether it is a marker that the key was removed."""


@dataclass(frozen=True)
class Stream:
    """What tells a bucket from another of the same name, before or after it."""

    created: str
    last_revision: int


class Writable(Protocol):
    """What can be written: made into bytes only when its turn comes."""

    @property
    def key(self) -> str:
        """Its key."""

    def packed(self) -> bytes:
        """Its value."""


class WrongRevision(Exception):
    """The key changed since it was looked at; nothing was written."""


class Bucket:
    """A bucket. Every call raises ``RegistryUnavailable`` if JetStream does not answer well.

    Attributes:
        highest: The highest revision that was acknowledged to us. One that is lower, later,
            tells of a bucket that was made anew, or set back.
    """

    def __init__(
        self, connection: Connection, name: str, on_gone: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.highest = 0
        self._connection = connection
        self._stream = subjects.stream(name)
        self._on_gone = on_gone
        self._counting: _Counting | None = None

    async def ensure(self, config: dict[str, Any]) -> tuple[Stream, bool]:
        """Makes the bucket if there is none.

        Args:
            config: What differs from a bucket on disk with one value a key.

        Returns:
            The stream, and whether it is new.
        """
        stream = await self.look()
        if stream is not None:
            return stream, False
        whole = {
            "name": self._stream,
            "subjects": [subjects.key_subject(self.name, ">")],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "storage": "file",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
        } | config
        answer = await self._ask(f"STREAM.CREATE.{self._stream}", whole)
        if _code(answer) == _NAME_IN_USE:  # another node made it meanwhile, of another mind
            stream = await self.look()
            if stream is not None:
                return stream, False
        self._check(answer)
        return _stream(answer), True

    async def look(self) -> Stream | None:
        """The stream as it is, or None if there is none."""
        answer = await self._ask(f"STREAM.INFO.{self._stream}", {})
        if _code(answer) == _NO_STREAM:
            return None
        self._check(answer)
        return _stream(answer)

    async def near(self, key: str) -> Kept | None:
        """A key by the nearest server, which may not know the newest yet; None may be wrong."""
        subject = subjects.key_subject(self.name, key)
        try:
            message = await self._connection.call(
                f"$JS.API.DIRECT.GET.{self._stream}.{subject}", b"", _ANSWER_S
            )
        except NoResponders:
            return None  # not a bucket of our making, or none: the leader tells
        except NoAnswer as error:
            raise self._connection.unavailable(str(error)) from error
        headers = message.headers or {}
        if "Nats-Sequence" not in headers:
            return None
        return Kept(key, message.data, int(headers["Nats-Sequence"]), _OPERATION in headers)

    async def last(self, key: str) -> Kept | None:
        """A key by the stream's leader, which knows all that was acknowledged."""
        wanted = {"last_by_subj": subjects.key_subject(self.name, key)}
        answer = await self._ask(f"STREAM.MSG.GET.{self._stream}", wanted)
        if _code(answer) == _NO_MESSAGE:
            return None
        self._check(answer)
        message = answer["message"]
        return Kept(
            key,
            _decoded(message.get("data")),
            int(message["seq"]),
            f"{_OPERATION}:".encode() in _decoded(message.get("hdrs")),
        )

    async def write(self, key: str, value: bytes, expected: int) -> int:
        """Writes a key whose revision is known.

        Args:
            key: The key.
            value: Its value.
            expected: The revision that it has; 0 if it has none.

        Returns:
            Its new revision.

        Raises:
            WrongRevision: It has another one; nothing was written.
        """
        return await self._publish(key, value, {}, expected)

    async def remove(self, key: str, expected: int) -> None:
        """Removes a key whose revision is known.

        Raises:
            WrongRevision: It has another one; nothing was removed.
        """
        headers = {_OPERATION: "PURGE", "Nats-Rollup": "sub", "Nats-TTL": _MARKER_TTL}
        await self._publish(key, b"", headers, expected)

    async def write_many(self, items: Sequence[Writable]) -> set[int]:
        """Writes keys whatever they had, in a burst.

        Returns:
            Which of the items, by their place, were not acknowledged. They may be written
            all the same.
        """
        if self._counting is None:
            counting = _Counting(self._connection)
            await counting.start()
            self._counting = counting
        before = self.highest
        burst = await self._counting.write_many(self.name, items)
        if burst.highest:
            self._acknowledged(before, burst.lowest, burst.highest)
        if burst.nobody:
            self._on_gone()
        failed = burst.missing | burst.refused
        for place in failed:
            if self._connection.forbidden(subjects.key_subject(self.name, items[place].key)):
                raise self._connection.unavailable("NATS does not let us publish entries")
        return failed

    async def walk(self, pattern: str) -> AsyncIterator[Kept]:
        """Every key of a pattern, without the removed ones; one that changes may come twice."""
        start = 1
        for _ in range(_WALKS):
            page = _Page(self._connection, self._stream)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    pending = await self._begin(page, pattern, start)
                while pending:
                    before = start
                    async for message in page.read():
                        kept, pending = self._walked(message)
                        if kept.revision < start:
                            continue
                        start = kept.revision + 1
                        if not kept.removed:
                            yield kept
                    if start == before:  # what was still to come was removed meanwhile
                        break
                return
            except (TimeoutError, _CutOff):
                continue
            finally:
                await page.end()
        raise self._connection.unavailable("JetStream stops in the middle of its answers")

    async def purge(self, pattern: str, below: int) -> int:
        """Frees what is older than a revision; returns how many keys that were."""
        wanted = {"filter": subjects.key_subject(self.name, pattern), "seq": below}
        answer = await self._ask(f"STREAM.PURGE.{self._stream}", wanted)
        self._check(answer)
        return int(answer.get("purged", 0))

    async def _publish(self, key: str, value: bytes, headers: dict[str, str], expected: int) -> int:
        headers = headers | {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        subject = subjects.key_subject(self.name, key)
        before = self.highest
        answer = await self._answer(subject, value, headers)
        if _code(answer) in _WRONG_REVISION:
            raise WrongRevision(key)
        self._check(answer)
        revision = int(answer["seq"])
        self._acknowledged(before, revision, revision)
        return revision

    def _acknowledged(self, before: int, lowest: int, highest: int) -> None:
        """Notes revisions: what is sent after one was acknowledged gets a higher one."""
        if lowest <= before:
            self.highest = highest
            self._on_gone()
        self.highest = max(self.highest, highest)

    async def _begin(self, page: _Page, pattern: str, start: int) -> int:
        """Makes the consumer of a walk; returns how many keys there are."""
        config = {
            "name": page.consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "filter_subject": subjects.key_subject(self.name, pattern),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 60 * _NANOSECONDS,
        }
        await page.start()
        answer = await self._ask(
            f"CONSUMER.CREATE.{self._stream}.{page.consumer}.{config['filter_subject']}",
            {"stream_name": self._stream, "config": config},
        )
        self._check(answer)
        return int(answer["num_pending"])

    def _walked(self, message: Message) -> tuple[Kept, int]:
        """A key of a walk, and how many there are after it."""
        # $JS.ACK.<stream>.<consumer>.<delivered>.<revision>.<number>.<time>.<pending>, or
        # with two more before the stream and one after the end.
        parts = message.reply.split(".")
        shift = 0 if len(parts) == 9 else 2
        key = subjects.subject_key(self.name, message.subject)
        if key is None or len(parts) < 9:
            raise _CutOff
        removed = _OPERATION in (message.headers or {})
        return Kept(key, message.data, int(parts[5 + shift]), removed), int(parts[8 + shift])

    async def _ask(self, call: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """The answer of JetStream to a request."""
        return await self._answer(f"$JS.API.{call}", json.dumps(wanted).encode(), None)

    async def _answer(
        self, subject: str, payload: bytes, headers: dict[str, str] | None
    ) -> dict[str, Any]:
        try:
            message = await self._connection.call(subject, payload, _ANSWER_S, headers=headers)
            answer = json.loads(message.data)
        except NoResponders:
            # No JetStream, no stream that takes what is published, or none that is up.
            if not subject.startswith("$JS."):
                self._on_gone()
            raise self._connection.unavailable("JetStream does not keep this registry") from None
        except (NoAnswer, TooLarge) as error:
            raise self._connection.unavailable(str(error)) from error
        except ValueError as error:
            raise self._connection.unavailable("JetStream answers no JSON") from error
        if type(answer) is not dict:
            raise self._connection.unavailable("JetStream answers no JSON object")
        if _code(answer) == _NO_STREAM and not subject.startswith("$JS.API.STREAM.INFO."):
            self._on_gone()
        return answer

    def _check(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            said = answer["error"].get("description", "an error")
            raise self._connection.unavailable(f"JetStream says: {said}")


class _CutOff(Exception):
    """A page did not come whole."""


class _Page:
    """The consumer of a walk and what it delivers, a page at a time."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self.consumer = f"shmstore-{secrets.token_hex(8)}"
        self._connection = connection
        self._stream = stream
        self._inbox = connection.new_inbox()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._subscribed: Any = None

    async def start(self) -> None:
        async def came(message: Message) -> None:
            self._messages.put_nowait(message)

        self._subscribed = await self._connection.subscribe(self._inbox, came)

    async def read(self) -> AsyncIterator[Message]:
        """The next page, until it or all is through.

        Raises:
            _CutOff: It stops before that.
        """
        wanted = {"batch": _PAGE, "no_wait": True}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}"
        await self._connection.publish(subject, json.dumps(wanted).encode(), self._inbox)
        for _ in range(_PAGE):
            if self._messages.empty():
                try:
                    message = await asyncio.wait_for(self._messages.get(), _ANSWER_S)
                except TimeoutError:
                    raise _CutOff from None
            else:
                message = self._messages.get_nowait()
            if not message.reply:  # "that is all", or an error
                if (message.headers or {}).get("Status") in ("404", "408"):
                    return
                raise _CutOff
            yield message

    async def end(self) -> None:
        if self._subscribed is not None:
            await self._subscribed.stop()
        try:  # it would go by itself after a minute
            await self._connection.publish(
                f"$JS.API.CONSUMER.DELETE.{self._stream}.{self.consumer}", b""
            )
        except RegistryUnavailable:
            pass


class _Counting:
    """Bursts, and the acknowledgements of them: one subscription for all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._bursts: dict[str, _Burst] = {}
        self._made = 0

    async def start(self) -> None:
        start = len(self._inbox) + 1

        async def came(message: Message) -> None:
            name, _, place = message.subject[start:].partition(".")
            burst = self._bursts.get(name)
            if burst is not None:
                burst.acknowledged(int(place), message)

        await self._connection.subscribe(f"{self._inbox}.*.*", came)

    async def write_many(self, bucket: str, items: Sequence[Writable]) -> _Burst:
        self._made += 1
        name = str(self._made)
        burst = self._bursts[name] = _Burst()
        reply = f"{self._inbox}.{name}."
        publish = self._connection.publish
        try:
            for place, item in enumerate(items):
                burst.missing.add(place)
                subject = subjects.key_subject(bucket, item.key)
                await publish(subject, item.packed(), f"{reply}{place}")
                if len(burst.missing) >= _WINDOW and not await burst.fewer_than(_WINDOW // 2):
                    burst.missing.update(range(place + 1, len(items)))
                    break
            else:
                await burst.fewer_than(1)
        finally:
            del self._bursts[name]
        return burst


class _Burst:
    """What of a burst is not acknowledged yet."""

    def __init__(self) -> None:
        self.missing: set[int] = set()
        self.refused: set[int] = set()
        self.lowest = self.highest = 0
        self.nobody = False
        self._fewer: asyncio.Event = asyncio.Event()
        self._goal = 0

    def acknowledged(self, place: int, message: Message) -> None:
        """An answer came."""
        if place not in self.missing:
            return
        self.missing.discard(place)
        try:
            answer = json.loads(message.data)
            revision = int(answer["seq"]) if "error" not in answer else 0
        except (ValueError, TypeError, KeyError):
            revision = 0
            self.nobody |= (message.headers or {}).get("Status") == "503"
        if revision:
            self.lowest = min(self.lowest or revision, revision)
            self.highest = max(self.highest, revision)
        else:
            self.refused.add(place)
        if len(self.missing) < self._goal:
            self._fewer.set()

    async def fewer_than(self, goal: int) -> bool:
        """Waits until fewer are missing; False if nothing more comes."""
        self._goal = goal
        while len(self.missing) >= goal:
            self._fewer.clear()
            before = len(self.missing)
            try:
                await asyncio.wait_for(self._fewer.wait(), _ANSWER_S)
            except TimeoutError:
                if len(self.missing) == before:
                    return False
        return True


def _code(answer: dict[str, Any]) -> int:
    error = answer.get("error")
    return int(error.get("err_code", 0)) if isinstance(error, dict) else 0


def _stream(answer: dict[str, Any]) -> Stream:
    return Stream(str(answer["created"]), int(answer["state"]["last_seq"]))


def _decoded(data: str | None) -> bytes:
    return base64.b64decode(data) if data else b""
