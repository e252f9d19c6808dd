"""Starting a node: in the foreground, or as a process of its own.

A node is never a thread of the process that wants it: that one's GIL would starve it, and a
fork would tear it in two. It is started through a process that ends at once, so that nobody
has to wait for it and no zombie is left.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import TYPE_CHECKING

from shmstore import names
from shmstore.descriptor import Descriptor
from shmstore.errors import NodeNotRunning
from shmstore.namespace import Namespace
from shmstore.node import client

if TYPE_CHECKING:
    from shmstore.store import Store

#: The environment variable with the URL of the NATS server.
URL = "SHMSTORE_NATS"
_READY_S = 15.0
# What a node would take for its own: it is not the service that the process which starts it is.
_NOT_ITS_OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

# Runs in a bare interpreter: what it starts belongs to nobody, and has no descriptor of ours.
_LAUNCH = "import os, sys; os.fork() or os.execv(sys.argv[1], sys.argv[1:])"


class Node:
    """The network endpoint of a host for one namespace.

    Args:
        store: A store of the namespace.
        nats: The server's URL, several separated by commas; ``$SHMSTORE_NATS`` if not given.
        node: The node's name; ``$SHMSTORE_NODE`` or the host's if not given.
    """

    def __init__(self, store: Store, *, nats: str | None = None, node: str | None = None) -> None:
        self._store = store
        self._space: Namespace = store._dags.space
        self._nats = url(nats)
        self._node = names.default_node() if node is None else names.check_name(node, "node")
        if not self._nats:
            raise ValueError(f"nats must be the URL of a NATS server, or ${URL} set")

    @classmethod
    def spawn(cls, store: Store, *, nats: str | None = None, node: str | None = None) -> None:
        """Starts a node as a process of its own, if none runs, and returns once it serves.

        It ends a minute after the last store is gone for which it was started, or which was
        opened with ``nats``.

        Raises:
            NodeNotRunning: It has ended again, and says why.
            NodeUnreachable: One runs, and is stopped.
        """
        made = cls(store, nats=nats, node=node)
        space, at = made._space, made._nats or ""
        store._node.keep_alive(attend(space))
        asking = client.NodeClient(space, lambda: start(space, at, made._node))
        try:
            asking.call("status", _READY_S)
        except client.Overdue:
            raise NodeNotRunning(space.root, space.name, client.last_words(space)) from None
        finally:
            asking.close()

    def run(self) -> None:
        """Runs the node in this process, in the foreground, until SIGTERM or Ctrl-C.

        Stands by as long as another node serves the namespace. A store that was opened with
        ``nats`` starts one by itself, which may serve first: open this one without.

        Raises:
            CannotServe: It cannot do its work, and trying again would not help.
        """
        from shmstore.node.service import Choices, serve
        from shmstore.node.settings import Settings

        settings = Settings.parse(self._nats or "")
        serve(self._space, Choices(settings, self._node), lambda _: None)


def start(space: Namespace, url: str, node: str) -> bool:
    """Starts a node as a process of its own, without waiting for it.

    Returns:
        False if one that was started before is still alive, or just being started.

    Raises:
        NodeNotRunning: It cannot be started.

    The node inherits its log, and with it the lock on that: of many who would start one at
    once, one does. If the process dies here, the lock goes with it, or with the node.
    """
    import subprocess  # here: most processes start no node

    try:
        log = client.log_of_started(space)
    except OSError as error:
        raise NodeNotRunning(space.root, space.name, str(error)) from error
    try:
        if not client.locked(log):
            return False
        os.ftruncate(log.fd, 0)
        _launch(space, url, node, log.fd)
        return True
    except (OSError, subprocess.SubprocessError) as error:
        raise NodeNotRunning(space.root, space.name, f"cannot be started: {error}") from error
    finally:
        log.close()


def _launch(space: Namespace, url: str, node: str, log: int) -> None:
    import subprocess

    command = [sys.executable, "-m", "shmstore", "node", "--root", space.root]
    command += ["--namespace", space.name, "--name", node, "--started"]
    env = {name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN}
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # The server's URL may hold a password, which a command line shows to everybody.
        env={**env, URL: url},
        start_new_session=True,
        check=True,
    )


def url(given: str | None) -> str | None:
    """The server's URL, checked as far as it can be here.

    Raises:
        TypeError: It is no string.
        ValueError: It is empty.
    """
    if given is None:
        return os.environ.get(URL) or None
    if not isinstance(given, str):
        raise TypeError(f"nats must be a str, not {type(given).__name__}")
    if not given:
        raise ValueError("nats must not be empty; leave it out for this host only")
    return given


def asking(space: Namespace, nats: str | None, node: str) -> client.NodeClient:
    """How a store asks its node; starts one if it is to and none runs."""
    if nats is None:
        return client.NodeClient(space, None)
    held = attend(space)

    def begin() -> bool:
        return start(space, nats, node)

    made = client.NodeClient(space, begin, held)
    if not client.answers(space):
        begin()
    return made


def attend(space: Namespace) -> Descriptor:
    """Keeps a node that was started for stores alive for as long as what is returned."""
    held = Descriptor.open(names.NODE_CLIENTS, os.O_RDWR | os.O_CREAT, within=space.directory.fd)
    fcntl.flock(held.fd, fcntl.LOCK_SH)
    return held
