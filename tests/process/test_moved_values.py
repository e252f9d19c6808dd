"""When memory is short, values move to disk, and nobody who reads them can tell."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore import crashpoints, lookup, mounts, reading, relief, spill
from tests import reading_files
from tests.fault.enclosed import mount, mount_tmpfs, with_mounts
from tests.fault.killing import Child, Parent, call
from tests.process.test_pool_claims import big
from tests.process.test_views import same

_MIB = 1 << 20
_MS_BIND = 4096
CAPACITY = 3 * _MIB


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A directory outside shared memory."""
    return str(tmp_path / "disk")


def locations(store: shmstore.Store, dag_id: str = "d") -> dict[str, str]:
    return {entry.id: entry.location for entry in store.entries(dag_id)}


def on_disk(store: shmstore.Store, dag_id: str = "d") -> list[str]:
    """The ids of values that have been moved, in order."""
    return [id for id, place in locations(store, dag_id).items() if place.startswith("spill-")]


def move(store: shmstore.Store, id: str, dag_id: str = "d") -> bool:
    """Moves one value to disk."""
    manifest = lookup.find_dag(store._dags.space, dag_id)
    assert manifest is not None
    record = reading.find(manifest, id.encode())
    assert record is not None
    return relief.spill_one(manifest, record)


def make(n: int) -> Any:
    """A value of about 256 KiB: array, table or something pickled."""
    if n % 3 == 0:
        return big(n)
    if n % 3 == 1:
        return pa.table({"n": np.full(32768, n), "text": [f"{n}"] * 32768})
    return {"inner": [big(n, 128), {"deep": big(n, 128)}]}


def map_of(address: int) -> str:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split(" ")[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return line.split(None, 5)[5]
    raise AssertionError("nothing is mapped there")


def test_the_oldest_values_move_and_read_as_before(root: str, disk: str) -> None:
    """Same calls, same values in all modes and processes, same entries but for the place."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    entries = [store.put("d", f"v{n}", make(n), deps=[f"v{n - 1}"]) for n in range(16)]
    ids = [f"v{n}" for n in range(16)]
    moved = on_disk(store)
    assert 3 <= len(moved) < 16
    assert moved == ids[: len(moved)], "the oldest go first"
    assert list(store.ids("d")) == ids
    assert [one._replace(location="") for one in store.entries("d")] == [
        one._replace(location="") for one in entries
    ]
    account = reading_files.account(root)
    assert account.allocated <= account.used <= CAPACITY

    def all_read() -> list[str]:
        other = shmstore.Store(root)
        for mode in ("read", "cow", "copy"):
            for n in range(16):
                got = other.get("d", f"v{n}", mode=mode)
                assert same(got, make(n)), f"v{n}, {mode}"
                if isinstance(got, np.ndarray):
                    assert got.flags.writeable is (mode != "read")
        return on_disk(other)

    assert call(all_read) == moved == all_read()
    view = store.get("d", "v0")
    assert map_of(view.ctypes.data).startswith(os.path.realpath(disk)), "it has been copied"
    again = store.get("d", "v0")
    assert view.ctypes.data == again.ctypes.data
    mine = store.get("d", "v0", mode="cow")
    mine[:] = 77
    assert (store.get("d", "v0") == 0).all()
    files = reading_files.check(root)["d"]
    assert sum(one.spilled for one in files.records.values()) == len(moved)
    assert len(reading_files.spilled(root)) == len(moved)


def test_a_viewed_value_is_not_moved(root: str, disk: str) -> None:
    """What any process views stays in memory, however old; the next ones go."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    store.put_many("d", {f"v{n}": big(n) for n in range(4)})
    mine = store.get("d", "v0")

    def hold(parent: Parent) -> bool:
        view = shmstore.Store(root).get("d", "v2", mode="cow")
        parent.send("holds")
        parent.receive()
        return bool((view == 2).all())

    with Child(hold, Parent) as holder:
        assert holder.receive() == "holds"
        for n in range(4, 14):
            store.put("d", f"v{n}", big(n))
        moved = on_disk(store)
        assert {"v1", "v3"} <= set(moved)
        assert not {"v0", "v2"} & set(moved)
        holder.send()
        assert holder.receive() is True
        assert holder.join() == 0
    assert (mine == 0).all()
    assert all((store.get("d", f"v{n}") == n).all() for n in range(14))


def _move_late(parent: Parent, root: str, point: str) -> bool:
    def wait(name: str) -> None:
        if name == point:
            crashpoints.hook = None
            parent.send("waits")
            parent.receive()

    store = shmstore.Store(root)
    crashpoints.hook = wait
    return move(store, "a")


def _overwrite(store: shmstore.Store) -> None:
    store.put("d", "a", big(2))


def _delete(store: shmstore.Store) -> None:
    store.delete("d", "a")


def _clear(store: shmstore.Store) -> None:
    assert store.clear("d").cleared


def _clear_and_put(store: shmstore.Store) -> None:
    store.clear("d")
    store.put("d", "a", big(2))


def _move(store: shmstore.Store) -> None:
    assert move(store, "a")


@pytest.mark.parametrize("act", [_overwrite, _delete, _clear, _clear_and_put, _move])
def test_a_value_that_changes_while_it_is_moved_is_not_touched(
    root: str, disk: str, act: Callable[[shmstore.Store], None]
) -> None:
    """Whatever happened to it since it was judged holds; the copy on disk goes."""
    store = shmstore.Store(root, spill=disk)
    store.put("d", "a", big(1))
    with Child(_move_late, Parent, root, "segment:written") as mover:
        assert mover.receive() == "waits"
        act(store)
        mover.send()
        assert mover.receive() is False
        assert mover.join() == 0
    got = store.get("d", "a", default=None)
    expected = {_delete: None, _clear: None, _move: 1}.get(act, 2)
    assert got is None if expected is None else bool((got == expected).all())
    assert len(reading_files.spilled(root)) == (act is _move)
    reading_files.check(root)


def _take(store: shmstore.Store) -> None:
    assert (store.take("d", "a") == 1).all()


def _overwrite_small(store: shmstore.Store) -> None:
    store.put("d", "a", "small")


def _put_many(store: shmstore.Store) -> None:
    store.put_many("d", {"a": big(2), "c": 3})


@pytest.mark.parametrize("act", [_overwrite, _overwrite_small, _put_many, _delete, _clear, _take])
def test_the_end_of_a_value_frees_its_disk(
    root: str, disk: str, act: Callable[[shmstore.Store], None]
) -> None:
    """Overwritten, deleted, cleared, taken: the file on disk goes, views of it keep."""
    store = shmstore.Store(root, spill=disk)
    store.put_many("d", {"a": big(1), "b": big(5)})
    assert move(store, "a")
    assert move(store, "b")
    view = shmstore.Store(root).get("d", "a")
    assert len(reading_files.spilled(root)) == 2
    act(store)
    assert len(reading_files.spilled(root)) == (0 if act is _clear else 1)
    assert (view == 1).all()
    if act is not _clear:
        assert (store.get("d", "b") == 5).all()
    reading_files.check(root)


def _compact(store: shmstore.Store) -> None:
    log = reading_files.read(store.root, "d").log_number
    for n in range(200):
        store.put("d", "churn", f"{n}" + "x" * 16_000)
    assert reading_files.read(store.root, "d").log_number > log


def _grow(store: shmstore.Store) -> None:
    index = reading_files.read(store.root, "d").index_number
    store.put_many("d", {f"more-{n}": n for n in range(300)})
    assert reading_files.read(store.root, "d").index_number > index


def _rebuild(store: shmstore.Store) -> None:
    files = reading_files.read(store.root, "d")
    with files.index.open("r+b") as file:
        file.seek(128)
        file.write(bytes(4096))
    store.put("d", "b", "after")
    assert reading_files.read(store.root, "d").index_number > files.index_number


@pytest.mark.parametrize("act", [_compact, _grow, _rebuild])
def test_moved_values_outlast_a_change_of_files(
    root: str, disk: str, act: Callable[[shmstore.Store], None]
) -> None:
    """A new log, a larger index and a rebuilt one know them as the old ones did."""
    store = shmstore.Store(root, spill=disk)
    entry = store.put("d", "a", big(1), deps=["x"])
    store.put("d", "b", "inline")
    assert move(store, "a")
    act(store)
    for reader in (store, shmstore.Store(root)):
        assert (reader.get("d", "a") == 1).all()
        assert reader.entry("d", "a")._replace(location=entry.location) == entry
        assert next(iter(reader.ids("d"))) == "a"
    reading_files.check(root)


def test_a_sweep_of_the_disk_needs_no_sound_index(root: str, disk: str) -> None:
    """With a damaged slot the log tells which files on disk are needed."""
    store = shmstore.Store(root, spill=disk)
    store.put("d", "a", big(1))
    assert move(store, "a")
    files = reading_files.read(root, "d")
    (moved,) = reading_files.spilled(root)
    place = Path(root, "default", "spill", moved)
    shutil.copyfile(place, place.with_name("spill-0123456789abcdef"))
    raw = files.index.read_bytes()
    at = raw.index(files.records["a"].key_hash.to_bytes(8, "little"), 128) + 8
    with files.index.open("r+b") as file:
        file.seek(at)
        file.write(bytes([raw[at] ^ 0x10]))
    report = shmstore.Store(root).gc()
    assert [one.kind for one in report.actions if one.kind != "pool"] == ["orphan"], report
    assert list(reading_files.spilled(root)) == [moved]
    assert (store.get("d", "a") == 1).all()


@pytest.mark.parametrize("way", ["removed", "a file instead", "only the DAG's"])
def test_a_disk_that_is_gone_is_said_to_be(root: str, disk: str, way: str) -> None:
    """A get of a moved value names the directory; all other values are as before."""
    store = shmstore.Store(root, spill=disk)
    store.put_many("d", {"a": big(1), "b": big(2), "c": "small"})
    assert move(store, "a")
    (own,) = [entry.path for entry in os.scandir(disk) if entry.is_dir()]
    (generation,) = os.listdir(own)
    gone = f"{own}/{generation}" if way == "only the DAG's" else own
    os.rename(gone, f"{disk}/aside")
    if way == "a file instead":
        Path(own).write_text("nothing of ours")
    for reader in (shmstore.Store(root), store):
        # Who has it open may go on; who has not is told.
        if reader is not store:
            with pytest.raises(shmstore.UnusableRoot, match="spilled there cannot be reached"):
                reader.get("d", "a")
        assert (reader.get("d", "b") == 2).all()
        assert reader.get("d", "c") == "small"
        assert reader.entry("d", "a").nbytes == 256 << 10
    if way != "only the DAG's":
        with pytest.raises(shmstore.UnusableRoot, match="spilled there cannot be reached"):
            move(shmstore.Store(root), "b")
    if way == "a file instead":
        os.unlink(own)
    os.rename(f"{disk}/aside", gone)
    assert (shmstore.Store(root).get("d", "a") == 1).all()
    shutil.rmtree(own)
    fresh = shmstore.Store(root)
    fresh.delete("d", "a")
    fresh.put("d", "b", big(3))
    assert (fresh.get("d", "b") == 3).all()
    fresh = shmstore.Store(root, spill=disk)  # made again
    assert move(fresh, "b")
    assert (shmstore.Store(root).get("d", "b") == 3).all()
    reading_files.check(root)


def test_pressure_with_the_disk_gone_is_a_clear_error(root: str, disk: str) -> None:
    """A put that cannot make room says why, and harms nothing."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    store.put_many("d", {f"v{n}": big(n) for n in range(9)})
    shutil.rmtree(disk)
    with pytest.raises(shmstore.UnusableRoot, match="no such file"):
        store.put("d", "more", big(99, 1024))
    assert all((store.get("d", f"v{n}") == n).all() for n in range(9))
    store.delete_many("d", [f"v{n}" for n in range(5)])
    store.put("d", "more", big(99, 1024))
    assert (store.get("d", "more") == 99).all()


def test_the_directory_changes_only_while_it_holds_nothing(root: str, tmp_path: Path) -> None:
    """With values there it is refused in a sentence; without, the old one goes."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    store = shmstore.Store(root, spill=first)
    store.put("d", "a", big(1))
    assert move(store, "a")
    with pytest.raises(shmstore.UnusableRoot, match=r"has values spilled to .*first; clear those"):
        shmstore.Store(root, spill=second)
    (before,) = [entry.name for entry in os.scandir(first) if entry.is_dir()]
    shmstore.Store(root, spill=first)  # the same again is no change
    assert os.path.isdir(f"{first}/{before}")
    assert (store.get("d", "a") == 1).all()
    store.delete("d", "a")
    shmstore.Store(root, spill=second)
    assert os.listdir(first) == []
    store.put("d", "a", big(2))
    assert move(store, "a")  # with the old directory still open
    assert (shmstore.Store(root).get("d", "a") == 2).all()
    assert len(reading_files.spilled(root)) == 1
    reading_files.check(root)
    store.clear("d")
    assert reading_files.spilled(root) == {}


def _move_while_it_changes(parent: Parent, root: str) -> bool:
    return _move_late(parent, root, "segment:written")


def test_a_directory_that_changes_while_a_value_is_moved(root: str, tmp_path: Path) -> None:
    """The value stays where it is, and whoever needed room tries again."""
    store = shmstore.Store(root, spill=str(tmp_path / "first"))
    store.put("d", "a", big(1))
    with Child(_move_while_it_changes, Parent, root) as mover:
        assert mover.receive() == "waits"
        shmstore.Store(root, spill=str(tmp_path / "second"))
        mover.send()
        assert mover.receive() is False
        assert mover.join() == 0
    assert (store.get("d", "a") == 1).all()
    assert move(store, "a")
    assert (store.get("d", "a") == 1).all()
    assert os.listdir(tmp_path / "first") == []
    reading_files.check(root)


def test_a_directory_that_goes_before_a_value_is_written_there(
    root: str, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed with its DAG, or for another one: the value is not moved, and nothing fails."""
    store = shmstore.Store(root, spill=disk)
    store.put("d", "v", big(1))
    found = spill.dag_directory

    def removed_at_once(manifest: Any, make: bool = False) -> Any:
        directory = found(manifest, make)
        if make:
            spill.remove_generation(manifest.space, manifest.generation)
        return directory

    monkeypatch.setattr(spill, "dag_directory", removed_at_once)
    assert move(store, "v") is False
    monkeypatch.undo()
    assert on_disk(store) == []
    assert same(store.get("d", "v"), big(1))
    assert move(store, "v") is True


def _sweep_late(parent: Parent, root: str) -> list[str]:
    list_them = spill.generations

    def late(space: Any) -> list[int]:
        listed = list_them(space)
        spill.generations = list_them
        parent.send(len(listed))
        parent.receive()
        return listed

    spill.generations = late
    return [one.kind for one in shmstore.Store(root).gc().actions if one.kind != "pool"]


def test_a_sweep_while_another_directory_is_chosen(root: str, tmp_path: Path) -> None:
    """What it had listed is gone with the old one: no fault."""
    store = shmstore.Store(root, spill=str(tmp_path / "first"))
    store.put_many("d", {"a": big(1), "b": 1})
    assert move(store, "a")
    store.delete("d", "a")
    with Child(_sweep_late, Parent, root) as sweeper:
        assert sweeper.receive() == 1
        shmstore.Store(root, spill=str(tmp_path / "second"))
        sweeper.send()
        assert sweeper.receive() == []
        assert sweeper.join() == 0


def _owner_of(disk: str) -> dict[str, Any]:
    (page,) = [entry.path for entry in os.scandir(disk) if entry.name.endswith(".json")]
    assert os.stat(page).st_mode & 0o077 == 0
    owner: dict[str, Any] = json.loads(Path(page).read_text())
    return owner


def _leave(disk: str, name: str, **owner: Any) -> str:
    """A directory that some namespace has left in ``disk``, with a file in it."""
    own = f"{disk}/shmstore-{os.geteuid()}-{name}"
    os.makedirs(f"{own}/{'0' * 32}")
    Path(own, "0" * 32, "spill-0123456789abcdef").write_text("old")
    Path(f"{own}.json").write_text(json.dumps(owner))
    return own


def test_a_namespace_made_anew_does_not_meet_old_files(root: str, disk: str) -> None:
    """What a removed root had on the same disk goes; of others only what a restart left."""
    store = shmstore.Store(root, spill=disk)
    store.put("d", "a", big(1))
    assert move(store, "a")
    owner = _owner_of(disk)
    (old,) = [entry.path for entry in os.scandir(disk) if entry.is_dir()]
    del store
    gc.collect()
    shutil.rmtree(f"{root}/default")
    restarted = _leave(disk, "a" * 16, **owner | {"boot_id": "0" * 32, "inner_path": "/else"})
    elsewhere = _leave(disk, "b" * 16, **owner | {"inner_path": "/another/default"})
    device = _leave(disk, "c" * 16, **owner | {"device": owner["device"] + 1})
    damaged = _leave(disk, "d" * 16)
    Path(f"{disk}/mine").write_text("the user's")
    store = shmstore.Store(root, spill=disk)
    assert not os.path.exists(old)
    assert not os.path.exists(old + ".json")
    assert not os.path.exists(restarted)
    for other in (elsewhere, device, damaged):
        assert os.path.exists(f"{other}/{'0' * 32}/spill-0123456789abcdef")
        assert os.path.exists(f"{other}.json")
    assert Path(f"{disk}/mine").read_text() == "the user's"
    assert not store.has_value("d", "a")
    store.put("d", "a", big(2))
    assert move(store, "a")
    assert (store.get("d", "a") == 2).all()


def test_two_namespaces_share_a_disk(root: str, disk: str) -> None:
    """Each has a directory of its own, and clearing one leaves the other alone."""
    one = shmstore.Store(root, "one", spill=disk)
    two = shmstore.Store(root, "two", spill=disk)
    for number, store in enumerate((one, two)):
        store.put("d", "a", big(number))
        assert move(store, "a")
    one.clear("d")
    assert (shmstore.Store(root, "two").get("d", "a") == 1).all()
    assert reading_files.spilled(root, "one") == {}
    assert len(reading_files.spilled(root, "two")) == 1


def _bound(root: str) -> list[str]:
    whole = mount_tmpfs(f"{root}/whole", _MIB)
    os.makedirs(f"{whole}/part/default")
    os.mkdir(f"{root}/elsewhere")
    mount(f"{whole}/part", f"{root}/elsewhere", None, _MS_BIND)
    return [mounts.inner_path(f"{path}/default") for path in (f"{whole}/part", f"{root}/elsewhere")]


def test_where_a_namespace_lies_is_told_however_it_is_mounted(root: str) -> None:
    """Two mounts of one place have the same path within the file system."""
    assert with_mounts(_bound, root) == ["/part/default"] * 2


def test_a_directory_that_others_may_change_is_refused(root: str, tmp_path: Path) -> None:
    """Unless it is sticky, as /tmp is."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(shmstore.UnusableRoot, match="other users may change"):
        shmstore.Store(root, spill=place)
    place.chmod(0o1777)
    store = shmstore.Store(root, spill=place)
    store.put("d", "a", big(1))
    assert move(store, "a")
    (own,) = [entry for entry in os.scandir(place) if entry.is_dir()]
    assert own.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["/proc/self", "/dev/null/x"])
def test_a_place_that_is_not_fit_is_refused(root: str, path: str) -> None:
    """In a sentence that names it; the store works without."""
    with pytest.raises(shmstore.UnusableRoot, match="cannot be spilled there"):
        shmstore.Store(root, spill=path)
    store = shmstore.Store(root)
    store.put("d", "a", big(1))
    assert (store.get("d", "a") == 1).all()


def test_a_value_that_fits_nowhere_moves_nothing(root: str, disk: str) -> None:
    """A put larger than the capacity is refused at once."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    store.put_many("d", {f"v{n}": big(n) for n in range(6)})
    with pytest.raises(shmstore.StoreFull, match="capacity"):
        store.put("d", "whale", big(0, 4096))
    assert on_disk(store) == []


def test_a_damaged_value_does_not_keep_others_from_being_moved(root: str, disk: str) -> None:
    """A segment that was cut short is another value's trouble."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    store.put("damaged", "v", big(0))
    path = reading_files.read(root, "damaged").path / store.entry("damaged", "v").location
    os.truncate(path, 100)
    for n in range(14):
        store.put("d", f"v{n}", big(n))
    assert on_disk(store)
    assert all((store.get("d", f"v{n}") == n).all() for n in range(14))
    with pytest.raises(shmstore.CorruptValue):
        store.get("damaged", "v")


def _with_few_descriptors(root: str, disk: str) -> int:
    store = shmstore.Store(root, capacity=8 * _MIB, spill=disk)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    for n in range(70):
        store.put(f"dag-{n}", "v", big(n, 128))
    moved = 0
    for n in range(70):
        assert (store.get(f"dag-{n}", "v") == n).all()
        moved += len(on_disk(store, f"dag-{n}"))
    return moved


def test_values_of_many_dags_move_with_few_descriptors(root: str, disk: str) -> None:
    """Making room keeps few DAGs open at a time."""
    assert call(_with_few_descriptors, root, disk) > 10
    reading_files.check(root)


def _fill(root: str, number: int) -> int:
    store = shmstore.Store(root)
    for n in range(12):
        store.put(f"dag-{number % 2}", f"{number}-{n}", big(number * 100 + n))
        if n % 4 == 3:
            store.put(f"dag-{number % 2}", f"{number}-{n - 1}", big(number * 100 + n - 1))
    return number


def _numbers() -> Iterator[tuple[int, int]]:
    return ((number, n) for number in range(3) for n in range(12))


def test_several_processes_make_room_at_once(root: str, disk: str) -> None:
    """All that was acknowledged is there, once, and the account holds."""
    store = shmstore.Store(root, capacity=CAPACITY, spill=disk)
    children = [Child(_fill, root, number) for number in range(3)]
    try:
        assert [child.receive(60) for child in children] == [0, 1, 2]
    finally:
        for child in children:
            child.kill()
    for number, n in _numbers():
        got = store.get(f"dag-{number % 2}", f"{number}-{n}")
        assert (got == number * 100 + n).all()
    del got
    gc.collect()
    account = reading_files.account(root)
    assert account.allocated <= account.used <= CAPACITY
    files = reading_files.check(root)
    wanted = sum(one.spilled for dag in files.values() for one in dag.records.values())
    assert len(reading_files.spilled(root)) == wanted > 0
