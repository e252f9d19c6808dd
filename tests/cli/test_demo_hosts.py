"""``shmstore demo --hosts``, run as a person runs it: a real server, real nodes, nothing left."""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shmstore import Store
from tests.cli.driving import (
    DEADLINE_S,
    PAUSING_WORKERS,
    SHMSTORE,
    Driven,
    assert_nothing_left,
    demo,
    descendants,
    report_of,
)

# Pauses when the nodes have been started and none has been waited for.
PAUSING_START = """
from shmstore.demo import hosts
await_node = hosts.Hosts._await
def pausing_await(self, announced):
    pause()
    await_node(self, announced)
hosts.Hosts._await = pausing_await
"""
FLIGHTS_CROSSED = 34e6


def others(pid: int) -> dict[int, str]:
    """The servers and nodes that a run has started, by pid: "server", "host-1" and so on."""
    found = {}
    for one in descendants(pid):
        words = Path(f"/proc/{one}/cmdline").read_text().split("\0")
        if words[0].endswith("nats-server"):
            found[one] = "server"
        elif words[1:4] == ["-m", "shmstore", "node"]:
            found[one] = words[words.index("--name") + 1]
    return found


def start(*args: str) -> Driven:
    """A run on two hosts whose workers pause at their part."""
    return Driven(PAUSING_WORKERS, *args)


@pytest.fixture
def args(root: str, csv: str) -> list[str]:
    """The arguments of a run on two hosts over a small table."""
    return ["--hosts", "2", "--input", csv, "--by", "kind", "--root", root, "--workers", "1"]


class Ends:
    """Waits for processes that are not ours to have ended."""

    def __init__(self, pids: dict[int, str]) -> None:
        self._watched = {os.pidfd_open(pid): name for pid, name in pids.items()}

    def wait(self) -> None:
        """Returns when all have; fails at the deadline."""
        for fd, name in self._watched.items():
            assert select.select([fd], [], [], DEADLINE_S)[0], f"{name} goes on"
            os.close(fd)


def test_the_flights_cross_once_and_the_result_is_that_of_one_process(root: str) -> None:
    """The second host's parts cross, whole, once by the server's count; the result is right."""
    report = report_of("--hosts", "2", "--root", root, "--workers", "2")
    assert report["ok"]
    assert report["rows"] == 336_776
    network = report["network"]
    parts = [one for one in network["crossings"] if one["id"].startswith("part/")]
    sizes = {step["id"]: step["nbytes"] for step in report["steps"]}
    assert len(parts) == 2
    for one in parts:
        assert (one["source"], one["target"]) == ("host-1", "host-2")
        assert one["nbytes"] == sizes[one["id"]]
        assert one["seconds"] > 0
    back = [one for one in network["crossings"] if one["id"].startswith("statistics/")]
    assert {(one["source"], one["target"]) for one in back} == {("host-2", "host-1")}
    crossed = sum(one["nbytes"] for one in network["crossings"])
    assert crossed > FLIGHTS_CROSSED
    assert crossed < network["server_bytes"] < 1.1 * crossed
    assert report["pickled"] is None
    assert_nothing_left(root)


def test_each_host_has_what_it_put_and_what_it_asked_for(root: str, csv: str) -> None:
    """Kept, every host's root has the values of its own processes and copies of what they read."""
    report = report_of(
        *("--hosts", "3", "--input", csv, "--by", "kind", "--root", root, "--keep"),
        *("--start-method", "spawn"),
    )
    assert report["ok"]
    roots = report["network"]["roots"]
    assert list(roots) == ["host-1", "host-2", "host-3"]
    found = {}
    for host, path in roots.items():
        with Store(path, report["namespace"]) as store:
            entries = store.entries(report["dag_id"])
            found[host] = {entry.id: entry.origin for entry in entries}
    assert found == {
        "host-1": {
            "table": None,
            **{f"part/{kind}": None for kind in "abc"},
            "statistics/a": "host-2",
            "statistics/b": "host-3",
            "statistics/c": None,
            "merged": None,
        },
        "host-2": {"part/a": "host-1", "statistics/a": None},
        "host-3": {"part/b": "host-1", "statistics/b": None},
    }
    assert {worker["host"] for worker in report["store"]["workers"]} == set(roots)
    (ground,) = os.listdir(root)
    assert sorted(os.listdir(os.path.join(root, ground))) == list(roots)
    shutil.rmtree(root)


def test_what_it_prints(args: list[str], root: str) -> None:
    """The table says what crossed, from where to where, how much and how fast, in 80 columns."""
    done = demo(*args)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    crossed = [line.split() for line in lines if " host-1  host-2 " in line]
    assert [words[0] for words in crossed] == ["part/a", "part/c"]
    assert any(line.startswith("statistics/a ") and " host-2  host-1 " in line for line in lines)
    assert any(line.startswith("4 values ") for line in lines)
    assert any("By pickling: left out" in line for line in lines)
    assert "Checked" in done.stdout
    assert_nothing_left(root)
    kept = demo(*args, "--keep")
    assert f"rm -r {root}/demo-" in kept.stdout
    shutil.rmtree(root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_at_work(args: list[str], root: str, number: int) -> None:
    """Ctrl-C at a terminal, or SIGTERM, ends all processes in order; nothing is left."""
    with start(*args) as driven:
        driven.told()
        found = others(driven.process.pid)
        assert sorted(found.values()) == ["host-1", "host-2", "server"]
        ends = Ends(found)
        if number == signal.SIGINT:
            os.killpg(driven.process.pid, number)
        else:
            os.kill(driven.process.pid, number)
        code, out, err = driven.end()
        ends.wait()
    assert (code, out) == (128 + number, "")
    assert err == f"Stopped by {number.name}; nothing was left behind.\n"
    assert_nothing_left(root)


def test_stopped_while_nodes_start(args: list[str], root: str) -> None:
    """Ctrl-C when the nodes are not ready yet: they end, and nothing is left."""
    with Driven(PAUSING_START, *args) as driven:
        driven.told()
        ends = Ends(dict.fromkeys(descendants(driven.process.pid), "a process"))
        os.killpg(driven.process.pid, signal.SIGINT)
        driven.go_on()
        code, _, err = driven.end()
        ends.wait()
    assert (code, err) == (130, "Stopped by SIGINT; nothing was left behind.\n")
    assert_nothing_left(root)


@pytest.mark.parametrize(
    ("who", "called"),
    [
        ("host-1", "The node of host-1"),
        ("host-2", "The node of host-2"),
        ("server", "The NATS server"),
    ],
)
def test_one_of_them_killed_at_work(args: list[str], root: str, who: str, called: str) -> None:
    """A node or the server that is killed ends the run; the sentence says which one it was."""
    with start(*args) as driven:
        driven.told()
        found = others(driven.process.pid)
        ends = Ends(found)
        (pid,) = [pid for pid, name in found.items() if name == who]
        os.kill(pid, signal.SIGKILL)
        code, _, err = driven.end()
        ends.wait()
    assert code == 1
    assert err == (
        f"Error: {called} (process {pid}) was killed by signal 9 (SIGKILL) "
        "before its work was done.\n"
    )
    assert_nothing_left(root)


def test_a_worker_killed_at_work(args: list[str], root: str) -> None:
    """A worker of any host that is killed ends the run, with a sentence and nothing left."""
    with start(*args) as driven:
        pid = driven.told()
        ends = Ends(others(driven.process.pid))
        os.kill(pid, signal.SIGKILL)
        code, _, err = driven.end()
        ends.wait()
    assert code == 1
    assert f"Worker process {pid} was killed by signal 9" in err
    assert_nothing_left(root)


def test_a_stopped_node_ends_the_run(args: list[str], root: str) -> None:
    """A node that is stopped, not dead: the run says so and ends, and ends the node as well."""
    with start(*args) as driven:
        driven.told()
        found = others(driven.process.pid)
        ends = Ends(found)
        (pid,) = [pid for pid, name in found.items() if name == "host-2"]
        os.kill(pid, signal.SIGSTOP)
        driven.go_on()
        code, _, err = driven.end()
        ends.wait()
    assert code == 1
    assert err.startswith("Error: The node of host-2 does not answer: ")
    assert_nothing_left(root)


def test_a_killed_run_takes_its_processes_along(args: list[str], root: str) -> None:
    """The run killed by SIGKILL: the kernel ends server and nodes; the next run tidies up."""
    with start(*args) as driven:
        driven.told()
        ends = Ends(others(driven.process.pid))
        driven.process.kill()
        ends.wait()
        driven.go_on()
        driven.end()
    assert len(os.listdir(root)) == 1
    assert report_of(*args)["ok"]
    assert os.listdir(root) == []


@pytest.mark.parametrize("hosts", ["1", "2"])
def test_the_persons_own_server_is_left_alone(args: list[str], root: str, hosts: str) -> None:
    """With $SHMSTORE_NATS and credentials set, a run starts no node for that, and needs none."""
    args[1] = hosts
    env = {"SHMSTORE_NATS": "nats://127.0.0.1:1", "SHMSTORE_NATS_USER": "me"}
    script = (
        "import shmstore.node.spawn as s; s.start = None; from shmstore.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | env,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_nothing_left(root)


def test_without_nats_server(args: list[str], root: str, tmp_path: Path) -> None:
    """Without the program nats-server it says how to get it, before it does anything."""
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    assert shutil.which("nats-server", path="/usr/bin:/bin") is None
    done = subprocess.run(
        [python, "-m", "shmstore", "demo", *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 2
    assert "There is no nats-server" in done.stderr
    assert "pip install 'shmstore[server]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(root)
    assert importlib.util.find_spec("shmstore")


@pytest.mark.parametrize("hosts", ["0", "9", "-1", "two"])
def test_wrong_numbers_of_hosts(root: str, hosts: str) -> None:
    """From 1 to 8 hosts; anything else is refused with exit code 2."""
    done = subprocess.run(
        [SHMSTORE, "demo", "--root", root, "--hosts", hosts],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert "Invalid value for '--hosts'" in done.stderr
    assert_nothing_left(root)


def test_a_root_that_is_not_fit(args: list[str], root: str) -> None:
    """A root that others may write to is refused in the store's own words, and left as it was."""
    os.mkdir(root)
    os.chmod(root, 0o777)
    done = demo(*args)
    assert done.returncode == 2
    assert "run chmod 700" in done.stderr
    assert os.listdir(root) == []
