from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer
from shmstore.errors import RegistryUnavailable
from shmstore.node.connection import Connection, Message, Settings
from shmstore.node.registry import Registry
from tests.cluster.credentials import USER, Accounts, Certificates, Key
from tests.cluster.nodes import DEADLINE_S, entry, until

Env = dict[str, str]


def env_of(**values: str) -> Env:
    """The environment of a node."""
    return {f"SHMSTORE_NATS_{name}": value for name, value in values.items()}


async def works(url: str, env: Env) -> None:
    """A node with these settings can register a value, look it up, and bring large ones."""
    connection = await Connection.open(Settings.parse(url, env), "test", "a")
    try:
        registry = Registry(connection, "test", "a", "1")
        await registry.prepare()
        assert await registry.put_many([entry("d", "x")]) == []
        assert await registry.lookup("d", "x") == entry("d", "x")
        await registry.claim("store")
        large = bytes(range(256)) * 2_000

        async def answer(message: Message) -> None:
            await connection.publish(message.reply, large, bulk=True)

        await connection.subscribe("large", answer, bulk=True)
        for _ in range(3):
            loan = await connection.request_large("large", b"", DEADLINE_S)
            assert loan.data == large
            loan.give_back()
    finally:
        await connection.close()


async def refused(url: str, env: Env) -> str:
    """What a node says that is not let in: at once, without secrets, leaving no task."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(RegistryUnavailable) as caught:
        await Connection.open(Settings.parse(url, env), "test", "a", patience_s=10 * DEADLINE_S)
    assert loop.time() - began < DEADLINE_S
    assert len(asyncio.all_tasks()) == 1
    text = str(caught.value)
    assert text.endswith(".") and ". " not in text and ".)" not in text, "one sentence"
    assert "secret" not in text
    return text


def served(tmp_path: Path, config: str) -> NatsServer:
    return NatsServer(tmp_path / "nats", config=config)


def test_user_and_password(tmp_path: Path) -> None:
    """A server with users lets in who has the password, by URL or environment, and no one else."""
    config = 'authorization { user: "me", password: "secret @/1" }'

    async def scenario(server: NatsServer) -> None:
        await works(f"nats://me:secret%20%40%2F1@{server.address}", {})
        await works(server.url, env_of(USER="me", PASSWORD="secret @/1"))
        for env in (
            {},
            env_of(USER="me", PASSWORD="secret"),
            env_of(USER="you", PASSWORD="secret @/1"),
            env_of(TOKEN="secret"),
        ):
            assert "refuses our credentials" in await refused(server.url, env)

    with served(tmp_path, config) as server:
        asyncio.run(scenario(server))


def test_token(tmp_path: Path) -> None:
    """A server with a token lets in who has it, by URL or environment, and no one else."""

    async def scenario(server: NatsServer) -> None:
        await works(f"nats://secret@{server.address}", {})
        await works(server.url, env_of(TOKEN="secret"))
        for env in ({}, env_of(TOKEN="secret2")):
            assert "refuses our credentials" in await refused(server.url, env)

    with served(tmp_path, "authorization { token: secret }") as server:
        asyncio.run(scenario(server))


def test_nkey(tmp_path: Path) -> None:
    """A server that knows a public nkey lets in who has its seed, and no one else."""
    known, stranger = Key(USER), Key(USER)
    seed, wrong, junk = tmp_path / "seed", tmp_path / "wrong", tmp_path / "junk"
    seed.write_text(f"{known.seed}\n")
    wrong.write_text(stranger.seed)
    junk.write_text("secret")

    async def scenario(server: NatsServer) -> None:
        await works(server.url, env_of(NKEY=str(seed)))
        assert "refuses our credentials" in await refused(server.url, env_of(NKEY=str(wrong)))
        assert "nkey" in (await refused(server.url, env_of(NKEY=str(junk)))).lower()
        assert "refuses our credentials" in await refused(server.url, {})

    config = f"authorization {{ users: [ {{ nkey: {known.public} }} ] }}"
    with served(tmp_path, config) as server:
        asyncio.run(scenario(server))


def test_credentials_file(tmp_path: Path) -> None:
    """A server of an operator lets in the users of its accounts, and no one else."""
    accounts, strangers = Accounts(), Accounts()
    mine = accounts.credentials(tmp_path / "mine.creds")
    others = strangers.credentials(tmp_path / "others.creds")
    junk = tmp_path / "junk.creds"
    junk.write_text("secret")

    async def scenario(server: NatsServer) -> None:
        await works(server.url, env_of(CREDS=mine))
        assert "refuses our credentials" in await refused(server.url, env_of(CREDS=others))
        await refused(server.url, env_of(CREDS=str(junk)))
        assert "refuses our credentials" in await refused(server.url, {})

    with served(tmp_path, accounts.config) as server:
        asyncio.run(scenario(server))


def test_tls(tmp_path: Path) -> None:
    """A server with TLS is reached if its certificate is of the right authority and name."""
    certificates = Certificates.make(tmp_path / "certificates")
    strangers = Certificates.make(tmp_path / "strangers")
    trusting = env_of(CA=certificates.path("authority"))

    async def scenario(server: NatsServer) -> None:
        await works(f"tls://{server.address}", trusting)
        await works(server.url, trusting)
        for env in ({}, env_of(CA=strangers.path("authority"))):
            assert "certificate is not trusted" in await refused(f"tls://{server.address}", env)
            assert "certificate is not trusted" in await refused(server.url, env)

    with served(tmp_path, certificates.config()) as server:
        asyncio.run(scenario(server))


def test_a_certificate_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    """A certificate of the right authority, but of another host, does not do."""
    certificates = Certificates.make(tmp_path / "certificates")
    certificates.sign("server", "subjectAltName=IP:127.0.0.2,DNS:elsewhere")

    async def scenario(server: NatsServer) -> None:
        env = env_of(CA=certificates.path("authority"))
        assert "certificate is not trusted" in await refused(f"tls://{server.address}", env)

    with served(tmp_path, certificates.config()) as server:
        asyncio.run(scenario(server))


def test_mutual_tls(tmp_path: Path) -> None:
    """A server that asks for certificates lets in who has one of its authority, and no one else."""
    certificates = Certificates.make(tmp_path / "certificates")
    strangers = Certificates.make(tmp_path / "strangers")

    def having(of: Certificates) -> Env:
        return env_of(
            CA=certificates.path("authority"), CERT=of.path("node"), KEY=of.path("node", "key")
        )

    async def scenario(server: NatsServer) -> None:
        url = f"tls://{server.address}"
        await works(url, having(certificates))
        assert "TLS failed" in await refused(url, having(strangers))
        assert "TLS failed" in await refused(url, env_of(CA=certificates.path("authority")))

    with served(tmp_path, certificates.config(mutual=True)) as server:
        asyncio.run(scenario(server))


class _Stripping:
    """Someone in between who says that the server does not encrypt, and notes what is sent."""

    def __init__(self) -> None:
        self.noted = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = self._listening.accept()
                with taken, contextlib.suppress(OSError):
                    taken.settimeout(DEADLINE_S)
                    taken.sendall(b'INFO {"max_payload":1048576,"headers":true}\r\n')
                    while data := taken.recv(1 << 16):
                        self.noted += data

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(DEADLINE_S)


@pytest.fixture
def stripping() -> Iterator[_Stripping]:
    running = _Stripping()
    yield running
    running.close()


@pytest.mark.parametrize("by", ["url", "authority"])
def test_a_password_is_not_sent_in_the_clear_when_tls_was_asked_for(
    tmp_path: Path, stripping: _Stripping, by: str
) -> None:
    """Whoever answers without TLS where TLS was asked for is refused before anything is sent."""
    certificates = Certificates.make(tmp_path / "certificates")

    async def scenario() -> None:
        scheme = "tls" if by == "url" else "nats"
        env = env_of(CA=certificates.path("authority")) if by == "authority" else {}
        url = f"{scheme}://me:secret@127.0.0.1:{stripping.port}"
        assert "does not encrypt" in await refused(url, env)

    asyncio.run(scenario())
    assert stripping.noted == b""


def test_tls_that_a_server_offers_is_used_when_asked_for(tmp_path: Path) -> None:
    """A server that takes clients with and without TLS is spoken to with TLS if we ask for it."""
    certificates = Certificates.make(tmp_path / "certificates")

    async def scenario(server: NatsServer) -> None:
        connection = await Connection.open(
            Settings.parse(f"tls://{server.address}", env_of(CA=certificates.path("authority"))),
            "test",
            "a",
        )
        clients = (await asyncio.to_thread(server.monitor, "connz"))["connections"]
        assert [bool(client.get("tls_version")) for client in clients] == [True, True]
        await connection.close()

    with served(tmp_path, certificates.config() + "allow_non_tls: true\n") as server:
        asyncio.run(scenario(server))


def test_who_was_let_in_once_is_patient(tmp_path: Path) -> None:
    """A server that refuses a node that it let in before is tried until it lets it in again."""

    async def scenario(server: NatsServer) -> None:
        settings = Settings.parse(server.url, env_of(TOKEN="secret"))
        connection = await Connection.open(settings, "test", "a")
        server.config = "authorization { token: another }"
        server.restart()

        def refusals() -> int:
            return server.log.count("authentication error")

        await until(lambda: refusals() >= 6, "it tries again and again")
        assert not connection.connected
        server.config = "authorization { token: secret }"
        server.restart()
        await until(lambda: connection.connected, "it is let in")
        await Registry(connection, "test", "a", "1").prepare()
        await connection.close()

    with served(tmp_path, "authorization { token: secret }") as server:
        asyncio.run(scenario(server))


def test_replaced_files_are_read_again(tmp_path: Path) -> None:
    """Credentials that are replaced while a node runs are the ones of its next connection."""
    old, new = Key(USER), Key(USER)
    seed = tmp_path / "seed"
    seed.write_text(old.seed)

    async def scenario(server: NatsServer) -> None:
        settings = Settings.parse(server.url, env_of(NKEY=str(seed)))
        connection = await Connection.open(settings, "test", "a")
        before = connection.generation
        seed.write_text(new.seed)
        server.config = f"authorization {{ users: [ {{ nkey: {new.public} }} ] }}"
        server.restart()
        await until(lambda: connection.generation > before, "it is let in with the new one")
        await until(lambda: connection.connected, "both connections are")
        await connection.close()

    with served(tmp_path, f"authorization {{ users: [ {{ nkey: {old.public} }} ] }}") as server:
        asyncio.run(scenario(server))
