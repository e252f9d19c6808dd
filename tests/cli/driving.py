"""Running ``shmstore demo`` as a person does, or with a part of it replaced so that it pauses."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SHMSTORE = Path(sys.executable).with_name("shmstore")
DEADLINE_S = 60.0

# The command, with one part of it replaced in this process and those it forks. A
# replaced part tells of itself through one pipe and goes on when the other ends.
DRIVER = """
import os, sys
from shmstore.cli import main
from shmstore.demo import crew, source, work
tell, go = int(sys.argv[1]), int(sys.argv[2])
real = work.summarize

def pause():
    os.write(tell, b"%d\\n" % os.getpid())
    os.read(go, 1)

def pausing(table):
    if "kind" in table.column_names:  # not what a worker warms up with
        pause()
    return real(table)

{replace}
main(sys.argv[3:], prog_name="shmstore")
"""
PAUSING_WORKERS = "work.summarize = pausing"
PAUSING_MAIN = """
run = crew.Crew.run
def pausing_run(self, *args):
    for pid in self.pids:
        os.write(tell, b"%d\\n" % pid)
    os.read(go, 1)
    return run(self, *args)
crew.Crew.run = pausing_run
"""
PAUSING_END = """
end = crew.Crew.end
def pausing_end(self):
    pause()
    end(self)
crew.Crew.end = pausing_end
"""
PAUSING_BEGIN = """
begin = work.begin
def pausing_begin(*args):
    pause()
    begin(*args)
work.begin = pausing_begin
"""


def demo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHMSTORE, "demo", *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | {"COLUMNS": "80"},
    )


def report_of(*args: str) -> dict[str, Any]:
    done = demo(*args, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that these have."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = {int(child) for child in children.read_text().split()}
        except OSError:
            continue  # that thread has ended
        found |= pids.union(*map(descendants, pids))
    return found


def assert_nothing_left(root: str) -> None:
    """The demo has made the root, so it has removed it as well."""
    assert not os.path.exists(root), sorted(os.listdir(root))


class Driven:
    """The command with a part replaced; in a session of its own, as a terminal starts it."""

    def __init__(self, replace: str, *args: str) -> None:
        told, tell = os.pipe()
        go, self._going = os.pipe()
        code = DRIVER.format(replace=replace)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(tell), str(go), "demo", *args],
            pass_fds=(tell, go),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.close(tell)
        os.close(go)
        self._told = told

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(self._told)
        self.process.communicate(timeout=DEADLINE_S)

    def told(self) -> int:
        """The next pid that the command tells of; waits for it."""
        assert select.select([self._told], [], [], DEADLINE_S)[0], "the command tells nothing"
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._told, 1)
            assert piece, self.process.communicate(timeout=DEADLINE_S)
            line += piece
        return int(line)

    def go_on(self) -> None:
        """Lets everything that pauses go on, now and later."""
        if self._going >= 0:
            os.close(self._going)
            self._going = -1

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once every process that had these has ended."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err
