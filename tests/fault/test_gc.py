"""What killed processes left is freed by gc, and nothing else ever is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import (
    check,
    crashpoints,
    lock,
    lookup,
    namespace,
    pool,
    reading,
    record,
    segment,
    survey,
    upkeep,
)
from tests import reading_files
from tests.fault.enclosed import mount_tmpfs, with_mounts
from tests.fault.killing import Child, Parent, call, kill_at
from tests.fault.scenarios import KILLS, SCENARIOS, Scenario, begin, set_word


def footprint(root: str, besides: tuple[str, ...] = ()) -> int:
    """The bytes of memory that a root's files take, those that have names."""
    return sum(
        Path(place, name).lstat().st_blocks * 512
        for place, _, names in os.walk(root)
        for name in names
        if os.path.basename(place) not in besides and "/disk" not in place
    )


def needed(root: str) -> int:
    """The bytes that its live values need: control pages, logs, indexes and segments."""
    total = (Path(root) / "default" / "control").stat().st_blocks * 512
    for dag in reading_files.read_namespace(root).values():
        segments = [
            dag.path / str(one.segment)
            for one in dag.records.values()
            if one.segment and not one.spilled
        ]
        total += sum(
            path.stat().st_blocks * 512 for path in (dag.manifest, dag.log, dag.index, *segments)
        )
    return total


def only_what_is_needed(root: str, besides: tuple[str, ...] = ()) -> None:
    """No orphan, no leftover, no gap, nothing in the trash: by the files themselves."""
    for dag in reading_files.check(root).values():
        assert dag.leftovers == set(), dag.dag_id
        assert dag.indexed == dag.tail, dag.dag_id
        assert dag.state == reading_files.LIVE, dag.dag_id
    assert reading_files.trash(root) == []
    assert footprint(root, besides) == needed(root)


def _victim(root: str, scenario: Scenario, point: str, occurrence: int) -> dict[str, Any]:
    values = begin(root)
    if scenario.prepare is not None:
        scenario.prepare(root, values)
    if scenario.just_before is not None:
        scenario.just_before(root)
    kill_at(point, occurrence, lambda: scenario.act(shmstore.Store(root)))
    return {id: value for id, value in values.items() if value is not None}


def _gc(root: str) -> tuple[shmstore.GcReport, shmstore.GcReport, shmstore.GcReport]:
    lock.TIMEOUT_S = 5.0
    store = shmstore.Store(root)
    reports = store.gc(dry_run=True), store.gc(), store.gc()
    assert store.check() == []
    return reports


#: What a killed process may leave; all of it is derived or garbage.
_LEFT = {"gap", "index", "orphan", "leftover", "trash", "abandoned", "cleared", "spilled"}


def _check_and_fix(root: str) -> None:
    lock.TIMEOUT_S = 5.0
    check.PATIENCE_S = 0.0  # nobody else is at work
    store = shmstore.Store(root)
    found = store.check()
    assert {one.kind for one in found} <= _LEFT
    fixed = store.check(fix=True)
    assert [one.kind for one in fixed] == [one.kind for one in found]
    assert all(one.fixed for one in fixed), fixed
    assert store.check() == []


def _ends() -> list[tuple[str, int]]:
    """Each scenario's kills; of a step that comes many times, the first and the last."""
    kept = []
    for name, step in KILLS:
        steps = SCENARIOS[name].steps
        if steps[step] not in steps[:step] or steps[step] not in steps[step + 1 :]:
            kept.append((name, step))
    return kept


@pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(n, s, id=f"{n}-{s}-{SCENARIOS[n].steps[s]}") for n, s in _ends()],
)
def test_after_a_kill_gc_leaves_what_live_values_need(root: str, name: str, step: int) -> None:
    """Wherever a process is killed, the next gc frees what it left, all of it and no more.

    A check tells what it is, and repairs it as well.
    """
    scenario = SCENARIOS[name]
    point = scenario.steps[step]
    before = call(_victim, root, scenario, point, scenario.steps[: step + 1].count(point))
    twin = f"{root}/twin"
    shutil.copytree(f"{root}/default", f"{twin}/default", symlinks=True)
    call(_check_and_fix, twin)
    only_what_is_needed(twin, besides=("pool", "reservations"))
    shutil.rmtree(twin)
    took = footprint(root)
    would, did, again = call(_gc, root)
    only_what_is_needed(root)
    assert not did.failed
    # What a dead writer has not finished is redone by gc, never by a dry run.
    assert [(a.kind, a.name) for a in would.actions] == [(a.kind, a.name) for a in did.actions]
    assert would.freed_bytes == did.freed_bytes
    grown = footprint(root) + did.freed_bytes - took
    assert grown >= 0, "more was freed than was said"
    assert again.actions == ()
    after = scenario.values_after(before) if step >= scenario.commits_at else before
    if name == "gc-expired":
        after = {}  # if its victim had not come to that
    dags = reading_files.read_namespace(root)
    found = dags[scenario.dag_id].records if scenario.dag_id in dags else {}
    assert set(found) == set(after)


# --- Beside processes at work ---------------------------------------------------------------


def _large(n: int) -> np.ndarray[Any, Any]:
    return np.full(3000, n)  # 24 kB: a segment


def _write(root: str, who: str, parent: Parent) -> dict[str, int]:
    """Puts, overwrites, deletes until told to stop; returns what must be there."""
    store = shmstore.Store(root)
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    kept: dict[str, int] = {}
    n = 0
    while not over.is_set() or n < 200:
        n += 1
        id = f"{who}/{n % 7}"
        store.put("shared", id, _large(n))
        kept[id] = n
        store.put_many("shared", {f"{who}/a": _large(n), f"{who}/b": n})
        kept |= {f"{who}/a": n, f"{who}/b": n}
        if n % 5 == 0:
            store.delete("shared", id)
            del kept[id]
        assert store.get("shared", f"{who}/a")[0] == n
    return kept


def _come_and_go(root: str, who: str, parent: Parent) -> dict[str, int]:
    """Creates DAGs and clears them until told to stop; returns those that must be there."""
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    kept: dict[str, int] = {}
    n = 0
    while not over.is_set() or n < 60:
        n += 1
        store = shmstore.Store(root)
        dag_id = f"{who}/{n % 5}"
        store.put(dag_id, "large", _large(n))
        kept[dag_id] = n
        assert store.get(dag_id, "large")[0] == n
        if n % 3 == 0:
            assert store.clear(dag_id).cleared
            del kept[dag_id]
    return kept


def _die_again_and_again(root: str, parent: Parent) -> int:
    """Kills writers and creators in the middle until told to stop."""
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    points = ("commit:named", "commit:tail", "commit:slot", "commit:slot-hash")
    n = 0
    while not over.is_set() or n < 8:
        _die_twice(root, points[n % 4], n)
        n += 1
    return n


def _die_twice(root: str, point: str, n: int) -> None:
    store = shmstore.Store(root)
    store.put("shared", "doomed", _large(n))
    kill_at(point, 1, lambda: store.put("shared", f"doomed/{n}", _large(n)))
    kill_at("create:whole", 1, lambda: store.put(f"never/{n}", "a", 1))


def _sweep_on(root: str, parent: Parent) -> tuple[int, list[str]]:
    """Calls gc until told to stop; returns how often, and what failed."""
    store = shmstore.Store(root)
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    failed: list[str] = []
    times = 0
    while not over.is_set() or times < 5:
        failed += map(str, store.gc().failed)
        times += 1
    return times, failed


def test_gc_beside_writers_creators_clearers_and_deaths(root: str) -> None:
    """Two gcs without pause take nothing that anyone needs, and nothing that is being built."""
    shmstore.Store(root).put("shared", "first", 1)
    workers = [
        Child(_write, root, "w0", Parent),
        Child(_write, root, "w1", Parent),
        Child(_come_and_go, root, "c0", Parent),
        Child(_come_and_go, root, "c1", Parent),
    ]
    sweepers = [Child(_sweep_on, root, Parent) for _ in range(2)]
    killer = Child(_die_again_and_again, root, Parent)
    try:
        killer.send()
        assert killer.receive(60) >= 8
        for child in workers:
            child.send()
        kept = [child.receive(60) for child in workers]
        for child in sweepers:
            child.send()
        swept = [child.receive() for child in sweepers]
    finally:
        for child in (*workers, *sweepers, killer):
            child.kill()
    assert all(not failed for _, failed in swept), swept
    store = shmstore.Store(root)
    for values in kept[:2]:
        for id, n in values.items():
            got = store.get("shared", id)
            assert (got if isinstance(got, int) else got[0]) == n
    for dag_ids in kept[2:]:
        for dag_id, n in dag_ids.items():
            assert store.get(dag_id, "large")[0] == n
    expected = {"shared", *(dag_id for dag_ids in kept[2:] for dag_id in dag_ids)}
    assert {dag.dag_id for dag in store.dags()} == expected
    store.gc()
    only_what_is_needed(root)
    assert store.check() == []


@pytest.mark.parametrize("point", ["create:claimed", "create:log-written", "create:whole"])
def test_a_creator_that_is_slow_is_left_alone(root: str, point: str) -> None:
    """A DAG being built is not taken for a dead creator's, however long it takes."""
    store = shmstore.Store(root)
    store.put("other", "a", 1)

    def build(parent: Parent) -> int:
        def hook(name: str) -> None:
            if name == point:
                parent.send("building")
                parent.receive()

        crashpoints.hook = hook
        mine = shmstore.Store(root)
        mine.put("slow", "a", 5)
        return int(mine.get("slow", "a"))

    with Child(build, Parent) as child:
        assert child.receive() == "building"
        assert store.gc().actions == ()
        assert store.check() == []
        assert len(reading_files.trash(root)) == 1
        child.send()
        assert child.receive() == 5
    assert store.get("slow", "a") == 5
    assert reading_files.trash(root) == []


def test_a_creator_whose_directory_was_swept_starts_again(root: str) -> None:
    """Between making a directory and locking it, gc may take it: the put succeeds all the same."""
    store = shmstore.Store(root)
    swept: list[shmstore.GcAction] = []

    def hook(name: str) -> None:
        if name == "create:directory" and not swept:
            crashpoints.hook = None
            swept.extend(shmstore.Store(root).gc().actions)
            crashpoints.hook = hook

    def put() -> tuple[list[str], int]:
        crashpoints.hook = hook
        store.put("new", "a", 5)
        return [action.kind for action in swept], store.get("new", "a")

    assert call(put) == (["abandoned"], 5)
    reading_files.check(root)
    assert reading_files.trash(root) == []


def test_a_child_of_a_creator_does_not_keep_its_directory(root: str) -> None:
    """A child forked in the middle of creating does not hold what its dead parent left."""

    def victim(parent: Parent) -> None:
        def hook(name: str) -> None:
            if name == "create:whole":
                pid = os.fork()
                if not pid:
                    parent.send("child lives")
                    parent.receive()
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)

        crashpoints.hook = hook
        shmstore.Store(root).put("new", "a", 5)

    with Child(victim, Parent) as child:
        assert child.receive() == "child lives"
        assert child.join() == -signal.SIGKILL
        assert [action.kind for action in shmstore.Store(root).gc().actions] == ["abandoned"]
        child.send()
    assert reading_files.trash(root) == []


def test_a_view_outlives_the_gc_of_its_segment(root: str) -> None:
    """What gc removes stays as it is for who views it, and comes back with the last view."""
    store = shmstore.Store(root)
    store.put("dag", "a", _large(1))
    view = store.get("dag", "a")
    kill_at("commit:unlocked", 1, lambda: shmstore.Store(root).put("dag", "a", _large(2)))
    (action,) = store.gc().actions
    assert (action.kind, action.dag_id) == ("orphan", "dag")
    assert action.nbytes == 24576
    assert np.array_equal(view, _large(1))
    assert np.array_equal(store.get("dag", "a"), _large(2))


def test_a_damaged_dag_stops_no_gc(root: str) -> None:
    """A DAG that cannot be read is reported, keeps its files, and the rest is freed."""
    store = shmstore.Store(root)
    for dag_id in ("a", "b", "c"):
        store.put(dag_id, "x", _large(1))
        kill_at("commit:named", 1, lambda d=dag_id: shmstore.Store(root).put(d, "y", _large(2)))
    dags = reading_files.read_namespace(root)
    os.truncate(dags["a"].manifest, 100)
    with open(dags["b"].log, "r+b") as file:  # the segment's number
        file.seek(dags["b"].records["x"].offset + 40)
        file.write(b"\xff" * 8)
    before = set(os.listdir(dags["b"].path))
    report = store.gc()
    assert [(one.kind, one.dag_id) for one in report.actions] == [
        ("failed", "a"),
        ("failed", "b"),
        ("orphan", "c"),
    ]
    assert set(os.listdir(dags["b"].path)) == before, "what a damaged record named was removed"
    assert "failed" in str(report)


def test_a_held_up_writer_stops_no_sweep_on_opening(root: str) -> None:
    """A writer that is stopped while it holds the lock delays nobody's opening of the DAG."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    kill_at("commit:named", 1, lambda: shmstore.Store(root).put("dag", "b", _large(1)))

    def stand_still(parent: Parent) -> None:
        def hook(name: str) -> None:
            if name == "commit:written":
                parent.send("holding")
                parent.receive()

        crashpoints.hook = hook
        shmstore.Store(root).put("dag", "c", 3)

    with Child(stand_still, Parent) as child:
        assert child.receive() == "holding"
        unswept(root, "dag")
        lock.TIMEOUT_S, before = 1000.0, lock.TIMEOUT_S
        try:
            assert shmstore.Store(root).get("dag", "a") == 1
        finally:
            lock.TIMEOUT_S = before
        assert reading_files.read(root, "dag").orphans
        child.send()
        child.receive()
    assert store.get("dag", "c") == 3


def unswept(root: str, dag_id: str) -> None:
    """Makes a DAG look as if it had not been swept for long, and so its namespace."""
    set_word(reading_files.read(root, dag_id).manifest, record.SWEPT, 0)
    set_word(Path(root) / "default" / "control", namespace.SWEPT, 0)


def test_opening_a_dag_sweeps(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a DAG frees what dead writers left in it, in others, and in the trash; once."""
    monkeypatch.setattr(upkeep, "BUDGET_S", 60.0)
    with shmstore.Store(root) as store:
        store.put("dag", "a", 1)
        store.put("other", "a", 1)
    for dag_id in ("dag", "other"):
        kill_at("commit:named", 1, lambda d=dag_id: shmstore.Store(root).put(d, "b", _large(1)))
    kill_at("create:whole", 1, lambda: shmstore.Store(root).put("new", "a", 1))
    shmstore.Store(root).get("dag", "a")
    assert reading_files.read(root, "dag").orphans, "swept in the first minute of its life"
    unswept(root, "other")
    unswept(root, "dag")
    shmstore.Store(root).get("dag", "a")
    only_what_is_needed(root)
    kill_at("commit:named", 1, lambda: shmstore.Store(root).put("dag", "b", _large(1)))
    shmstore.Store(root).get("dag", "a")
    assert reading_files.read(root, "dag").orphans, "swept twice in a minute"


def test_a_sweep_that_fails_does_not_fail_the_opening(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with what is swept on the way, the DAG that was asked for opens."""
    monkeypatch.setattr(upkeep, "BUDGET_S", 60.0)
    with shmstore.Store(root) as store:
        store.put("dag", "a", 1)
        store.put("other", "a", 1)
    unswept(root, "other")
    unswept(root, "dag")
    os.truncate(reading_files.read(root, "other").manifest, 10)
    (Path(root) / "default" / "trash" / "old-x").mkdir()
    (Path(root) / "default" / "trash" / "old-x" / "no-file").mkdir()
    (Path(root) / "default" / "dags" / "stray").touch()
    assert shmstore.Store(root).get("dag", "a") == 1
    report = shmstore.Store(root).gc()
    assert {one.name for one in report.failed} == {"other", "trash/old-x", "stray"}


def test_half_made_control_pages_are_removed(root: str) -> None:
    """A page that was to replace the namespace's goes, the namespace's own stays."""
    store = shmstore.Store(root)
    (Path(root) / "default" / ".control-0123456789abcdef").write_bytes(bytes(4096))
    assert [one.kind for one in store.gc(dry_run=True).actions] == ["page"]
    (action,) = store.gc().actions
    assert (action.kind, action.nbytes) == ("page", 4096)
    assert not [name for name in os.listdir(f"{root}/default") if name.startswith(".")]
    assert store.gc().actions == ()


def _put_into_what_the_dead_filled(root: str) -> None:
    mount_tmpfs(root, 2 << 20)
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    while os.statvfs(root).f_bavail * 4096 > 600_000:
        kill_at("commit:named", 1, lambda: shmstore.Store(root).put("dag", "b", np.zeros(30_000)))
    value = np.arange(80_000)  # 640 kB
    store.put("dag", "large", value)
    assert np.array_equal(store.get("dag", "large"), value)
    store.put_many("dag", {"more": value})
    with pytest.raises(shmstore.StoreFull):
        store.put_many("dag", {str(n): value for n in range(4)})
    assert store.get("dag", "a") == 1
    reading_files.check(root)


def test_a_full_store_is_swept_before_it_says_so(root: str) -> None:
    """A put that finds no room frees what dead writers left, and then succeeds."""
    with_mounts(_put_into_what_the_dead_filled, f"{root}/small")


def test_gc_has_an_async_twin(root: str) -> None:
    """``gc_async`` and ``check_async`` answer as the calls do."""
    store = shmstore.Store(root)
    store.put("dag", "a", 1)
    kill_at("commit:named", 1, lambda: shmstore.Store(root).put("dag", "b", _large(1)))

    async def look() -> tuple[shmstore.GcReport, list[shmstore.Finding], shmstore.GcReport]:
        return await store.gc_async(True), await store.check_async(True), await store.gc_async()

    would, found, did = asyncio.run(look())
    assert [one.kind for one in would.actions] == [one.kind for one in found] == ["orphan"]
    assert did.actions == ()


def test_a_log_that_somebody_has_mapped_is_never_cut(root: str) -> None:
    """A large log left over by a dead compaction is removed; who reads it reads on."""

    def reader(parent: Parent) -> bytes:
        store = shmstore.Store(root)
        store.put_many("dag", {f"{n}": "x" * 9000 for n in range(200)})
        view = store._dags.manifests["dag"].view
        assert view is not None
        parent.send("has it mapped")
        parent.receive()
        return view.log.map[:] and b"read"

    with Child(reader, Parent) as child:
        assert child.receive() == "has it mapped"

        def compacts() -> None:
            store = shmstore.Store(root)
            while True:
                store.put("dag", "churn", "y" * 12000)

        kill_at("compact:switched", 1, compacts)
        (left,) = {name for name in reading_files.read(root, "dag").leftovers if "log" in name}
        assert Path(root, "default", "dags", "dag", left).stat().st_size > pool.SMALLEST
        assert left in [action.name for action in shmstore.Store(root).gc().actions]
        child.send()
        assert child.receive() == b"read"


def test_a_log_that_grows_under_a_sweep_is_not_called_damaged(root: str) -> None:
    """A record that begins in what a sweep has mapped, and ends in what was added, is sound."""
    store = shmstore.Store(root)
    store.put("d", "first", 1)
    manifest = lookup.find_dag(store._dags.space, "d")
    assert manifest is not None
    seen = manifest.guarded(survey.moment, manifest, redo=True)
    while (tail := seen.log.words[record.TAIL]) < seen.log.size - 1500:
        store.put("d", f"at {tail}", "x" * 1000)
    store.put("d", "across", "x" * 9000)
    assert manifest.control[record.CURRENT] == seen.current, "in the same file"
    assert survey.records_sound(seen)
    assert len(survey.newest(seen)[1]) == store.count("d")


def test_a_segment_that_is_being_freed_is_not_called_damaged(root: str) -> None:
    """A reader that comes from a dead record to a segment cut to nothing looks again."""
    store = shmstore.Store(root)
    store.put("d", "a", np.full(1 << 17, 1))
    manifest = store._dags.manifests["d"]
    dead = reading.find(manifest, b"a")
    assert dead is not None
    kill_at("commit:unlocked", 1, lambda: shmstore.Store(root).put("d", "a", np.full(1 << 17, 2)))
    kill_at("pool:emptied", 1, lambda: shmstore.Store(root).gc())
    with pytest.raises(segment.SegmentGone):
        segment.attach(manifest.directory, dead.segment, dead.nbytes)
    assert np.array_equal(store.get("d", "a"), np.full(1 << 17, 2))
