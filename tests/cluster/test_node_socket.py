"""The node's Unix socket, attacked: by others, by nonsense, by too many, by those who go away."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore.demo.server import NatsServer
from tests.cluster.running import CHECKOUT, DEADLINE_S, Host, environment, hosts, socket_of, until

_OPS = (
    "bring",
    "bring-many",
    "await",
    "prefetch",
    "sync",
    "register",
    "lookup",
    "get-all",
    "clear",
    "clear-registry",
    "nodes",
    "status",
    "no such operation",
)
_FIELDS = ("dag", "id", "ids", "from", "node", "refresh", "timeout")
_IDS = (
    "id",
    "a.b.*.>",
    "new\nline\r\n",
    "..",
    "/etc/passwd",
    "\0",
    "x" * 1024,
    "é" * 512,
    "🦆",
    "$KV.shmstore_default.>",
    "_INBOX.x",
)
_NONSENSE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    1 << 70,
    "",
    "\ud800",
    "x" * 1025,
    [],
    ["a", 1, None],
    ["\ud800"],
    {},
    {"a": {"b": []}},
    [[[[]]]],
)


@pytest.fixture
def host(server: NatsServer, root: str, tmp_path: Path) -> Iterator[Host]:
    """A host with a node that serves, and must serve to the end, and never fail."""
    with hosts(server.url, root, tmp_path, "a") as (one,):
        yield one
        assert one.node.process.poll() is None
        assert "Traceback" not in one.node.said, one.node.said
        _serves(one)


def _serves(host: Host) -> None:
    assert [one.pid for one in host.store.nodes()] == [host.node.pid]


@contextmanager
def _connected(host: Host) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(socket_of(host.root)))  # waits, if more are waiting than are queued
        link.settimeout(DEADLINE_S)
        yield link


def _frame(request: Any) -> bytes:
    raw = json.dumps(request).encode()
    return struct.pack("<I", len(raw)) + raw


def _receive(link: socket.socket) -> dict[str, Any] | None:
    """The next answer; None if the node has hung up."""
    try:
        head = link.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        raw = link.recv(*struct.unpack("<I", head), socket.MSG_WAITALL)
    except ConnectionResetError:
        return None
    answer = json.loads(raw)
    assert isinstance(answer, dict)
    return answer


def _answers(link: socket.socket, number: int) -> dict[str, Any]:
    """The last answer to a request."""
    while True:
        answer = _receive(link)
        assert answer is not None, "it hung up"
        if answer["n"] == number and "part" not in answer:
            return answer


_STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
link = socket.socket(socket.AF_UNIX)
link.settimeout(60)
link.connect(sys.argv[1])
try:
    link.sendall(bytes.fromhex(sys.argv[2]))
    print(len(link.recv(1)))
except (ConnectionResetError, BrokenPipeError):
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_sent_away(host: Host) -> None:
    """Also where the file modes would let it in, another uid gets no answer."""
    asked = _frame({"n": 1, "op": "status", "timeout": 1})
    modes = []
    try:
        for path in (Path(host.root).parent, Path(host.root), Path(host.root) / "default"):
            modes.append((path, path.stat().st_mode & 0o7777))
            path.chmod(0o755)
        socket_of(host.root).chmod(0o666)
        done = subprocess.run(
            [sys._base_executable, "-I", "-c", _STRANGER, socket_of(host.root), asked.hex()],  # type: ignore[attr-defined]
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("0\n", "")
        host.node.says("sent away a process of uid 65534")
    finally:
        for path, mode in modes:
            path.chmod(mode)
    with _connected(host) as link:
        link.sendall(asked)
        assert _answers(link, 1)["ok"]["pid"] == host.node.pid


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        struct.pack("<I", (64 << 10) + 1) + b"x" * 100,
        struct.pack("<I", 0),
        struct.pack("<I", 5) + b"hello",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 4) + b"null",
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 60_000) + b"[" * 60_000,
        struct.pack("<I", 60_000) + b"9" * 60_000,
        struct.pack("<I", 60_000) + b'{"a":' * 12_000,
        struct.pack("<I", 9) + b'{"n":-1} ',
        struct.pack("<I", 10) + b'{"n":true}',
        struct.pack("<I", 10) + b'{"n":1e30}',
        struct.pack("<I", 10) + b'{"n":"1" }',
        struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:12]),
)
def test_what_is_no_request_is_hung_up_on(host: Host, sent: bytes) -> None:
    """Whoever does not speak the protocol is sent away at once; nobody else notices."""
    with _connected(host) as other, _connected(host) as link:
        link.sendall(sent)
        assert _receive(link) is None
        other.sendall(_frame({"n": 1, "op": "status", "timeout": 1}))
        assert _answers(other, 1)["ok"]["node"] == "a"


def _made_up(chance: random.Random) -> dict[str, Any]:
    """A request of any operation with any fields, most of them wrong."""
    made: dict[str, Any] = {"op": chance.choice(_OPS)}
    for field in _FIELDS:
        kind = chance.random()
        if kind < 0.45:
            made[field] = chance.choice(_NONSENSE)
        elif kind < 0.9:
            good = {
                "ids": [chance.choice(_IDS) for _ in range(3)],
                "from": chance.choice(("a", "b", None)),
                "node": "a",
                "refresh": True,
                "timeout": chance.choice((0, 0.01, 0.2)),
            }
            made[field] = good.get(field, chance.choice(_IDS))
    if chance.random() < 0.05:
        made["op"] = chance.choice(_NONSENSE)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_any_fields_of_any_operation_are_answered(host: Host, seed: int) -> None:
    """Whatever the fields hold, each request ends in an answer or an error with a sentence."""
    chance = random.Random(seed)
    with _connected(host) as link:
        for number in range(300):
            request = _made_up(chance)
            link.sendall(_frame({"n": number, **request}))
            answer = _answers(link, number)
            if "ok" not in answer:
                facts = answer["facts"]
                assert answer["error"] == "ValueError" or hasattr(shmstore, answer["error"]), (
                    request,
                    answer,
                )
                assert facts.get("why") or facts, (request, answer)


@pytest.mark.parametrize("op", ["bring", "await", "register", "lookup", "clear", "clear-registry"])
def test_each_wrong_field_is_named(host: Host, op: str) -> None:
    """A field of a wrong type or value is refused by name, one at a time."""
    good = {"dag": "dag", "id": "id", "node": "a", "from": None, "timeout": 0.1}
    needed = {
        "bring": ("dag", "id", "timeout"),
        "await": ("dag", "id", "timeout"),
        "register": ("dag", "id", "node"),
        "lookup": ("dag", "id"),
        "clear": ("dag", "timeout"),
        "clear-registry": ("dag",),
    }[op]
    with _connected(host) as link:
        number = 0
        for field in needed:
            for wrong in _NONSENSE:
                if field == "timeout" and type(wrong) is int and wrong == 0:
                    continue
                number += 1
                link.sendall(_frame({"n": number, "op": op, **good, field: wrong}))
                answer = _answers(link, number)
                assert answer["error"] == "ValueError", (field, wrong, answer)
                assert answer["facts"]["why"].startswith(field), (field, wrong, answer)


def test_ids_of_any_characters_go_through(host: Host) -> None:
    """What an id may be, the node and the registry take, and keep apart."""
    for id in _IDS:
        host.store.put(id, id, id)
    host.store.sync(DEADLINE_S)
    for id in _IDS:
        assert host.store.registry.get_all(id) == {id: "a"}
        assert host.store.registry.lookup(id, id) == "a"


def test_many_who_say_nothing(host: Host) -> None:
    """Connections that ask for nothing, or stop in the middle of it, keep nobody from asking."""
    with ExitStack() as stack:
        for number in range(600):
            link = stack.enter_context(_connected(host))
            link.sendall(b"\x10\0\0\0{"[: number % 6])
        _serves(host)
    until(lambda: _clients(host) <= 2, "those that went are forgotten")


def _clients(host: Host) -> int:
    return int(host.store._node.call("status", 10)["clients"])


def test_more_than_it_takes(host: Host) -> None:
    """When there are as many clients as it takes, who has asked for nothing the longest goes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 6_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6_000), hard))
    try:
        with ExitStack() as stack:
            first = stack.enter_context(_connected(host))
            for _ in range(4_200):
                stack.enter_context(_connected(host))
            _serves(host)
            assert _receive(first) is None
            assert _clients(host) <= 4_096
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_does_not_read_is_sent_away(host: Host) -> None:
    """Answers that nobody reads are not kept; others are served meanwhile."""
    host.store.put_many("dag", {f"{'x' * 500}{i}": i for i in range(20_000)})
    host.store.sync(DEADLINE_S)
    with _connected(host) as link:
        for number in range(4):
            link.sendall(_frame({"n": number, "op": "get-all", "dag": "dag", "timeout": 60}))
        began = time.monotonic()
        _serves(host)
        assert time.monotonic() - began < 20
        host.node.says("sent away a process that does not read")
        until(lambda: _clients(host) <= 2, "it is forgotten")


_DIES = """
import os, sys, shmstore
store = shmstore.Store(sys.argv[1])
from shmstore.node.client import Link
links = [Link(store._dags.space) for _ in range(20)]
for number, link in enumerate(links):
    link.send("await", {"dag": "dag", "id": f"v{number}", "timeout": 1000})
    link.send("get-all", {"dag": "dag", "timeout": 1000})
print("asked", flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_client_that_is_killed(host: Host) -> None:
    """What a process asked for that is killed is given up; the node goes on."""
    done = subprocess.run(
        [sys.executable, "-c", _DIES, host.root],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=CHECKOUT,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (-9, "asked\n")
    until(lambda: _clients(host) <= 2, "it is forgotten")


def test_too_many_requests_of_one(host: Host) -> None:
    """Who asks for more than a thousand things at once is sent away; others are not."""
    with _connected(host) as link:
        request = {"op": "await", "dag": "dag", "id": "none", "timeout": 60}
        for number in range(1_100):
            try:
                link.sendall(_frame({"n": number, **request}))
            except (BrokenPipeError, ConnectionResetError):
                break
        assert _receive(link) is None
        host.node.says("too many requests at once")
