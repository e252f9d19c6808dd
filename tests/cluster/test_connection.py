from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer
from shmstore.errors import RegistryUnavailable
from shmstore.node.connection import (
    Connection,
    Message,
    NoAnswer,
    NoResponders,
    Settings,
    TooLarge,
)
from shmstore.node.subjects import is_inbox
from tests.cluster.nodes import DEADLINE_S, connected, until
from tests.fault.enclosed import mount, with_mounts

_MS_BIND = 0x1000


async def echo(connection: Connection, subject: str = "echo", bulk: bool = False) -> None:
    """Answers requests with what they say."""

    async def answer(message: Message) -> None:
        await connection.publish(message.reply, message.data, bulk=bulk)

    await connection.subscribe(subject, answer, bulk)


async def answers(connection: Connection, subject: str = "echo", bulk: bool = False) -> bool:
    """Whether a request is answered now."""
    try:
        return await connection.request(subject, b"hello", 1, bulk) == b"hello"
    except (RegistryUnavailable, NoAnswer):
        return False


def test_requests_are_answered_on_both_connections(server: NatsServer) -> None:
    """Requests and replies go by the node's own inbox, on either connection."""

    async def scenario() -> None:
        async with connected(server.url) as mine, connected(server.url, "b") as other:
            replies: list[str] = []

            async def answer(message: Message) -> None:
                replies.append(message.reply)
                await mine.publish(message.reply, message.data)

            await mine.subscribe("echo", answer)
            for bulk in (False, True):
                assert await other.request("echo", b"x" * 1000, DEADLINE_S, bulk) == b"x" * 1000
            assert len(set(replies)) == 2
            assert all(is_inbox("test", reply) for reply in replies)
            assert all(reply.startswith("_INBOX_shmstore.test.b.") for reply in replies)
            assert is_inbox("test", mine.new_inbox())
            assert mine.max_payload == 1 << 20

    asyncio.run(scenario())


def test_what_is_wrong_with_a_request_is_told_apart(server: NatsServer) -> None:
    """Nobody there, no answer, too large: each is an error of its own, and none costs more."""

    async def scenario() -> None:
        async with connected(server.url) as mine:

            async def silent(message: Message) -> None:
                pass

            await mine.subscribe("silent", silent)
            with pytest.raises(NoResponders):
                await mine.request("nobody", b"", DEADLINE_S)
            with pytest.raises(NoAnswer, match=r"0\.05 s"):
                await mine.request("silent", b"", 0.05)
            with pytest.raises(TooLarge):
                await mine.request("silent", bytes((1 << 20) + 1), DEADLINE_S)
            with pytest.raises(TooLarge):
                await mine.publish("silent", bytes((1 << 20) + 1))
            assert mine.generation == 1

    asyncio.run(scenario())


def test_a_restarted_server_is_found_again(server: NatsServer) -> None:
    """After a restart both connections are made again, subscriptions too, and it is told once."""

    async def scenario() -> None:
        async with connected(server.url) as mine, connected(server.url, "b") as other:
            await echo(mine)
            await echo(mine, "echo-bulk", bulk=True)
            told: list[bool] = []
            mine.on_reconnect(lambda: told.append(mine.control.is_connected))
            for round in range(1, 4):
                server.kill()
                await until(lambda: not (mine.connected or other.connected), "they notice")
                with pytest.raises(RegistryUnavailable, match="again by itself") as caught:
                    await other.request("echo", b"", DEADLINE_S)
                assert caught.value.server == server.url
                with pytest.raises(RegistryUnavailable):
                    await other.publish("echo", b"")
                with pytest.raises(RegistryUnavailable):
                    await echo(mine, "another")
                server.start()
                await until(lambda: mine.connected and other.connected, "they are back")
                assert await answers(other)
                assert await answers(other, "echo-bulk", bulk=True)
                assert told == [True] * round

    asyncio.run(scenario())


def test_a_request_under_way_fails_when_the_connection_is_lost(server: NatsServer) -> None:
    """Nobody waits for an answer that can no longer come."""

    async def scenario() -> None:
        async with connected(server.url) as mine:
            came = asyncio.Event()

            async def silent(message: Message) -> None:
                came.set()

            await mine.subscribe("silent", silent)
            request = asyncio.ensure_future(mine.request("silent", b"", 10 * DEADLINE_S))
            await asyncio.wait_for(came.wait(), DEADLINE_S)
            server.kill()
            with pytest.raises(NoAnswer, match="lost meanwhile"):
                await asyncio.wait_for(request, DEADLINE_S)

    asyncio.run(scenario())


def test_a_silent_server_is_given_up_and_found_again(server: NatsServer) -> None:
    """A server that stopped, with its connections open, is noticed; publishing to it ends."""

    async def scenario() -> None:
        async with connected(server.url) as mine:
            await echo(mine)
            server.pause()

            async def fill() -> None:
                # More than the socket, the kernel and the client take.
                for _ in range(64):
                    await mine.publish("fill", bytes(1 << 20))

            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(RegistryUnavailable):
                    await fill()
            await until(lambda: not mine.connected, "it notices")
            server.resume()
            await until(lambda: answers(mine), "it is back")

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["closed", "deaf", "mute"])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_client_that_ended_is_replaced(server: NatsServer, end: str, bulk: bool) -> None:
    """A client that closed for good, or whose tasks died, is replaced by one that works."""

    async def scenario() -> None:
        async with connected(server.url) as mine:
            await echo(mine, bulk=bulk)
            old = mine.bulk if bulk else mine.control
            if end == "closed":
                await old.close()
            else:
                task = old._reading_task if end == "deaf" else old._flusher_task
                assert task is not None
                task.cancel()
            await until(lambda: (mine.bulk if bulk else mine.control) is not old, "another one")
            await until(lambda: answers(mine, bulk=bulk), "it works")

    asyncio.run(scenario())


def test_giving_up_a_subscription_leaves_the_connection_whole(server: NatsServer) -> None:
    """Who is cancelled while subscribing costs the others nothing: nats-py would stop reading."""

    async def scenario() -> None:
        async with connected(server.url) as mine:
            await echo(mine)
            server.pause()
            subscribing = asyncio.ensure_future(echo(mine, "given-up"))
            await until(lambda: len(mine._control.client._pongs) > 0, "it waits for the pong")
            subscribing.cancel()
            await asyncio.wait([subscribing])
            server.resume()
            assert await answers(mine)

            async def unheard() -> bool:
                try:
                    await mine.request("given-up", b"", DEADLINE_S)
                except NoResponders:
                    return True
                return False

            await until(unheard, "the server has heard of the end")
            assert mine.generation == 1

    asyncio.run(scenario())


def test_a_stopped_subscription_does_not_come_back(server: NatsServer) -> None:
    """What was stopped, connected or not, is not made again after a reconnect."""

    async def scenario() -> None:
        async with connected(server.url) as mine:

            async def answer(message: Message) -> None:
                await mine.publish(message.reply, message.data)

            first = await mine.subscribe("first", answer)
            second = await mine.subscribe("second", answer)
            await mine.subscribe("third", answer)
            await first.stop()
            with pytest.raises(NoResponders):
                await mine.request("first", b"", DEADLINE_S)
            server.kill()
            await until(lambda: not mine.connected, "it notices")
            await second.stop()
            server.start()
            await until(lambda: answers(mine, "third"), "it is back")
            for stopped in ("first", "second"):
                with pytest.raises(NoResponders):
                    await mine.request(stopped, b"", DEADLINE_S)

    asyncio.run(scenario())


def test_an_unreachable_server_at_the_start_is_one_sentence() -> None:
    """With no server there, opening fails in time and says so, without the password."""

    async def scenario() -> None:
        settings = Settings.parse("nats://me:secret@127.0.0.1:1,nats://127.0.0.1:2", {})
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(RegistryUnavailable) as caught:
                await Connection.open(settings, "test", "a", patience_s=0.5)
        text = str(caught.value)
        assert text.startswith("The registry at nats://127.0.0.1:1, nats://127.0.0.1:2 cannot")
        assert "secret" not in text
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_an_opening_that_is_given_up_leaves_nothing(server: NatsServer) -> None:
    """Wherever the first connecting is, giving it up leaves no task, and no connection."""

    async def scenario() -> None:
        settings = Settings.parse(server.url, {})
        for turns in range(0, 60, 3):
            opening = asyncio.ensure_future(Connection.open(settings, "test", "a"))
            for _ in range(turns):
                await asyncio.sleep(0)
            while not opening.done():
                opening.cancel()
                await asyncio.wait([opening], timeout=0.5)
            if not opening.cancelled():
                await opening.result().close()
            assert len(asyncio.all_tasks()) == 1, turns

        async def alone() -> bool:
            found = await asyncio.to_thread(server.monitor, "connz")
            return found["num_connections"] == 0

        await until(alone, "the server has noticed")

    asyncio.run(scenario())


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """A server that starts within the patience of the first connection is found."""

    async def scenario(late: NatsServer) -> None:
        opening = asyncio.ensure_future(
            Connection.open(Settings.parse(late.url, {}), "test", "a", patience_s=DEADLINE_S)
        )
        await asyncio.sleep(0)
        await asyncio.to_thread(late.start)
        connection = await opening
        await echo(connection)
        assert await answers(connection)
        await connection.close()

    server = NatsServer(tmp_path / "nats")
    with server:
        pass  # to get a port
    try:
        asyncio.run(scenario(server))
    finally:
        server.kill()


def test_another_server_of_the_list_takes_over(tmp_path: Path) -> None:
    """Of a list of servers the one that lives is used, at the start and later."""

    async def scenario(one: NatsServer, two: NatsServer) -> None:
        async with connected(f"nats://127.0.0.1:1,{one.url},{two.url}") as mine:
            await echo(mine)
            assert await answers(mine)
            one.kill()
            await until(lambda: answers(mine), "the other has taken over")
            assert mine.control.connected_url.port == two.port
            one.start()
            two.kill()
            await until(lambda: answers(mine), "and back")
            assert mine.control.connected_url.port == one.port

    with NatsServer(tmp_path / "one") as one, NatsServer(tmp_path / "two") as two:
        asyncio.run(scenario(one, two))
        two.start()


def test_the_largest_message_follows_the_server(tmp_path: Path) -> None:
    """A server that comes back with a smaller limit is believed, and the error is ours."""

    async def scenario(server: NatsServer) -> None:
        async with connected(server.url) as mine:
            await echo(mine, bulk=True)
            big = bytes(4 << 20)
            assert mine.max_payload == 8 << 20
            assert await mine.request("echo", big, DEADLINE_S, bulk=True) == big
            server.config = "max_payload: 64KB"
            server.restart()
            await until(lambda: answers(mine, bulk=True), "it is back")
            await until(lambda: mine.connected, "both are")
            assert mine.max_payload == 64 << 10
            with pytest.raises(TooLarge, match="65,536"):
                await mine.request("echo", big, DEADLINE_S, bulk=True)

    with NatsServer(tmp_path / "nats", config="max_payload: 8MB") as server:
        asyncio.run(scenario(server))


def test_closing_leaves_no_task_and_no_connection(server: NatsServer) -> None:
    """After close there is no task of ours, and the server has no client."""

    async def scenario() -> None:
        async with connected(server.url) as mine:
            await echo(mine)
            await mine.publish("somewhere", b"x")
        assert len(asyncio.all_tasks()) == 1

        async def alone() -> bool:
            found = await asyncio.to_thread(server.monitor, "connz")
            return found["num_connections"] == 0

        await until(alone, "the server has noticed")
        assert server.monitor("varz")["in_msgs"] >= 1

    asyncio.run(scenario())


class _Losses(logging.Handler):
    """Tells when a connection is seen to be lost, by the node's name."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: dict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

    def emit(self, record: logging.LogRecord) -> None:
        name, what = record.getMessage().split(" control:", 1)
        if "is lost" in what:
            self.seen[name.split()[-1]].set()


@pytest.fixture
def losses() -> Iterator[_Losses]:
    """Of the connections for control."""
    handler = _Losses()
    handler.addFilter(lambda record: " control:" in record.getMessage())
    logger = logging.getLogger("shmstore.node.link")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_closing_ends_also_while_there_is_no_server(server: NatsServer, losses: _Losses) -> None:
    """Wherever an attempt to reconnect is, close ends it, also where a cancellation is lost."""

    async def scenario() -> None:
        settings = Settings.parse(server.url, {})
        names = [f"n{number}" for number in range(40)]
        opened = [await Connection.open(settings, "test", name) for name in names]

        async def close(turns: int, name: str, connection: Connection) -> None:
            await losses.seen[name].wait()
            for _ in range(turns):  # of the loop, each of which is a step of the attempt
                await asyncio.sleep(0)
            await connection.close()

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            for number, (name, connection) in enumerate(zip(names, opened, strict=True)):
                group.create_task(close(number // 2, name, connection))
            server.kill()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    server.start()


def test_a_name_that_moves_is_followed(tmp_path: Path) -> None:
    """A server that comes back under the same name, at another address, is found again."""

    def child() -> None:
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 nats.test\n")
        mount(str(hosts), "/etc/hosts", None, _MS_BIND)

        async def scenario(old: NatsServer) -> None:
            async with connected(f"nats://nats.test:{old.port}") as mine:
                await echo(mine)
                assert await answers(mine)
                old.kill()
                hosts.write_text("127.0.0.2 nats.test\n")
                with NatsServer(tmp_path / "new", host="127.0.0.2", port=old.port):
                    await until(lambda: answers(mine), "it is found again")

        with NatsServer(tmp_path / "old") as old:
            asyncio.run(scenario(old))

    with_mounts(child)
