"""A ``multiprocess`` pool that is ready when it says so and tells when a worker dies.

A pool on its own starts another worker in a dead one's place and waits forever for
the lost result; and to end it may wait forever for a lock that the dead one held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import multiprocess

from shmstore.demo import work
from shmstore.demo.facts import DemoError
from shmstore.demo.stop import Stop, blocked
from shmstore.demo.tether import how_it_ended

START_METHODS = ("fork", "spawn", "forkserver")
# Longer than any orderly end takes; what is not over by then waits for a dead process.
_PATIENCE_S = 3.0


class WorkerDied(DemoError):
    """A worker process ended before its work did."""


class Crew:
    """Worker processes of one run; a context manager that leaves none of them behind.

    Attributes:
        pids: The workers.
    """

    def __init__(
        self, count: int, start_method: str, root: str, namespace: str, stop: Stop
    ) -> None:
        """Starts the workers and waits until all are ready.

        Args:
            count: How many.
            start_method: "fork", "spawn" or "forkserver".
            root: Where their store is.
            namespace: Its namespace.
            stop: What may end the wait.

        Raises:
            DemoError: A worker could not start, or died.
            Stopped: A signal came.
        """
        self._stop = stop
        self._asked = 0
        self._arrivals: deque[Any] = deque()
        context = multiprocess.get_context(start_method)
        others = set(multiprocess.active_children())
        self._ready, self._announce = context.Pipe(duplex=False)
        with blocked():
            self._pool = context.Pool(
                count, initializer=work.begin, initargs=(self._announce, root, namespace)
            )
        self._workers = [p for p in multiprocess.active_children() if p not in others]
        for worker in self._workers:
            stop.watch(worker.sentinel, partial(_died, worker))
        self.pids: list[int] = []
        try:
            while len(self.pids) < count:
                stop.wait(self._ready)
                while self._ready.poll():
                    said = self._ready.recv()
                    if isinstance(said, str):
                        raise DemoError(f"A worker process could not start: {said}")
                    self.pids.append(said)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        done: Callable[[int], None],
    ) -> list[Any]:
        """Has the workers make calls, and returns the results in the order of arrival.

        Args:
            function: A function of a module, which workers can import.
            calls: The arguments of each call.
            done: Is told after each result how many there are.

        Raises:
            WorkerDied: One did.
            Stopped: A signal came.
            Exception: What a call raised.
        """
        self.ask(function, calls)
        return self.results(done)

    def ask(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> None:
        """Has the workers make calls; ``results`` waits for them."""
        for arguments in calls:
            self._stop.check()
            self._pool.apply_async(
                function, arguments, callback=self._arrived, error_callback=self._arrived
            )
            self._asked += 1

    def results(self, done: Callable[[int], None]) -> list[Any]:
        """The results of what was asked for, once all are there. Raises as ``run`` does."""
        results: list[Any] = []
        while len(results) < self._asked:
            while self._arrivals:
                arrived = self._arrivals.popleft()
                if isinstance(arrived, BaseException):
                    raise arrived
                results.append(arrived)
                done(len(results))
            if len(results) < self._asked:
                self._stop.wait()
        self._asked = 0
        return results

    def _arrived(self, result: Any) -> None:
        self._arrivals.append(result)
        self._stop.ring()

    def end(self) -> None:
        """Ends all workers, whatever state they are in. Again does nothing."""
        for worker in self._workers:
            self._stop.unwatch(worker.sentinel)
        orderly = threading.Thread(target=self._pool.terminate, daemon=True)
        orderly.start()
        orderly.join(_PATIENCE_S)
        # The pool starts no more workers once it ends, so these are all there are.
        for worker in multiprocess.active_children():
            if worker.daemon and worker.name.find("PoolWorker") >= 0 and orderly.is_alive():
                worker.kill()
        for worker in self._workers:
            worker.join(_PATIENCE_S)
        self._ready.close()
        self._announce.close()


def _died(worker: Any) -> WorkerDied:
    # The pool's own thread may be reaping it at this moment.
    deadline = time.monotonic() + 1.0
    while worker.exitcode is None and time.monotonic() < deadline:
        worker.join(0.01)
    return WorkerDied(how_it_ended(f"Worker process {worker.pid}", worker.exitcode))
