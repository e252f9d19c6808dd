"""Other ways to bring an array from one process to another over TCP. Each is used as documented.

A peer has two ends, each in a process of its own: one that has the array and one that brings
it. What it returns is the array, whole, in memory of the process that asked.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

_LOOPBACK = "127.0.0.1"
_STARTING_S = 30.0


def array(nbytes: int) -> Array:
    """What is brought."""
    return np.random.default_rng(1).random(nbytes // 8)


class HostPeer(ABC):
    """One way.

    Attributes:
        name: What it is called in the tables.
        note: How it is set up.
    """

    name: ClassVar[str]
    note: ClassVar[str] = ""

    @classmethod
    def missing(cls) -> str | None:
        """What is missing to take part, and how to get it; None if nothing is."""
        return None

    @abstractmethod
    def open(self, found: Any) -> None:
        """Prepares to ask for the array.

        Args:
            found: What ``Plain.give`` returned in the other process; of a cluster, which
                starts its own processes, a directory and the array's size.
        """

    @abstractmethod
    def took(self) -> float:
        """Seconds that bringing it takes, once."""

    def close(self) -> None:  # noqa: B027  # most have started nothing
        """Ends what was started."""


class Plain(HostPeer):
    """A way between two processes of ours: one gives, the other brings."""

    @abstractmethod
    def give(self, place: str, nbytes: int) -> Any:
        """In the one process: has the array; returns what the other needs to find it."""

    @abstractmethod
    def bring(self) -> Array:
        """In the other: brings it."""

    def took(self) -> float:
        """Seconds that ``bring`` takes."""
        start = time.perf_counter()
        value = self.bring()
        took = time.perf_counter() - start
        assert value.nbytes > 0
        return took


class Tcp(Plain):
    """A socket, the least there is."""

    name = "TCP on loopback, bare"
    note = "bare TCP: sendall of the array, recv_into a new one"

    def give(self, place: str, nbytes: int) -> Any:
        """Serves the array to whoever connects."""
        data = memoryview(array(nbytes)).cast("B")
        listener = socket.create_server((_LOOPBACK, 0))

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        self._listener = listener
        return listener.getsockname(), nbytes

    def open(self, found: Any) -> None:
        """Notes the address."""
        self._address, self._nbytes = found

    def bring(self) -> Array:
        """Connects and reads."""
        result = np.empty(self._nbytes // 8)
        rest = memoryview(result).cast("B")
        with socket.create_connection(self._address) as peer:
            while rest:
                rest = rest[peer.recv_into(rest) :]
        return result


class RedisTcp(Plain):
    """GET of a Redis server, whose values end at 512 MB."""

    name = "Redis GET"
    note = "Redis: own server on loopback, persistence off, redis-py without hiredis"

    @classmethod
    def missing(cls) -> str | None:
        """Server or client."""
        if shutil.which("redis-server") is None:
            return "Redis: apt-get install redis-server"
        return None if find_spec("redis") else "Redis: pip install redis"

    def give(self, place: str, nbytes: int) -> Any:
        """Starts the server and sets the value."""
        import redis

        with socket.create_server((_LOOPBACK, 0)) as free:
            port = free.getsockname()[1]
        os.makedirs(place, exist_ok=True)
        options = ["--bind", _LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
        self._server = subprocess.Popen(
            ["redis-server", *options, "--dir", place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(_LOOPBACK, port)
        deadline = time.monotonic() + _STARTING_S
        while True:
            try:
                client.set("value", memoryview(array(nbytes)).cast("B"))
                return port
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def open(self, found: Any) -> None:
        """Connects."""
        import redis

        self._client: Any = redis.Redis(_LOOPBACK, found)

    def bring(self) -> Array:
        """Gets the bytes and views them as an array."""
        return np.frombuffer(self._client.get("value"))

    def close(self) -> None:
        """Ends the server."""
        if hasattr(self, "_server"):
            self._server.kill()
            self._server.wait()


class Ray(HostPeer):
    """``ray.get`` on one node of what was put on another; both are on this machine."""

    name = "Ray, between two nodes"
    note = "Ray: two nodes of ray.cluster_utils.Cluster; a task on the second one gets it"

    @classmethod
    def missing(cls) -> str | None:
        """Ray itself."""
        return None if find_spec("ray") else "Ray: pip install 'shmstore[ray]'"

    def open(self, found: Any) -> None:
        """Starts both nodes, and an actor on each."""
        import ray
        from ray.cluster_utils import Cluster

        _, nbytes = found
        memory = 4 * nbytes + (128 << 20)
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "resources": {"a": 1}, "object_store_memory": memory},
        )
        self._cluster.add_node(num_cpus=1, resources={"b": 1}, object_store_memory=memory)
        ray.init(address=self._cluster.address, log_to_driver=False)

        @ray.remote
        class Owner:
            def put(self, nbytes: int) -> list[Any]:
                return [ray.put(array(nbytes))]

        @ray.remote
        class Asker:
            def get(self, refs: list[Any]) -> float:
                start = time.perf_counter()
                value = ray.get(refs[0])
                took = time.perf_counter() - start
                assert value.nbytes > 0
                return took

        self._owner = Owner.options(resources={"a": 1}).remote()
        self._asker = Asker.options(resources={"b": 1}).remote()
        self._nbytes = nbytes

    def took(self) -> float:
        """Seconds of one get, measured where it is made; of a value put anew each time."""
        import ray

        refs = ray.get(self._owner.put.remote(self._nbytes))
        took: float = ray.get(self._asker.get.remote(refs))
        del refs
        return took

    def close(self) -> None:
        """Ends Ray."""
        if hasattr(self, "_cluster"):
            import ray

            ray.shutdown()
            self._cluster.shutdown()


class Dask(HostPeer):
    """What one Dask worker has, gathered by another."""

    name = "Dask, between two workers"
    note = "Dask: LocalCluster of two worker processes over TCP; a task on the second one needs it"

    @classmethod
    def missing(cls) -> str | None:
        """Dask itself."""
        return None if find_spec("distributed") else "Dask: pip install 'shmstore[dask]'"

    def open(self, found: Any) -> None:
        """Starts the scheduler and both workers."""
        from distributed import Client, LocalCluster

        place, self._nbytes = found
        self._cluster: Any = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host=_LOOPBACK,
            dashboard_address=None,
            local_directory=place,
            memory_limit=0,
        )
        self._client: Any = Client(self._cluster)
        self._first, self._second = list(self._client.scheduler_info()["workers"])

    def took(self) -> float:
        """Seconds from asking for a task on the one worker that needs what is on the other."""
        from distributed import wait

        value = self._client.submit(array, self._nbytes, workers=self._first, pure=False)
        wait(value)
        start = time.perf_counter()
        wait(self._client.submit(_nbytes_of, value, workers=self._second, pure=False))
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends the cluster."""
        if hasattr(self, "_cluster"):
            self._client.close()
            self._cluster.close()


def _nbytes_of(value: Array) -> int:
    return value.nbytes


#: Those that are brought in another process, in turn with ours.
PLAIN: tuple[type[Plain], ...] = (Tcp, RedisTcp)
#: Those that tell by themselves how long it took.
CLUSTERS: tuple[type[HostPeer], ...] = (Ray, Dask)
