"""A ``multiprocess`` pool that is ready when it says so and tells when a worker dies.

A pool on its own starts another worker in a dead one's place and waits forever for
the lost result; and to end it may wait forever for a lock that the dead one held.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import multiprocess
import multiprocess.connection

from shmstore.demo import work
from shmstore.demo.facts import DemoError
from shmstore.demo.stop import Stop, blocked

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
        self._arrivals: deque[Any] = deque()
        context = multiprocess.get_context(start_method)
        others = set(multiprocess.active_children())
        self._ready, self._announce = context.Pipe(duplex=False)
        with blocked():
            self._pool = context.Pool(
                count, initializer=work.begin, initargs=(self._announce, root, namespace)
            )
        self._workers = [p for p in multiprocess.active_children() if p not in others]
        self.pids: list[int] = []
        try:
            while len(self.pids) < count:
                self._wait()
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
        asked = 0
        for arguments in calls:
            self._stop.check()
            self._pool.apply_async(
                function, arguments, callback=self._arrived, error_callback=self._arrived
            )
            asked += 1
        results: list[Any] = []
        while len(results) < asked:
            while self._arrivals:
                arrived = self._arrivals.popleft()
                if isinstance(arrived, BaseException):
                    raise arrived
                results.append(arrived)
                done(len(results))
            if len(results) < asked:
                self._wait()
        return results

    def _arrived(self, result: Any) -> None:
        self._arrivals.append(result)
        self._stop.ring()

    def _wait(self) -> None:
        """Waits for a result, a worker that is ready, a worker's death, or a signal."""
        sentinels = {worker.sentinel: worker for worker in self._workers}
        happened = multiprocess.connection.wait([self._stop.bell, self._ready, *sentinels])
        self._stop.silence()
        self._stop.check()
        for sentinel in happened:
            if sentinel in sentinels:
                raise WorkerDied(_obituary(sentinels[sentinel]))

    def end(self) -> None:
        """Ends all workers, whatever state they are in. Again does nothing."""
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


def _obituary(worker: Any) -> str:
    # The pool's own thread may be reaping it at this moment.
    deadline = time.monotonic() + 1.0
    while worker.exitcode is None and time.monotonic() < deadline:
        worker.join(0.01)
    code = worker.exitcode
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        how = "ended" if code is None else f"ended with exit code {code}"
    return f"Worker process {worker.pid} {how} before its work was done."
