"""What do a million entries in a DAG cost: in memory, to open, to read from, to clear?"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from time import perf_counter_ns
from typing import Any

import shmstore
from benchmarks import contest, place
from benchmarks.contest import Bench, Contest
from benchmarks.measuring import Answer, in_turn, no_garbage, time_gets
from benchmarks.peers import Lmdb, Peer, Shmstore, dumps
from benchmarks.small_values import VALUE
from benchmarks.workers import Worker

NAME = "entries"
TITLE = "a DAG of 1,000,000 entries beside one of 1,000, of 10 and an empty one"

OPEN, ANONYMOUS = "open and first get, new process", "anonymous memory for it"
IMPORT, CLEAR = "import shmstore, new process", "clear"
_CHUNK = 10_000


class _Few(Shmstore):
    name = "shmstore, few"


class _Many(Shmstore):
    name = "shmstore, many"


class _LmdbFew(Lmdb):
    name = "LMDB + pickle, few"
    note = ""


class _LmdbMany(Lmdb):
    name = "LMDB + pickle, many"


def run(bench: Bench) -> Answer:
    """Fills DAGs, then reads, opens and clears them, in turn."""
    few, many = (1_000, 5_000) if bench.quick else (1_000, 1_000_000)
    answer = Answer(NAME, TITLE)
    get = f"get, one of {many:,} or of {few:,}"
    answer.reference = {get: _Few.name, OPEN: "empty", ANONYMOUS: "empty"}
    kinds: tuple[type[Peer], ...] = (_Few, _Many, _LmdbFew, _LmdbMany)
    with contest.held(bench.place, kinds) as held:
        for peer in held.peers:
            _fill(peer, few if peer.name.endswith("few") else many, answer)
        _measure_gets(bench, held, get, {"few": few, "many": many}, answer)
        root = next(peer.address for peer in held.peers if isinstance(peer, _Many))
        _measure_opening(bench, root, many, answer)
        payload = len(pickle.dumps(VALUE, 5)) * many
        overhead = (place.allocated(_dag_directory(root)) - payload) / many
        _measure_clearing(bench, root, answer)
        answer.notes += held.notes
    ratio = answer.ratio(get, _Many.name, _Few.name)
    answer.ask(f"get: with {many:,} at most 1.5 times with {few:,}", ratio, 1.5)
    answer.ask("shared memory an entry beyond its payload: at most", overhead, 256, "bytes")
    _ask(answer, f"{many:,} entries")
    return answer


def _id(number: int) -> str:
    return f"value {number}"


def _fill(peer: Any, count: int, answer: Answer) -> None:
    start = perf_counter_ns()
    for first in range(0, count, _CHUNK):
        ids = [_id(number) for number in range(first, min(count, first + _CHUNK))]
        if isinstance(peer, Shmstore):
            peer.store.put_many(peer.dag, dict.fromkeys(ids, VALUE))
        else:
            with peer.begin(write=True) as transaction:
                for id in ids:
                    transaction.put(id.encode(), dumps(VALUE))
    if peer.name.endswith("many"):
        took = (perf_counter_ns() - start) / 1000 / count
        answer.add(f"put of {count:,} in chunks of {_CHUNK:,}, each", peer.name, took)


def _measure_gets(
    bench: Bench, held: Contest, operation: str, sizes: dict[str, int], answer: Answer
) -> None:
    rounds, batch = (2, 50) if bench.quick else (25, 1000)
    (reader,) = held.workers
    chance = random.Random(1)
    for number, peer in in_turn(held.peers, rounds):
        size = sizes[peer.name.rpartition(" ")[2]]
        ids = [_id(chance.randrange(size)) for _ in range(batch)]
        took = reader.call(_get, peer.name, ids)
        if number >= 0:
            answer.add(operation, peer.name, took)


def _get(name: str, ids: list[str]) -> float:
    return time_gets(contest.attached(name).get, ids)


def _measure_opening(bench: Bench, root: str, many: int, answer: Answer) -> None:
    with shmstore.Store(root) as store:
        for name, count in (("empty", 0), ("10 entries", 10)):
            ids = [_id(n) for n in range(max(1, count))]
            store.put_many(name, dict.fromkeys(ids, VALUE))
            if not count:
                store.delete_many(name, ids)
    dags = [("empty", "empty"), ("10 entries", "10 entries"), (f"{many:,} entries", Shmstore.dag)]
    for number, (name, dag) in in_turn(dags, 1 if bench.quick else 9, 0):
        with Worker() as process:
            took, anonymous, imported = process.call(
                open_dag, root, dag, _id(number), dag != "empty"
            )
        answer.add(OPEN, name, took / 1000, "ms")
        answer.add(ANONYMOUS, name, anonymous / 1000, "MB")
        answer.add(IMPORT, Shmstore.name, imported / 1000, "ms")


def open_dag(root: str, dag: str, id: str, there: bool) -> tuple[float, int, float]:
    """In a new process: microseconds of opening, kB of anonymous memory, and of importing."""
    command = (
        "import time; t = time.perf_counter(); import shmstore; print(time.perf_counter() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    imported = float(done.stdout) * 1e6
    with no_garbage():
        before = anonymous_kb()
        start = perf_counter_ns()
        store = shmstore.Store(root)
        value = store.get(dag, id, default=None)
        took = (perf_counter_ns() - start) / 1000
        more = anonymous_kb() - before
    if value != (VALUE if there else None):
        raise ValueError(f"DAG {dag!r} gave back {value!r}")
    return took, more, imported


def anonymous_kb() -> int:
    """Anonymous memory of this process, kB."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def _dag_directory(root: str) -> str:
    """The directory of the DAG with the most in it."""
    dags = os.path.join(root, "default", "dags")
    return max((os.path.join(dags, name) for name in os.listdir(dags)), key=place.allocated)


def _measure_clearing(bench: Bench, root: str, answer: Answer) -> None:
    """Clears copies of the store, which are as good as the store: it is nothing but files."""
    size = place.allocated(_dag_directory(root))
    for _ in range(1 if bench.quick else 5):
        copy = f"{root}-copy"
        try:
            shutil.copytree(root, copy, ignore=shutil.ignore_patterns("*.sock"))
            with shmstore.Store(copy) as store, no_garbage():
                start = perf_counter_ns()
                if not store.clear(Shmstore.dag).cleared:
                    raise RuntimeError("the copied DAG was not there to be cleared")
                answer.add(CLEAR, Shmstore.name, (perf_counter_ns() - start) / 1e6, "ms")
            shutil.copytree(_dag_directory(root), f"{copy}/floor")
            start = perf_counter_ns()
            shutil.rmtree(f"{copy}/floor")
            answer.add(CLEAR, "unlink of such files", (perf_counter_ns() - start) / 1e6, "ms")
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    answer.reference[CLEAR] = "unlink of such files"
    answer.notes.append(f"the DAG's files take {size:,} bytes")


def _ask(answer: Answer, many: str) -> None:
    took = answer.median(OPEN, many)
    answer.ask(f"{OPEN}: {many} under 10 ms", took, 10, "ms")
    more = answer.median(ANONYMOUS, many) - answer.median(ANONYMOUS, "empty")
    answer.ask(f"{ANONYMOUS}: less than 15 MB more than an empty DAG", more, 15, "MB")
    answer.ask(f"clear of {many}: under 100 ms", answer.median(CLEAR, Shmstore.name), 100, "ms")
