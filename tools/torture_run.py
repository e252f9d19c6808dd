"""The run: rounds of workers that are killed, and after each round a look at everything."""

from __future__ import annotations

import os
import pickle
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import Any

from shmstore import crashpoints
from tools import torture_family as family
from tools import torture_ledger as ledger
from tools import torture_looking as looking
from tools.torture_family import Process
from tools.torture_history import Fault, History
from tools.torture_scene import BROKEN, LEAVE, MISSED, OVER, Plan, Scene
from tools.torture_steps import all_steps, clear_awaited, put_awaited
from tools.torture_worker import Worker, run

#: Seconds within which a process must end that has been told to.
PATIENCE_S = 60.0

_ROUND_S = 2.0
_FIRST_WRITER = 16
_NUMBERS_EACH = 16  # a worker's, and those of the children that it forks


@dataclass
class Summary:
    """What a run did.

    Attributes:
        seed: Of the run.
        kills: By crash point; "at random" and "while stopped" besides.
        missed: Crash points that workers should have been killed at and did not get to.
        forks: How many workers were forked in the middle of a change.
        stops: How many were stopped and continued.
        rounds: How often all was looked at.
        calls: Changes that were acknowledged, by call.
        in_doubt: Changes that a kill cut short.
        looks: Values that were read and judged.
        values: Values found right at the end of rounds.
        views: How often a view was compared with what it was.
        refusals: By error.
        most_memory: The most shared memory after a round, bytes.
        seconds: How long it took.
        faults: What is wrong.
    """

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    forks: int = 0
    stops: int = 0
    rounds: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    in_doubt: int = 0
    looks: int = 0
    values: int = 0
    views: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    most_memory: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)


@dataclass
class _Running:
    process: Process
    plan: Plan
    writer: int
    due: list[tuple[float, int]]  # when it is sent which signal


class Torture:
    """One run.

    Args:
        scene: What the workers share.
        workers: How many there are at once.
    """

    def __init__(self, scene: Scene, workers: int) -> None:
        self._scene = scene
        self._workers = workers
        self._chance = random.Random(f"{scene.seed}/schedule")
        self._writer = _FIRST_WRITER
        self._deck: list[str] = []
        self._history = History()
        self._deaths: dict[int, int] = {}
        self._running: dict[int, _Running] = {}
        self._sent: Counter[int] = Counter()
        self.summary = Summary(scene.seed)

    def run(self, seconds: float, kills: int | None) -> Summary:
        """Runs until the time is over, the kills are done or something is wrong."""
        start = time.monotonic()
        until = start + seconds
        with self._witness():
            while self._goes_on(until, kills):
                self._round(min(until, time.monotonic() + _ROUND_S), kills)
        self.summary.seconds = time.monotonic() - start
        return self.summary

    @contextmanager
    def _witness(self) -> Iterator[None]:
        self._scene.stop[LEAVE] = 0
        apart = os.path.join(self._scene.ledgers, looking.WITNESS)
        os.mkdir(apart)
        self._holder = family.fork(lambda: looking.witness(self._scene))
        try:
            yield
        finally:
            self._scene.stop[LEAVE] = 1
            if not self._holder.reap(PATIENCE_S):
                self._hangs("the witness", self._holder, 1)
            for writer, events in ledger.collect(apart).items():
                self._history.take(writer, events, monotonic_ns())
            if self._holder.status:
                self._fault(f"the witness ended with {self._holder.status}")
            self.summary.views += self._history.kept
            self.summary.faults += self._history.faults

    # --- A round -------------------------------------------------------------------

    def _round(self, until: float, kills: int | None) -> None:
        self._scene.stop[OVER] = 0
        self._let_do(clear_awaited)
        try:
            for slot in range(self._workers):
                self._start(slot)
            while self._goes_on(until, kills):
                self._wait_and_signal(until)
                for slot, one in list(self._running.items()):
                    if one.process.reap(0):
                        self._ended(one)
                        self._start(slot)
        finally:
            self._scene.stop[OVER] = 1
            for one in self._running.values():
                if not one.process.reap(0):
                    one.process.signal(signal.SIGCONT)
            self._let_do(put_awaited)
            self._let_all_end()
        self._look()

    def _goes_on(self, until: float, kills: int | None) -> bool:
        summary = self.summary
        enough = kills is not None and summary.kills.total() >= kills
        over = time.monotonic() >= until or self._scene.interrupted
        return not (over or enough or summary.faults)

    def _let_do(self, course: Callable[[Worker], None]) -> None:
        """Lets a worker that is not killed do something, and waits for its end."""
        one = self._fork(Plan(self._workers, 1), course)
        if not one.process.reap(PATIENCE_S):
            self._hangs(f"writer {one.writer}", one.process, one.writer)
        self._ended(one)

    def _fork(self, plan: Plan, course: Callable[[Worker], None]) -> _Running:
        writer = self._writer
        self._writer += _NUMBERS_EACH
        process = family.fork(partial(run, self._scene, plan, course, writer))
        return _Running(process, plan, writer, [])

    def _start(self, slot: int) -> None:
        plan = self._plan(slot)
        due: list[tuple[float, int]] = []
        now, chance = time.monotonic(), self._chance
        if plan.point is None and chance.random() < 0.9:
            due.append((now + chance.uniform(0.002, 0.15), signal.SIGKILL))
        if chance.random() < 0.15:
            at = now + chance.uniform(0.002, 0.1)
            due += [(at, signal.SIGSTOP), (at + chance.uniform(0.01, 0.2), signal.SIGCONT)]
        self._running[slot] = self._fork(plan, all_steps)
        self._running[slot].due = sorted(due)

    def _plan(self, slot: int) -> Plan:
        chance = self._chance
        steps, floor = chance.randrange(20, 400), chance.choice((1 << 16, 1 << 18, 1 << 20))
        sweeps = chance.random() < 0.3
        if chance.random() < 0.4:
            return Plan(slot, steps, floor=floor, sweeps=sweeps)
        if not self._deck:
            self._deck = list(crashpoints.POINTS)
            chance.shuffle(self._deck)
        point = self._deck.pop()
        occurrence = chance.choice((1, 1, 2, 5))
        sweeps = sweeps or point.startswith("sweep")
        return Plan(slot, steps, point, occurrence, chance.random() < 0.1, floor, sweeps)

    def _wait_and_signal(self, until: float) -> None:
        due = [one.due[0][0] for one in self._running.values() if one.due]
        left = min([until, *due]) - time.monotonic()
        select.select([one.process.pidfd for one in self._running.values()], [], [], max(0, left))
        now = time.monotonic()
        for one in self._running.values():
            while one.due and one.due[0][0] <= now:
                _, number = one.due.pop(0)
                if not one.process.reap(0):
                    one.process.signal(number)
                    self._sent[number] += 1

    def _ended(self, one: _Running) -> None:
        summary, status, plan = self.summary, one.process.status, one.plan
        self._deaths[one.writer] = one.process.death
        if status == -signal.SIGKILL:
            summary.kills["at random" if plan.point is None or plan.forks else plan.point] += 1
        elif status == MISSED:
            summary.missed[plan.point or ""] += 1
        elif status and status != BROKEN:  # who is broken has said so in his ledger
            self._fault(f"writer {one.writer} ended with {status}")
        summary.forks += plan.forks and not status

    def _let_all_end(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for one in self._running.values():
            if not one.process.reap(max(0.0, deadline - time.monotonic())):
                self._hangs(f"writer {one.writer}", one.process, one.writer)
            self._ended(one)
        self._running = {}
        for pid in family.wait_for_orphans({self._holder.pid}, deadline):
            self._fault(f"a forked child, process {pid}, does not end")
            os.kill(pid, signal.SIGKILL)

    def _hangs(self, who: str, process: Process, writer: int) -> None:
        told = family.where(process.pid, looking.ledger_trace(self._scene, writer))
        self._fault(f"{who} hangs:\n{told}")
        process.signal(signal.SIGKILL)
        process.reap(PATIENCE_S)

    # --- A look --------------------------------------------------------------------

    def _take_ledgers(self, now: int) -> None:
        ledgers = ledger.collect(self._scene.ledgers)
        for events in ledgers.values():
            for event in events:
                if event[0] == ledger.KILLED:
                    self._deaths[event[2]] = event[1]
        for writer, events in ledgers.items():
            self._history.take(writer, events, self._deaths.get(writer, now))
        self._deaths = {}

    def _look(self) -> None:
        summary, history = self.summary, self._history
        self._take_ledgers(monotonic_ns())
        asked = {(one.dag_id, id) for one in history.changes for id in one.versions}
        asked |= set(history.standing)
        now = monotonic_ns()
        found = self._found(asked)
        for change in history.changes:
            summary.calls[change.what] += change.certain
            summary.in_doubt += not change.certain
        summary.looks += sum(map(len, history.looks.values()))
        summary.values += len(found.versions)
        summary.views += history.kept
        summary.kills.update(history.killed)
        summary.refusals.update(history.refusals)
        summary.stops = self._sent[signal.SIGCONT]
        summary.rounds += 1
        summary.most_memory = max(summary.most_memory, found.shared_memory)
        summary.faults += found.faults + history.judge(found.versions, now)
        history.settle(found.versions)

    def _found(self, asked: set[tuple[str, str]]) -> looking.Found:
        path = os.path.join(self._scene.ledgers, "found")
        look = partial(looking.look_at_all, self._scene, asked)
        process = family.fork(lambda: looking.look_to(path, look))
        if not process.reap(PATIENCE_S):
            self._hangs("the look at everything", process, 0)
            return looking.Found()
        if process.status:
            self._fault(f"the look at everything ended with {process.status}")
            return looking.Found()
        with open(path, "rb") as file:
            result: Any = pickle.load(file)
        os.unlink(path)
        assert isinstance(result, looking.Found)
        return result

    def _fault(self, text: str) -> None:
        self.summary.faults.append(Fault(text))
