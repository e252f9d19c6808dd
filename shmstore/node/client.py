"""Asking this host's node: what a store's remote calls go through. Synchronous.

A process needs no credentials, no event loop and no connection to another host for it. A node
that is being replaced is a delay, not an error: what was asked is asked again until the time
is over. A node that is stopped shows by its heartbeat in the namespace's page.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from shmstore import lookup, names
from shmstore.descriptor import Descriptor
from shmstore.errors import NodeNotRunning, NodeUnreachable, RegistryUnavailable, StoreClosed
from shmstore.namespace import NODE_BEAT, Namespace
from shmstore.node import protocol
from shmstore.node.protocol import Header

_SIZE = struct.Struct("<I")
_MOST_IDLE = 8
RETRY_S = 0.02
#: A heart that has not beaten for so long belongs to a node that is stopped.
SILENT_S = 3.0
LOOK_S = 0.5
#: What a node is given to answer that the time is over, beyond the time that it was given.
ANSWER_S = 0.25
LONGEST_S = 86_400.0
_AT_ONCE_S = 0.001

#: Starts a namespace's node, if one is to be started; False if somebody is just doing so.
Start = Callable[[], bool]


class Overdue(Exception):
    """The node has not answered in time."""


class Gone(Exception):
    """The node has ended, or closed the connection."""


class Link:
    """One connection to the node. One thread's at a time."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._number = 0
        self._unread = b""
        self._socket = connect(space)

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
        self._fill(_SIZE.size, deadline)
        end = _SIZE.size + protocol.frame_size(self._unread[: _SIZE.size])
        self._fill(end, deadline)
        raw, self._unread = self._unread[_SIZE.size : end], self._unread[end:]
        return protocol.parse_frame(raw)

    def _fill(self, size: int, deadline: float) -> None:
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

    def peek(self) -> Header | None:
        """The next answer, if it has come."""
        try:
            return self.receive(time.monotonic() + _AT_ONCE_S)
        except Overdue:
            return None

    def close(self) -> None:
        """Hangs up, which cancels what the node is doing for us."""
        self._socket.close()

    def __del__(self) -> None:
        # A store that is not closed, or a child that has its parent's, is no mistake.
        if hasattr(self, "_socket"):
            self._socket.close()


def connect(space: Namespace) -> socket.socket:
    """A socket that is connected to the node; does not block.

    Raises:
        Gone: Nobody listens.
        NodeUnreachable: The node is stopped, and has more callers than it can queue.
    """
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:  # of descriptors or memory there are no more
        raise Gone(os.strerror(error.errno or 0).lower()) from error
    try:
        made.setblocking(False)
        made.connect(f"/proc/self/fd/{space.directory.fd}/{names.NODE_SOCKET}")
    except BaseException as error:
        made.close()
        if not isinstance(error, OSError):
            raise
        if isinstance(error, BlockingIOError):
            check_beat(space)
        raise Gone(os.strerror(error.errno or 0).lower()) from error
    return made


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


def answers(space: Namespace) -> bool:
    """Whether somebody listens. More exact than ``is_running``, but a node may just be starting."""
    try:
        connect(space).close()
    except (Gone, NodeUnreachable):
        return False
    return True


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
        # Of one process: a child has none, and no lock that could be held as it is forked.
        self._idle: tuple[int, list[Link]] = os.getpid(), []

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

    def keep_alive(self, held: Descriptor) -> None:
        """Has a node that was started go on for as long as this store."""
        self._held = held

    def call(self, op: str, timeout_s: float, **fields: Any) -> Header:
        """What the node answers.

        Raises:
            Overdue: It does not, in time.
            NodeNotRunning: There is none.
            NodeUnreachable: It is stopped.
            StoreError: Whatever it answers with.
        """
        return ([*self.stream(op, timeout_s, **fields)] or [{}])[0]

    def registry_call(self, op: str, timeout_s: float, **fields: Any) -> Header:
        """As ``call``, of what the registry is needed for.

        Raises:
            RegistryUnavailable: There was no answer in time, too.
        """
        return ([*self.registry_stream(op, timeout_s, **fields)] or [{}])[0]

    def registry_stream(self, op: str, timeout_s: float, **fields: Any) -> Iterator[Header]:
        """As ``stream``, likewise."""
        try:
            yield from self.stream(op, timeout_s, **fields)
        except Overdue:
            raise RegistryUnavailable(f"no answer within {timeout_s:,.1f} s") from None

    def stream(self, op: str, timeout_s: float, **fields: Any) -> Iterator[Header]:
        """The parts of an answer in several parts, or the one of an answer in one."""
        deadline = time.monotonic() + min(timeout_s, LONGEST_S)
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
            try:
                return self._links().pop()
            except IndexError:
                pass
            try:
                return Link(self.space)
            except Gone as gone:
                why = str(gone)
            started = self.revive(started)
            self._wait_for_another(deadline, why)

    def revive(self, started: bool) -> bool:
        """Starts a node if none runs, once a call; whether it was started.

        Raises:
            NodeNotRunning: None runs, and it is not for us to start one, or it has ended.
        """
        if is_running(self.space):
            return started
        if self._start is None:
            raise self._not_running(None)
        if not started:
            return self._start()
        if has_ended(self.space) and not is_running(self.space):
            raise self._not_running("it has ended again")
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
        links = self._links()
        if len(links) < _MOST_IDLE:
            links.append(link)
        else:
            link.close()

    def _links(self) -> list[Link]:
        """The idle ones of this process. Each step is one call into C, which threads share."""
        pid, links = self._idle
        if pid != os.getpid():
            # The parent's: that ours are closed does not end them there.
            links = []
            self._idle = os.getpid(), links
        return links

    def _hang_up(self) -> None:
        links = self._links()
        while True:
            try:
                links.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Closes the connections, and needs the node no more."""
        self._hang_up()
        self._space = self._start = None
        if self._held is not None:
            self._held.close()


class Request:
    """A request that is looked after now and then, while something else is waited for.

    Args:
        asking: Whom to ask.
        op: The operation.
        fields: Its fields, with the timeout.
    """

    def __init__(self, asking: NodeClient, op: str, **fields: Any) -> None:
        self._asking, self._op, self._fields = asking, op, fields
        self._link: Link | None = None
        self._started = False
        self._answered = False

    def look(self) -> None:
        """Asks, if that is still or again to be done; does not wait.

        Whoever looks once more after an answer has not got what was asked for: it came, and
        was gone at once. So it is asked for again.

        Raises:
            StoreError: What the node answers with, or why it cannot be asked.
        """
        if self._answered:
            self._answered = False
            self.close()
        try:
            if self._link is None:
                self._link = Link(self._asking.space)
                self._link.send(self._op, self._fields)
                return
            answer = self._link.peek()
        except Gone:
            self.close()
            self._started = self._asking.revive(self._started)
            return
        if answer is None:
            check_beat(self._asking.space)
        elif "error" in answer:
            self.close()
            raise protocol.unpack_error(answer)
        else:
            self._answered = True

    def close(self) -> None:
        """Gives it up."""
        if self._link is not None:
            self._link.close()
            self._link = None


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


def log_of_started(space: Namespace, inherit: bool = False) -> Descriptor:
    """Opens the log of nodes that are started for stores; such a one keeps it locked.

    Raises:
        OSError: It cannot be opened, or made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    return Descriptor.open(names.NODE_LOG, flags, within=space.directory.fd, inherit=inherit)


def locked(log: Descriptor) -> bool:
    """Locks that log, until it is closed by all who have it open so; False if it is."""
    try:
        fcntl.flock(log.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_ended(space: Namespace) -> bool:
    """Whether no node that was started for a store is alive."""
    try:
        log = log_of_started(space)
    except OSError:
        return True
    try:
        return locked(log)
    finally:
        log.close()


def last_words(space: Namespace) -> str | None:
    """The last line of what a node that was started for us has said."""
    try:
        fd = os.open(names.NODE_LOG, os.O_RDONLY | os.O_CLOEXEC, dir_fd=space.directory.fd)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read()[-4096:].splitlines() if line.strip()]
    return lines[-1][:400] if lines else None
