"""``shmstore node`` and ``shmstore node status`` as commands: what they say, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

import shmstore
from shmstore import names
from shmstore.demo.server import NatsServer
from tests.cluster.running import (
    CHECKOUT,
    DEADLINE_S,
    answers,
    command,
    environment,
    node,
    socket_of,
    until,
)

_NOWHERE = "nats://127.0.0.1:1"  # nobody may listen there


def _run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=CHECKOUT,
        env=environment(**env),
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    server: NatsServer, root: str, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end a node with 0, its socket gone, its name and its lock given up."""
    with node(root, tmp_path, server.url, "a") as first:
        first.serves()
        with shmstore.Store(root) as store:
            store.put("dag", "id", 1)
            store.sync()
            assert socket_of(root).is_socket()
            first.signal(number)
            assert first.ends() == 0
            assert f"ended by {number.name}" in first.said
            assert not socket_of(root).exists()
            with pytest.raises(shmstore.NodeNotRunning):
                store.nodes()
    # The name is free at once, also for another store.
    with node(f"{root}/other", tmp_path, server.url, "a") as second:
        second.serves()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_node_that_stands_by_or_is_starting(
    server: NatsServer, root: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Also before it serves a node ends at once and with 0 when it is told to."""
    with node(root, tmp_path, server.url, "a") as first:
        first.serves()
        with node(root, tmp_path, server.url, "a") as second:
            second.says("standing by")
            second.signal(number)
            assert second.ends() == 0
        first.signal(number)
        assert first.ends() == 0
    server.pause()  # takes connections, and says nothing
    with node(root, tmp_path, server.url, "a") as third:
        third.says("no connection")
        third.signal(number)
        assert third.ends() == 0
    server.resume()


def test_systemd_is_told(server: NatsServer, root: str, tmp_path: Path) -> None:
    """When it serves, and not before, READY goes to the socket that systemd names."""
    for address in (f"{root}/notify", f"@shmstore-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind("\0" + address[1:] if address.startswith("@") else address)
            notified.settimeout(DEADLINE_S)
            with node(root, tmp_path, server.url, "a", NOTIFY_SOCKET=address) as started:
                notice = notified.recv(4096).decode()
                assert notice.startswith("READY=1\nSTATUS=serving namespace 'default'")
                with shmstore.Store(root) as store:
                    assert [one.pid for one in store.nodes()] == [started.pid]


def test_a_notify_socket_that_is_gone_is_no_reason_to_end(
    server: NatsServer, root: str, tmp_path: Path
) -> None:
    """It says that systemd could not be told, and serves."""
    with node(root, tmp_path, server.url, "a", NOTIFY_SOCKET=f"{root}/none") as started:
        started.says("systemd was not told").serves()
        with shmstore.Store(root) as store:
            until(lambda: answers(store), "it serves")


def test_it_logs_plain_lines(server: NatsServer, root: str, tmp_path: Path) -> None:
    """Each line has a time, a level and a message."""
    with node(root, tmp_path, server.url, "a") as started:
        started.serves()
        started.signal(signal.SIGTERM)
        started.ends()
        for line in started.said.splitlines():
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ .+", line), line


def test_it_logs_json(server: NatsServer, root: str, tmp_path: Path) -> None:
    """With --log-json every line is a JSON object, that of its failure, too."""
    with node(root, tmp_path, server.url, "a", "--log-json") as started:
        started.serves()
        with node(f"{root}/other", tmp_path, server.url, "a", "--log-json") as refused:
            assert refused.ends() == 1
        started.signal(signal.SIGTERM)
        started.ends()
    lines = [json.loads(line) for line in started.said.splitlines()]
    assert all(set(line) == {"time", "level", "message"} for line in lines)
    assert lines[-1]["message"] == "ended by SIGTERM"
    *_, last = (json.loads(line) for line in refused.said.splitlines())
    assert last["level"] == "error"
    assert "belongs to another node" in last["message"]


_REFUSED = {
    "no URL": ((), {}, 2, "give the NATS server with --nats URL"),
    "bad URL": (("--nats", "http://host"), {}, 2, "'http://host' is no address of a NATS server"),
    "bad port": (("--nats", "nats://u:secret@h:x"), {}, 2, "'nats://h:x' is no address"),
    "bad name": (("--nats", _NOWHERE, "--name", "a.b"), {}, 2, "--name must be 1 to 32 letters"),
    "bad namespace": (
        ("--nats", _NOWHERE, "--namespace", "../x"),
        {},
        2,
        "--namespace must be 1 to 32 letters",
    ),
    "bad root": (("--nats", _NOWHERE, "--root", "/proc/none"), {}, 2, "/proc/none"),
    "bad linger": (
        ("--nats", _NOWHERE),
        {"SHMSTORE_NODE_LINGER": "soon"},
        2,
        "$SHMSTORE_NODE_LINGER must be a number of seconds",
    ),
    "bad credentials file": (
        ("--nats", _NOWHERE),
        {"SHMSTORE_NATS_CREDS": "/none"},
        2,
        "SHMSTORE_NATS_CREDS cannot be read",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_it_cannot_be_given(root: str, case: str) -> None:
    """What is wrong on the command line or in the environment is told in a sentence, with 2."""
    words, env, code, sentence = _REFUSED[case]
    given = words if "--root" in words else (*words, "--root", root)
    done = _run("node", *given, **env)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert "secret" not in done.stderr


def test_nats_that_cannot_be_reached(root: str) -> None:
    """It tries for a while, and then says why it could not, with 4."""
    done = _run("node", "--root", root, "--nats", _NOWHERE)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == (
        f"Error: The registry at {_NOWHERE} cannot be reached: connection refused."
    )


def test_jetstream_that_comes_late_is_waited_for(root: str, tmp_path: Path) -> None:
    """A node that finds a server without JetStream tries for a while, and serves when it is there.

    That of a server that is just starting, or of a leaf node, may come a moment later.
    """
    with NatsServer(tmp_path / "bare", jetstream=False) as bare:
        started = node(root, tmp_path, bare.url, "a")
        with started as one:
            one.says("JetStream does not keep this registry")
            bare.stop()
            with NatsServer(tmp_path / "nats", port=bare.port):
                one.serves()
    with NatsServer(tmp_path / "bare", jetstream=False) as bare:
        done = _run("node", "--root", root, "--nats", bare.url)
        assert done.returncode == 4
        assert "JetStream does not keep this registry" in done.stderr.splitlines()[-1]


def test_credentials_that_are_refused(root: str, tmp_path: Path) -> None:
    """The server's refusal is told at once, without the password, with 4."""
    config = 'authorization { user: "me", password: "right" }'
    with NatsServer(tmp_path / "nats", config=config) as server:
        url = server.url.replace("//", "//me:wrong@")
        done = _run("node", "--root", root, "--nats", url)
    assert done.returncode == 4
    assert "it refuses our credentials" in done.stderr.splitlines()[-1]
    assert "wrong" not in done.stderr
    assert "no connection" not in done.stderr


def test_a_name_that_is_taken(server: NatsServer, root: str, tmp_path: Path) -> None:
    """Of two nodes of one name with stores of their own the second refuses, with 1."""
    with node(f"{root}/a", tmp_path, server.url, "same") as first:
        first.serves()
        done = _run("node", "--root", f"{root}/b", "--nats", server.url, "--name", "same")
        assert done.returncode == 1
        assert re.search(
            rf"Error: The name 'same' belongs to another node, process {first.pid} on host .*; "
            "give each node a name of its own",
            done.stderr,
        )
        assert not socket_of(f"{root}/b").exists()
        with shmstore.Store(f"{root}/a") as store:
            assert [one.pid for one in store.nodes()] == [first.pid]


def test_status_of_a_node(server: NatsServer, root: str, tmp_path: Path) -> None:
    """It tells in a sentence or as JSON how the node is, by its exit code, too."""
    for words in (("--root", root, "status"), ("status", "--root", root)):
        done = _run("node", *words)
        assert done.returncode == 4
        assert f"No node is running for namespace 'default' in {root}" in done.stderr
    with node(root, tmp_path, server.url, "a") as started:
        started.says("registering")
        done = _run("node", "status", "--root", root)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Node 'a' runs as process {started.pid} and serves ")
        assert f"NATS at {server.url} is connected." in done.stdout
        told = json.loads(_run("node", "status", "--json", "--root", root).stdout)
        assert told["node"] == "a"
        assert told["pid"] == started.pid
        assert told["server"] == server.url
        assert told["connected"] is True
        assert told["fault"] is None

        server.kill()
        with shmstore.Store(root) as store:
            store.put("dag", "id", 1)
        started.says("nothing can be registered")
        done = _run("node", "status", "--root", root)
        assert done.returncode == 4
        assert "is not connected" in done.stdout
        assert "What is put here is not registered" in done.stdout
        server.start()
        started.says("registering", times=2)
        assert _run("node", "status", "--root", root).returncode == 0

        started.signal(signal.SIGSTOP)
        with shmstore.Store(root) as store:
            _await_silence(store)
        done = _run("node", "status", "--root", root)
        assert done.returncode == 4
        assert "it is stopped" in done.stderr
    assert _run("node", "status", "--namespace", "a/b").returncode == 2


def _await_silence(store: shmstore.Store) -> None:
    from shmstore.node.client import is_running

    until(lambda: not is_running(store._dags.space), "its heart has stopped")


def test_status_is_quick_about_a_root_that_is_none() -> None:
    """A root that cannot be one is a mistake of the caller's, not a node that does not run."""
    done = _run("node", "status", "--root", "/proc/none")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")


def test_a_root_deeper_than_a_socket_path(server: NatsServer, root: str, tmp_path: Path) -> None:
    """The socket's path may be longer than the 107 bytes that the kernel takes."""
    deep = os.path.join(root, *["deep" * 10] * 5)
    os.makedirs(deep, mode=0o700)
    assert len(os.path.join(deep, "default", names.NODE_SOCKET)) > 200
    with node(deep, tmp_path, server.url, "a") as started:
        started.serves()
        with shmstore.Store(deep) as store:
            assert [one.pid for one in store.nodes()] == [started.pid]
