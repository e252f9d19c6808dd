"""The sieve takes what is wanted out of a stream, and hands on the rest as it is."""

from __future__ import annotations

import asyncio
import random

import pytest

from shmstore.node.sieve import Sieve

_WANTED = b"_INBOX.wanted."


class _Inner(asyncio.Protocol):
    def __init__(self) -> None:
        self.got = bytearray()

    def data_received(self, data: bytes) -> None:
        assert data
        self.got += data


class _Taking:
    def __init__(self, taken: list[tuple[bytes, bytes]], subject: bytes, size: int) -> None:
        self._taken = taken
        self._subject = subject
        self._memory = bytearray(size)
        self.buffer = memoryview(self._memory)

    def done(self) -> None:
        self._taken.append((self._subject, bytes(self._memory)))


def _sifted(
    stream: bytes, rng: random.Random, most: int
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """What is handed on, and what is taken, of a stream that comes in random pieces."""
    taken: list[tuple[bytes, bytes]] = []

    def take(subject: bytes, size: int) -> _Taking | None:
        return _Taking(taken, subject, size) if subject.startswith(_WANTED) else None

    inner = _Inner()
    sieve = Sieve(inner, take)
    at = 0
    while at < len(stream):
        room = sieve.get_buffer(-1)
        assert len(room), "asyncio does not read into no buffer"
        size = min(len(room), len(stream) - at, rng.randint(1, most))
        room[:size] = stream[at : at + size]
        del room
        sieve.buffer_updated(size)
        at += size
    return bytes(inner.got), taken


def _message(rng: random.Random, longest: int) -> tuple[bytes, tuple[bytes, bytes] | None]:
    """A protocol message; and subject and payload if it is one that is wanted."""
    # Payloads that look like the protocol must not be taken for it.
    payload = rng.choice(
        (
            b"",
            b"x",
            b"\r\n",
            b"MSG _INBOX.wanted.1 1 5\r\nhello\r\n",
            b"MSG _INBOX.wanted.1 1 500\r\n",
            rng.randbytes(rng.randint(1, longest)),
        )
    )
    size = str(len(payload)).encode()
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice((b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x MSG y'\r\n")), None
    if kind == 1:
        # Its rest must not be taken for a message's line, wherever it is cut.
        filling = b"MSG " * (rng.choice((10, 3000, longest)) // 4)
        return b"INFO {" + filling + b"50\r\n", None
    if kind == 2:
        return b"HMSG " + _WANTED + b"1 1 2 " + size + b"\r\n" + payload + b"\r\n", None
    if kind == 3:
        return b"MSG other 1 reply.here " + size + b"\r\n" + payload + b"\r\n", None
    subject = _WANTED + str(rng.randrange(100)).encode()
    message = b"MSG " + subject + b" 17 " + size + b"\r\n" + payload + b"\r\n"
    return message, (subject, payload) if payload else None


@pytest.mark.parametrize("most", [1, 7, 1000, 70_000, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_any_stream_is_told_apart_whatever_its_pieces(seed: int, most: int) -> None:
    """However a stream is cut, what is wanted is taken whole and the rest is as it was."""
    rng = random.Random(seed)
    messages = [_message(rng, min(1000 * most, 200_000)) for _ in range(4 if most == 1 else 60)]
    rest, taken = _sifted(b"".join(message for message, _ in messages), rng, most)
    assert taken == [wanted for _, wanted in messages if wanted]
    assert rest == b"".join(message for message, wanted in messages if not wanted)


@pytest.mark.parametrize(
    "line",
    [b"MSG x", b"MSG _INBOX.wanted.1 1 x", b"MSG _INBOX.wanted.1 1 -5", b"MSG", b"HMSG \xff", b""],
)
def test_what_is_no_protocol_is_handed_on(line: bytes) -> None:
    """Lines that make no sense reach the client, which knows what to do with them."""
    stream = line + b"\r\nPING\r\n"
    assert _sifted(stream, random.Random(1), 5) == (stream, [])


def test_noise_neither_fails_nor_loses_a_byte() -> None:
    """Random bytes are handed on in the end, but for the start of a line."""
    rng = random.Random(2)
    for _ in range(30):
        stream = rng.randbytes(200_000) + b"\r\n"
        rest, taken = _sifted(stream, rng, 100_000)
        assert not taken
        assert stream.startswith(rest)
        assert len(rest) == len(stream)
