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
from shmstore.errors import RegistryUnavailable, RemoteError, StoreError
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
from shmstore.node.textfile import keep_written
from shmstore.opened import OpenDags
from shmstore.sweep import Order

_log = logging.getLogger("shmstore.node")

_STAND_BY_S = 0.2
_BEAT_S = 0.5
_RENEW_S = 2.0
_SWEEP_S = 60.0
#: How long a node that was started for a store goes on without any.
LINGER_S = 60.0
# How long one that was started for a store waits for the end of another one, if that is ending.
_GIVES_WAY_S = 1.0
# How long JetStream may take to answer well at the start, and how often it is asked.
_ENTER_S = 10.0
_ENTER_AGAIN_S = 0.5
# What may be spent on giving up the name when NATS does not answer.
_RELEASE_S = 2.0
_CANCEL_AGAIN_S = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MOST_FILES = 1 << 20


class CannotServe(Exception):
    """The node cannot do its work, or not any more; says why, a whole sentence."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How to run a node.

    Attributes:
        settings: The NATS server and the credentials.
        node: Its name.
        started: It was started for a store: it does not stand by, and ends when nobody needs it.
        linger_s: How long it goes on then, seconds.
        textfile: A file to write figures to, or None.
    """

    settings: Settings
    node: str
    started: bool = False
    linger_s: float = LINGER_S
    textfile: str | None = None


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
    # Until there is an event loop they wait, so that none ends us in the middle of a step.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if _elected(lock, choices, ready):
            _serve_elected(space, choices, ready, lock)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_elected(
    space: Namespace,
    choices: Choices,
    ready: Callable[[str], None],
    lock: filelock.BaseFileLock,
) -> None:
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(hard, _MOST_FILES) if hard != resource.RLIM_INFINITY else _MOST_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        asyncio.run(_Node(space, choices, ready).run())
    finally:
        lock.release()


def _elected(lock: filelock.BaseFileLock, choices: Choices, ready: Callable[[str], None]) -> bool:
    """Waits until no other node holds the lock.

    Returns:
        False if we were told to end, or another holds it and we are not to stand by.
    """
    said = False
    since = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return True
        except filelock.Timeout:
            if choices.started and time.monotonic() - since > _GIVES_WAY_S:
                _log.info("not needed: another node serves this namespace")
                return False
        except OSError as error:
            raise CannotServe(f"{lock.lock_file} cannot be locked: {error}") from error
        if not said and not choices.started:
            ready("standing by: another node serves this namespace")
            said = True
        told = signal.sigtimedwait(_SIGNALS, _STAND_BY_S)
        if told is not None:
            _log.info("ended by %s", signal.Signals(told.si_signo).name)
            return False


class _Node:
    """A node that was elected."""

    def __init__(self, space: Namespace, choices: Choices, ready: Callable[[str], None]) -> None:
        self._space, self._choices, self._ready = space, choices, ready
        self._name = choices.node
        self._dags = OpenDags(space)
        self._path = os.path.join(space.path, names.NODE_LOCK)
        self._lock_file = _file(self._path)
        self._over = asyncio.Event()
        self._why_over, self._failed = "", False
        self._tasks: list[asyncio.Task[None]] = []
        self._obeying: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serves until it is told to end.

        Raises:
            CannotServe: The name is another's, or a part of the node failed.
            RegistryUnavailable: NATS could not be reached for the first time, or refuses us.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._end, f"ended by {number.name}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._beat()
        try:
            async with AsyncExitStack() as ending:
                ending.push_async_callback(_cancel, self._tasks)
                self._spawn(self._keep_beating())
                await self._until_over(self._begin(ending))
                await self._over.wait()
                if not self._failed:
                    _log.info("%s", self._why_over)
        finally:
            if _file(self._path) == self._lock_file:
                self._space.control[NODE_BEAT] = 0
        if self._failed:
            raise CannotServe(self._why_over)

    async def _until_over(self, beginning: Coroutine[Any, Any, None]) -> None:
        """Waits for the start, which a signal cuts short, whatever it is waiting for."""
        work = asyncio.create_task(beginning)
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((work, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
        elif not self._over.is_set() or work.exception() is None:
            work.result()

    async def _begin(self, ending: AsyncExitStack) -> None:
        connection = await Connection.open(self._choices.settings, self._space.name, self._name)
        ending.push_async_callback(connection.close)
        await self._assemble(connection, ending)
        self._ready(
            f"serving namespace {self._space.name!r} of {self._space.root} as {self._name!r}"
        )

    async def _assemble(self, connection: Connection, ending: AsyncExitStack) -> None:
        """Puts the parts together, from the registry up to the socket; ended in reverse."""
        space, name = self._space, self._name
        registry = Registry(connection, space.name, name, incarnation(space))
        publisher = Publisher(space, registry, name, incarnation(space), self._renew)
        self._registry, self._publisher, self._connection = registry, publisher, connection
        everywhere = Everywhere(space, connection, registry, publisher, name)
        await self._enter(registry)
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
        if self._choices.textfile is not None:
            work.append(keep_written(space.root, space.name, self._choices.textfile))
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

    async def _enter(self, registry: Registry) -> None:
        """Takes the name, as soon as JetStream answers: it may be starting as we are.

        Raises:
            CannotServe: The name is another's.
            RegistryUnavailable: It has not answered for long.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _ENTER_S
        while True:
            try:
                await registry.prepare()
                await registry.claim(incarnation(self._space))
                return
            except NameTaken as taken:
                raise CannotServe(str(taken)) from taken
            except RegistryUnavailable as error:
                if loop.time() > until:
                    raise
                _log.info("not serving yet: %s", str(error))
            await asyncio.sleep(_ENTER_AGAIN_S)

    # --- What goes on all the time ------------------------------------------------------

    def _end(self, why: str, failed: bool = False) -> None:
        if not self._over.is_set():
            self._why_over, self._failed = why, failed
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
            self._end("A part of the node failed; its log tells more.", failed=True)

    def _beat(self) -> None:
        self._space.control[NODE_BEAT] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            if _file(self._path) != self._lock_file:
                gone = f"The lock file {self._path} was removed or replaced: another may serve."
                self._end(gone, failed=True)
                return
            self._beat()

    async def _keep_claim(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._renew()
            except StoreError as error:
                _log.debug("the claim was not renewed: %s", str(error))

    async def _renew(self) -> None:
        """Renews the claim; ends the node if the name was taken while it was cut off.

        Raises:
            RegistryUnavailable: It could not be renewed, or was taken.
        """
        try:
            await self._registry.renew()
        except NameTaken as taken:
            self._end(str(taken), failed=True)
            raise RegistryUnavailable("the name was taken") from taken

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
        while loop.time() - max(since, self._gateway.asked_at) < self._choices.linger_s:
            await asyncio.sleep(min(1.0, self._choices.linger_s / 4))
            if self._gateway.clients or _wanted(self._space):
                since = loop.time()
        self._end("ended, as no process needs it any more")

    async def _obey(self, dag_id: str, epoch: int) -> None:
        try:
            await self._publisher.obey(dag_id, epoch)
        except StoreError as error:
            _log.warning(
                "DAG %r was cleared everywhere, and cannot be here: %s", dag_id, str(error)
            )

    def _raised(self, dag_id: str, epoch: int) -> None:
        """A DAG's epoch was raised by another node: what is here from before goes."""
        task = asyncio.create_task(self._obey(dag_id, epoch))
        self._obeying.add(task)
        task.add_done_callback(self._obeying.discard)


def _file(path: str) -> tuple[int, int] | None:
    """What tells a file from another one of the same name."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Ends tasks, which have noted their exceptions.

    More than once: wait_for of Python 3.11 loses a cancellation that comes together with the
    end of what it waits for, and nats-py one that comes while it flushes.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)


async def _quietly(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await asyncio.wait_for(call(), _RELEASE_S)
    except (RemoteError, TimeoutError) as error:
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
