"""The commands that look into a store, run for real on stores that others have made."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import shmstore
from shmstore import names, record
from shmstore.cli import COMMANDS
from tests.cli import sample
from tests.cli.sample import SHMSTORE, call
from tests.fault.killing import call as in_child

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0

#: Every command that only looks, with arguments that suit the sample store.
LOOKING = {
    "ls": ["ls", "etl"],
    "dags": ["dags"],
    "stat": ["stat", "etl", "flights"],
    "show": ["show", "etl", "flights"],
    "head": ["head", "etl", "flights"],
    "export": ["export", "etl", "flights", "-o", "-", "--format", "csv"],
    "path": ["path", "etl", "flights"],
    "du": ["du"],
    "log": ["log", "etl"],
    "graph": ["graph", "etl"],
    "readers": ["readers", "etl"],
    "report": ["report", "--no-check", "-o", "/dev/stdout"],
    "metrics": ["metrics"],
    "top": ["top", "--once"],
    "watch": ["watch", "-n", "1"],
}
OTHERS = {
    "check",
    "clear",
    "completion",
    "demo",
    "doctor",
    "fetch",
    "gc",
    "node",
    "nodes",
    "rm",
    "where",
}


def test_every_command_is_one_that_looks_or_one_that_does_more() -> None:
    """The tests below are about all commands that only look."""
    assert set(LOOKING) | OTHERS == set(COMMANDS)
    assert not set(LOOKING) & OTHERS


def _sentence(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", LOOKING)
def test_a_place_that_is_no_store(root: str, command: str) -> None:
    """Exit code 3 and a sentence; nothing is made."""
    args = LOOKING[command]
    os.mkdir(root)
    _sentence(call(*args, "--root", f"{root}/nowhere"), 3, "no store", "no such directory")
    if command == "ls":
        _sentence(call(*args, "--root", root), 3, "no store")
    assert os.listdir(root) == []


@pytest.mark.parametrize("command", [name for name in LOOKING if name != "watch"])
def test_a_damaged_manifest(root: str, command: str) -> None:
    """Exit code 5, what is damaged is named, and the other DAGs are told all the same."""
    store = shmstore.Store(root)
    store.put("etl", "flights", pa.table({"n": [1]}))
    store.put("other", "a", 1)
    path = Path(root, "default", "dags", "etl", names.MANIFEST)
    page = bytearray(path.read_bytes())
    page[130] ^= 1
    path.write_bytes(page)
    done = call(*LOOKING[command], "--root", root)
    if command == "top":
        assert done.returncode == 0
        assert "1 DAG cannot be read" in done.stdout
        return
    if command == "metrics":
        assert done.returncode == 0
        assert 'shmstore_dags_unreadable{namespace="default"} 1' in done.stdout
        return
    _sentence(done, 5, "'etl'", "damaged")
    if command in ("dags", "du", "report"):
        assert "other" in done.stdout


@pytest.mark.parametrize("command", [name for name in LOOKING if name != "watch"])
def test_a_format_from_the_future(root: str, command: str) -> None:
    """Exit code 1: upgrade shmstore."""
    shmstore.Store(root).put("etl", "flights", pa.table({"n": [1]}))
    path = Path(root, "default", names.CONTROL)
    page = bytearray(path.read_bytes())
    page[8:16] = (record.FORMAT_VERSION + 1).to_bytes(8, "little")
    page[16:24] = record.static_checksum(bytes(page)).to_bytes(8, "little")
    path.write_bytes(page)
    _sentence(call(*LOOKING[command], "--root", root), 1, "newer", "upgrade shmstore")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")
def test_another_users_store(root: str) -> None:
    """Exit code 1, and whose it is."""
    shmstore.Store(root).put("etl", "flights", 1)
    Path(root).chmod(0o755)
    # Once as root first, so that all is imported: another user may not read the checkout.
    code = (
        "import os, sys\n"
        "from shmstore.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ls", "--root", root],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == "etl\n"
    _sentence(done, 1, "belongs to user 0", "you are 65534")


@pytest.mark.parametrize("command", [name for name in LOOKING if "etl" in LOOKING[name]])
def test_a_dag_or_a_value_that_is_not_there(root: str, command: str) -> None:
    """Exit code 3 and its name."""
    shmstore.Store(root).put("other", "a", 1)
    args = LOOKING[command]
    _sentence(call(*args, "--root", root), 3, "'etl'")
    shmstore.Store(root).put("etl", "b", 1)
    if "flights" in args:
        _sentence(call(*args, "--root", root), 3, "'flights'")


def test_a_namespace_that_goes_while_it_is_watched(root: str) -> None:
    """Exit code 3 and a sentence, soon."""
    store = shmstore.Store(root)
    store.put("d", "a", 1)
    with Watching(root) as watching:
        shutil.rmtree(f"{root}/default")
        _, errors = watching.communicate(timeout=DEADLINE_S)
        assert watching.returncode == 3, errors
        assert "removed" in errors


class Watching:
    """``shmstore watch``, once it has begun."""

    def __init__(self, root: str, *args: str) -> None:
        self._process = subprocess.Popen(
            [SHMSTORE, "watch", "--root", root, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        if "--json" not in args:
            assert self._process.stderr.readline().startswith("Watching")

    def __enter__(self) -> subprocess.Popen[str]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=DEADLINE_S)


def test_what_is_stored_is_told_to_who_watches(root: str) -> None:
    """Every put, overwrite, delete and clear, of DAGs that come later, too, in order."""
    store = shmstore.Store(root)
    store.put("old", "before", 1)
    with Watching(root) as watching:
        assert watching.stdout is not None
        store.put("old", "a", 1)
        store.put("old", "a", 2)
        store.delete("old", "a")
        told = [watching.stdout.readline().split()[2:5] for _ in range(3)]
        assert [one[:3] for one in told] == [
            ["put", "old", "a"],
            ["put", "old", "a"],
            ["delete", "old", "a"],
        ]
        store.put("new", "b", 1)
        assert [watching.stdout.readline().split()[2] for _ in range(2)] == ["created", "put"]
        store.clear("new")
        assert watching.stdout.readline().split()[2:4] == ["cleared", "new"]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=DEADLINE_S)
        assert watching.returncode == 130


def test_a_listing_is_made_anew_when_something_changes(root: str) -> None:
    """With --watch, from a DAG that is not there yet to its end."""
    store = shmstore.Store(root)
    store.put("other", "a", 1)
    listing = subprocess.Popen(
        [SHMSTORE, "ls", "d", "--watch", "--root", root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert "no DAG 'd'" in listing.stderr.readline()
        store.put("d", "a", 1)
        assert listing.stdout.readline() == "a\n"
        store.put("d", "b", 1)
        assert [listing.stdout.readline() for _ in range(2)] == ["a\n", "b\n"]
        store.clear("d")
        assert "no DAG 'd'" in listing.stderr.readline()
        listing.send_signal(signal.SIGINT)
        assert listing.wait(DEADLINE_S) == 130
    finally:
        listing.kill()
        listing.communicate(timeout=DEADLINE_S)


def test_a_dag_that_is_not_there_yet_can_be_watched_and_is_not_made(root: str) -> None:
    """It is told of as it comes; JSON lines; -n ends it."""
    store = shmstore.Store(root)
    store.put("other", "a", 1)
    watching = subprocess.Popen(
        [SHMSTORE, "watch", "--root", root, "d", "-n", "2", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while watching.poll() is None:
            # Until it has begun, nothing tells of it: so again until it has been seen.
            store.put("other", "a", 1)
            store.put("d", "x", 1)
            assert time.monotonic() < deadline
            if not _running(watching, 0.05):
                break
        lines = [json.loads(line) for line in (watching.stdout or [])]
    finally:
        watching.kill()
        watching.communicate(timeout=DEADLINE_S)
    assert {line["schema"] for line in lines} == {"shmstore.change/1"}
    assert {line["dag_id"] for line in lines} == {"d"}
    assert len(lines) == 2


def _running(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_who_views_a_value_is_told(root: str) -> None:
    """By pid and command, in stat and in readers, as long as the view lasts."""
    store = shmstore.Store(root)
    store.put("d", "large", np.arange(100_000))
    code = (
        "import sys, shmstore\n"
        "view = shmstore.Store(sys.argv[1]).get('d', 'large')\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        told = json.loads(call("stat", "d", "large", "--root", root, "--json").stdout)
        assert [one["pid"] for one in told["readers"]] == [reader.pid]
        assert "shmstore.Store" in told["readers"][0]["command"]
        views = json.loads(call("readers", "d", "--root", root, "--json").stdout)["views"]
        assert [(one["pid"], one["id"], one["how"]) for one in views] == [
            (reader.pid, "large", "view")
        ]
        store.delete("d", "large")
        views = json.loads(call("readers", "--root", root, "--json").stdout)["views"]
        assert [one["id"] for one in views] in ([], [None])
    views = json.loads(call("readers", "--root", root, "--json").stdout)["views"]
    assert views == []


class Bomb:
    """Makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("command", ["stat", "show", "export"])
def test_no_look_runs_what_a_pickle_says(root: str, tmp_path: Path, command: str) -> None:
    """It is refused with a sentence; show and export run it only with --unsafe."""
    target = tmp_path / "ran"
    os.environ["BOMB"] = str(target)
    try:
        in_child(lambda: shmstore.Store(root).put("d", "bomb", [Bomb()]))
    except AssertionError:
        pass  # storing it loads it once, to see whether it can be loaded
    finally:
        del os.environ["BOMB"]
    if target.exists():
        target.rmdir()
    if not shmstore.Store(root).has_value("d", "bomb"):
        _store_raw_pickle(root, str(target))
    args = ["-o", str(tmp_path / "x.npy")] if command == "export" else []
    done = call(command, "d", "bomb", *args, "--root", root)
    assert not target.exists()
    if command == "stat":
        assert done.returncode == 0
        assert "not told" in done.stdout
        return
    _sentence(done, 1, "--unsafe")
    call(command, "d", "bomb", *args, "--unsafe", "--root", root)
    assert target.exists()


def _store_raw_pickle(root: str, target: str) -> None:
    """Stores a pickle that a local process may have made by other means."""
    os.environ["BOMB"] = target
    store = shmstore.Store(root)
    try:
        store.put("d", "bomb", [Bomb()])
    finally:
        del os.environ["BOMB"]
        if os.path.exists(target):
            os.rmdir(target)


def _read_csv(path: str) -> pa.Table:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [int(row["n"]) if row["n"] else None for row in rows]
    return pa.table({"n": numbers, "s": [row["s"] for row in rows]})


@pytest.mark.parametrize("form", ["parquet", "csv", "arrow"])
def test_a_table_is_exported_whole(root: str, tmp_path: Path, form: str) -> None:
    """What was written reads as the same table; a file that is there is kept."""
    table = pa.table({"n": [1, 2, None], "s": ["a", "b", "c"]})
    shmstore.Store(root).put("d", "t", table)
    path = tmp_path / f"out.{form}"
    done = call("export", "d", "t", "-o", str(path), "--root", root)
    assert done.returncode == 0, done.stderr
    readers = {
        "parquet": pa.parquet.read_table,
        "csv": _read_csv,
        "arrow": lambda file: pa.ipc.open_file(file).read_all(),
    }
    assert readers[form](str(path)).equals(table)
    before = path.read_bytes()
    _sentence(call("export", "d", "t", "-o", str(path), "--root", root), 2, "--force")
    assert path.read_bytes() == before
    assert call("export", "d", "t", "-o", str(path), "--force", "--root", root).returncode == 0
    assert sorted(os.listdir(tmp_path)) == [path.name]


def test_arrays_and_raw_bytes_are_exported(root: str, tmp_path: Path) -> None:
    """Arrays go into npy files, the stored bytes of anything into raw ones; else a sentence."""
    array = np.arange(50_000).reshape(100, 500)
    store = shmstore.Store(root)
    store.put("d", "a", array)
    store.put("d", "dict", {"a": 1})
    path = tmp_path / "a.npy"
    assert call("export", "d", "a", "-o", str(path), "--root", root).returncode == 0
    assert np.array_equal(np.load(path), array)
    raw = tmp_path / "a.bin"
    assert call("export", "d", "a", "-o", str(raw), "--root", root).returncode == 0
    assert raw.read_bytes() == array.tobytes()
    _sentence(call("export", "d", "dict", "-o", str(tmp_path / "d.csv"), "--root", root), 2, "dict")
    _sentence(call("export", "d", "a", "-o", str(tmp_path / "a.xyz"), "--root", root), 2, "suffix")
    missing = str(tmp_path / "no" / "a.npy")
    _sentence(call("export", "d", "a", "-o", missing, "--root", root), 1, "cannot be written")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.npy"]


def test_names_cannot_drive_the_terminal(root: str) -> None:
    """No command prints a control character or a change of direction that a name holds."""
    sample.make(root)
    dag = "odd\n\x1b[31mname"
    id = "a/b\u202ec"
    for args in (
        ["ls"],
        ["ls", "-l", dag],
        ["dags"],
        ["stat", dag, id],
        ["show", dag, id],
        ["log", dag],
        ["graph", dag],
        ["graph", dag, "--format", "mermaid"],
        ["graph", dag, "--format", "dot"],
        ["du"],
        ["readers"],
        ["metrics"],
        ["top", "--once"],
        ["ls", "no\x1b[31m"],
        ["stat", dag, "no\x1b[31m"],
        ["rm", dag, id],
        ["check"],
    ):
        done = call(*args, "--root", root)
        told = done.stdout + done.stderr
        assert told
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", told), args


def test_a_reader_that_goes_away_early_is_no_error(root: str) -> None:
    """A broken pipe is silence, and ends the command as the signal would."""
    store = shmstore.Store(root)
    store.put_many("d", {f"k{number}": number for number in range(30_000)})
    done = subprocess.run(
        ["bash", "-c", f"'{SHMSTORE}' ls d --root '{root}' | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stdout == "k0\n141\n"
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["ls", "dags", "du", "readers", "metrics", "top", "report"])
def test_many_dags_need_few_descriptors(root: str, tmp_path: Path, command: str) -> None:
    """A look at all of them has the files of one open at a time."""
    store = shmstore.Store(root)
    for number in range(150):
        store.put(f"dag-{number}", "a", 1)
    more = {"report": f"--no-check -o {tmp_path / 'r.html'}", "top": "--once"}.get(command, "")
    line = f"ulimit -n 64; exec '{SHMSTORE}' {command} {more} --root '{root}'"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    if command not in ("readers", "report"):
        assert "dag-149" in done.stdout or command == "top"


def test_a_listing_streams(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line comes when few of the records have been read."""
    from shmstore.inspection.snapshot import Snapshot
    from shmstore.log import Log

    store = shmstore.Store(root)
    store.put_many("d", {f"k{number}": number for number in range(100_000)})
    dag = Snapshot(root, "default").dag("d")
    read, reading = 0, Log.read

    def counted(self: Log, offset: int) -> Any:
        nonlocal read
        read += 1
        return reading(self, offset)

    monkeypatch.setattr(Log, "read", counted)
    assert next(dag.entries()).id == "k0"
    assert next(dag.entries("size", reverse=True)).nbytes >= 5
    assert read < 10


def test_what_destroys_asks_first(root: str) -> None:
    """rm, clear and check --fix refuse where nobody can be asked, and do it with --force."""
    store = shmstore.Store(root)
    for id in ("a", "b1", "b2", "c"):
        store.put("d", id, 1)
    _sentence(call("rm", "d", "a", "--root", root), 2, "--force")
    _sentence(call("clear", "d", "--root", root), 2, "--force")
    _sentence(call("check", "--fix", "--root", root), 2, "--force")
    assert list(store.ids("d")) == ["a", "b1", "b2", "c"]
    assert call("rm", "d", "a", "--force", "--root", root).returncode == 0
    done = call("rm", "d", "b*", "--glob", "--force", "--json", "--root", root)
    assert json.loads(done.stdout)["ids"] == ["b1", "b2"]
    assert list(store.ids("d")) == ["c"]
    _sentence(call("rm", "d", "x*", "--glob", "--force", "--root", root), 3, "x*")
    _sentence(call("rm", "d", "c", "x", "--force", "--root", root), 3, "'x'")
    assert list(store.ids("d")) == ["c"]
    _sentence(call("clear", "none", "--force", "--root", root), 3, "'none'")
    assert call("clear", "d", "--force", "--root", root).returncode == 0
    assert store.dags() == []


def test_on_a_terminal_the_answer_decides(root: str) -> None:
    """The answer n keeps the value, y deletes it."""
    import pty

    store = shmstore.Store(root)
    store.put("d", "a", 1)
    for answer, left in ((b"n\n", True), (b"y\n", False)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [SHMSTORE, "rm", "d", "a", "--root", root],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.write(ours, answer)
        process.wait(DEADLINE_S)
        os.close(ours)
        assert store.has_value("d", "a") is left


def test_check_tells_and_mends(root: str) -> None:
    """5 for what a killed writer left, with --fix it is freed, then all is well."""
    sample.make(root)
    done = call("check", "--json", "--root", root)
    assert done.returncode == 5
    assert [one["kind"] for one in json.loads(done.stdout)["findings"]] == ["orphan"]
    done = call("check", "--fix", "--force", "--root", root)
    assert "fixed" in done.stdout
    assert call("check", "--root", root).returncode == 0


def test_the_parts_add_up_to_what_the_files_take(root: str) -> None:
    """Every byte of the namespace is counted once, by du."""
    sample.make(root)
    store = shmstore.Store(root)
    store.put("d", "large", np.arange(100_000))
    store.delete("d", "large")
    told = json.loads(call("du", "--json", "--root", root).stdout)
    files = [path for path in Path(root, "default").rglob("*") if path.is_file()]
    assert told["shared"] == sum(path.lstat().st_blocks * 512 for path in files)
    assert told["pool"] > 0
    (etl,) = [one for one in told["dags"] if one["dag_id"] == "etl"]
    assert etl["leftover"] >= 800_000
    assert told["reclaimable"] >= etl["leftover"] + told["pool"]


def test_metrics_are_prometheus_text(root: str, tmp_path: Path) -> None:
    """Each line is a comment or a sample; label values are escaped; a file appears whole."""
    sample.make(root)
    printed = call("metrics", "--root", root).stdout
    sample_line = re.compile(r'shmstore_[a-z_]+\{([a-z]+="([^"\\\n]|\\[\\"n])*",?)+\} [0-9.e+-]+')
    for line in printed.splitlines():
        assert line.startswith(("# HELP shmstore_", "# TYPE shmstore_")) or sample_line.fullmatch(
            line
        ), line
    assert 'shmstore_dag_values{namespace="default",dag="etl"} 4' in printed
    path = tmp_path / "shmstore.prom"
    assert call("metrics", "-o", str(path), "--root", root).stdout == ""
    assert "shmstore_dag_values" in path.read_text()
    assert os.listdir(tmp_path) == ["shmstore.prom"]


def test_the_graph_of_deps_bears_circles_and_what_is_not_there(root: str) -> None:
    """All values are drawn once, in every form."""
    store = shmstore.Store(root)
    store.put("d", "a", 1, deps=["b"])
    store.put("d", "b", 1, deps=["a"])
    store.put("d", "c", 1, deps=["gone", "a"])
    tree = call("graph", "d", "--root", root).stdout
    assert {re.sub("[│├└─ ]", "", line).replace("5B", "") for line in tree.splitlines()} >= {"b"}
    assert "gone  not here" in tree
    assert call("graph", "d", "--format", "dot", "--root", root).stdout.count("->") == 4
    told = json.loads(call("graph", "d", "--json", "--root", root).stdout)
    assert {one["id"] for one in told["nodes"]} == {"a", "b", "c", "gone"}


def test_a_copy_is_looked_at_from_a_checkout_without_installation(
    root: str, tmp_path: Path
) -> None:
    """tools/inspect_manifest.py on a root, a namespace and one DAG, copied elsewhere."""
    sample.make(root)
    shutil.copytree(f"{root}/default", tmp_path / "copy" / "default")
    tool = ROOT / "tools" / "inspect_manifest.py"

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, tool, *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "SHM"))},
        )
        return done.stdout

    assert "etl" in run(str(tmp_path / "copy"))
    assert "etl" in run(str(tmp_path / "copy" / "default"))
    dag = str(tmp_path / "copy" / "default" / "dags" / "etl")
    assert "numpy.ndarray" in run(dag)
    assert "carrier: string" in run(dag, "stat", "etl", "flights")
    assert "6,000 rows" in run(dag, "show", "etl", "flights")
    assert "delete" in run(dag, "log", "etl")


def test_a_store_of_an_earlier_start_is_read_and_not_opened(root: str) -> None:
    """What only looks reads it; what would open it, and so clear it, refuses."""
    from shmstore.namespace import BOOT_ID_LOW

    shmstore.Store(root).put("d", "a", 1)
    path = Path(root, "default", names.CONTROL)
    page = bytearray(path.read_bytes())
    page[BOOT_ID_LOW * 8] ^= 1
    page[16:24] = record.static_checksum(bytes(page)).to_bytes(8, "little")
    path.write_bytes(page)
    assert call("ls", "d", "--root", root).stdout == "a\n"
    for args in (["check"], ["gc"], ["rm", "d", "a", "--force"]):
        _sentence(call(*args, "--root", root), 1, "before the machine's last start")
    assert call("ls", "d", "--root", root).stdout == "a\n"


def test_bash_completes_commands_dags_and_ids(root: str) -> None:
    """What the printed script makes of a line, in a real bash."""
    store = shmstore.Store(root)
    store.put("etl", "flights", 1)
    store.put("etl", "flat", 1)
    store.put("models", "m", 1)
    script = (
        f'eval "$({SHMSTORE} completion bash)"\n'
        f"export PATH={SHMSTORE.parent}:$PATH SHMSTORE_ROOT={root}\n"
        "complete_line() { COMP_WORDS=($1); COMP_CWORD=$2; COMPREPLY=();"
        ' _shmstore_completion shmstore; echo "${COMPREPLY[*]}"; }\n'
        "complete_line 'shmstore st' 1\n"
        "complete_line 'shmstore stat e' 2\n"
        "complete_line 'shmstore stat etl fl' 3\n"
        "complete_line 'shmstore ls --so' 2\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split("\n") == ["stat", "etl", "flights flat", "--sort", ""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    """It names the command and asks it."""
    done = call("completion", shell)
    assert done.returncode == 0
    assert f"_SHMSTORE_COMPLETE={shell}_complete" in done.stdout
