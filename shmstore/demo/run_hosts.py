"""The demo's DAG on several hosts: what is put on one is read on another. Orders the steps.

The main process is one of the first host. It loads, splits and merges; each host's workers
work the statistics of some parts out, which they get from their own store if need be by way of
the network, and put them there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shmstore.demo import summary, work
from shmstore.demo.crew import Crew
from shmstore.demo.facts import Crossing, DemoError, Network, Report, Step, Task, Way, Worker
from shmstore.demo.hosts import NAMESPACE, Hosts, check_server
from shmstore.demo.place import Ground, remove_leftovers, without_network
from shmstore.demo.run import DAG_ID, MERGED, Choices, Tick, checked, load, step, workers
from shmstore.demo.source import Source, split
from shmstore.demo.stop import Stop
from shmstore.errors import RegistryUnavailable, StoreError, WaitTimeout
from shmstore.place import own_directory

if TYPE_CHECKING:
    import pyarrow as pa

_WITHOUT = "a pipe does not reach other hosts"
# How long a call that waits for other hosts may go on before a signal is looked for.
_SLICE_S = 0.5
# How long a process that died may take to be known dead, when its work failed.
_LATE_S = 0.3
_PATIENCE_S = 60.0
_SLOWEST_BYTES_S = 2_000_000

T = TypeVar("T")


def run_hosts(choices: Choices, tick: Tick) -> Report:
    """Runs the DAG on ``choices.hosts`` hosts; leaves nothing behind unless told to.

    Raises:
        As ``run.run``.
    """
    check_server()
    with without_network(), Stop() as stop:
        tick = checked(stop, tick)
        tick("load", 0, 1)
        began = time.perf_counter()
        loaded = load(choices)
        seconds = time.perf_counter() - began
        tick("load", 1, 1)
        with _ground(choices) as ground:
            tick("start hosts", 0, choices.hosts)
            with (
                Hosts(
                    ground.path,
                    choices.hosts,
                    stop,
                    lambda ready: tick("start hosts", ready, choices.hosts),
                ) as hosts,
                _culprit_first(hosts, stop),
            ):
                return _Run(choices, loaded, seconds, hosts, stop, tick).report()


@contextmanager
def _ground(choices: Choices) -> Iterator[Ground]:
    """The directory for all hosts' roots; removed in the end, unless it is to be kept."""
    ground = Ground(choices.root, choices.keep)
    keep = False
    try:
        own_directory(ground.root, forbidden=0o022)
        remove_leftovers(ground.root)
        yield ground
        keep = choices.keep
    finally:
        ground.leave(keep)


@contextmanager
def _culprit_first(hosts: Hosts, stop: Stop) -> Iterator[None]:
    """Tells of a process that died or stopped rather than of what failed because of that."""
    try:
        yield
    except (StoreError, DemoError):
        stop.wait(timeout=_LATE_S)
        hosts.check_nodes()
        raise


class _Run:
    """The steps of one run, and what they share."""

    def __init__(
        self,
        choices: Choices,
        loaded: Source,
        load_seconds: float,
        hosts: Hosts,
        stop: Stop,
        tick: Tick,
    ) -> None:
        self.choices, self.loaded, self.load_seconds = choices, loaded, load_seconds
        self.hosts, self.stop, self.tick = hosts, stop, tick
        self.here = hosts[0]
        self.crossings: list[Crossing] = []
        self.steps: list[Step] = []

    def report(self) -> Report:
        """The DAG, and the check."""
        store, loaded = self.here.store, self.loaded
        began = time.perf_counter() - self.load_seconds
        self._did("load", store.put(DAG_ID, loaded.id, loaded.table).id, began)
        del loaded.table
        table = store.get(DAG_ID, loaded.id)
        crews = []
        self.tick("start workers", 0, len(self.hosts))
        with ExitStack() as ending:
            for number, host in enumerate(self.hosts):
                crew = Crew(
                    self.choices.crew_size,
                    self.choices.start_method,
                    host.root,
                    NAMESPACE,
                    self.stop,
                )
                crews.append(ending.enter_context(crew))
                self.tick("start workers", number + 1, len(self.hosts))
            began = time.perf_counter()
            parts = self._split(table)
            tasks = self._statistics(crews, parts)
            merged = self._merge(parts)
            way = Way(self._workers(crews, tasks), time.perf_counter() - began)
            same = self._same_bytes(tasks)
            server_bytes = self.hosts.server_bytes
        self.tick("check", 0, 1)
        expected = summary.whole(table)
        self.tick("check", 1, 1)
        return Report(
            source=loaded.what,
            by=loaded.by,
            rows=table.num_rows,
            columns=table.num_columns,
            nbytes=self.steps[0].nbytes,
            start_method=self.choices.start_method,
            steps=tuple(self.steps),
            store=way,
            pickled=None,
            pickled_skipped=_WITHOUT,
            checked_columns=len(expected),
            differences=tuple(summary.differences(merged, expected)),
            same_bytes=same,
            dag_id=DAG_ID,
            root=self.here.root,
            namespace=NAMESPACE,
            kept=self.choices.keep,
            network=Network(
                {host.name: host.root for host in self.hosts}, tuple(self.crossings), server_bytes
            ),
        )

    def _split(self, table: pa.Table) -> list[str]:
        """Stores the parts on this host; returns their names."""
        store = self.here.store
        masks = split(table, self.loaded.by)
        for number, (name, mask) in enumerate(masks):
            self.tick("split", number, len(masks))
            began = time.perf_counter()
            store.put(DAG_ID, f"part/{name}", table.filter(mask), deps=(self.loaded.id,))
            self._did("split", f"part/{name}", began)
        self.tick("split", len(masks), len(masks))
        self._patiently(store.sync)  # now the other hosts know where they are
        return [name for name, _ in masks]

    def _statistics(self, crews: list[Crew], parts: list[str]) -> list[Task]:
        """Has the hosts work on the parts in turn, the first part on the second host."""
        store, hosts = self.here.store, self.hosts
        for number, name in enumerate(parts):
            at = (number + 1) % len(hosts)
            part = f"part/{name}"
            patience_s = _PATIENCE_S + store.entry(DAG_ID, part).nbytes / _SLOWEST_BYTES_S
            call = (DAG_ID, part, f"statistics/{name}", hosts[at].name, patience_s)
            crews[at].ask(work.from_hosts, [call])
        tasks: list[Task] = []
        came: dict[str, Crossing] = {}
        for crew in crews:
            before = len(tasks)
            tell = self._telling(before, len(parts))
            for task, crossing in crew.results(tell):
                tasks.append(task)
                if crossing is not None:
                    came[crossing.id] = crossing
        self.crossings += [came[f"part/{name}"] for name in parts if f"part/{name}" in came]
        self._tasks = {task.result: task for task in tasks}
        return tasks

    def _telling(self, before: int, of: int) -> Callable[[int], None]:
        return lambda done: self.tick("statistics", before + done, of)

    def _merge(self, parts: list[str]) -> dict[str, summary.Summary]:
        """Merges the statistics, wherever they are, and stores the result here."""
        store = self.here.store
        results = [f"statistics/{name}" for name in parts]
        found = []
        for number, id in enumerate(results):
            began = time.perf_counter()
            found.append(self._patiently(partial(store.get_with_timeout, DAG_ID, id)))
            entry = store.entry(DAG_ID, id)
            came = work.crossing(entry, self.here.name, time.perf_counter() - began)
            if came is not None:
                self.crossings.append(came)
            task = self._tasks[id]
            at = self.hosts[(number + 1) % len(self.hosts)].name
            self.steps.append(step(store, "statistics", entry, task.pid, task.seconds, at))
        began = time.perf_counter()
        merged = summary.merge_tables(found)
        store.put(DAG_ID, MERGED, merged, deps=results)
        self._did("merge", MERGED, began)
        return merged

    def _did(self, name: str, id: str, began: float) -> None:
        seconds = time.perf_counter() - began
        here = self.here
        entry = here.store.entry(DAG_ID, id)
        self.steps.append(step(here.store, name, entry, os.getpid(), seconds, here.name))

    def _workers(self, crews: list[Crew], tasks: list[Task]) -> tuple[Worker, ...]:
        found: list[Worker] = []
        for host, crew in zip(self.hosts, crews, strict=True):
            mine = [task for task in tasks if task.pid in crew.pids]
            found += workers(crew.pids, mine, host.name)
        return tuple(found)

    def _same_bytes(self, tasks: list[Task]) -> bool:
        """Whether every worker has read the very bytes that were put on this host."""
        stored = self.here.store.get_buffer
        return all(task.digest == work.digest(stored(DAG_ID, task.part)) for task in tasks)

    def _patiently(self, call: Callable[[float], T]) -> T:
        """What a call returns that takes a timeout, in pieces between which a signal is seen."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self.stop.check()
            try:
                return call(_SLICE_S)
            except (RegistryUnavailable, WaitTimeout):
                self.hosts.check_nodes()
                if time.monotonic() > deadline:
                    raise
