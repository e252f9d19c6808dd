"""The demo's DAG, done twice: through the store, and by pickling. Orders the steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmstore.demo import memory, source, summary, work
from shmstore.demo.crew import Crew
from shmstore.demo.facts import InputError, Report, Step, Task, Way, Worker
from shmstore.demo.place import Place, without_network
from shmstore.demo.stop import Stop
from shmstore.entry import INLINE, Entry
from shmstore.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

DAG_ID = "demo"
MERGED = "merged"
_MOST_WORKERS = 4

#: Is told the stage, how much of it is done, and of how much.
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the person chose.

    Attributes:
        input: A file, or None for the flights.
        by: The column to split by.
        rows: Only so many rows.
        workers: How many worker processes, or None for one a processor, at most 4.
        start_method: How they are started.
        root: Root of the store, or None for the default.
        keep: Leave the DAG in the store.
        hosts: On how many hosts; with more than one each has its own root within ``root``, and
            so many workers.
    """

    input: str | None = None
    by: str | None = None
    rows: int | None = None
    workers: int | None = None
    start_method: str = "fork"
    root: str | None = None
    keep: bool = False
    hosts: int = 1

    @property
    def crew_size(self) -> int:
        """How many worker processes a host has."""
        processors = os.cpu_count() or 1
        return self.workers or max(1, min(_MOST_WORKERS, processors // self.hosts))


def run(choices: Choices, tick: Tick) -> Report:
    """Runs the DAG in both ways and compares; leaves nothing behind unless told to.

    Raises:
        InputError: What was chosen cannot be done.
        DemoError: It failed, for example as a worker was killed.
        StoreError: The store could not do it, for example for lack of room.
        Stopped: A signal asked for the end.
    """
    with without_network(), Stop() as stop:
        tick = checked(stop, tick)
        tick("load", 0, 1)
        began = time.perf_counter()
        loaded = load(choices)
        stop.check()
        with Place(choices.root, choices.keep) as place:
            entry = place.store.put(DAG_ID, loaded.id, loaded.table)
            first = step(place.store, "load", entry, os.getpid(), time.perf_counter() - began)
            # From here on this process, too, has no copy of its own.
            del loaded.table
            tick("load", 1, 1)
            return _Run(choices, loaded, place.store, stop, tick).both(first)


def load(choices: Choices) -> source.Source:
    """The table that was chosen.

    Raises:
        InputError: There is nothing to be done with it.
    """
    loaded = source.load(choices.input, choices.by, choices.rows)
    if not summary.numeric_columns(loaded.table.schema):
        raise InputError(f"{loaded.what} has no numeric column, so there are no statistics.")
    return loaded


def checked(stop: Stop, tick: Tick) -> Tick:
    """A tick that ends the run if that was asked for."""

    def checked_tick(stage: str, done: int, of: int) -> None:
        stop.check()
        tick(stage, done, of)

    return checked_tick


class _Run:
    """The steps of one run, and what they share."""

    def __init__(
        self, choices: Choices, loaded: source.Source, store: Store, stop: Stop, tick: Tick
    ) -> None:
        self.choices = choices
        self.loaded = loaded
        self.store = store
        self.stop = stop
        self.tick = tick
        self.table: pa.Table = store.get(DAG_ID, loaded.id)
        self.masks = source.split(self.table, loaded.by)
        self.merged: dict[str, summary.Summary] = {}

    def both(self, first: Step) -> Report:
        """The DAG in both ways, and the check."""
        steps, store_way, same_bytes = self.through_store()
        expected = self.alone()
        differences = summary.differences(self.merged, expected)
        pickled, skipped = None, self.too_large_to_pickle()
        if skipped is None:
            pickled, merged = self.by_pickling()
            differences += [f"pickled: {text}" for text in summary.differences(merged, expected)]
        return Report(
            source=self.loaded.what,
            by=self.loaded.by,
            rows=self.table.num_rows,
            columns=self.table.num_columns,
            nbytes=first.nbytes,
            start_method=self.choices.start_method,
            steps=(first, *steps),
            store=store_way,
            pickled=pickled,
            pickled_skipped=skipped,
            checked_columns=len(expected),
            differences=tuple(differences),
            same_bytes=same_bytes,
            dag_id=DAG_ID,
            root=self.store.root,
            namespace=self.store.namespace,
            kept=self.choices.keep,
        )

    def crew(self) -> Crew:
        """Fresh workers, ready."""
        choices, store = self.choices, self.store
        return Crew(choices.crew_size, choices.start_method, store.root, store.namespace, self.stop)

    def through_store(self) -> tuple[list[Step], Way, bool]:
        """Split, statistics and merge, everything handed on by id."""
        store, tick, parts = self.store, self.tick, len(self.masks)
        steps = []
        tick("start workers", 0, 1)
        with self.crew() as crew:
            tick("start workers", 1, 1)
            began = time.perf_counter()
            calls = []
            for number, (name, mask) in enumerate(self.masks):
                tick("split", number, parts)
                at = time.perf_counter()
                id = f"part/{name}"
                entry = store.put(DAG_ID, id, self.table.filter(mask), deps=(self.loaded.id,))
                steps.append(step(store, "split", entry, os.getpid(), time.perf_counter() - at))
                calls.append((DAG_ID, id, f"statistics/{name}"))
            tick("split", parts, parts)
            tasks: list[Task] = crew.run(
                work.from_store, calls, lambda done: tick("statistics", done, parts)
            )
            at = time.perf_counter()
            results = [result for _, _, result in calls]
            self.merged = summary.merge_tables(store.get_many(DAG_ID, results).values())
            entry = store.put(DAG_ID, MERGED, self.merged, deps=results)
            ended = time.perf_counter()
            digests = {id: work.digest(store.get_buffer(DAG_ID, id)) for _, id, _ in calls}
            by_result = {task.result: task for task in tasks}
            for id in results:
                task = by_result[id]
                steps.append(
                    step(store, "statistics", store.entry(DAG_ID, id), task.pid, task.seconds)
                )
            steps.append(step(store, "merge", entry, os.getpid(), ended - at))
            way = Way(workers(crew.pids, tasks), ended - began)
        return steps, way, all(task.digest == digests[task.part] for task in tasks)

    def alone(self) -> dict[str, summary.Summary]:
        """The statistics of the whole table, by this process and without the parts."""
        self.tick("check", 0, 1)
        expected = summary.whole(self.table)
        self.tick("check", 1, 1)
        return expected

    def by_pickling(self) -> tuple[Way, dict[str, summary.Summary]]:
        """The same, every part sent to a worker and every result sent back."""
        parts = len(self.masks)
        self.tick("the same by pickling", 0, parts)
        with self.crew() as crew:
            began = time.perf_counter()
            calls = ((name, self.table.filter(mask)) for name, mask in self.masks)
            results: list[tuple[Task, dict[str, summary.Summary]]] = crew.run(
                work.from_pipe, calls, lambda done: self.tick("the same by pickling", done, parts)
            )
            merged = summary.merge_tables(found for _, found in results)
            seconds = time.perf_counter() - began
            return Way(workers(crew.pids, [task for task, _ in results]), seconds), merged

    def too_large_to_pickle(self) -> str | None:
        """Why pickling is left out, or None: it has a part several times at once."""
        needed, free = 4 * self.table.nbytes, memory.available()
        if needed <= free:
            return None
        return f"it needs about {needed >> 20:,} MB of memory and {free >> 20:,} MB are free"


def step(store: Store, name: str, entry: Entry, pid: int, seconds: float, host: str = "") -> Step:
    """What a step of the DAG has stored; the arguments as ``Step`` has them."""
    copied = store.explain(DAG_ID, entry.id).copied_bytes
    process = "main" if pid == os.getpid() else "worker"
    note = "inline" if entry.location == INLINE else ""
    return Step(name, process, pid, entry.id, entry.nbytes, seconds, copied, note, host)


def workers(pids: Iterable[int], tasks: list[Task], host: str = "") -> tuple[Worker, ...]:
    """What each worker came to in the end."""
    found = []
    for pid in sorted(pids):
        mine = [task for task in tasks if task.pid == pid]
        found.append(
            Worker(
                pid,
                len(mine),
                sum(task.read_bytes for task in mine),
                max((task.own_bytes for task in mine), default=0),
                max((task.mapped_bytes for task in mine), default=0),
                host,
            )
        )
    return tuple(found)
