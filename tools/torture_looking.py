"""What the runner looks at when nobody is at work, and what the witness looks at always."""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import shmstore
from tests import reading_files
from tools import torture_evidence as evidence
from tools import torture_values as values
from tools.torture_history import Fault, Place
from tools.torture_ledger import Ledger
from tools.torture_scene import BROKEN, Scene

#: Where the witness's ledger is, which lasts longer than a round.
WITNESS = "witness"

_PAGE = 4096
_LARGEST_REST = 4 << 20  # control page, notes of reservations
_VIEWS = 40
_TRIES = 10
_PROBE = "probe"
_VIEWED = "viewed-"


@dataclass
class Found:
    """What one look at everything has found.

    Attributes:
        versions: By place, of all values that are there.
        faults: What is wrong in itself.
        shared_memory: Bytes that the root's files take.
        spilled: Values that lie on disk.
    """

    versions: dict[Place, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    shared_memory: int = 0
    spilled: int = 0


def look_to(path: str, look: Callable[[], Found]) -> NoReturn:
    """In a forked process: writes to a file what a look has found, and exits."""
    status = BROKEN
    try:
        with open(path, "wb") as file:
            pickle.dump(look(), file)
        status = 0
    except BaseException:
        with open(path, "wb") as file:
            pickle.dump(Found(faults=[Fault(traceback.format_exc())]), file)
        status = 0
    finally:
        os._exit(status)


def look_at_all(scene: Scene, asked: Iterable[Place]) -> Found:
    """Reads every value, whichever way it can be asked for, and then the files.

    Args:
        scene: The run.
        asked: Places that may have a value, besides those that are listed.
    """
    found = Found()
    store = scene.store()
    listed: set[Place] = set()
    for info in store.dags():
        if info.fault:
            found.faults.append(Fault(f"DAG {info.dag_id} cannot be read: {info.fault}"))
        ids = list(store.ids(info.dag_id))
        if len(set(ids)) != len(ids) or store.count(info.dag_id) != len(ids):
            text = f"{info.dag_id} counts {store.count(info.dag_id)} values and lists {ids}"
            found.faults.append(Fault(text, info.dag_id))
        listed |= {(info.dag_id, id) for id in ids}
    for place in sorted(listed.union(asked)):
        try:
            value = store.get(*place, default=None)
        except shmstore.CorruptValue as error:
            found.faults.append(Fault(evidence.told(error, store), *place))
            continue
        if (value is None) == (place in listed) or store.has_value(*place) == (value is None):
            text = f"get gives {value!r:.80}, listed is {place in listed}"
            found.faults.append(Fault(text, *place))
        if value is None:
            continue
        try:
            found.versions[place] = values.check(scene.seed, *place, value)
        except values.WrongValueError as error:
            found.faults.append(Fault(f"half a value is stored: {error}", *place))
    for info in store.dags():
        # What dead writers left is seen by readers as it is, and settled by the next writer.
        store.put(info.dag_id, _PROBE, "probe")
        store.delete(info.dag_id, _PROBE)
    report = store.gc()
    found.faults += [Fault(f"gc has failed at {action}") for action in report.failed]
    found.faults += [Fault(f"check has found {finding}") for finding in store.check()]
    store.close()
    _look_at_files(scene, found)
    return found


def _look_at_files(scene: Scene, found: Found) -> None:
    dags = reading_files.read_namespace(scene.root)
    for dag in dags.values():
        found.faults += [Fault(fault, dag.dag_id) for fault in dag.faults]
        if dag.orphans or dag.leftovers or dag.state != reading_files.LIVE:
            text = f"gc has left {dag.orphans}, {dag.leftovers} and state {dag.state!r}"
            found.faults.append(Fault(text, dag.dag_id))
    trash = [n for n in reading_files.trash(scene.root) if not n.startswith(_VIEWED)]
    if trash:
        found.faults.append(Fault(f"gc has left {trash} in the trash"))
    in_files = {(dag.dag_id, id) for dag in dags.values() for id in dag.records}
    if in_files != set(found.versions):
        differing = sorted(in_files.symmetric_difference(found.versions))[:9]
        found.faults.append(Fault(f"the files and the store differ in {differing}"))
    found.spilled = sum(one.spilled for dag in dags.values() for one in dag.records.values())
    _look_at_memory(scene, found, dags)


def _look_at_memory(scene: Scene, found: Found, dags: dict[str, reading_files.DagFiles]) -> None:
    """Shared memory is what the live entries need, and a bounded pool."""
    for path in Path(scene.root).glob("beside-*"):
        shutil.rmtree(path)  # made only to be made to spill
    space = os.path.join(scene.root, "default")
    found.shared_memory = allocated(scene.root)
    needed = sum(_needed(dag) for dag in dags.values())
    in_dags = allocated(os.path.join(space, "dags"))
    if in_dags > needed:
        text = f"the DAGs take {in_dags:,} bytes, their live entries need {needed:,}"
        found.faults.append(Fault(text))
    pool = os.path.join(space, "pool")
    trash = os.path.join(space, "trash")
    in_pool = allocated(pool) + allocated(trash)
    for _ in range(_TRIES):
        kept = [os.path.join(pool, name) for name in os.listdir(pool)]
        kept += [os.path.join(trash, n) for n in os.listdir(trash) if n.startswith(_VIEWED)]
        unviewed = [path for path in kept if not _is_viewed(path)]
        if not unviewed:
            break
        # The witness goes on, and may have let go of it after the gc.
        with scene.store() as store:
            store.gc()
    if unviewed:
        found.faults.append(Fault(f"gc has left {unviewed}, which nobody views"))
    if scene.capacity and found.shared_memory > scene.capacity:
        text = f"{found.shared_memory:,} bytes are taken, the capacity is {scene.capacity:,}"
        found.faults.append(Fault(text))
    rest = found.shared_memory - in_dags - in_pool
    if rest > _LARGEST_REST:
        found.faults.append(Fault(f"besides DAGs and the pool, {rest:,} bytes are taken"))


def _is_viewed(path: str) -> bool:
    """Whether somebody holds a lease on a segment, or it is gone by now."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _needed(dag: reading_files.DagFiles) -> int:
    """What a DAG's live entries take: three files, and the segments that are listed."""
    own = sum(path.stat().st_blocks * 512 for path in (dag.manifest, dag.log, dag.index))
    segments = [one for one in dag.records.values() if one.segment and not one.spilled]
    return own + sum(-(-one.nbytes // _PAGE) * _PAGE for one in segments)


def allocated(root: str) -> int:
    """Bytes of memory that the files below a root take."""
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            total += status.st_blocks * 512
    return total


def witness(scene: Scene) -> NoReturn:
    """A process that holds views of everybody's values throughout the run.

    Its faults and the number of views that it has compared go into a ledger of its own.
    """
    status = BROKEN
    ledger = Ledger(os.path.join(scene.ledgers, WITNESS), 1)
    store = scene.store()
    try:
        chance = random.Random(f"{scene.seed}/witness")
        held: list[tuple[str, str, int, Any]] = []
        while not scene.ending:
            _take_one(scene, store, chance, held, ledger)
            if len(held) > _VIEWS:
                held.pop(chance.randrange(len(held)))
            dag_id, id, version, view = chance.choice(held) if held else ("", "", 0, None)
            if held and not values.same(view, values.make(scene.seed, dag_id, id, version)):
                ledger.fault(f"the witness's view of version {version:#x} has changed", dag_id, id)
            ledger.kept(bool(held))
            time.sleep(0.005)
        status = 0
    except BaseException as error:
        ledger.fault(f"the witness: {evidence.told(error, store)}")
    finally:
        os._exit(status)


def _take_one(
    scene: Scene,
    store: Any,
    chance: random.Random,
    held: list[tuple[str, str, int, Any]],
    ledger: Ledger,
) -> None:
    dags = [info.dag_id for info in store.dags()]
    if not dags:
        return
    dag_id = chance.choice(dags)
    ids = [id for id in store.ids(dag_id) if id != _PROBE]
    if not ids:
        return
    id = chance.choice(ids)
    value = store.get(dag_id, id, default=None)
    if value is None:
        return
    try:
        held.append((dag_id, id, values.check(scene.seed, dag_id, id, value), value))
    except values.WrongValueError as error:
        ledger.fault(f"the witness read half a value: {error}", dag_id, id)


def ledger_trace(scene: Scene, writer: int) -> Path:
    """Where a worker writes its stack when it is asked for."""
    return Path(scene.ledgers) / f"trace-{writer}"
