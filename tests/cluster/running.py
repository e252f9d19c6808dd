"""Nodes as processes, as users run them: ``python -m shmstore node``, each on a root of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import shmstore
from shmstore import names
from shmstore.node.client import Gone, Link

#: Until when what must come has to have come, seconds; the machine may be busy.
DEADLINE_S = 60.0
CHECKOUT = Path(__file__).parents[2]
_LOOK_S = 0.005


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Returns what a condition is when it holds; fails at the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        held = condition()
        if held:
            return held
        assert time.monotonic() < deadline, f"in vain: {what}"
        # Nothing tells of what other processes do.
        time.sleep(_LOOK_S)


def command(*words: str) -> list[str]:
    """The command line of the tool."""
    return [sys.executable, "-m", "shmstore", *words]


def environment(**more: str) -> dict[str, str]:
    """The environment of a node: without what would tell it where NATS is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHMSTORE_")}
    return {**kept, "PYTHONPATH": str(CHECKOUT), **more}


class NodeProcess:
    """A node in the foreground, with what it says in a file.

    Attributes:
        process: The process.
        log: The file.
    """

    def __init__(
        self, root: str, log: Path, url: str | None, name: str, *options: str, **env: str
    ) -> None:
        self.log = log
        words = ["node", "--root", root, "--name", name, *options]
        words += [] if url is None else ["--nats", url]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command(*words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=CHECKOUT,
                env=environment(**env),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def said(self) -> str:
        """All that it has said."""
        return self.log.read_text()

    def says(self, text: str, times: int = 1) -> NodeProcess:
        """Waits until it has said something."""

        def look() -> bool:
            assert self.process.poll() is None or self.said.count(text) >= times, self.said
            return self.said.count(text) >= times

        until(look, f"the node says {text!r}; it said {self.said}")
        return self

    def serves(self) -> NodeProcess:
        """Waits until it serves."""
        return self.says("serving namespace")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def ends(self) -> int:
        """Waits for its end; returns its exit code."""
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """Ends it at once, stopped or not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)


@contextmanager
def node(
    root: str, tmp_path: Path, url: str | None, name: str, *options: str, **env: str
) -> Iterator[NodeProcess]:
    """A node, which is killed at the end if it still runs."""
    log = tmp_path / f"node-{name}-{os.urandom(4).hex()}.log"
    started = NodeProcess(root, log, url, name, *options, **env)
    try:
        yield started
    finally:
        started.kill()


class Host:
    """A host: a root, a store, and a node that serves.

    Attributes:
        name: Of the node.
        root: The root.
        store: A store there.
        node: The node.
    """

    def __init__(self, name: str, root: str, store: shmstore.Store, node: NodeProcess) -> None:
        self.name, self.root, self.store, self.node = name, root, store, node


@contextmanager
def hosts(url: str, root: str, tmp_path: Path, *names: str, **env: str) -> Iterator[list[Host]]:
    """Hosts whose roots are directories within ``root``."""
    with ExitStack() as stack:
        made = []
        for name in names:
            place = os.path.join(root, name)
            store = stack.enter_context(shmstore.Store(place))
            process = stack.enter_context(node(place, tmp_path, url, name, **env))
            made.append(Host(name, place, store, process))
        for host in made:
            host.node.serves()
        yield made


def socket_of(root: str) -> Path:
    """Where the node of the default namespace listens."""
    return Path(root) / "default" / names.NODE_SOCKET


def started_nodes(root: str) -> list[int]:
    """The processes of nodes that were started for stores of a root."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--started" in words and root.encode() in words:
            found.append(int(entry))
    return sorted(found)


@contextmanager
def none_left(root: str) -> Iterator[None]:
    """Ends the nodes that were started for stores of a root, which are nobody's children."""
    try:
        yield
    finally:
        for pid in started_nodes(root):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        until(lambda: not started_nodes(root), "the nodes that were started end")


def answers(store: shmstore.Store) -> bool:
    """Whether somebody listens at the socket."""
    try:
        Link(store._dags.space).close()
    except (Gone, shmstore.NodeUnreachable):
        return False
    return True
