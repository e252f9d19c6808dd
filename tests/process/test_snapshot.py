"""Looking at a store from outside: beside writers, after deaths, at damage; changing nothing."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints, names
from shmstore.errors import CorruptValue, NotFound, StoreError, UnusableRoot
from shmstore.index import Index
from shmstore.inspection.changes import Changes
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.inspection.snapshot import NoDag, NoStore, Snapshot, Unreadable
from tests.fault.killing import call, kill_at

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


def _dag(root: str, dag_id: str = "d") -> DagSnapshot:
    return Snapshot(root, "default").dag(dag_id)


def _state(root: str) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a root: its inode, when it was written, what is in it."""
    found = {}
    for path in Path(root).rglob("*"):
        if path.is_file():
            status = path.stat()
            found[str(path)] = (status.st_ino, status.st_mtime_ns, path.read_bytes())
    return found


def test_what_a_dead_process_has_stored_is_seen_and_nothing_is_changed(root: str) -> None:
    """Entries in their order, sizes, places; not a byte, time or file of the store differs."""

    def store() -> None:
        made = shmstore.Store(root)
        made.put("d", "a", 1)
        made.put("d", "large", np.arange(100_000), deps=["a"])
        made.put("d", "gone", 2)
        made.put("d", "a", 3)
        made.delete("d", "gone")

    call(store)
    before = _state(root)
    dag = _dag(root)
    entries = list(dag.entries())
    assert [entry.id for entry in entries] == ["large", "a"]
    assert entries[0].deps == ("a",)
    assert [entry.id for entry in dag.entries("name")] == ["a", "large"]
    assert [entry.id for entry in dag.entries("size", reverse=True)] == ["large", "a"]
    assert dag.totals.live == 2
    _, payload = dag.payload("large")
    assert bytes(payload) == np.arange(100_000).tobytes()
    operations = [found.op for _, found, _ in dag.history()]
    assert operations == [1, 1, 1, 1, 2]
    assert dag.damaged == []
    with pytest.raises(NotFound):
        dag.find("gone")
    assert _state(root) == before


@pytest.mark.parametrize(
    "point", ["commit:written", "commit:named", "commit:tail", "commit:slot-hash", "commit:slot"]
)
def test_after_a_death_in_a_commit_the_old_or_the_new_value_is_seen(root: str, point: str) -> None:
    """What was committed counts, though the index lacks it; what was not does not."""
    shmstore.Store(root).put("d", "a", "old")

    def put() -> None:
        both = {"a": np.arange(10_000), "b": "new"}
        shmstore.Store(root).put_many("d", both)

    kill_at(point, 1, put)
    kinds = {entry.id: entry.type_name for entry in _dag(root).entries()}
    if point in ("commit:written", "commit:named"):
        assert kinds == {"a": "str"}
    else:
        assert kinds == {"a": "numpy.ndarray", "b": "str"}
        assert _dag(root).find("a").nbytes == 80_000


def test_a_writer_that_stopped_with_the_lock_keeps_no_look_waiting(root: str) -> None:
    """The whole store is looked at while a commit is under way, by its own thread even."""
    store = shmstore.Store(root)
    store.put("d", "a", 1)
    seen = []

    def look(name: str) -> None:
        if name == "commit:tail":
            crashpoints.hook = None
            seen.extend(entry.id for entry in _dag(root).entries())

    crashpoints.hook = look
    try:
        store.put("d", "b", 2)
    finally:
        crashpoints.hook = None
    assert seen == ["a", "b"]


_WRITER = """
import random, sys
import shmstore
seed = int(sys.argv[2])
draw = random.Random(seed)
store = shmstore.Store(sys.argv[1])
print(flush=True)
while True:
    kind = draw.random()
    number = draw.randrange(1 << 30)
    if kind < 0.8:
        # Two keys that are always stored together, with one number.
        at = draw.randrange(200)
        store.put_many("d", {f"x{seed}-{at}": number, f"y{seed}-{at}": number})
    elif kind < 0.9:
        at = draw.randrange(200)
        try:
            store.delete_many("d", [f"x{seed}-{at}", f"y{seed}-{at}"])
        except shmstore.NotFound:
            pass
    elif kind < 0.9005:
        store.clear("d")
"""


@pytest.fixture
def writers(root: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that put, delete and clear pairs of values without end."""
    shmstore.Store(root).put("d", "first", 0)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, root, str(seed)], stdout=subprocess.PIPE, cwd=ROOT
        )
        for seed in (1, 2)
    ]
    for one in running:
        assert one.stdout is not None
        one.stdout.readline()
    yield running
    for one in running:
        assert one.poll() is None, "a writer has failed"
        one.kill()
        one.communicate(timeout=DEADLINE_S)


def test_beside_busy_writers_a_look_is_a_state_that_was(
    root: str, writers: list[subprocess.Popen[bytes]]
) -> None:
    """Pairs that are stored together are seen together, through compactions and clears."""
    deadline = time.monotonic() + 3.0
    looks = pairs = 0
    logs = set()
    while time.monotonic() < deadline:
        try:
            dag = _dag(root)
        except NoDag:
            continue  # just cleared
        looks += 1
        logs.add((dag.control.generation, dag.control.log_number))
        found = {record.key.decode(): record.payload for record in dag.records()}
        assert dag.damaged == []
        assert len(found) == dag.totals.live
        for key, payload in found.items():
            if key[0] == "x":
                assert found.get(f"y{key[1:]}") == payload
                pairs += 1
    assert looks > 20
    assert pairs > 100
    assert len(logs) > 1, "no log was replaced: this shows little"


def test_what_is_asked_of_no_value_reads_no_index(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, totals, sizes and changes of DAGs cost the same however many values they have."""
    store = shmstore.Store(root)
    store.put("d", "a", 1)
    copied = []

    def entries(self: Index) -> None:
        copied.append(self)

    monkeypatch.setattr(Index, "entries", entries)
    looked = Snapshot(root, "default")
    changes = Changes(looked)
    store.put("d", "b", 2)
    assert [change.what for change in changes.look()] == ["put"]
    (dag,) = looked.dags()
    assert isinstance(dag, DagSnapshot)
    assert (dag.dag_id, dag.totals.live, dag.index_fault) == ("d", 2, None)
    assert len([*dag.history()]) == 2
    assert copied == []


def test_a_dag_that_is_cleared_while_it_is_looked_at_is_seen_as_it_was(root: str) -> None:
    """Its values are those of when it was opened, though its files are gone."""
    store = shmstore.Store(root)
    store.put_many("d", {f"k{number}": number for number in range(100)})
    dag = _dag(root)
    store.clear("d")
    assert len([*dag.entries()]) == 100
    assert dag.damaged == []


def test_an_index_that_is_gone_or_damaged_is_done_without(root: str, tmp_path: Path) -> None:
    """Everything is told by the log, and the fault."""
    store = shmstore.Store(root)
    for number in range(50):
        store.put("d", f"k{number % 30}", number)
    copy = tmp_path / "d"
    shutil.copytree(Path(root, "default", "dags", "d"), copy)
    whole = [entry.id for entry in _dag(root).entries()]
    (index,) = copy.glob("index.*")
    for damage in (index.unlink, lambda: index.write_bytes(b"rubbish" * 100)):
        damage()
        dag = Snapshot.at(str(copy)).dag("d")
        assert [entry.id for entry in dag.entries()] == whole
        assert dag.index_fault is not None
        assert dag.find("k3").payload == _dag(root).find("k3").payload


def test_a_log_that_was_cut_is_read_up_to_there(root: str, tmp_path: Path) -> None:
    """What lies before the cut is told, and that something is missing."""
    store = shmstore.Store(root)
    for number in range(500):
        store.put("d", f"k{number}", "x" * 500)
    copy = tmp_path / "d"
    shutil.copytree(Path(root, "default", "dags", "d"), copy)
    (log,) = copy.glob("log.*")
    os.truncate(log, 64 << 10)
    dag = Snapshot.at(str(copy)).dag("d")
    seen = [entry.id for entry in dag.entries()]
    assert seen == [f"k{number}" for number in range(len(seen))]
    assert 50 < len(seen) < 500
    assert dag.damaged


_FUZZ = """
import random, sys
from shmstore.errors import StoreError
from shmstore.inspection.snapshot import Snapshot, Unreadable
from shmstore.inspection import usage
from shmstore import stored
from pathlib import Path
import os, shutil
source, place, seed, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
for number in range(rounds):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    every = (path for path in Path(place).rglob("*") if path.is_file())
    files = sorted(path for path in every if path.stat().st_size)
    for _ in range(draw.randrange(1, 6)):
        path = draw.choice(files)
        size = path.stat().st_size
        if draw.random() < 0.15:
            os.truncate(path, draw.randrange(size))
            continue
        with open(path, "r+b") as file:
            # Most of a file is unused; what is used lies at its beginning.
            file.seek(draw.randrange(min(size, draw.choice((64, 200, 8192, size))) or 1))
            file.write(draw.randbytes(draw.choice((1, 1, 2, 8, 64))))
    print(number, flush=True)
    try:
        looked = Snapshot.at(place)
        for dag in looked.dags():
            if isinstance(dag, Unreadable):
                str(dag.error)
                continue
            for by in ("stored", "size", "name"):
                for entry in dag.entries(by):
                    str(entry), entry.created_at
            for event in dag.history():
                pass
            for found in dag.records():
                try:
                    dag.payload(found.key.decode(errors="replace"))
                except StoreError as error:
                    str(error)
            usage.of_dag(dag)
        usage.usage(looked)
    except StoreError as error:
        str(error)
"""


def _fuzz(root: str, tmp_path: Path, seed: int, rounds: int) -> None:
    store = shmstore.Store(root)
    for number in range(40):
        store.put("d", f"k{number % 25}", "x" * number, deps=[f"k{number - 1}"])
    store.put("d", "large", np.arange(10_000))
    store.put("e", "other", {"a": 1})
    place = str(tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, f"{root}/default", place, str(seed), str(rounds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-20:], done.stderr)
    assert len(done.stdout.split()) == rounds


def test_damaged_files_never_end_a_look_otherwise_than_in_a_sentence(
    root: str, tmp_path: Path
) -> None:
    """Bytes changed and files cut at random: no crash, no traceback, no hang."""
    seed = random.SystemRandom().randrange(1 << 32)
    _fuzz(root, tmp_path, seed, 150)


def test_a_place_that_is_no_store_is_told(root: str, tmp_path: Path) -> None:
    """Nothing there, an empty directory, a file, another namespace."""
    with pytest.raises(NoStore, match="no such directory"):
        Snapshot(f"{root}/nowhere", "default")
    with pytest.raises(NoStore, match="control page"):
        Snapshot.at(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(NoStore, match="no directory"):
        Snapshot.at(str(tmp_path / "file"))
    shmstore.Store(root, "other").put("d", "a", 1)
    with pytest.raises(NoStore, match="there is other"):
        Snapshot(root, "default")
    assert Snapshot.at(root).name == "other"


def test_a_format_from_the_future_is_told(root: str) -> None:
    """That shmstore is to be upgraded, not that something is damaged."""
    from shmstore import record

    store = shmstore.Store(root)
    store.put("d", "a", 1)
    path = Path(root, "default", "dags", "d", names.MANIFEST)
    page = bytearray(path.read_bytes())
    page[8:16] = (record.FORMAT_VERSION + 1).to_bytes(8, "little")
    page[16:24] = record.static_checksum(bytes(page)).to_bytes(8, "little")
    path.write_bytes(page)
    (dag,) = Snapshot(root, "default").dags()
    assert isinstance(dag, Unreadable)
    assert isinstance(dag.error, UnusableRoot)
    assert "upgrade" in str(dag.error)


def test_one_damaged_dag_hides_no_other(root: str) -> None:
    """The others are listed, and the damaged one by its name."""
    store = shmstore.Store(root)
    store.put("bad", "a", 1)
    store.put("good", "a", 1)
    Path(root, "default", "dags", "bad", names.MANIFEST).write_bytes(b"rubbish")
    bad, good = Snapshot(root, "default").dags()
    assert isinstance(bad, Unreadable)
    assert bad.dag_id == "bad"
    assert isinstance(bad.error, CorruptValue)
    assert isinstance(good, DagSnapshot)
    with pytest.raises(StoreError):
        Snapshot(root, "default").dag("bad")
