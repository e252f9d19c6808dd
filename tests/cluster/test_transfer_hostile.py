"""Nodes that lie, and strangers that ask for nonsense: an error, and life goes on."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_128_hexdigest

from shmstore import errors, provenance
from shmstore.demo.server import NatsServer
from shmstore.node import protocol
from shmstore.node.connection import Connection, Message, NoAnswer
from shmstore.node.subjects import call_subject, inbox_prefix
from tests import reading_files
from tests.cluster.hosts import Host, host, hosts
from tests.cluster.nodes import connected, until

_MIB = 1 << 20
_PAYLOAD = random.Random(5).randbytes(3 * _MIB)
_META = provenance.build_meta(b"", bytes, [b"dep"])
_ALL = _META + _PAYLOAD
_SUM = xxh3_128_hexdigest(_ALL)
_HEAD: dict[str, Any] = {
    "status": "value",
    "version": "v",
    "codec": 2,
    "created": 1,
    "meta": len(_META),
    "nbytes": len(_PAYLOAD),
}

Answer = Callable[[dict[str, Any]], bytes | None]


def _get(header: dict[str, Any]) -> bytes:
    return protocol.pack(_HEAD, _META)


def _chunk(header: dict[str, Any]) -> bytes:
    at, size = header["at"], header["size"]
    return protocol.pack({"status": "chunk", "at": at}, _ALL[at : at + size])


def _sum(header: dict[str, Any]) -> bytes:
    return protocol.pack({"status": "sum", "sum": _SUM})


async def _play(connection: Connection, node: str, **calls: Answer) -> None:
    """Answers as a node of that name would, or as it would not."""
    for call, answer in {"get": _get, "chunk": _chunk, "sum": _sum, **calls}.items():

        async def serve(message: Message, answer: Answer = answer) -> None:
            answered = answer(protocol.unpack(message.data)[0])
            if answered is not None:
                await connection.publish(message.reply, answered, bulk=True)

        await connection.subscribe(call_subject("default", node, call), serve)


def _head(**changed: Any) -> Answer:
    """An answer to ``get`` of which something is changed; None leaves it out."""
    header = {name: value for name, value in (_HEAD | changed).items() if value is not None}
    return lambda _: protocol.pack(header, _META)


def _small(meta: bytes, payload: bytes = b"", **changed: Any) -> Answer:
    """The answer to ``get`` of a small value."""
    body = meta + payload
    told = {"meta": len(meta), "nbytes": len(payload), "sum": xxh3_128_hexdigest(body)}
    return lambda _: protocol.pack(_HEAD | told | changed, body)


def _piece(change: Callable[[int, bytes], tuple[Any, bytes]]) -> Answer:
    """An answer to ``chunk`` of which something is changed."""

    def answer(header: dict[str, Any]) -> bytes:
        at, size = header["at"], header["size"]
        told, body = change(at, _ALL[at : at + size])
        return protocol.pack({"status": "chunk", "at": told}, body)

    return answer


def _name(raw: bytes) -> bytes:
    return struct.pack("<H", len(raw)) + raw


def _lying_meta(pid: int = 1, deps: int = 0, rest: bytes = b"", own: int = 0) -> bytes:
    return (
        struct.pack("<II", own, pid)
        + _name(b"host") + _name(b"") + _name(b"int") + struct.pack("<I", deps) + rest
    )  # fmt: skip


_INTEGERS: tuple[Any, ...] = (-1, 1 << 63, 1.5, "1", True, [], {}, 1e400)

LIES: dict[str, dict[str, Answer]] = {
    "nothing": {"get": lambda _: b""},
    "no JSON": {"get": lambda _: struct.pack("<I", 3) + b"{{{"},
    "no object": {"get": lambda _: struct.pack("<I", 2) + b"[]"},
    "deep JSON": {"get": lambda _: struct.pack("<I", 60_000) + b"[" * 60_000},
    "a header longer than the message": {"get": lambda _: struct.pack("<I", 1 << 31) + b"{}"},
    "no status": {"get": _head(status=None)},
    "a strange status": {"get": _head(status="x" * 33)},
    "an error that is none": {"get": lambda _: protocol.pack({"status": "error", "why": 1})},
    "an error": {"get": lambda _: protocol.pack({"status": "error", "why": "\x00"})},
    "a version that is none": {"get": _head(version=7)},
    "a checksum that is none": {"get": _head(sum="x" * 32)},
    "a checksum in capitals": {"get": _head(sum=_SUM.upper() + "A")},
    "another checksum": {"sum": lambda _: protocol.pack({"status": "sum", "sum": "0" * 32})},
    "no checksum": {"sum": lambda _: protocol.pack({"status": "sum"})},
    "a checksum that is wrong, of a small one": {"get": _small(_META, b"x", sum="0" * 32)},
    "no checksum of a small one": {"get": lambda _: protocol.pack(_HEAD | {"nbytes": 0}, _META)},
    "more than it told": {"get": lambda _: protocol.pack(_HEAD | {"nbytes": 1}, _META + b"12")},
    "a codec of 0": {"get": _head(codec=0)},
    "a codec of 256": {"get": _head(codec=256)},
    "a meta of gigabytes": {"get": _head(meta=1 << 40)},
    "a value of exabytes": {"get": _head(nbytes=1 << 60)},
    "no piece": {"chunk": lambda _: b""},
    "an empty piece": {"chunk": _piece(lambda at, body: (at, b""))},
    "too long a piece": {"chunk": _piece(lambda at, body: (at, body + b"x"))},
    "another piece": {"chunk": _piece(lambda at, body: (at + 1, body))},
    "a piece before the start": {"chunk": _piece(lambda at, body: (-at, body))},
    "a flipped bit": {"chunk": _piece(lambda at, body: (at, bytes([body[0] ^ 1]) + body[1:]))},
    "the same piece again and again": {"chunk": _piece(lambda at, body: (at, _ALL[: len(body)]))},
    "a version that is gone, for ever": {"chunk": lambda _: protocol.pack({"status": "gone"})},
    "a meta that is empty": {"get": _small(b"", b"x")},
    "a meta whose own part is longer than it": {"get": _small(_lying_meta(own=1 << 31))},
    "a meta of four billion deps": {"get": _small(_lying_meta(deps=0xFFFFFFFF))},
    "a meta of a dep too few": {"get": _small(_lying_meta(deps=2, rest=_name(b"x")))},
    "a meta of an empty dep": {"get": _small(_lying_meta(deps=1, rest=_name(b"")))},
    "a meta of a dep that is no text": {"get": _small(_lying_meta(deps=1, rest=_name(b"\xff")))},
    "a meta of a dep that is too long": {
        "get": _small(_lying_meta(deps=1, rest=_name(b"x" * 1025)))
    },
    "a meta with something behind it": {"get": _small(_lying_meta(rest=b"x"))},
    **{
        f"{field}: {value!r}": {"get": _head(**{field: value})}
        for field in ("codec", "created", "meta", "nbytes")
        for value in _INTEGERS
    },
}


async def _with_liar(server: NatsServer, root: str, calls: dict[str, Answer]) -> None:
    async with (
        connected(server.url, "liar", "default") as connection,
        host(server.url, root, "b") as b,
    ):
        await _play(connection, "liar", **calls)
        with pytest.raises(errors.NodeUnreachable) as caught:
            await b.fetch("liar", "id")
        assert caught.value.node == "liar"
        assert not b.store.has_value("dag", "id")
        b.store.gc()
        assert not b.store.check()


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_fetch(server: NatsServer, root: str, lie: str) -> None:
    """A node whose answers are wrong in any way is an error, and nothing of it is stored."""
    asyncio.run(_with_liar(server, root, LIES[lie]))
    reading_files.check(f"{root}/b")


def test_what_the_lies_are_changed_from_is_taken(server: NatsServer, root: str) -> None:
    """The same answers without a lie make a value."""

    async def run() -> None:
        async with (
            connected(server.url, "honest", "default") as connection,
            host(server.url, root, "b") as b,
        ):
            await _play(connection, "honest")
            await b.fetch("honest", "id")
            assert bytes(b.store.get_buffer("dag", "id")) == _PAYLOAD
            assert b.store.entry("dag", "id").deps == ("dep",)
            await _play(connection, "small", get=_small(_lying_meta(), b"x"))
            await b.fetch("small", "small")
            assert b.store.entry("dag", "small").origin == "small"

    asyncio.run(run())


def test_damage_on_the_way_is_fetched_again(server: NatsServer, root: str) -> None:
    """What arrives damaged once is asked for once more, and then stored."""
    flips = [1]

    def flip(at: int, body: bytes) -> tuple[int, bytes]:
        return at, (bytes([body[0] ^ flips.pop()]) + body[1:]) if flips else body

    async def run() -> None:
        async with (
            connected(server.url, "a", "default") as connection,
            host(server.url, root, "b") as b,
        ):
            await _play(connection, "a", chunk=_piece(flip))
            await b.fetch("a", "id")
            assert bytes(b.store.get_buffer("dag", "id")) == _PAYLOAD
            assert not flips

    asyncio.run(run())


def test_pieces_that_get_lost_are_asked_for_again(server: NatsServer, root: str) -> None:
    """A piece that never comes is asked for again, in smaller pieces."""
    sizes: list[int] = []

    def lose(header: dict[str, Any]) -> bytes | None:
        sizes.append(header["size"])
        return None if header["at"] > _MIB and header["size"] > 300_000 else _chunk(header)

    async def run() -> None:
        async with (
            connected(server.url, "a", "default") as connection,
            host(server.url, root, "b") as b,
        ):
            await _play(connection, "a", chunk=lose)
            await b.fetch("a", "id")
            assert bytes(b.store.get_buffer("dag", "id")) == _PAYLOAD

    asyncio.run(run())
    assert min(sizes) < 300_000 < max(sizes)


def _hostile_requests(rng: random.Random) -> bytes:
    """A message: junk, or a request of which something is changed."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.choice((0, 1, 3, 4, 5, 100, 10_000)))
    strange: tuple[Any, ...] = (
        None, True, -1, 0, 1, 1.5, 1 << 62, 1 << 63, 1 << 70, -(1 << 63), "", "x", "a.b", "*", ">",
        "\n", "\x00", "😀" * 300, "x" * 3000, [], [[]], {}, "dag", "id", "\ud800",
    )  # fmt: skip
    header = {"dag": "dag", "id": "id", "version": "v", "at": 0, "size": 1}
    for field in rng.sample([*header, "more"], rng.randrange(4)):
        header[field] = rng.choice(strange)
    for field in rng.sample([*header], rng.choice((0, 0, 0, 1))):
        del header[field]
    raw = json.dumps(header).encode()
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw))]
    size = rng.choice((len(raw), len(raw), len(raw), len(raw) + 1, 1 << 31, 0))
    return struct.pack("<I", size) + raw + rng.randbytes(rng.choice((0, 0, 100)))


def test_an_owner_survives_any_request(server: NatsServer, root: str) -> None:
    """Malformed, oversized and hostile requests get an error; the next honest one, its value."""
    rng = random.Random(11)
    value = np.arange(400_000)

    async def ask(one: Host, call: str, message: bytes) -> None:
        subject = call_subject("default", "a", call)
        answer = await one.connection.request(subject, message, 20.0)
        header, _ = protocol.unpack(answer)
        assert header["status"] in ("error", "not-found", "value", "chunk", "gone", "sum")

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", value)
            version = protocol.unpack(
                await b.connection.request(
                    call_subject("default", "a", "get"),
                    protocol.pack({"dag": "dag", "id": "id"}),
                    20.0,
                )
            )[0]["version"]
            for _ in range(40):
                messages = [_hostile_requests(rng) for _ in range(25)]
                messages = [one.replace(b'"v"', json.dumps(version).encode()) for one in messages]
                calls = [rng.choice(("get", "chunk", "sum")) for _ in messages]
                await asyncio.gather(*map(ask, [b] * 25, calls, messages))
            await b.fetch("a", "id")
            assert np.array_equal(b.store.get("dag", "id"), value)

    asyncio.run(run())


@pytest.mark.parametrize(("at", "size"), [(-1, 1), (1 << 62, 1), (3_200_500, 1), (0, 0), (0, -5)])
def test_offsets_outside_of_the_value_are_refused(
    server: NatsServer, root: str, at: int, size: int
) -> None:
    """A piece before, behind or of nothing of a value is an error."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", np.arange(400_000))

            async def ask(call: str, **header: Any) -> dict[str, Any]:
                wanted = protocol.pack({"dag": "dag", "id": "id", **header})
                subject = call_subject("default", "a", call)
                return protocol.unpack(await b.connection.request(subject, wanted, 20.0))[0]

            version = (await ask("get"))["version"]
            assert (await ask("chunk", version=version, at=0, size=1))["status"] == "chunk"
            assert (await ask("chunk", version=version, at=at, size=size))["status"] == "error"

    asyncio.run(run())


def test_an_owner_writes_to_inboxes_of_the_namespace_only(server: NatsServer, root: str) -> None:
    """A request with another reply subject is not answered there."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "id", 1)
            heard: list[str] = []

            async def hear(message: Message) -> None:
                heard.append(message.subject)

            inbox = f"{inbox_prefix('default', 'b')}.x"
            other = f"{inbox_prefix('other', 'b')}.x"
            elsewhere = ("$KV.shmstore_default.x", "_INBOX.x", other, "x")
            for subject in (*elsewhere, inbox):
                await b.connection.subscribe(subject, hear)
            request = protocol.pack({"dag": "dag", "id": "id"})
            for subject in (*elsewhere, inbox):
                await b.connection.publish(call_subject("default", "a", "get"), request, subject)
            # Answered in order: when this one has come, the others would have, too.
            with pytest.raises(NoAnswer):
                await b.connection.request(call_subject("default", "nobody", "get"), b"", 5.0)
            await until(lambda: bool(heard), "no answer")
            assert await b.fetch("a", "id")
            assert heard == [inbox]

    asyncio.run(run())
