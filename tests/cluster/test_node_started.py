"""Nodes that are started for stores: when, by whom, how many, and until when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmstore
from shmstore import names
from shmstore.demo.server import NatsServer
from shmstore.node.client import has_ended
from tests.cluster.running import (
    CHECKOUT,
    DEADLINE_S,
    environment,
    node,
    none_left,
    started_nodes,
    until,
)

_NOWHERE = "nats://127.0.0.1:1"  # nobody may listen there

_ASK = """
import sys, shmstore
with shmstore.Store(sys.argv[1], nats=sys.argv[2], node="a") as store:
    print(*(one.pid for one in store.nodes()), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def started_ones_end(root: str) -> Iterator[None]:
    """No node outlives its test."""
    with none_left(root):
        yield


def _asking(root: str, url: str, **env: str) -> subprocess.Popen[str]:
    """A process with such a store, which prints the nodes' pids and waits to be told to end."""
    return subprocess.Popen(
        [sys.executable, "-c", _ASK, root, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env=environment(**env),
    )


def _log(root: str) -> str:
    path = Path(root) / "default" / names.NODE_LOG
    return path.read_text() if path.exists() else ""


def test_a_store_with_nats_starts_a_node(server: NatsServer, root: str) -> None:
    """It is a process of its own, nobody's child, in a session of its own, named as was asked."""
    with shmstore.Store(root, nats=server.url, node="mine") as store:
        (one,) = store.nodes()
        assert one.node == "mine"
        assert started_nodes(root) == [one.pid]
        assert os.getsid(one.pid) != os.getsid(0)
        status = Path(f"/proc/{one.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" not in status
        store.put("dag", "id", 1, publish=True)
        assert store.registry.lookup("dag", "id") == "mine"
        # Nothing but what it is to have: its log, its own files, and what it opened.
        shown = {fd: os.readlink(f"/proc/{one.pid}/fd/{fd}") for fd in ("0", "1", "2")}
        log = f"{root}/default/{names.NODE_LOG}"
        assert shown == {"0": "/dev/null", "1": log, "2": log}
        assert server.url not in Path(f"/proc/{one.pid}/cmdline").read_text()


def test_the_environment_says_so_as_well(server: NatsServer, root: str) -> None:
    """With $SHMSTORE_NATS every store starts a node, which is not taken for a systemd service."""
    code = "import shmstore; print(shmstore.Store().nodes()[0].node)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=CHECKOUT,
        env=environment(
            SHMSTORE_NATS=server.url,
            SHMSTORE_ROOT=root,
            SHMSTORE_NODE="named",
            NOTIFY_SOCKET=f"{root}/none",
        ),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("named\n", "")
    assert "systemd" not in _log(root)


def test_of_many_that_are_started_at_once_one_stays(server: NatsServer, root: str) -> None:
    """Processes that all find no node end up with one and the same."""
    asking = [_asking(root, server.url) for _ in range(6)]
    try:
        told = {one.stdout.readline() for one in asking if one.stdout}
        assert len(told) == 1
        (pid,) = map(int, told.pop().split())
        until(lambda: started_nodes(root) == [pid], "one stays")
        assert _log(root).count("serving namespace") == 1
    finally:
        for one in asking:
            one.communicate()
    assert [one.returncode for one in asking] == [0] * 6


def test_it_ends_when_nobody_needs_it(server: NatsServer, root: str) -> None:
    """It goes on while any process has such a store, also a killed one's neighbour, then ends."""
    first, second = (_asking(root, server.url, SHMSTORE_NODE_LINGER="1") for _ in range(2))
    try:
        assert first.stdout is not None
        assert second.stdout is not None
        (pid,) = map(int, first.stdout.readline().split())
        assert second.stdout.readline() == f"{pid}\n"
        first.kill()
        first.communicate()
        time.sleep(3)  # longer than it would linger
        assert started_nodes(root) == [pid]
        second.kill()
    finally:
        for one in (first, second):
            one.kill()
            one.communicate()
    until(lambda: not started_nodes(root), "it ends")
    assert _log(root).splitlines()[-1].endswith("ended, as no process needs it any more")
    assert not (Path(root) / "default" / names.NODE_SOCKET).exists()
    # And the next store finds none, and starts one.
    with shmstore.Store(root, nats=server.url, node="a") as store:
        assert len(store.nodes()) == 1


def test_a_node_that_was_killed_is_started_again(server: NatsServer, root: str) -> None:
    """A store's next call starts another one, and is answered by it."""
    with shmstore.Store(root, nats=server.url, node="a") as store:
        (one,) = store.nodes()
        os.kill(one.pid, signal.SIGKILL)
        (other,) = store.nodes()
        assert other.pid != one.pid


def test_a_store_that_finds_a_dead_node_starts_another(server: NatsServer, root: str) -> None:
    """Opening a store is enough, also right after a kill: what is put then is registered."""
    with shmstore.Store(root, nats=server.url, node="a") as store:
        (one,) = store.nodes()
        os.kill(one.pid, signal.SIGKILL)
        until(lambda: has_ended(store._dags.space), "it is gone")
        with shmstore.Store(root, nats=server.url, node="a"):
            until(lambda: started_nodes(root), "another one is started")


def test_a_store_uses_the_node_in_the_foreground(
    server: NatsServer, root: str, tmp_path: Path
) -> None:
    """If one runs, none is started."""
    with node(root, tmp_path, server.url, "fore") as fore:
        fore.serves()
        with shmstore.Store(root, nats=server.url, node="other") as store:
            assert [(one.node, one.pid) for one in store.nodes()] == [("fore", fore.pid)]
            assert started_nodes(root) == []
        assert fore.process.poll() is None


def test_spawn_starts_one_for_a_store(server: NatsServer, root: str) -> None:
    """Node.spawn returns when the node serves; the node lives for as long as the store."""
    with shmstore.Store(root) as store:
        with pytest.raises(shmstore.NodeNotRunning):
            store.nodes()
        os.environ["SHMSTORE_NODE_LINGER"] = "1"
        try:
            shmstore.Node.spawn(store, nats=server.url, node="a")
        finally:
            del os.environ["SHMSTORE_NODE_LINGER"]
        (one,) = store.nodes()
        shmstore.Node.spawn(store, nats=server.url, node="a")  # one runs
        store._node._hang_up()
        time.sleep(3)  # longer than it would linger
        assert started_nodes(root) == [one.pid]
    until(lambda: not started_nodes(root), "it ends")


def test_run_is_the_node_in_the_foreground(server: NatsServer, root: str) -> None:
    """Node.run serves in the caller's process, until SIGTERM."""
    code = (
        "import sys, shmstore\n"
        "store = shmstore.Store(sys.argv[1])  # with nats, it might start one that serves first\n"
        "shmstore.Node(store, nats=sys.argv[2], node='a').run()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, root, server.url],
        stdin=subprocess.DEVNULL,
        cwd=CHECKOUT,
        env=environment(),
    )
    try:
        with shmstore.Store(root) as store:

            def served() -> bool:
                try:
                    return [one.pid for one in store.nodes()] == [running.pid]
                except shmstore.NodeNotRunning:
                    return False

            until(served, "it serves")
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0)
        running.terminate()
        assert running.wait(DEADLINE_S) == 0
    finally:
        running.kill()
        running.wait()


def _refusals(tmp_path: Path) -> Iterator[tuple[str, str]]:
    yield _NOWHERE, "connection refused"
    config = 'authorization { user: "me", password: "right" }'
    with NatsServer(tmp_path / "closed", config=config) as closed:
        yield closed.url.replace("//", "//me:wrong@"), "it refuses our credentials"
    yield "http://nats.example", "is no address of a NATS server"


def test_a_node_that_cannot_serve_is_told_of(root: str, tmp_path: Path) -> None:
    """Who cannot reach NATS is told why, within the timeout, by calls and by Node.spawn."""
    for number, (url, why) in enumerate(_refusals(tmp_path)):
        place = f"{root}/{number}"
        with none_left(place), shmstore.Store(place, nats=url, node="a") as store:
            assert store.get("dag", "id", default=None) is None
            store.put("dag", "id", 1)  # what is of this host goes on
            began = time.monotonic()
            with pytest.raises(shmstore.RemoteError, match=why) as caught:
                store.get_with_fetch("dag", "none", timeout=20)
            assert time.monotonic() - began < 25
            assert isinstance(caught.value, (shmstore.NodeNotRunning, shmstore.RegistryUnavailable))
            assert "wrong" not in str(caught.value)
            with pytest.raises(shmstore.RemoteError, match=why):
                store.get_with_fetch("dag", "none", timeout=3)
        with (
            none_left(place),
            shmstore.Store(place) as store,
            pytest.raises(shmstore.NodeNotRunning, match=why),
        ):
            shmstore.Node.spawn(store, nats=url, node="a")


def test_what_is_no_url_is_refused(root: str) -> None:
    """An empty URL or one that is no string is the caller's mistake."""
    with pytest.raises(ValueError, match="nats must not be empty"):
        shmstore.Store(root, nats="")
    with pytest.raises(TypeError, match="nats must be a str"):
        shmstore.Store(root, nats=4222)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="node must be"):
        shmstore.Store(root, node="a.b")
    with shmstore.Store(root) as store, pytest.raises(ValueError, match="SHMSTORE_NATS"):
        shmstore.Node.spawn(store)
