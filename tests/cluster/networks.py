"""Two hosts and a NATS server on a network that tests can cut: real ones, and on loopback.

``Namespaces`` are network namespaces joined by veth, one for each host and one for the server:

    a, 10.77.1.2 --- 10.77.1.1, hub with the server at 10.77.0.1, 10.77.2.1 --- 10.77.2.2, b

Packets of one direction are lost by a wrong neighbour entry, as after a switch has gone mad:
every kernel can do that. A long and lossy line is made by ``tc netem``, or where the kernel was
built without by ``wire``; a narrow one by ``tc tbf``. ``Loopback`` has a proxy in each node's
line instead. Shared memory and Unix sockets belong to no network namespace, so the tests' stores
ask the nodes from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import shmstore
from shmstore.demo.server import NatsServer
from tests.cluster.proxy import DOWN, UP, Line

#: Until when what must come has to have come, seconds; the machine may be busy.
DEADLINE_S = 60.0
HOSTS = ("a", "b")

#: Which packets are lost, as seen from the host: all, those that it should get, those it sends.
BOTH, INWARD, OUTWARD = "both", "inward", "outward"

_CHECKOUT = Path(__file__).parents[2]
_LOOK_S = 0.01
_SETTLING_S = 10.0


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


class Host:
    """A host: a root, a store there, and a node of its own process.

    Attributes:
        name: The node's.
        root: The root.
        store: A store.
        process: The node.
    """

    def __init__(self, name: str, root: str, url: str, within: Sequence[str], log: Path) -> None:
        self.name, self.root, self.log = name, root, log
        self.store = shmstore.Store(root)
        command = [sys.executable, "-m", "shmstore", "node", "--root", root, "--name", name]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SHMSTORE_")}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [*within, *command, "--nats", url, "--verbose"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=_CHECKOUT,
                env={**kept, "PYTHONPATH": str(_CHECKOUT)},
            )

    @property
    def said(self) -> str:
        """All that the node has said."""
        return self.log.read_text()

    def serves(self) -> Host:
        """Waits until the node serves."""

        def look() -> bool:
            assert self.process.poll() is None, self.said
            return "serving namespace" in self.said

        until(look, f"{self.name} serves; it said {self.said}")
        return self

    def status(self) -> dict[str, Any]:
        """What the node says of itself."""
        return self.store._node.call("status", 5.0)

    def ends(self) -> int:
        """Waits for the node's end; returns its exit code."""
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """Ends the node, in order if it can."""
        self.store.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Network(ABC):
    """What the tests want of a network, of either kind.

    Attributes:
        server: The NATS server.
    """

    server: NatsServer

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @abstractmethod
    def url(self, host: str) -> str:
        """Where a host finds the server."""

    @abstractmethod
    def within(self, host: str) -> list[str]:
        """The start of a command that runs on a host."""

    @abstractmethod
    def cut(self, host: str, what: str = BOTH) -> None:
        """Has a host's packets be lost."""

    @abstractmethod
    def heal(self, host: str) -> None:
        """Ends that."""

    @abstractmethod
    def lengthen(self, host: str, delay_s: float, loss: float) -> None:
        """Makes a host's line a long and lossy one, either way; before its node starts."""

    @abstractmethod
    def narrow(self, host: str, bytes_s: float) -> None:
        """Lets a host send no more than so much a second."""

    @abstractmethod
    def sent(self, host: str) -> int:
        """How many bytes a host has sent."""

    @contextmanager
    def host(
        self, name: str, root: str, *, at: str | None = None, url: str | None = None
    ) -> Iterator[Host]:
        """A host, or a second node at a host.

        Args:
            name: The node's name.
            root: Its root.
            at: The host, if it is not of the node's name.
            url: Where it finds the server, if not where all do.
        """
        at = at or name
        log = self._directory / f"node-{name}-{os.urandom(4).hex()}.log"
        made = Host(name, root, url or self.url(at), self.within(at), log)
        try:
            yield made
        finally:
            made.close()

    @contextmanager
    def hosts(self, root: str) -> Iterator[tuple[Host, Host]]:
        """Both hosts, serving, with roots within ``root``."""
        with ExitStack() as stack:
            one, two = (
                stack.enter_context(self.host(name, os.path.join(root, name))) for name in HOSTS
            )
            yield one.serves(), two.serves()


class Loopback(Network):
    """Both hosts and the server on loopback, with a proxy in each host's line."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server = NatsServer(directory / "nats")
        self._lines: dict[str, Line] = {}

    @contextmanager
    def built(self) -> Iterator[Loopback]:
        """The network, until the end."""
        with ExitStack() as stack:
            stack.enter_context(self.server)
            for host in HOSTS:
                line = Line(self.server.host, self.server.port)
                self._lines[host] = stack.enter_context(line)
            yield self

    def url(self, host: str) -> str:
        return f"nats://127.0.0.1:{self._lines[host].port}"

    def within(self, host: str) -> list[str]:
        return []

    def cut(self, host: str, what: str = BOTH) -> None:
        lost = {BOTH: (UP, DOWN), INWARD: (DOWN,), OUTWARD: (UP,)}
        self._lines[host].cut(*lost[what])

    def heal(self, host: str) -> None:
        self._lines[host].mend()

    def lengthen(self, host: str, delay_s: float, loss: float) -> None:
        # What TCP makes of loss are pauses and a small window; there is no packet to be lost.
        self._lines[host].delay_s = delay_s
        self._lines[host].bytes_s = 4e6 if loss else None

    def narrow(self, host: str, bytes_s: float) -> None:
        self._lines[host].bytes_s = bytes_s

    def sent(self, host: str) -> int:
        return self._lines[host].carried[UP]


class Unavailable(Exception):
    """What is wanted cannot be had on this machine; says why."""


class Namespaces(Network):
    """Both hosts and the server as network namespaces; needs root."""

    #: The server's addresses: it is at the first one, to begin with.
    ADDRESSES = ("10.77.0.1", "10.77.0.2")
    _PREFIX = "shmstore-test"
    _WRONG = "02:00:00:00:00:ff"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        stem = f"{self._PREFIX}-{os.getpid()}"
        self._hub = f"{stem}-hub"
        self.names = {host: f"{stem}-{host}" for host in HOSTS}
        self._wires = ExitStack()
        self.server = NatsServer(
            directory / "nats", host=self.ADDRESSES[0], within=("ip", "netns", "exec", self._hub)
        )

    @contextmanager
    def built(self) -> Iterator[Namespaces]:
        """The network, until the end.

        Raises:
            Unavailable: It cannot be built on this machine.
        """
        self._sweep()
        try:
            with self._wires:
                self._build()
                with self.server:
                    yield self
        finally:
            for name in (*self.names.values(), self._hub):
                with contextlib.suppress(Unavailable):
                    _ip("netns", "del", name)

    def url(self, host: str) -> str:
        return self.server.url

    def within(self, host: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self, host: str, what: str = BOTH) -> None:
        if what == BOTH:
            _ip("-n", self._hub, "link", "set", f"to-{host}", "down")
        elif what == INWARD:
            self._neighbours(host, far=self._WRONG)
        else:
            self._neighbours(host, hub=self._WRONG)

    def heal(self, host: str) -> None:
        _ip("-n", self._hub, "link", "set", f"to-{host}", "up")
        self._neighbours(host)

    def lengthen(self, host: str, delay_s: float, loss: float) -> None:
        netem = ["netem", "delay", f"{delay_s * 1000:g}ms", "loss", f"{loss:%}"]
        try:
            self._qdisc(self._hub, f"to-{host}", *netem)
            self._qdisc(self.names[host], "eth0", *netem)
        except Unavailable:
            self._lay_wire(host, delay_s, loss)

    def narrow(self, host: str, bytes_s: float) -> None:
        rate = f"{int(bytes_s * 8)}bit"
        self._qdisc(
            self.names[host], "eth0", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms"
        )

    def sent(self, host: str) -> int:
        told = json.loads(_ip("-n", self._hub, "-s", "-j", "link", "show", f"to-{host}"))
        return int(told[0]["stats64"]["rx"]["bytes"])

    def name_server(self, host: str, name: str, address: str) -> None:
        """Has a name mean an address on a host, for what runs there now and later."""
        path = Path("/etc/netns") / self.names[host] / "hosts"
        if not path.exists():
            path.parent.mkdir(parents=True)
            self._wires.callback(_remove_with_parents, path)
        # In place: what runs there has this very file as its /etc/hosts.
        path.write_text(f"127.0.0.1 localhost\n{address} {name}\n")

    # --- Building ---------------------------------------------------------------------------

    def _build(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable("network namespaces need root")
        for name in (self._hub, *self.names.values()):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for address in self.ADDRESSES:
            _ip("-n", self._hub, "address", "add", f"{address}/32", "dev", "lo")
        for host, name in self.names.items():
            veth = ["type", "veth", "peer", "name", "eth0", "netns", name]
            _ip("-n", self._hub, "link", "add", f"to-{host}", *veth)
            self._join(host)

    def _join(self, host: str) -> None:
        """Gives the two ends of a host's line their addresses."""
        near, far = self._addresses(host)
        for name, device, address, number in (
            (self._hub, f"to-{host}", near, 1),
            (self.names[host], "eth0", far, 2),
        ):
            mac = self._mac(host, number)
            _ip("-n", name, "link", "set", device, "address", mac)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", self.names[host], "route", "add", "default", "via", near)
        self._neighbours(host)

    def _neighbours(self, host: str, hub: str | None = None, far: str | None = None) -> None:
        """Tells both ends of a line who is at the other."""
        address, far_address = self._addresses(host)
        entry = ["nud", "permanent", "dev"]
        far, hub = far or self._mac(host, 2), hub or self._mac(host, 1)
        at_hub = ["neigh", "replace", far_address, "lladdr", far, *entry, f"to-{host}"]
        at_host = ["neigh", "replace", address, "lladdr", hub, *entry, "eth0"]
        _ip("-n", self._hub, *at_hub)
        _ip("-n", self.names[host], *at_host)

    def _lay_wire(self, host: str, delay_s: float, loss: float) -> None:
        """Replaces a host's veth."""
        if not os.path.exists("/dev/net/tun"):
            raise Unavailable("the kernel has neither netem nor tap devices")
        _ip("-n", self._hub, "link", "del", f"to-{host}")
        command = [sys.executable, "-m", "tests.cluster.wire", f"to-{host}", "wire"]
        wire = subprocess.Popen(
            ["ip", "netns", "exec", self._hub, *command, str(delay_s), str(loss)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=_CHECKOUT,
        )
        self._wires.callback(_end, wire)
        assert wire.stdout is not None
        if wire.stdout.readline() != "ready\n":
            raise Unavailable("the kernel has no netem, and tap devices cannot be made")
        name = self.names[host]
        _ip("-n", self._hub, "link", "set", "wire", "netns", name, "name", "eth0")
        self._join(host)

    def _qdisc(self, name: str, device: str, *words: str) -> None:
        _run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", *words)

    def _addresses(self, host: str) -> tuple[str, str]:
        number = HOSTS.index(host) + 1
        return f"10.77.{number}.1", f"10.77.{number}.2"

    def _mac(self, host: str, number: int) -> str:
        return f"02:00:00:00:{HOSTS.index(host) + 1:02x}:{number:02x}"

    def _sweep(self) -> None:
        """Removes what test runs that were killed have left."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir("/run/netns"):
                start, _, rest = name.partition(f"{self._PREFIX}-")
                pid = rest.partition("-")[0]
                if not start and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                    with contextlib.suppress(Unavailable):
                        _ip("netns", "del", name)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=_SETTLING_S
        )
    except FileNotFoundError:
        raise Unavailable(f"there is no {words[0]!r} (of Debian's package iproute2)") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _remove_with_parents(path: Path) -> None:
    path.unlink()
    for parent in (path.parent, path.parent.parent):
        with contextlib.suppress(OSError):
            parent.rmdir()
