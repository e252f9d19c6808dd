"""Values move to disk when memory is short, and are read like the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import lookup, names, reading, relief, spill
from tests import reading_files
from tests.fault.enclosed import mount, mount_tmpfs, with_mounts
from tests.fault.killing import call, kill_at

_MIB = 1 << 20
_READ_ONLY, _REMOUNT = 1, 32


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A directory that is not in shared memory."""
    return str(tmp_path / "disk")


def _value(seed: int, nbytes: int = _MIB) -> np.ndarray[Any, Any]:
    return np.arange(nbytes // 8, dtype=np.int64) * 7 + seed


def _on_disk(path: str) -> list[str]:
    return sorted(
        name for _, _, names in os.walk(path) for name in names if name.startswith("spill-")
    )


def _spill(store: shmstore.Store, id: str) -> None:
    manifest = lookup.find_dag(store._dags.space, "d")
    assert manifest is not None
    record = reading.find(manifest, id.encode())
    assert record is not None
    assert relief.spill_one(manifest, record)


def _fill(store: shmstore.Store, count: int) -> dict[str, Any]:
    kept = {f"v{n}": _value(n) for n in range(count)}
    for n, (id, value) in enumerate(kept.items()):
        store.put("d", id, value, deps=[f"dep-{n}"])
    return kept


def test_the_oldest_values_move_and_are_read_alike(root: str, disk: str) -> None:
    """More than fits is kept; by every call, in every mode, and by processes not told of it."""
    store = shmstore.Store(root, capacity=8 * _MIB, spill=disk, pool=0)
    kept = _fill(store, 20)
    entries = {entry.id: entry for entry in store.entries("d")}
    assert list(store.ids("d")) == list(kept), "the order in which they were stored"
    spilled = [id for id, entry in entries.items() if entry.location.startswith("spill-")]
    assert spilled == list(kept)[: len(spilled)]
    assert len(spilled) >= 12
    assert len(_on_disk(disk)) == len(spilled)

    def reads() -> None:
        other = shmstore.Store(root)
        for mode in ("read", "cow", "copy"):
            for id, value in kept.items():
                assert np.array_equal(other.get("d", id, mode=mode), value)
        view = other.get("d", spilled[0])
        assert not view.flags.writeable
        assert entries[spilled[0]].location in Path("/proc/self/maps").read_text(), "zero-copy"

    call(reads)
    entry = entries[spilled[3]]
    assert (entry.deps, entry.nbytes, entry.origin) == (("dep-3",), _MIB, None)
    reading_files.check(root)
    assert store.check() == []


def test_an_entry_differs_in_its_location_only(root: str, disk: str) -> None:
    """Who stored a value, when, and from what, moves with it."""
    store = shmstore.Store(root, spill=disk)
    kept = _fill(store, 1)
    before = store.entry("d", "v0")
    _spill(store, "v0")
    after = store.entry("d", "v0")
    assert after._replace(location=before.location) == before
    assert after.location in _on_disk(disk)
    assert np.array_equal(store.get("d", "v0"), kept["v0"])


def test_a_view_stays_while_its_value_moves(root: str, disk: str) -> None:
    """A viewed value is not moved by itself; moved all the same, its view does not change."""
    store = shmstore.Store(root, capacity=8 * _MIB, spill=disk, pool=0)
    store.put("d", "viewed", _value(99))
    view = store.get("d", "viewed")
    kept = _fill(store, 12)
    assert store.entry("d", "viewed").location.startswith("seg-")
    _spill(store, "viewed")
    assert np.array_equal(view, _value(99))
    assert np.array_equal(store.get("d", "viewed"), _value(99))
    assert all(np.array_equal(store.get("d", id), value) for id, value in kept.items())


@pytest.mark.parametrize("end", ["overwrite", "small", "delete", "take", "clear"])
def test_the_file_goes_with_its_value(root: str, disk: str, end: str) -> None:
    """Nothing stays on disk of a value that was replaced, deleted or cleared."""
    store = shmstore.Store(root, spill=disk)
    _fill(store, 1)
    _spill(store, "v0")
    assert len(_on_disk(disk)) == 1
    if end == "overwrite":
        store.put("d", "v0", _value(5))
    elif end == "small":
        store.put("d", "v0", 5)
    elif end == "delete":
        store.delete("d", "v0")
    elif end == "take":
        assert np.array_equal(store.take("d", "v0"), _value(0))
    else:
        store.clear("d")
    assert _on_disk(disk) == []
    reading_files.check(root)


def test_a_value_replaced_while_it_moves_is_the_new_one(
    root: str, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move is committed only if the slot still holds the record that was looked at."""
    store = shmstore.Store(root, spill=disk)
    _fill(store, 1)
    commit = relief.commit

    def late(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(relief, "commit", commit)
        store.put("d", "v0", "newer")
        commit(*args, **kwargs)

    manifest = lookup.find_dag(store._dags.space, "d")
    assert manifest is not None
    record = reading.find(manifest, b"v0")
    assert record is not None
    monkeypatch.setattr(relief, "commit", late)
    assert not relief.spill_one(manifest, record)
    assert store.get("d", "v0") == "newer"
    assert _on_disk(disk) == []
    reading_files.check(root)


def test_growth_compaction_and_repair_keep_it(root: str, disk: str) -> None:
    """A spilled value stays one through all that happens to the manifest."""
    store = shmstore.Store(root, spill=disk)
    kept = _fill(store, 2)
    _spill(store, "v0")
    store.put_many("d", {f"more-{n}": n for n in range(800)})
    for n in range(120):
        store.put("d", "churn", f"{n}" * 5000)
    assert reading_files.read(root, "d").log_number > 1, "compacted"
    assert store.check(fix=True) == []
    assert store.entry("d", "v0").location.startswith("spill-")
    assert np.array_equal(store.get("d", "v0"), kept["v0"])
    reading_files.check(root)


def test_a_disk_that_is_gone_is_said_to_be(root: str, disk: str) -> None:
    """The error names it; all values in memory are as they were, and check tells what is lost."""
    store = shmstore.Store(root, spill=disk)
    kept = _fill(store, 2)
    _spill(store, "v0")
    os.rename(disk, f"{disk}-away")
    other = shmstore.Store(root)
    with pytest.raises(shmstore.UnusableRoot, match="spilled there cannot be reached"):
        other.get("d", "v0")
    assert np.array_equal(other.get("d", "v1"), kept["v1"])
    assert [(one.kind, one.id) for one in other.check()] == [("segment", "v0")]
    os.rename(f"{disk}-away", disk)
    assert np.array_equal(other.get("d", "v0"), kept["v0"])


def _fill_the_disk(root: str) -> None:
    full_disk = mount_tmpfs(f"{root}/full", 4 * _MIB)
    store = shmstore.Store(f"{root}/own", capacity=6 * _MIB, spill=full_disk, pool=0)
    kept: dict[str, Any] = {}
    with pytest.raises(shmstore.StoreFull, match=r"capacity.*and of space in .*full"):
        for n in range(30):
            store.put("d", f"v{n}", _value(n))
            kept[f"v{n}"] = _value(n)
    assert 7 < len(kept) < 12
    for id, value in kept.items():
        assert np.array_equal(store.get("d", id), value)
    store.delete_many("d", ["v0", list(kept)[-1]])
    store.put("d", "again", _value(50))
    assert store.check() == []


def test_a_full_disk_is_store_full(root: str) -> None:
    """The error names both; everything is readable, and a delete makes room again."""
    with_mounts(_fill_the_disk, root)


def test_another_directory_only_while_nothing_is_spilled(root: str, disk: str) -> None:
    """Values on disk keep their directory; once they are cleared it may be another."""
    store = shmstore.Store(root, spill=disk)
    assert shmstore.Store(root, spill=disk).stats().spill == store.stats().spill
    _fill(store, 1)
    _spill(store, "v0")
    with pytest.raises(shmstore.UnusableRoot, match="clear those DAGs first"):
        shmstore.Store(root, spill=f"{disk}-2")
    assert np.array_equal(store.get("d", "v0"), _value(0))
    store.clear("d")
    assert str(shmstore.Store(root, spill=f"{disk}-2").stats().spill).startswith(f"{disk}-2/")
    assert os.listdir(disk) == []


def test_a_dag_cleared_meanwhile_does_not_take_the_directory_from_others(
    root: str, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one DAG's directory vanishes as it is looked at says nothing of the values of others."""
    store = shmstore.Store(root, spill=disk)
    for dag_id in ("d", "other"):
        store.put(dag_id, "v", _value(1))
        manifest = lookup.find_dag(store._dags.space, dag_id)
        assert manifest is not None
        record = reading.find(manifest, b"v")
        assert record is not None
        assert relief.spill_one(manifest, record)
        generation = manifest.generation
    gone = names.generation_name(generation)
    remove, listed = spill.remove_generation, spill._generations
    with monkeypatch.context() as stopped:  # a clearer that is as far as this
        stopped.setattr(spill, "remove_generation", lambda *_: None)
        store.clear("other")

    def cleared_after_listing(path: str) -> list[str]:
        found = sorted(listed(path), key=lambda name: name != gone)
        assert found[0] == gone
        assert len(found) == 2
        monkeypatch.setattr(spill, "_generations", listed)
        remove(store._dags.space, generation)
        return found

    monkeypatch.setattr(spill, "_generations", cleared_after_listing)
    with pytest.raises(shmstore.UnusableRoot, match="has values spilled"):
        shmstore.Store(root, spill=f"{disk}-2")
    assert np.array_equal(call(lambda: shmstore.Store(root).get("d", "v", mode="copy")), _value(1))
    assert store.check() == []


def test_a_namespace_made_anew_removes_what_its_place_had(root: str, disk: str) -> None:
    """Of a root that was removed; another namespace's directory is left alone."""
    for namespace in ("default", "other"):
        store = shmstore.Store(root, namespace, spill=disk)
        _fill(store, 1)
        _spill(store, "v0")
    assert len(_on_disk(disk)) == 2
    os.rename(f"{root}/default", f"{root}/away")
    anew = shmstore.Store(root, spill=disk)
    assert len(_on_disk(disk)) == 1
    assert spill.generations(anew._dags.space) == []
    assert np.array_equal(shmstore.Store(root, "other").get("d", "v0"), _value(0))


def test_a_value_that_cannot_fit_moves_nothing(root: str, disk: str) -> None:
    """What is larger than the capacity is refused before anything is moved for it."""
    store = shmstore.Store(root, capacity=8 * _MIB, spill=disk, pool=0)
    _fill(store, 3)
    with pytest.raises(shmstore.StoreFull, match="capacity"):
        store.put("d", "huge", _value(1, 9 * _MIB))
    assert _on_disk(disk) == []


def _sweep_a_disk_that_may_not_be_written(root: str) -> None:
    disk = mount_tmpfs(f"{root}/disk", 8 * _MIB)
    store = shmstore.Store(f"{root}/own", spill=disk)
    store.put("d", "a", _value(1))
    _spill(store, "a")
    kill_at("clear:renamed", 1, lambda: shmstore.Store(f"{root}/own").clear("d"))
    mount("none", disk, None, _REMOUNT | _READ_ONLY)
    report = store.gc()
    (failed,) = report.failed
    assert "Read-only" in failed.why
    assert not [action for action in report.actions if action.kind == "spilled"]
    mount("none", disk, None, _REMOUNT)
    (action,) = store.gc().actions
    assert (action.kind, action.nbytes) == ("spilled", _MIB)
    assert _on_disk(disk) == []


def test_what_cannot_be_removed_is_not_called_freed(root: str) -> None:
    """Gc says what it could not remove from the disk, and why; the next one removes it."""
    with_mounts(_sweep_a_disk_that_may_not_be_written, root)


def test_what_others_put_beside_is_neither_waited_for_nor_believed(
    root: str, tmp_path: Path
) -> None:
    """A spill directory may be written by others: no name there stops a store or removes one."""
    path = tmp_path / "shared"
    path.mkdir(mode=0o1777)
    path.chmod(0o1777)
    os.mkfifo(path / f"shmstore-{os.geteuid()}-pipe.json")
    os.symlink("/dev/zero", path / f"shmstore-{os.geteuid()}-link.json")
    theirs = path / f"shmstore-{os.geteuid()}-theirs"
    theirs.mkdir()
    told = theirs.with_suffix(".json")
    told.write_text('{"boot_id": "of another start", "device": 0, "inner_path": "/"}')
    if os.geteuid() == 0:  # only root can make it look as if another user had made it
        os.chown(told, 65534, -1)

    def open_one() -> str | None:
        with shmstore.Store(root, spill=path) as store:
            return spill.place(store._dags.space)

    place = call(open_one, timeout_s=10.0)
    assert place is not None
    assert os.path.dirname(place) == str(path)
    assert theirs.exists() == (os.geteuid() == 0)
