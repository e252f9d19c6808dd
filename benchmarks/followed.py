"""Do puts and gets of a host cost more when a node follows them and registers each?

The same process puts into two roots in turn: one whose node registers with a nats-server all
that is put, and one without.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import shmstore
from benchmarks.contest import Bench
from benchmarks.floors import SmallFloor
from benchmarks.hosts import end_node, start_node
from benchmarks.measuring import Answer, in_turn, time_gets, time_puts
from benchmarks.small_values import VALUE
from shmstore.demo.server import NatsServer

NAME = "followed"
TITLE = "put and get of a two-key dict, with a node that registers them, and without"

PUT, PAUSED, GET = "put, one after the other", "put, each after a pause", "get"
WITHOUT, WITH = "shmstore, no node", "shmstore, with a node"
_DAG = "dag"
# How much longer a median may be for the node's sake: what two runs of one differ by.
_MOST = 1.15


def run(bench: Bench) -> Answer:
    """Measures batches of puts and gets in both roots, and the floor beside."""
    answer = Answer(NAME, TITLE, dict.fromkeys((PUT, PAUSED, GET), WITHOUT))
    rounds, batch = (2, 20) if bench.quick else (40, 300)
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(os.path.join(bench.place, "nats")))
        stack.callback(end_node, start_node(bench.place, "with", server.url))
        stores = {
            name: stack.enter_context(shmstore.Store(os.path.join(bench.place, place)))
            for name, place in ((WITHOUT, "without"), (WITH, "with"))
        }
        floor = SmallFloor.start(bench.place)
        stack.callback(floor.close)
        for number, name in in_turn((SmallFloor.name, WITHOUT, WITH), rounds):
            ids = [f"round {number}, value {n}" for n in range(batch)]
            if name == SmallFloor.name:
                took = {PUT: time_puts(floor.put, ids, VALUE), GET: time_gets(floor.get, ids)}
            else:
                took = _measured(stores[name], ids, followed=name == WITH)
            if number >= 0:
                for operation, each in took.items():
                    answer.add(operation, name, each)
        found = len(stores[WITH].registry.get_all(_DAG))
        answer.notes.append(f"{PAUSED}: the node sleeps by then, and has to be woken")
        answer.notes.append(f"{rounds} rounds of {batch}; {found:,} values registered meanwhile")
    for operation in (PUT, GET):
        ratio = answer.ratio(operation, WITH, WITHOUT)
        answer.ask(f"{operation}: with a node at most {_MOST} x without", ratio, _MOST)
    ratio = answer.ratio(PUT, WITH, SmallFloor.name)
    answer.ask(f"{PUT}, with a node: at most 3 times the floor", ratio, 3)
    return answer


def _measured(store: shmstore.Store, ids: list[str], *, followed: bool) -> dict[str, float]:
    def put(id: str, value: Any) -> None:
        store.put(_DAG, id, value)

    def get(id: str) -> Any:
        return store.get(_DAG, id)

    def waited(id: str, value: Any) -> None:
        store.put("paused", id, value)

    busy = time_puts(put, ids, VALUE)
    if followed:
        store.sync(60)  # so that the gets are beside a node that sleeps, as most of the time
    gets = time_gets(get, ids)
    alone = []
    for id in ids[:: max(1, len(ids) // 20)]:
        if followed:
            store.sync(60)  # then the node sleeps, and the next put has to ring
        alone.append(time_puts(waited, [id], VALUE))
    alone.sort()
    return {PUT: busy, PAUSED: alone[len(alone) // 2], GET: gets}
