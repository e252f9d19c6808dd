"""One bucket of keys kept by JetStream: reading, writing, counting acknowledgements.

A bucket is a stream of the form that NATS calls a key-value store, so that its tools can read
it. Everything goes by JetStream's own requests, which need fewer permissions and fewer round
trips than the client's API, and whose every answer is looked at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from shmstore.node import subjects
from shmstore.node.burst import Bursts, Writable
from shmstore.node.connection import Connection, NoAnswer, NoResponders, TooLarge
from shmstore.node.kept import OPERATION, Kept, Stream, WrongRevision
from shmstore.node.walk import CutOff, Page

#: How long JetStream may take to answer, seconds.
_ANSWER_S = 5.0
#: How often a walk is begun again where it was cut off.
_WALKS = 5
#: How often it goes on behind its end. Where keys change all the time there is always more; one
#: that had moved away each time just as its turn came would be missed.
_ROUNDS = 12
#: How long what marks a removed key stays, so that buckets do not grow by them.
_MARKER_TTL = "60s"

_NO_MESSAGE = 10037
_NO_STREAM = 10059
_NAME_IN_USE = 10058
_WRONG_REVISION = (10071, 10164)


class Bucket:
    """A bucket. Every call raises ``RegistryUnavailable`` if JetStream does not answer well.

    Attributes:
        highest: The highest revision that was acknowledged to us. One that is lower, later,
            tells of a bucket that was made anew, or set back.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        on_gone: Callable[[], None] = lambda: None,
        on_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        """Names a bucket, which need not be there.

        Args:
            connection: How to reach it.
            name: Its name.
            on_gone: Called when it turns out to be gone, or another one than before.
            on_doubt: Called when nobody takes what is published to it: it is gone, or the
                servers are about to choose who leads it.
        """
        self.name = name
        self.highest = 0
        self._connection = connection
        self._stream = subjects.stream(name)
        self._on_gone = on_gone
        self._on_doubt = on_doubt
        self._bursts = Bursts(connection, name)

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
        return Kept(key, message.data, int(headers["Nats-Sequence"]), OPERATION in headers)

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
            f"{OPERATION}:".encode() in _decoded(message.get("hdrs")),
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
        headers = {OPERATION: "PURGE", "Nats-Rollup": "sub", "Nats-TTL": _MARKER_TTL}
        await self._publish(key, b"", headers, expected)

    async def write_many(self, items: Sequence[Writable]) -> set[int]:
        """Writes keys whatever they had, in a burst.

        Returns:
            Which of the items, by their place, were not acknowledged. They may be written
            all the same.
        """
        before = self.highest
        burst = await self._bursts.write(items)
        if burst.highest:
            self._acknowledged(before, burst.lowest, burst.highest)
        if burst.nobody:
            self._on_doubt()
        failed = burst.missing | burst.refused
        for place in failed:
            if self._connection.forbidden(subjects.key_subject(self.name, items[place].key)):
                raise self._connection.unavailable("NATS does not let us publish entries")
        return failed

    async def walk(self, pattern: str) -> AsyncIterator[Kept]:
        """Every key of a pattern, without the removed ones; one that changes may come twice.

        A key that is overwritten meanwhile moves behind the others, and a page may end just
        before it is there. So the walk goes on from where it was until there is nothing more.
        """
        start, cut_off = 1, 0
        for _ in range(_ROUNDS):
            page = Page(self._connection, self.name, pattern)
            try:
                await page.start()
                answer = await self._ask(page.creation, page.config(start))
                self._check(answer)
                pending = int(answer["num_pending"])
                if not pending:
                    return
                while pending:
                    before = start
                    async for kept, pending in page.read():  # noqa: B007  # the last one counts
                        if kept.revision < start:
                            continue
                        start = kept.revision + 1
                        if not kept.removed:
                            yield kept
                    if start == before:  # what was still to come was removed, or overwritten
                        break
            except CutOff:
                cut_off += 1
                if cut_off == _WALKS:
                    raise self._connection.unavailable(
                        "JetStream stops in the middle of its answers"
                    ) from None
            finally:
                await page.end()

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
                self._on_doubt()
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


def _code(answer: dict[str, Any]) -> int:
    error = answer.get("error")
    return int(error.get("err_code", 0)) if isinstance(error, dict) else 0


def _stream(answer: dict[str, Any]) -> Stream:
    return Stream(str(answer["created"]), int(answer["state"]["last_seq"]))


def _decoded(data: str | None) -> bytes:
    return base64.b64decode(data) if data else b""
