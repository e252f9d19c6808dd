"""The contestants: shmstore and what else passes values between processes of a host.

Each is used as its documentation tells and with the settings that favour it; ``note``
says which. Pickles are of protocol 5. One that is not installed says so.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import shmstore

dumps = partial(pickle.dumps, protocol=5)
_START_S = 10.0


class Peer:
    """A place for values that several processes use, in one of them.

    Attributes:
        name: Its name in the tables.
        note: Its settings, or "".
        reads: False for what only shows what writing costs.
        views: True if a get of a large value copies nothing.
        address: What another process needs to use the same place; picklable.
        put: Stores a value under an id.
        get: Returns it.
    """

    name: ClassVar[str]
    note: ClassVar[str] = ""
    reads: ClassVar[bool] = True
    views: ClassVar[bool] = False
    address: Any
    put: Callable[[str, Any], Any]
    get: Callable[[str], Any]
    delete: Callable[[Sequence[str]], None]

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part and what to do about it, or None if it can."""
        return None

    @classmethod
    def start(cls, place: str) -> Peer:
        """Makes a new place below a directory."""
        return cls(os.path.join(place, cls.__name__))

    def __init__(self, address: Any) -> None:
        self.address = address

    def release(self) -> None:
        """Lets go of what gets left open, once their values are dropped."""

    def close(self) -> None:
        """Ends the use of the place, in the process that started it: the place, too."""


class Shmstore(Peer):
    """This project."""

    name = "shmstore"
    views = True
    dag = "bench"

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.store = shmstore.Store(address)
        self.put = partial(self.store.put, self.dag)
        self.get = partial(self.store.get, self.dag)

    def delete(self, ids: Sequence[str]) -> None:
        """Removes values."""
        self.store.delete_many(self.dag, ids)

    def close(self) -> None:
        """Closes the store."""
        self.store.close()


class Lmdb(Peer):
    """LMDB, the fastest embedded store that processes share, with pickle."""

    name = "LMDB + pickle"
    note = "LMDB: on tmpfs, sync=False, metasync=False, one transaction an operation"
    map_size = 8 << 30

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        return None if find_spec("lmdb") else "LMDB: pip install lmdb"

    def __init__(self, address: Any) -> None:
        import lmdb

        super().__init__(address)
        self.environment: Any = lmdb.open(
            address, map_size=self.map_size, sync=False, metasync=False, max_readers=64
        )
        self.begin: Callable[..., Any] = partial(self.environment.begin, buffers=True)

    def put(self, id: str, value: Any) -> None:
        """Stores a value."""
        with self.begin(write=True) as transaction:
            transaction.put(id.encode(), dumps(value))

    def get(self, id: str) -> Any:
        """Returns a value."""
        with self.begin() as transaction:
            return pickle.loads(transaction.get(id.encode()))

    def delete(self, ids: Sequence[str]) -> None:
        """Removes values."""
        with self.begin(write=True) as transaction:
            for id in ids:
                transaction.delete(id.encode())

    def close(self) -> None:
        """Closes the environment."""
        self.environment.close()


class Diskcache(Peer):
    """diskcache: SQLite, and files for large values."""

    name = "diskcache"
    note = "diskcache: on tmpfs, eviction off"

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        return None if find_spec("diskcache") else "diskcache: pip install diskcache"

    def __init__(self, address: Any) -> None:
        import diskcache

        super().__init__(address)
        self.cache = diskcache.Cache(
            address, eviction_policy="none", size_limit=1 << 40, disk_pickle_protocol=5, timeout=60
        )
        self.put = self.cache.set
        self.get = self.cache.__getitem__

    def delete(self, ids: Sequence[str]) -> None:
        """Removes values."""
        with self.cache.transact():
            for id in ids:
                del self.cache[id]

    def close(self) -> None:
        """Closes the cache."""
        self.cache.close()


class Redis(Peer):
    """A Redis server on a Unix socket, with pickle."""

    name = "Redis + pickle"
    note = "Redis: own server on a Unix socket, persistence off, redis-py without hiredis"
    _server: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        if shutil.which("redis-server") is None:
            return "Redis: apt-get install redis-server"
        return None if find_spec("redis") else "Redis: pip install redis"

    @classmethod
    def start(cls, place: str) -> Redis:
        """Starts a server."""
        directory = os.path.join(place, cls.__name__)
        os.mkdir(directory)
        socket = os.path.join(directory, "socket")
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        # util-linux's way to end it with us, should we be killed.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        server = subprocess.Popen(
            [*guard, "redis-server", *options, "--dir", directory],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            peer = cls(socket)
            peer._server = server
            deadline = time.monotonic() + _START_S
            while not peer.answers():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.01)
        except BaseException:
            server.kill()
            server.wait()
            raise
        return peer

    def __init__(self, address: Any) -> None:
        import redis

        super().__init__(address)
        self.client: Any = redis.Redis(unix_socket_path=address)

    def answers(self) -> bool:
        """Whether the server is there."""
        import redis

        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def put(self, id: str, value: Any) -> None:
        """Stores a value."""
        self.client.set(id, dumps(value))

    def get(self, id: str) -> Any:
        """Returns a value."""
        return pickle.loads(self.client.get(id))

    def delete(self, ids: Sequence[str]) -> None:
        """Removes values."""
        self.client.delete(*ids)

    def close(self) -> None:
        """Closes the connection, and ends the server in the process that started it."""
        self.client.close()
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(10)


class ManagerDict(Peer):
    """``multiprocessing.Manager().dict()``: a server process and proxies."""

    name = "Manager().dict()"
    _manager: Any = None

    @classmethod
    def start(cls, place: str) -> ManagerDict:
        """Starts the manager's process."""
        import multiprocessing

        manager = multiprocessing.get_context("spawn").Manager()
        peer = cls(manager.dict())
        peer._manager = manager
        return peer

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.put = address.__setitem__
        self.get = address.__getitem__

    def delete(self, ids: Sequence[str]) -> None:
        """Removes values."""
        for id in ids:
            del self.address[id]

    def close(self) -> None:
        """Ends the manager's process."""
        if self._manager is not None:
            self._manager.shutdown()


#: Those that take a value of any kind, besides shmstore and ``SharedMemory``.
OTHERS: tuple[type[Peer], ...] = (Lmdb, Diskcache, Redis, ManagerDict)
