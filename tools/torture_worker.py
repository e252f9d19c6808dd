"""A process that uses the store at random until it is told to stop or is killed.

All its choices follow from the seed and its number. It writes into its ledger what it
means to do and what it was told; it judges nothing but values that differ from what their
version says, and views that change.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import Any, NoReturn

import numpy as np

import shmstore
from shmstore import compaction, crashpoints, upkeep
from tests import reading_files
from tools import torture_evidence as evidence
from tools import torture_values as values
from tools.torture_ledger import Ledger, StrayedError
from tools.torture_scene import (
    BROKEN,
    CONTENDED_IDS,
    MISSED,
    OWN_IDS,
    SHARED,
    SHARED_IDS,
    Plan,
    Scene,
)
from tools.torture_values import COUNTER_BITS, GONE, SOME

_HELD = 24  # views at once
_CHILD_STEPS = 12
_CHILDREN = 15  # of one worker, whose numbers follow on its own
_CHILD_LEAVES_S = 30.0
_INDEX_HEAD = 128


class Worker:
    """One process's use of the store.

    Attributes:
        scene: What it shares with others.
        plan: What becomes of it.
        course: All that it does until its end.
        chance: Its choices.
        store: Its store.
        told: What its last call that was refused was told.
        own: The DAG that only workers of its slot write to, one at a time.
    """

    def __init__(
        self, scene: Scene, plan: Plan, course: Callable[[Worker], None], writer: int
    ) -> None:
        self.scene, self.plan, self.course = scene, plan, course
        self.own = f"own-{plan.slot}"
        self.store = scene.store()
        self.told: type[shmstore.StoreError] | None = None
        self._held: list[tuple[str, str, int, Any]] = []
        self._children: list[int] = []
        self._forked = 0
        self._be(writer)

    def _be(self, writer: int) -> None:
        self.writer = writer
        self._pid = os.getpid()
        self._counter = 0
        self.chance = random.Random(f"{self.scene.seed}/{writer}")
        self.ledger = Ledger(self.scene.ledgers, writer)
        trace = os.path.join(self.scene.ledgers, f"trace-{writer}")
        self._trace = open(trace, "w", encoding="utf-8")  # noqa: SIM115, kept for the handler
        faulthandler.register(signal.SIGUSR1, self._trace, all_threads=True)

    # --- Places and values ---------------------------------------------------------

    def dag_id(self) -> str:
        """One of the DAGs it writes to, its own one most often."""
        return self.own if self.chance.random() < 0.6 else self.chance.choice(SHARED)

    def id(self, dag_id: str) -> str:
        """One of the ids that it writes to in a DAG."""
        if dag_id == self.own:
            return f"id-{self.chance.randrange(OWN_IDS)}"
        if self.chance.random() < 0.5:
            return f"any-{self.chance.randrange(CONTENDED_IDS)}"
        return f"{self.plan.slot}/{self.chance.randrange(SHARED_IDS)}"

    def version(self) -> int:
        """A version that no value had before."""
        self._counter += 1
        return self.writer << COUNTER_BITS | self._counter

    def value(self, dag_id: str, id: str, version: int) -> Any:
        """The value that belongs there."""
        return values.make(self.scene.seed, dag_id, id, version)

    # --- Calls, noted in the ledger ------------------------------------------------

    def change(
        self, what: str, dag_id: str, versions: dict[str, int], call: Callable[[], Any]
    ) -> bool:
        """Makes one call that changes something; returns whether it did."""
        number = self.ledger.intend(what, dag_id, versions)
        try:
            call()
        except (shmstore.NotFound, shmstore.EntryExists, shmstore.StoreFull) as error:
            self.told = type(error)
            self.ledger.refused(number, type(error).__name__)
            return False
        self.ledger.done(number)
        return True

    def put(self, dag_id: str, id: str, *, overwrite: bool = True) -> bool:
        """A put; returns whether it was done."""
        version = self.version()
        value = self.value(dag_id, id, version)
        before = monotonic_ns()
        call = lambda: self.store.put(dag_id, id, value, overwrite=overwrite)  # noqa: E731
        done = self.change("put", dag_id, {id: version}, call)
        if not done and not overwrite and self.told is shmstore.EntryExists:
            self.ledger.saw(before, dag_id, id, SOME)
        return done

    def put_many(self, dag_id: str, ids: list[str]) -> None:
        """A put of several."""
        versions = {id: self.version() for id in ids}
        new = {id: self.value(dag_id, id, version) for id, version in versions.items()}
        self.change("put_many", dag_id, versions, lambda: self.store.put_many(dag_id, new))

    def delete(self, dag_id: str, id: str) -> None:
        """A delete, of something or not."""
        before = monotonic_ns()
        call = lambda: self.store.delete(dag_id, id)  # noqa: E731
        if not self.change("delete", dag_id, {id: GONE}, call) and self.told is shmstore.NotFound:
            self.ledger.saw(before, dag_id, id, GONE)

    def delete_many(self, dag_id: str, ids: list[str]) -> None:
        """A delete of several, all or none."""
        versions = dict.fromkeys(ids, GONE)
        self.change("delete_many", dag_id, versions, lambda: self.store.delete_many(dag_id, ids))

    def clear(self, dag_id: str) -> None:
        """A clear."""
        self.change("clear", dag_id, {}, lambda: self.store.clear(dag_id))

    def get(self, dag_id: str, id: str, mode: str = "read") -> Any:
        """A get; what it gave must be whole. Returns None for nothing."""
        before = monotonic_ns()
        value = self.store.get(dag_id, id, mode=mode, default=None)
        self.saw(before, dag_id, id, value)
        return value

    def saw(self, before: int, dag_id: str, id: str, value: Any) -> int:
        """Notes what was read since ``before``."""
        version = GONE
        if value is not None:
            try:
                version = values.check(self.scene.seed, dag_id, id, value)
            except values.WrongValueError as error:
                self.ledger.fault(f"writer {self.writer} read half a value: {error}", dag_id, id)
                return version
        self.ledger.saw(before, dag_id, id, version)
        return version

    # --- Views ---------------------------------------------------------------------

    def hold(self, dag_id: str, id: str) -> None:
        """Keeps what a get gave, for a random time."""
        before = monotonic_ns()
        value = self.store.get(dag_id, id, default=None)
        version = self.saw(before, dag_id, id, value)
        if version != GONE:
            self._held.append((dag_id, id, version, value))
        if len(self._held) > _HELD:
            place = self.chance.randrange(len(self._held))
            self._look_at([self._held.pop(place)])

    def look_at_views(self) -> None:
        """Compares all views with what they were."""
        self._look_at(self._held)

    def _look_at(self, held: list[tuple[str, str, int, Any]]) -> None:
        for dag_id, id, version, value in held:
            if not values.same(value, self.value(dag_id, id, version)):
                text = f"a view that writer {self.writer} holds of version {version:#x} has changed"
                self.ledger.fault(text, dag_id, id)
        self.ledger.kept(len(held))

    def write_on_copy(self, dag_id: str, id: str) -> None:
        """Writes into a copy-on-write view, which nobody else may see."""
        value = self.get(dag_id, id, mode="cow")
        if isinstance(value, np.ndarray):
            value[:] = 7
            self.get(dag_id, id)
            self.look_at_views()
            if not (value == 7).all():
                self.ledger.fault("what was written into a private view is gone", dag_id, id)

    # --- The course of things ------------------------------------------------------

    def reopen(self) -> None:
        """Goes on with another store; the views stay."""
        self.store.close()
        self.store = self.scene.store()

    def limit(self) -> None:
        """Opens the store with the capacity that it has."""
        shmstore.Store(self.scene.root, capacity=self.scene.capacity).close()
        self.put(self.own, "large-0")

    def spill_elsewhere(self) -> None:
        """Makes a namespace beside the others that spills into the same directory."""
        spill = os.path.dirname(os.readlink(os.path.join(self.scene.root, "default", "spill")))
        shmstore.Store(self.scene.root, f"beside-{self.writer}", spill=spill).close()

    def fork(self) -> None:
        """Forks here and now; both go on, the child for a while."""
        if self._forked < _CHILDREN and os.getpid() == self._pid:
            self._forked += 1
            pid = os.fork()
            if pid:
                self._children.append(pid)

    def kill_a_child_at(self, point: str, do: Callable[[Worker], None]) -> None:
        """Lets a forked child do something until it is killed at a point, or ends."""
        if os.getpid() != self._pid:
            raise StrayedError
        if self._forked >= _CHILDREN:
            return
        self._forked += 1
        number = self.writer + self._forked
        pid = os.fork()
        if not pid:
            self.plan = Plan(self.plan.slot, 1, point)
            self.course = lambda worker: worker.step(do)
            self._be_a_child(number)
            self.arm()
            end(self)
        self._children.append(pid)
        status = self._wait_for(pid)
        if status == -signal.SIGKILL:
            self.ledger.killed(number, point)
        elif status not in (None, 0, MISSED):
            self.ledger.fault(f"writer {number}, to be killed at {point}, ended with {status}")

    def damage_slot(self, id: str) -> None:
        """Flips a bit of the slot of a value of its own DAG, if it has the value."""
        path = Path(self.scene.root) / "default" / "dags" / self.own
        if not (path / "manifest").exists():
            return
        try:
            dag = reading_files.read_dag(path)
        except FileNotFoundError:
            return  # others share it, and have replaced its files or cleared it
        if id in dag.records:
            hashed = dag.records[id].key_hash.to_bytes(8, "little")
            with suppress(FileNotFoundError), dag.index.open("r+b") as file:
                raw = file.read()
                at = raw.find(hashed, _INDEX_HEAD)
                if at > 0:
                    file.seek(at + 8)
                    file.write(bytes([raw[at + 8] ^ 0x10]))

    def step(self, do: Callable[[Worker], None]) -> None:
        """Does one thing; a child that comes out of it becomes a worker of its own."""
        try:
            do(self)
        except StrayedError:
            pass
        except shmstore.StoreError:
            # A child is told so that was forked in the middle of a change.
            if os.getpid() == self._pid:
                raise
        if os.getpid() != self._pid:
            self._stray()

    def _stray(self) -> NoReturn:
        """In a forked child: goes on under a name of its own, and ends."""
        crashpoints.hook = None
        self.plan = Plan(self.plan.slot, _CHILD_STEPS)
        # The parent goes on with its own DAG, which must have one writer.
        self.own = SHARED[0]
        self._be_a_child(self.writer + self._forked)
        end(self)

    def _be_a_child(self, number: int) -> None:
        self._children = []
        self._forked = _CHILDREN  # has no numbers to give to children of its own
        self._be(number)

    def wait_for_children(self) -> None:
        """Waits for the children that it has forked."""
        for pid in list(self._children):
            self._wait_for(pid)

    def _wait_for(self, pid: int) -> int | None:
        deadline = time.monotonic() + _CHILD_LEAVES_S
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                self.ledger.fault(f"the forked child {pid} of writer {self.writer} hangs")
                return None
            time.sleep(0.001)
        self._children.remove(pid)
        return os.waitstatus_to_exitcode(ended[1])

    def arm(self) -> None:
        """Sets the hook that kills or forks at the planned point."""
        left = self.plan.occurrence

        def hook(name: str) -> None:
            nonlocal left
            if name == self.plan.point:
                left -= 1
                if not left:
                    if not self.plan.forks:
                        os.kill(os.getpid(), signal.SIGKILL)
                    self.fork()

        if self.plan.point is not None:
            crashpoints.hook = hook


def run(scene: Scene, plan: Plan, course: Callable[[Worker], None], writer: int) -> NoReturn:
    """A forked process: works, and ends without returning."""
    compaction.FLOOR = plan.floor
    if plan.sweeps:
        upkeep._EVERY_NS = 1
    worker = None
    try:
        worker = Worker(scene, plan, course, writer)
        worker.arm()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(BROKEN)
    end(worker)


def end(worker: Worker) -> NoReturn:
    """Does all of a worker's steps, looks at its views and exits."""
    status = BROKEN
    try:
        worker.course(worker)
        worker.look_at_views()
        worker.wait_for_children()
        missed = worker.plan.point is not None and not worker.plan.forks
        status = MISSED if missed and not worker.scene.over else 0
    except BaseException as error:
        told = f"writer {worker.writer}: {evidence.told(error, worker.store)}"
        try:
            worker.ledger.fault(told)
        except BaseException:
            os.write(2, (told + traceback.format_exc()).encode())
    finally:
        os._exit(status)
