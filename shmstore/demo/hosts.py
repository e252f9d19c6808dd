"""Hosts on one machine: for each a root and a node, and a NATS server between them.

The processes of a host know its root only; what they want of another host comes through their
node and over NATS, as between machines. The server listens on loopback and wants a token.
All of these processes end with the one that started them, however that ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shmstore.demo import tether
from shmstore.demo.facts import DemoError, InputError
from shmstore.demo.server import NatsServer, ServerFailed, binary
from shmstore.demo.stop import Stop
from shmstore.errors import NodeUnreachable
from shmstore.node.client import check_beat
from shmstore.store import Store

NAMESPACE = "demo"
_STARTING_S = 60.0
_ENDING_S = 3.0


class ProcessDied(DemoError):
    """A node or the server ended before the work was done."""


@dataclass(slots=True)
class Host:
    """A host.

    Attributes:
        name: Of its node.
        root: Of its store.
        store: The store, as the main process has it.
        node: Its node.
    """

    name: str
    root: str
    store: Store
    node: subprocess.Popen[bytes]


def check_server() -> None:
    """Looks for nats-server.

    Raises:
        InputError: There is none; says how to get it.
    """
    try:
        binary()
    except ServerFailed as error:
        raise InputError(str(error)) from None


class Hosts:
    """The hosts of a run and the server between them; a context manager that ends them."""

    def __init__(
        self, directory: str, count: int, stop: Stop, started: Callable[[int], None]
    ) -> None:
        """Starts them, and returns when all nodes serve.

        Args:
            directory: Where everything is kept.
            count: How many hosts.
            stop: What may end the wait; ends the run when one of the processes dies.
            started: Is told how many hosts are ready.

        Raises:
            DemoError: One could not be started.
            Stopped: A signal came.
        """
        self._stop = stop
        self._directory = directory
        self._passing = os.path.join(directory, "passing")  # what goes, also from what is kept
        self._watched: list[int] = []
        self._token = secrets.token_hex(16)
        self._server = NatsServer(
            os.path.join(self._passing, "nats"),
            config=f'authorization {{ token: "{self._token}" }}',
            tethered=True,
        )
        self._hosts: list[Host] = []
        try:
            self._start_server()
            waiting = [self._start(f"host-{number}") for number in range(1, count + 1)]
            for number, announced in enumerate(waiting):
                with announced:
                    self._await(announced)
                started(number + 1)
            self._before = self._counted()
        except BaseException:
            self.end()
            raise

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __len__(self) -> int:
        return len(self._hosts)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def server_bytes(self) -> int:
        """What the server has taken in since all nodes were ready.

        Raises:
            DemoError: It does not say.
        """
        return self._counted() - self._before

    def check_nodes(self) -> None:
        """Looks whether all nodes are at work.

        Raises:
            DemoError: One is stopped.
        """
        for host in self._hosts:
            try:
                check_beat(host.store._dags.space)
            except NodeUnreachable as error:
                raise DemoError(f"The node of {host.name} does not answer: {error.why}.") from error

    def _counted(self) -> int:
        try:
            return int(self._server.monitor("varz")["in_bytes"])
        except OSError as error:
            raise DemoError(f"The NATS server does not answer: {error}.") from error

    def _start_server(self) -> None:
        try:
            self._server.start()
        except ServerFailed as error:
            raise DemoError(str(error)) from error
        self._watch("The NATS server", self._server.process)

    def _start(self, name: str) -> socket.socket:
        """Starts a host; returns the socket at which its node says that it serves."""
        root = os.path.join(self._directory, name)
        store = Store(root, NAMESPACE)
        announced = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        announced.bind("")  # the kernel picks a name of no file
        address = "@" + announced.getsockname()[1:].decode()
        command = [sys.executable, "-m", "shmstore", "node", "--root", root]
        command += ["--namespace", NAMESPACE, "--name", name, "--nats", self._server.url]
        # The token not on the command line, which everybody can read.
        env = {**os.environ, "NOTIFY_SOCKET": address, "SHMSTORE_NATS_TOKEN": self._token}
        with open(self._log(name), "wb") as said:
            node = tether.start(command, said, env)
        self._hosts.append(Host(name, root, store, node))
        self._watch(f"The node of {name}", node, self._log(name))
        return announced

    def _log(self, name: str) -> str:
        return os.path.join(self._passing, f"{name}.log")

    def _await(self, announced: socket.socket) -> None:
        deadline = time.monotonic() + _STARTING_S
        announced.setblocking(False)
        while True:
            try:
                announced.recv(4096)
                return
            except BlockingIOError:
                left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DemoError(f"A node did not start within {_STARTING_S:.0f} s.")
            self._stop.wait(announced, timeout=left_s)

    def _watch(self, what: str, process: subprocess.Popen[bytes], log: str | None = None) -> None:
        fd = os.pidfd_open(process.pid)
        self._watched.append(fd)
        self._stop.watch(fd, partial(_died, what, process, log))

    def end(self) -> None:
        """Ends all processes, whatever state they are in. Again does nothing."""
        while self._watched:
            fd = self._watched.pop()
            self._stop.unwatch(fd)
            os.close(fd)
        for host in self._hosts:
            host.store.close()
            host.node.send_signal(signal.SIGTERM)
            host.node.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + _ENDING_S
        for host in self._hosts:
            try:
                host.node.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                host.node.kill()
                host.node.wait()
        self._server.__exit__()
        shutil.rmtree(self._passing, ignore_errors=True)


def _died(what: str, process: subprocess.Popen[bytes], log: str | None) -> ProcessDied:
    sentence = tether.obituary(what, process)
    if log is not None and process.returncode > 0:
        with open(log, errors="replace") as file:
            sentence += "".join(f" It said: {line}" for line in file.read().splitlines()[-1:])
    return ProcessDied(sentence)
