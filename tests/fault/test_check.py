"""What check finds, what it repairs, and that it accuses nobody who is at work."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

import shmstore
from shmstore import check, compaction, crashpoints, ledger, record
from tests import reading_files
from tests.fault.killing import Child, Parent, call, kill_at
from tests.fault.scenarios import set_word
from tests.fault.test_damage import DAG, _Case, _damage, _template
from tests.fault.test_gc import only_what_is_needed
from tests.reading_files import DagFiles


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is about to free anything, unless a test says so."""
    monkeypatch.setattr(check, "PATIENCE_S", 0.0)


def _store(root: str) -> tuple[shmstore.Store, dict[str, Any]]:
    values: dict[str, Any] = {f"id-{n}": {"n": n} for n in range(30)}
    values |= {f"large-{n}": np.full(4096, n) for n in range(3)}
    store = shmstore.Store(root)
    store.put("dag", "id-3", "an older value")
    store.put_many("dag", values)
    store.put("dag", "id-4", values["id-4"])
    store.put("bystander", "a", 1)
    assert store.check() == []
    return store, values


def _edit(path: Path, at: int, raw: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, raw, at)
    os.close(fd)


def _slot_of(files: DagFiles, id: str) -> int:
    """The offset of a key's slot in the index's file."""
    raw = files.index.read_bytes()
    at = raw.index(files.records[id].key_hash.to_bytes(8, "little"), 128)
    assert at % 16 == 0
    return at


def _point_at_the_older_record(files: DagFiles) -> None:
    older = next(one for one in files.history if one.key == "id-3")
    assert older.offset != files.records["id-3"].offset
    word = record.slot_word(older.offset, older.key_hash)
    _edit(files.index, _slot_of(files, "id-3") + 8, word.to_bytes(8, "little"))


def _forget_a_slot(files: DagFiles) -> None:
    _edit(files.index, _slot_of(files, "id-5"), b"\xffEMPTY\xff\xff" + bytes(8))


def _half_a_slot(files: DagFiles) -> None:
    raw = files.index.read_bytes()
    _edit(files.index, raw.index(b"\xffEMPTY\xff\xff", 128), b"halfslot")


def _a_slot_twice(files: DagFiles) -> None:
    raw = files.index.read_bytes()
    at = _slot_of(files, "id-6")
    free = raw.index(b"\xffEMPTY\xff\xff" + bytes(8), 128)
    _edit(files.index, free, raw[at : at + 16])


def _flip(path: Path, at: int) -> None:
    _edit(path, at, bytes([path.read_bytes()[at] ^ 0x10]))


def _count_wrongly(files: DagFiles) -> None:
    """Forges the totals of the last record, with a checksum that is right."""
    last = files.history[-1]
    raw = bytearray(files.log.read_bytes()[last.offset : last.offset + last.length])
    raw[-24:-16] = (last.totals[1] + 5).to_bytes(8, "little")
    seed = int.from_bytes(files.generation[:8], "little")
    raw[:8] = xxh3_64_intdigest(bytes(raw[8:]), seed).to_bytes(8, "little")
    _edit(files.log, last.offset, bytes(raw))


def _lag(files: DagFiles) -> None:
    """As a writer leaves it that dies right after its commit."""
    _edit(files.log, 72, files.history[-1].offset.to_bytes(8, "little"))


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


DERIVED: dict[str, tuple[str, Callable[[DagFiles], None]]] = {
    "a slot's tag": ("index", lambda f: _flip(f.index, _slot_of(f, "id-1") + 8)),
    "a slot's hash": ("index", lambda f: _flip(f.index, _slot_of(f, "id-1"))),
    "a slot of an older record": ("index", _point_at_the_older_record),
    "a slot forgotten": ("index", _forget_a_slot),
    "half a slot": ("index", _half_a_slot),
    "a slot twice": ("index", _a_slot_twice),
    "slots zeroed": ("index", lambda f: _edit(f.index, 128, bytes(512))),
    "the count of slots": ("index", lambda f: _edit(f.index, 64, b"\x50")),
    "the index's head": ("index", lambda f: _flip(f.index, 50)),
    "the index cut": ("index", lambda f: os.truncate(f.index, 4000)),
    "the index gone": ("index", lambda f: f.index.unlink()),
    "a gap": ("gap", _lag),
    "the tail": ("log", lambda f: _edit(f.log, 64, (f.tail + 4096 * 1000).to_bytes(8, "little"))),
    "indexed": ("log", lambda f: _edit(f.log, 72, bytes(8))),
    "totals": ("totals", _count_wrongly),
    "last used": ("stamp", lambda f: set_word(f.manifest, record.TOUCHED, 1 << 63)),
    "last swept": ("stamp", lambda f: set_word(f.manifest, record.SWEPT, _now_ns() + 10**12)),
}


@pytest.mark.parametrize("what", DERIVED)
def test_what_is_derived_is_found_and_repaired(root: str, what: str) -> None:
    """A fault in what can be derived is found, changes nothing by itself, and is repaired."""
    store, values = _store(root)
    store.close()
    kind, damage = DERIVED[what]
    damage(reading_files.read(root, "dag"))
    found = shmstore.Store(root).check()
    assert {one.kind for one in found} == {kind}, found
    assert {one.dag_id for one in found} == {"dag"}
    again = shmstore.Store(root).check()
    assert again == found, "a check without fix changed something"
    fixed = shmstore.Store(root).check(fix=True)
    assert [(one.kind, one.what) for one in fixed] == [(one.kind, one.what) for one in found]
    assert all(one.fixed for one in fixed)
    assert all("fixed" in str(one) and "'dag'" in str(one) for one in fixed)
    store = shmstore.Store(root)
    assert store.check() == []
    reading_files.check(root)
    for id, value in values.items():
        assert np.array_equal(store.get("dag", id), value)
    assert store.count("dag") == len(values)
    store.put("dag", "id-1", "after")
    reading_files.check(root)


def _lose_a_segment(files: DagFiles) -> None:
    (files.path / str(files.records["large-1"].segment)).unlink()


def _cut_a_segment(files: DagFiles) -> None:
    os.truncate(files.path / str(files.records["large-1"].segment), 4096)


def _flip_record(files: DagFiles) -> None:
    one = files.records["id-7"]
    _flip(files.log, one.offset + one.length - 40)


def _flip_last(files: DagFiles) -> None:
    _flip(files.log, files.records["id-4"].offset + 80)


LOST: dict[str, tuple[str, str | None, Callable[[DagFiles], None]]] = {
    "a segment gone": ("segment", "large-1", _lose_a_segment),
    "a segment cut": ("segment", "large-1", _cut_a_segment),
    "a record": ("record", "id-7", _flip_record),
    "the last record": ("record", "id-4", _flip_last),
    "the log's head": ("dag", None, lambda f: _flip(f.log, 30)),
    "the log gone": ("dag", None, lambda f: f.log.unlink()),
    "the manifest": ("dag", None, lambda f: _flip(f.manifest, 130)),
    "the manifest gone": ("dag", None, lambda f: f.manifest.unlink()),
    "the state": ("dag", None, lambda f: _flip(f.manifest, 64)),
    "the lock gone": ("dag", None, lambda f: (f.path / "lock").unlink()),
    "a file of another": ("unknown", None, lambda f: (f.path / "README").touch()),
    "a log with holes": ("log", None, lambda f: os.truncate(f.log, f.log_size + (1 << 20))),
}


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_is_reported_and_left(root: str, what: str) -> None:
    """What cannot be derived is reported with the id that it concerns; the rest stays."""
    store, values = _store(root)
    store.close()
    kind, id, damage = LOST[what]
    damage(reading_files.read(root, "dag"))
    before = sorted(os.listdir(Path(root) / "default" / "dags" / "dag"))
    for fix in (False, True):
        found = shmstore.Store(root).check(fix)
        assert [(one.kind, one.dag_id, one.id, one.fixed) for one in found] == [
            (kind, "dag", id, False)
        ], found
    assert sorted(os.listdir(Path(root) / "default" / "dags" / "dag")) == before
    store = shmstore.Store(root)
    if id is not None:
        with pytest.raises(shmstore.CorruptValue):
            store.get("dag", id)
        for other in values.keys() - {id}:
            assert np.array_equal(store.get("dag", other), values[other])
    assert store.get("bystander", "a") == 1


def test_a_damaged_record_that_was_replaced_is_left_behind(root: str) -> None:
    """Once no value needs a damaged record, a repair makes the log whole again."""
    store, values = _store(root)
    _flip_record(reading_files.read(root, "dag"))
    store.put("dag", "id-7", "again")
    (finding,) = store.check()
    assert (finding.kind, finding.id) == ("record", None)
    (finding,) = store.check(fix=True)
    assert finding.fixed
    assert store.check() == []
    reading_files.check(root)
    for id, value in (values | {"id-7": "again"}).items():
        assert np.array_equal(store.get("dag", id), value)


def test_a_namespace_page_that_is_damaged_is_found(root: str) -> None:
    """The namespace's own page is checked, too."""
    store, _ = _store(root)
    control = Path(root) / "default" / "control"
    _flip(control, 30)
    (finding,) = store.check(fix=True)
    assert (finding.kind, finding.where, finding.fixed) == ("namespace", "control", False)
    control.unlink()
    (finding,) = store.check()
    assert finding.what == "it is missing"


def test_check_works_on_a_namespace_that_is_gone(root: str) -> None:
    """A root that has been removed is said to have been."""
    inner = f"{root}/inner"
    store = shmstore.Store(inner)
    store.put("dag", "a", 1)
    shutil.rmtree(inner)
    for look in (store.check, store.gc):
        with pytest.raises(shmstore.UnusableRoot, match="removed"):
            look()


# --- Random damage -------------------------------------------------------------------------


def _healed(case: _Case, store: shmstore.Store, found: list[shmstore.Finding]) -> None:
    """After a repair every value is right, or refused and reported."""
    case.look(store)
    reported = {one.id for one in found if not one.fixed}
    for id in case.values:
        worked, _ = case.attempt(f"get {id} after the repair", partial(store.get, DAG, id))
        if not worked and id not in reported and None not in reported:
            case.wrong.append(f"{id} is refused and was not reported")


def _fuzz_checks(root: str, first: int, values: dict[str, Any], absent: list[str]) -> Any:
    check.PATIENCE_S = 0.0
    wrong: dict[str, list[str]] = {}
    repaired = lost = unseen = 0
    for seed in range(first, first + 40):
        rng = random.Random(seed)
        case = _Case(f"{root}/case-{seed}", f"{root}/template", values, absent)
        done = _damage(case, rng, live=False)
        try:
            store = shmstore.Store(case.root)
            found = store.check()
            fixed = store.check(fix=True)
            _healed(case, shmstore.Store(case.root), fixed)
            left = store.check()
            if any(one.fixed is False for one in fixed):
                lost += 1
            elif left:
                case.wrong.append(f"repaired, yet {left[0]}")
            elif found:
                repaired += 1
                reading_files.check(case.root)
            else:
                unseen += 1
                reading_files.check(case.root)
        except AssertionError as error:
            case.wrong.append(str(error))
        if case.wrong:
            wrong[f"seed {seed}, {done}"] = case.wrong[:5]
        shutil.rmtree(case.root)
    return wrong, repaired, lost, unseen


@pytest.mark.parametrize("first", range(0, 200, 40))
def test_random_damage_is_found(root: str, first: int) -> None:
    """What check does not report is right, and what it has repaired is as good as new."""
    values, absent = call(_template, f"{root}/template")
    wrong, repaired, lost, _ = call(_fuzz_checks, root, 1000 + first, values, absent, timeout_s=100)
    assert not wrong, "\n".join(f"{case}: {'; '.join(what)}" for case, what in wrong.items())
    assert repaired and lost, (repaired, lost)


# --- Beside processes at work --------------------------------------------------------------


def _busy(root: str, who: str, parent: Parent) -> int:
    """Does everything that changes a DAG until told to stop."""
    compaction.FLOOR = 20_000  # compacts often
    over = threading.Event()
    threading.Thread(target=lambda: (parent.receive(), over.set()), daemon=True).start()
    store = shmstore.Store(root)
    n = 0
    while not over.is_set() or n < 100:
        n += 1
        store.put("shared", f"{who}/{n % 5}", np.full(3000, n))
        store.put_many("shared", {f"{who}/a": n, f"{who}/b": np.full(3000, n), f"{who}/{n}": n})
        with contextlib.suppress(shmstore.NotFound):  # another may have cleared it
            store.delete("shared", f"{who}/{n % 5}")
        store.put(f"{who}/{n % 3}", "a", "x" * 3000)
        if n % 20 == 0:
            store.clear("shared")
        if n % 7 == 0:
            store.clear(f"{who}/{n % 3}")
    return n


def test_check_reports_nothing_that_a_process_at_work_explains(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside puts, deletes, growth, compaction, creating and clearing, check finds nothing."""
    monkeypatch.setattr(check, "PATIENCE_S", 30.0)
    store = shmstore.Store(root)
    store.put("shared", "a", 1)
    workers = [Child(_busy, root, f"w{n}", Parent) for n in range(3)]
    try:
        found = [store.check() for _ in range(40)]
        for child in workers:
            child.send()
        assert all(child.receive(60) >= 100 for child in workers)
    finally:
        for child in workers:
            child.kill()
    assert [one for each in found for one in each] == []
    assert store.check() == []
    only_what_is_needed(root)


def test_a_segment_that_is_about_to_be_freed_is_no_finding(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that has yet to remove what it replaced gets the time to do so."""
    monkeypatch.setattr(check, "PATIENCE_S", 30.0)
    store = shmstore.Store(root)
    store.put("dag", "a", np.zeros(3000))

    def replace(parent: Parent) -> None:
        def hook(name: str) -> None:
            if name == "commit:unlocked":
                parent.send("about to free")
                parent.receive()

        crashpoints.hook = hook
        shmstore.Store(root).put("dag", "a", np.ones(3000))

    with Child(replace, Parent) as child:
        assert child.receive() == "about to free"
        assert reading_files.read(root, "dag").orphans
        looked = threading.Event()
        real = check._exists

        def exists(place: int, name: str) -> bool:
            there = real(place, name)
            if there:
                looked.set()
            return there

        monkeypatch.setattr(check, "_exists", exists)

        def let_go() -> None:
            looked.wait(30)
            child.send()

        thread = threading.Thread(target=let_go)
        thread.start()
        assert store.check() == []
        thread.join()
        assert looked.is_set()
        child.receive()


def _compact(store: shmstore.Store) -> None:
    current = reading_files.read(store.root, "dag").log_number
    floor, compaction.FLOOR = compaction.FLOOR, 0
    try:
        while reading_files.read(store.root, "dag").log_number == current:
            store.put("dag", "b", 1)
    finally:
        compaction.FLOOR = floor


def test_a_value_replaced_as_check_looks_is_no_finding(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that goes while check looks is not missed, nor one that a compaction moved."""
    store = shmstore.Store(root)
    other = shmstore.Store(root)
    real = check._segment_fault
    for change in ("put", "delete", "compact", "clear"):
        store.put_many("dag", {"a": np.zeros(3000), "b": 1})
        meddled: list[str] = []

        def fault(manifest: Any, one: Any, change: str = change, meddled: Any = meddled) -> Any:
            if not meddled:
                meddled.append(change)
                if change == "put":
                    other.put("dag", "a", np.ones(3000))
                elif change == "delete":
                    other.delete("dag", "a")
                elif change == "clear":
                    other.clear("dag")
                else:  # what is deleted then stands in another log
                    _compact(other)
                    other.delete("dag", "a")
            return real(manifest, one)

        monkeypatch.setattr(check, "_segment_fault", fault)
        assert store.check() == []
        assert meddled
        monkeypatch.setattr(check, "_segment_fault", real)


def test_a_compaction_as_check_looks_hides_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that is missing is found, also if the log was compacted meanwhile."""
    store = shmstore.Store(root)
    store.put_many("dag", {"a": np.zeros(3000), "b": 1})
    files = reading_files.read(root, "dag")
    (files.path / str(files.records["a"].segment)).unlink()
    real = check._segment_fault
    compacted: list[bool] = []

    def fault(manifest: Any, one: Any) -> Any:
        if not compacted:
            compacted.append(True)
            _compact(store)
        return real(manifest, one)

    monkeypatch.setattr(check, "_segment_fault", fault)
    (finding,) = store.check()
    assert (finding.kind, finding.id) == ("segment", "a")
    assert compacted


def test_a_check_beside_a_dead_writer_says_so(root: str) -> None:
    """Both the records that wait to be indexed and the segment without a record are told."""
    store, _ = _store(root)
    kill_at("commit:tail", 1, lambda: shmstore.Store(root).put("dag", "large-0", np.ones(4000)))
    kill_at("create:whole", 1, lambda: shmstore.Store(root).put("new", "a", 1))
    found = store.check()
    assert [(one.kind, one.dag_id) for one in found] == [
        ("abandoned", None),
        ("gap", "dag"),
        ("orphan", "dag"),
    ]
    assert all(str(one).startswith(one.kind) for one in found)
    assert np.array_equal(store.get("dag", "large-0"), np.ones(4000))


def test_an_account_that_is_too_low_is_found_and_repaired(root: str) -> None:
    """By it a capacity would be exceeded. Too high it may be, and a recount comes in time."""
    store = shmstore.Store(root, capacity="8MiB")
    store.put("d", "a", np.zeros(1 << 17))
    control = Path(root, "default", "control")
    account = reading_files.account(root)
    set_word(control, ledger.USED, account.used + (1 << 20))
    assert store.check() == []
    set_word(control, ledger.USED, account.allocated - 4096)
    (found,) = store.check()
    assert (found.kind, found.fixed) == ("account", False)
    assert "lacks 4,096 bytes" in found.what
    (found,) = store.check(fix=True)
    assert (found.kind, found.fixed) == ("account", True)
    assert store.check() == []
    assert reading_files.account(root).used == account.used
