"""Asking this host's node: what a store's remote calls go through. Synchronous.

A process needs no credentials, no event loop and no connection to another host for it. A node
that is being replaced is a delay, not an error: what was asked is asked again until the time
is over. A node that is stopped shows by its heartbeat in the namespace's page.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from shmstore import lookup, names
from shmstore.descriptor import Descriptor
from shmstore.errors import NodeNotRunning, NodeUnreachable, StoreClosed
from shmstore.namespace import NODE_BEAT, Namespace
from shmstore.node import protocol
from shmstore.node.protocol import Header

_SIZE = struct.Struct("<I")
_MOST_IDLE = 8
RETRY_S = 0.02
#: A heart that has not beaten for so long belongs to a node that is stopped.
SILENT_S = 3.0
LOOK_S = 0.5
ANSWER_S = 1.0  # what a node is given beyond the time that it was given for the call

#: What makes a namespace's node run, if there is one to be started.
Start = Callable[[], None]


class Overdue(Exception):
    """The node has not answered in time."""


class Gone(Exception):
    """The node has ended, or closed the connection."""


class Link:
    """One connection to the node. One thread's at a time."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._number = 0
        self._unread = b""
        try:
            self._socket.connect(f"/proc/self/fd/{space.directory.fd}/{names.NODE_SOCKET}")
        except OSError as error:
            self._socket.close()
            raise Gone(os.strerror(error.errno or 0).lower()) from error

    def send(self, op: str, fields: Header) -> int:
        """Sends a request; returns its number."""
        self._number += 1
        try:
            self._socket.settimeout(LOOK_S * 4)
            self._socket.sendall(protocol.frame({"n": self._number, "op": op, **fields}))
        except OSError as error:
            raise Gone("it hung up") from error
        return self._number

    def receive(self, deadline: float) -> Header:
        """The next answer.

        Raises:
            Overdue: There is none by ``deadline``, of time.monotonic.
            NodeUnreachable: The node is stopped.
        """
        size = protocol.frame_size(self._read(_SIZE.size, deadline))
        return protocol.parse_frame(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._unread) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Overdue
            self._socket.settimeout(min(left_s, LOOK_S))
            try:
                more = self._socket.recv(protocol.LARGEST_FRAME)
            except TimeoutError:
                check_beat(self._space)
                continue
            except OSError as error:
                raise Gone("it hung up") from error
            if not more:
                raise Gone("it hung up")
            self._unread += more
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def close(self) -> None:
        """Hangs up, which cancels what the node is doing for us."""
        self._socket.close()


def check_beat(space: Namespace) -> None:
    """Raises NodeUnreachable if this host's node lives but is stopped."""
    beat = space.control[NODE_BEAT]
    silent_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - beat) / 1e9
    if beat and silent_s > SILENT_S:
        raise NodeUnreachable(
            names.default_node(),
            f"it was last alive {silent_s:,.1f} s ago; it is stopped, or killed",
        )


def is_running(space: Namespace) -> bool:
    """Whether a node seems to be alive."""
    beat = space.control[NODE_BEAT]
    return bool(beat) and time.clock_gettime_ns(time.CLOCK_BOOTTIME) - beat < SILENT_S * 1e9


class NodeClient:
    """A store's connections to its node. Any thread's; usable after a fork.

    Args:
        space: The namespace.
        start: Starts a node if there is none; None if that is not for us to do.
        held: What keeps a node that was started alive, as long as it is open.
    """

    def __init__(
        self, space: Namespace, start: Start | None, held: Descriptor | None = None
    ) -> None:
        self._space: Namespace | None = space
        self._start, self._held = start, held
        self._idle: list[Link] = []
        self._pid = os.getpid()
        self._turn = threading.Lock()

    @property
    def space(self) -> Namespace:
        """The namespace.

        Raises:
            StoreClosed: After ``close``.
        """
        if self._space is None:
            raise StoreClosed
        return self._space

    @property
    def expected(self) -> bool:
        """Whether there is to be a node: the store was given a NATS server."""
        return self._start is not None

    def call(self, op: str, timeout_s: float, **fields: Any) -> Header:
        """What the node answers.

        Raises:
            Overdue: It does not, in time.
            NodeNotRunning: There is none.
            NodeUnreachable: It is stopped.
            StoreError: Whatever it answers with.
        """
        for answer in self.stream(op, timeout_s, **fields):
            return answer
        return {}

    def stream(self, op: str, timeout_s: float, **fields: Any) -> Iterator[Header]:
        """The parts of an answer in several parts, or the one of an answer in one."""
        deadline = time.monotonic() + timeout_s
        given = 0
        while True:
            link = self.link(deadline)
            done = False
            try:
                left_s = max(0.0, deadline - time.monotonic())
                number = link.send(op, {**fields, "timeout": left_s})
                for at, part in enumerate(_parts(link, number, deadline + ANSWER_S)):
                    if at >= given:  # after an interruption, those that were given already
                        given += 1
                        yield part
                done = True
                return
            except Gone as gone:
                self._wait_for_another(deadline, str(gone))
            finally:
                if done:
                    self._keep(link)
                else:
                    link.close()

    def link(self, deadline: float) -> Link:
        """A connection, waited for if the node is just being started or replaced.

        Raises:
            NodeNotRunning: There is no node.
            NodeUnreachable: It is stopped.
        """
        started = False
        while True:
            with self._turn:
                if self._pid != os.getpid():
                    # The parent's: closing ours does not end them there.
                    self._idle, self._pid = [], os.getpid()
                if self._idle:
                    return self._idle.pop()
            try:
                return Link(self.space)
            except Gone as gone:
                why = str(gone)
            started = self.revive(started)
            self._wait_for_another(deadline, why)

    def revive(self, started: bool) -> bool:
        """Starts a node if none runs, once a call; whether it was started.

        Raises:
            NodeNotRunning: None runs, and it is not for us to start one.
        """
        if is_running(self.space):
            return started
        if self._start is None:
            raise self._not_running(None)
        if not started:
            self._start()
        return True

    def _wait_for_another(self, deadline: float, why: str) -> None:
        self._hang_up()  # what is idle is of the node that has gone
        self.check_time(deadline, why)
        time.sleep(RETRY_S)

    def check_time(self, deadline: float, why: str) -> None:
        """Raises what is to be told if there is no time for another try."""
        if time.monotonic() + RETRY_S > deadline:
            check_beat(self.space)
            raise self._not_running(why)

    def _not_running(self, why: str | None) -> NodeNotRunning:
        lookup.check_space(self.space)
        said = last_words(self.space) if self._start is not None else None
        return NodeNotRunning(self.space.root, self.space.name, said or why)

    def _keep(self, link: Link) -> None:
        with self._turn:
            if self._pid == os.getpid() and len(self._idle) < _MOST_IDLE:
                self._idle.append(link)
                return
        link.close()

    def _hang_up(self) -> None:
        with self._turn:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def close(self) -> None:
        """Closes the connections, and needs the node no more."""
        self._hang_up()
        self._space = self._start = None
        if self._held is not None:
            self._held.close()


def _parts(link: Link, number: int, deadline: float) -> Iterator[Header]:
    while True:
        header = link.receive(deadline)
        if header.get("n") != number:
            continue  # to a request that was given up
        if "part" in header:
            yield header["part"]
        elif "ok" in header:
            if header["ok"]:
                yield header["ok"]
            return
        else:
            raise protocol.unpack_error(header)


def last_words(space: Namespace) -> str | None:
    """The last line of what a node that was started for us has said."""
    try:
        fd = os.open(names.NODE_LOG, os.O_RDONLY | os.O_CLOEXEC, dir_fd=space.directory.fd)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read()[-4096:].splitlines() if line.strip()]
    return lines[-1][:400] if lines else None
