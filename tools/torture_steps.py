"""What workers do: at random, and what leads to each crash point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from time import monotonic_ns

import shmstore
from tools.torture_scene import AWAITED, AWAITED_IDS, SHARED
from tools.torture_values import LARGE, LINE, TINY
from tools.torture_worker import Worker

Step = Callable[[Worker], None]

_MANY = 8
_CROWD = 700  # new keys at once, more than a young index holds
_WORN = 40
_PATIENCE_S = 45.0
_TO_BE_SWEPT = (
    "orphan", "leftover", "trash", "abandoned", "cleared", "page", "spilled", "gap", "index",
)  # fmt: skip
_LONGEST = 3.0  # seconds that a worker lives


def or_full(step: Step) -> Step:
    """A step that may find no room for a DAG that it is the first to use."""

    def tried(worker: Worker) -> None:
        with contextlib.suppress(shmstore.StoreFull):
            step(worker)

    return tried


def all_steps(worker: Worker) -> None:
    """Everything until the worker's end: first what leads to its point, then at random."""
    chance, plan, over = worker.chance, worker.plan, worker.scene
    until = time.monotonic() + _LONGEST
    leading = leading_to(plan.point)
    for number in range(plan.steps):
        if over.over or time.monotonic() > until:
            break
        if leading is not None and (number == 0 or chance.random() < 0.2):
            worker.step(leading)
        else:
            worker.step(chance.choices(_DO, _WEIGHTS)[0])


def _put(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.put(dag_id, worker.id(dag_id))


def _put_new(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.put(dag_id, worker.id(dag_id), overwrite=False)


def _several(worker: Worker, dag_id: str) -> list[str]:
    count = worker.chance.randrange(1, _MANY)
    return list(dict.fromkeys(worker.id(dag_id) for _ in range(count)))


def _put_many(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.put_many(dag_id, _several(worker, dag_id))


def _delete(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.delete(dag_id, worker.id(dag_id))


def _delete_many(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.delete_many(dag_id, _several(worker, dag_id)[:3])


def _get(worker: Worker) -> None:
    dag_id = worker.chance.choice((worker.own, *SHARED, AWAITED))
    id = f"{worker.chance.randrange(AWAITED_IDS)}" if dag_id == AWAITED else worker.id(dag_id)
    worker.get(dag_id, id, worker.chance.choice(("read", "read", "copy")))


def _hold(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.hold(dag_id, worker.id(dag_id))


def _write_on_copy(worker: Worker) -> None:
    dag_id = worker.dag_id()
    worker.write_on_copy(dag_id, worker.id(dag_id))


def _list(worker: Worker) -> None:
    dag_id = worker.dag_id()
    ids = list(worker.store.ids(dag_id))
    if len(set(ids)) != len(ids):
        worker.ledger.fault(f"ids of {dag_id} come twice: {ids}", dag_id)
    for info in worker.store.dags():
        if info.fault:
            worker.ledger.fault(f"DAG {info.dag_id} is said to be damaged: {info.fault}")


def _put_one_awaited(worker: Worker) -> None:
    worker.put(AWAITED, f"{worker.chance.randrange(AWAITED_IDS)}")


def clear_awaited(worker: Worker) -> None:
    """What a round begins with: there is something to wait for."""
    worker.clear(AWAITED)


def put_awaited(worker: Worker) -> None:
    """What a round ends with: nobody has to wait any longer."""
    for n in range(AWAITED_IDS):
        if not worker.put(AWAITED, f"{n}"):
            worker.ledger.fault("no room for what others wait for", AWAITED, f"{n}")


@or_full
def _wait(worker: Worker) -> None:
    ids = list({f"{worker.chance.randrange(AWAITED_IDS)}" for _ in range(2)})
    before = monotonic_ns()
    # Somebody puts them before the round ends, at the latest then; and must be heard.
    if len(ids) == 1:
        found = {ids[0]: worker.store.wait(AWAITED, ids[0], _PATIENCE_S)}
    else:
        found = worker.store.wait_many(AWAITED, ids, _PATIENCE_S)
    for id, value in found.items():
        worker.saw(before, AWAITED, id, value)


@or_full
def _watch(worker: Worker) -> None:
    """Sees its own put go by, among those that stand."""
    with worker.store.watch(worker.own, since=None, timeout=_PATIENCE_S) as entries:
        id = worker.id(worker.own)
        if worker.put(worker.own, id):
            for entry in entries:
                if entry.id == id:
                    break


def _gc(worker: Worker) -> None:
    # Redoing what a dead writer left may take room that is not there just now.
    failed = [one for one in worker.store.gc().failed if "Out of" not in one.why]
    if failed:
        worker.ledger.fault(f"gc has failed at {failed}")


def _gc_after_deaths(worker: Worker) -> None:
    """Leaves a segment, a log and a cleared DAG without owner, and lets gc free them."""
    worker.kill_a_child_at("commit:named", _put_large)
    worker.kill_a_child_at("compact:switched", _wear)
    _gc(worker)
    worker.kill_a_child_at("clear:renamed", _clear_own)
    _gc(worker)


def _put_large(worker: Worker) -> None:
    worker.put(worker.own, f"{LARGE}-0")


def _check(worker: Worker) -> None:
    """Beside others at work nothing is found but what the dead have left, and damaged slots."""
    for finding in worker.store.check():
        if finding.kind not in _TO_BE_SWEPT:
            worker.ledger.fault(f"check has found {finding}", finding.dag_id or "")


@or_full
def _limit(worker: Worker) -> None:
    """Sets the capacity that there is anew: all that is taken is counted."""
    worker.limit()


def _spill_elsewhere(worker: Worker) -> None:
    """Lets a namespace of its own spill, as it is done once for each."""
    worker.spill_elsewhere()


def _set_ttl(worker: Worker) -> None:
    worker.store.set_ttl(worker.own, 10**6)


def _clear_own(worker: Worker) -> None:
    worker.clear(worker.own)


def _clear_shared(worker: Worker) -> None:
    worker.clear(worker.chance.choice(SHARED))


def _wear(worker: Worker) -> None:
    """Overwrites until the log is compacted."""
    ids = [f"{LINE}-{n}" for n in range(3)]
    for _ in range(_WORN):
        worker.put_many(worker.own, ids)


def _crowd(worker: Worker) -> None:
    """Gives a young index more keys than it has room for."""
    worker.clear(worker.own)
    worker.put(worker.own, "id-0")
    worker.put_many(worker.own, [f"{TINY}-{n}" for n in range(_CROWD)])


def _lengthen(worker: Worker) -> None:
    """Puts new small values until the log is extended."""
    for n in range(_WORN):
        worker.put_many(worker.own, [f"{LINE}-{n}-{m}" for m in range(6)])


def _create(worker: Worker) -> None:
    worker.clear(worker.own)
    worker.put(worker.own, worker.id(worker.own))


def _kill_one_before_the_index(worker: Worker) -> None:
    """Lets a child die between its commit and the index, and goes on after it."""
    point = worker.chance.choice(("commit:tail", "commit:slot-hash", "commit:slot"))
    worker.kill_a_child_at(point, _put_or_delete_own)
    worker.put(worker.own, worker.id(worker.own))


def _put_or_delete_own(worker: Worker) -> None:
    if worker.chance.random() < 0.7:
        worker.put_many(worker.own, _several(worker, worker.own))
    else:
        worker.delete(worker.own, worker.id(worker.own))


def _damage_index(worker: Worker) -> None:
    """Flips a bit of a slot of its own DAG, and writes there."""
    worker.put(worker.own, "id-0")
    worker.damage_slot("id-0")
    worker.put(worker.own, "id-0")


def _choose_a_disk(worker: Worker) -> None:
    """Opens a namespace aside that is to move values to disk."""
    root = worker.scene.root
    shmstore.Store(root, f"aside-{worker.writer}", spill=f"{root}/disk").close()


#: What leads to the crash points whose names begin so.
LEADING: dict[str, Step] = {
    "segment": _put,
    "commit": _put,
    "redo": _kill_one_before_the_index,
    "extend": _lengthen,
    "grow": _crowd,
    "rebuild": _damage_index,
    "compact": _wear,
    "create": _create,
    "clear": _clear_own,
    "wait": _wait,
    "sweep": _gc_after_deaths,
    "ttl": _set_ttl,
    "pool": _put_large,
    "ledger": _limit,
    "spill": _spill_elsewhere,
}


def leading_to(point: str | None) -> Step | None:
    """What leads to a crash point; None for what the common mix gets to."""
    return None if point is None else LEADING.get(point.partition(":")[0])


_MIX: dict[Step, float] = {
    _put: 30,
    _put_new: 4,
    _put_many: 8,
    _delete: 8,
    _delete_many: 3,
    _get: 25,
    _hold: 12,
    Worker.look_at_views: 3,
    _write_on_copy: 3,
    _list: 2,
    _put_one_awaited: 1,
    _wait: 1,
    _watch: 2,
    _gc: 0.5,
    _check: 0.3,
    _set_ttl: 0.3,
    _gc_after_deaths: 0.1,
    _put_large: 0.5,
    _limit: 0.1,
    _spill_elsewhere: 0.05,
    _clear_own: 0.7,
    _clear_shared: 0.2,
    _wear: 0.3,
    _crowd: 0.1,
    _lengthen: 0.2,
    _kill_one_before_the_index: 0.3,
    _damage_index: 0.3,
    Worker.reopen: 0.5,
    Worker.fork: 0.5,
}
_DO, _WEIGHTS = list(_MIX), list(_MIX.values())
