"""The node: one process a host and namespace, through which the others reach other hosts.

The order of its steps. It holds ``node.lock`` for its life: a second one stands by and takes
over when the first has died. A node may be killed at any point: what it has told the registry
is so, what it has not told is told by the next one, what it was fetching has no name yet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import filelock

from shmstore import names, upkeep
from shmstore.errors import RemoteError, StoreError
from shmstore.namespace import BOOT_ID_HIGH, BOOT_ID_LOW, CREATED, NODE_BEAT, Namespace
from shmstore.node.claims import NameTaken
from shmstore.node.connection import Connection
from shmstore.node.everywhere import Everywhere
from shmstore.node.fetching import Fetching
from shmstore.node.gateway import Gateway
from shmstore.node.owner import Owner
from shmstore.node.protocol import Header
from shmstore.node.publisher import Publisher
from shmstore.node.registry import Registry
from shmstore.node.requests import Requests
from shmstore.node.settings import Settings
from shmstore.opened import OpenDags
from shmstore.sweep import Order

_log = logging.getLogger("shmstore.node")

_STAND_BY_S = 0.2
_BEAT_S = 0.5
_RENEW_S = 2.0
_SWEEP_S = 60.0
#: How long a node that was started for a store goes on without any.
_LINGER_S = 60.0
_MOST_FILES = 1 << 20


class CannotServe(Exception):
    """The node cannot do its work, and trying again would not help; says why."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How to run a node.

    Attributes:
        settings: The NATS server and the credentials.
        node: Its name.
        started: It was started for a store: it does not stand by, and ends when nobody needs it.
    """

    settings: Settings
    node: str
    started: bool = False


def incarnation(space: Namespace) -> str:
    """What tells this content of the namespace from others: after a restart it is a new one."""
    page, status = space.control, os.fstat(space.directory.fd)
    facts = (page[BOOT_ID_LOW], page[BOOT_ID_HIGH], page[CREATED], status.st_dev, status.st_ino)
    return blake2b(repr(facts).encode(), digest_size=10).hexdigest()


def serve(space: Namespace, choices: Choices, ready: Callable[[str], None]) -> None:
    """Runs a node until SIGTERM or SIGINT.

    Args:
        space: The namespace.
        choices: How.
        ready: Called with a sentence when it serves, and when it stands by.

    Raises:
        CannotServe: As its name says.
    """
    lock = filelock.FileLock(os.path.join(space.path, names.NODE_LOCK), mode=0o600)
    if not _elected(lock, choices, ready):
        return
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(hard, _MOST_FILES) if hard != resource.RLIM_INFINITY else _MOST_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        asyncio.run(_Node(space, choices, ready).run())
    finally:
        space.control[NODE_BEAT] = 0
        lock.release()


def _elected(lock: filelock.BaseFileLock, choices: Choices, ready: Callable[[str], None]) -> bool:
    """Waits until no other node holds the lock; False if there is one and we do not wait."""
    said = False
    while True:
        try:
            lock.acquire(timeout=0)
            return True
        except filelock.Timeout:
            if choices.started:
                return False
        except OSError as error:
            raise CannotServe(f"{lock.lock_file} cannot be locked: {error}") from error
        if not said:
            ready("standing by: another node serves this namespace")
            said = True
        time.sleep(_STAND_BY_S)


class _Node:
    """A node that was elected."""

    def __init__(self, space: Namespace, choices: Choices, ready: Callable[[str], None]) -> None:
        self._space, self._choices, self._ready = space, choices, ready
        self._name = choices.node
        self._dags = OpenDags(space)
        self._over = asyncio.Event()
        self._why_over = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._obeying: set[asyncio.Task[bool]] = set()

    async def run(self) -> None:
        """Serves until it is told to end.

        Raises:
            CannotServe: The name is another's.
            RegistryUnavailable: NATS could not be reached for the first time, or refuses us.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, f"ended by {number.name}")
        self._beat()
        async with AsyncExitStack() as ending:
            ending.push_async_callback(_cancel, self._tasks)
            self._spawn(self._keep_beating())
            connection = await Connection.open(self._choices.settings, self._space.name, self._name)
            ending.push_async_callback(connection.close)
            await self._assemble(connection, ending)
            self._ready(
                f"serving namespace {self._space.name!r} of {self._space.root} as {self._name!r}"
            )
            await self._over.wait()
            _log.info("%s", self._why_over)

    async def _assemble(self, connection: Connection, ending: AsyncExitStack) -> None:
        """Puts the parts together, from the registry up to the socket; ended in reverse."""
        space, name = self._space, self._name
        registry = Registry(connection, space.name, name, incarnation(space))
        publisher = Publisher(space, registry, name, incarnation(space))
        self._registry, self._publisher, self._connection = registry, publisher, connection
        everywhere = Everywhere(space, connection, registry, publisher, name)
        await registry.prepare()
        try:
            await registry.claim(incarnation(space))
        except NameTaken as taken:
            raise CannotServe(str(taken)) from taken
        ending.push_async_callback(_quietly, registry.release)
        registry.on_recreated(publisher.compare_again)
        connection.on_reconnect(publisher.compare_again)
        registry.on_epoch(self._raised)
        owner = Owner(connection, self._dags, space.name, name)
        await owner.start()
        ending.push_async_callback(owner.stop)
        await everywhere.start()
        work = [publisher.run(), self._keep_claim(), self._keep_swept()]
        if self._choices.started:
            work.append(self._until_unused())
        ending.push_async_callback(_cancel, self._tasks)
        requests = Requests(
            registry,
            publisher,
            Fetching(self._dags, registry, connection, name),
            everywhere,
            self._status,
        )
        self._gateway = Gateway(space, requests.handlers(), requests.streamers())
        await self._gateway.open()
        ending.push_async_callback(self._gateway.close)
        for one in work:
            self._spawn(one)

    # --- What goes on all the time ------------------------------------------------------

    def _end(self, why: str) -> None:
        self._why_over = self._why_over or why
        self._over.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(self._watched(work)))

    async def _watched(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a part of the node failed")
            self._end("ended, as a part of it failed")

    def _beat(self) -> None:
        self._space.control[NODE_BEAT] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def _keep_beating(self) -> None:
        path = os.path.join(self._space.path, names.NODE_LOCK)
        ours = os.stat(path)
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                there = os.stat(path)
            except OSError:
                there = None
            if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                self._end("ended, as its lock file is gone: another node may serve")
                return
            self._beat()

    async def _keep_claim(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._registry.renew()
            except NameTaken as taken:
                self._end(f"ended: {taken}")
                return
            except StoreError as error:
                _log.debug("the claim was not renewed: %s", str(error))

    async def _keep_swept(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            order = Order(patience_s=0.0)
            try:
                await asyncio.to_thread(upkeep.gc, self._space, order)
            except StoreError as error:
                _log.warning("not swept: %s", str(error))

    def _status(self) -> Header:
        return {
            "node": self._name,
            "pid": os.getpid(),
            "server": self._choices.settings.shown,
            "connected": self._connection.connected,
            "fault": self._publisher.fault,
            "clients": self._gateway.clients,
        }

    async def _until_unused(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() - max(since, self._gateway.asked_at) < _LINGER_S:
            await asyncio.sleep(1.0)
            if self._gateway.clients or _wanted(self._space):
                since = loop.time()
        self._end("ended, as no process needs it any more")

    def _raised(self, dag_id: str, epoch: int) -> None:
        """A DAG's epoch was raised by another node: what is here from before goes."""
        task = asyncio.create_task(self._publisher.obey(dag_id, epoch))
        self._obeying.add(task)
        task.add_done_callback(self._obeying.discard)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _quietly(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except RemoteError as error:
        _log.debug("%s", str(error))


def _wanted(space: Namespace) -> bool:
    """Whether a process lives for which a node was started: it holds a lock."""
    import fcntl

    try:
        fd = os.open(names.NODE_CLIENTS, os.O_RDWR | os.O_CLOEXEC, dir_fd=space.directory.fd)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
