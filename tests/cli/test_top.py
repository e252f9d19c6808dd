"""``shmstore top``, in a real terminal: keys, resizes, and the terminal afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmstore
from shmstore.inspection.rates import Meter
from tests.cli.sample import SHMSTORE, call

DEADLINE_S = 60.0
TMUX = shutil.which("tmux")


class Terminal:
    """A terminal of tmux's, with a shell in it."""

    def __init__(self, socket: Path, columns: int, lines: int) -> None:
        self._socket = str(socket)
        self.tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(lines), "sh"
        )

    def tmux(self, *args: str) -> str:
        done = subprocess.run(
            [str(TMUX), "-S", self._socket, *args],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def shows(self, what: Callable[[str], bool]) -> str:
        """The screen, once it is as it should be."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            screen = self.tmux("capture-pane", "-p")
            if what(screen):
                return screen
            assert time.monotonic() < deadline, screen
            # tmux does not tell when a screen changes.
            time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal of 80 columns and 24 lines."""
    if TMUX is None:
        pytest.skip("there is no tmux to be a terminal")
    made = Terminal(tmp_path / "tmux", 80, 24)
    yield made
    made.tmux("kill-server")


def test_top_in_a_terminal(terminal: Terminal, root: str) -> None:
    """It fits 80 by 24, obeys its keys, follows a resize, and leaves the shell as it was."""
    store = shmstore.Store(root)
    store.put("large", "a", bytes(1 << 20))
    for number in range(30):
        store.put(f"dag-{number:02}", "a", number)
    for number in range(5):
        store.put("aaa", str(number), number)
    terminal.type(f"{SHMSTORE} top --root {root} --interval 0.2; echo ended with $?", "Enter")
    screen = terminal.shows(lambda now: "q quit" in now)
    lines = screen.rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert screen.index("large") < screen.index("aaa")  # by memory
    assert "more" in screen
    terminal.type("n")
    terminal.shows(lambda now: "aaa" in now and "dag-00" in now and "large" not in now)
    terminal.type("v")
    terminal.shows(lambda now: -1 < now.find("aaa") < now.find("dag-"))
    terminal.type("?")
    terminal.shows(lambda now: "sort by" in now)
    terminal.type("p")
    terminal.shows(lambda now: "paused" in now)
    store.put("aaa", "another", 1)
    terminal.type("p")
    terminal.shows(lambda now: "paused" not in now)
    terminal.tmux("resize-window", "-x", "60", "-y", "12")
    screen = terminal.shows(lambda now: "quit" in now and len(now.rstrip("\n").split("\n")) <= 12)
    assert max(map(len, screen.split("\n"))) <= 60
    terminal.type("q")
    terminal.shows(lambda now: "ended with 0" in now)
    # The shell echoes again, as before.
    terminal.type("echo visible", "Enter")
    terminal.shows(lambda now: now.count("visible") >= 2)


@pytest.mark.parametrize("end", ["C-c", "kill"])
def test_however_top_ends_the_terminal_is_as_it_was(
    terminal: Terminal, root: str, end: str
) -> None:
    """By Ctrl-C, and by SIGTERM from elsewhere."""
    shmstore.Store(root).put("d", "a", 1)
    terminal.type(f"{SHMSTORE} top --root {root}; echo ended with $?", "Enter")
    terminal.shows(lambda now: "q quit" in now)
    if end == "kill":
        pane = int(terminal.tmux("display-message", "-p", "#{pane_pid}"))
        (pid,) = Path(f"/proc/{pane}/task/{pane}/children").read_text().split()
        subprocess.run(["kill", pid], check=True)
    else:
        terminal.type("C-c")
    terminal.shows(lambda now: "ended with 130" in now)
    terminal.type("echo visible", "Enter")
    terminal.shows(lambda now: now.count("visible") >= 2)


def test_rates_are_those_between_two_looks(root: str) -> None:
    """Commits and growth, of DAGs that were there and of those that came."""
    store = shmstore.Store(root)
    store.put("d", "a", 1)
    meter = Meter(root, "default")
    first = meter.look()
    assert (first.commits, first.growth) == (0, 0)
    for number in range(100):
        store.put("d", f"k{number}", bytes(1000))
    store.put("new", "a", bytes(1000))
    second = meter.look()
    by_name = {one.dag_id: one for one in second.dags}
    assert by_name["d"].values == 101
    assert by_name["d"].commits == pytest.approx(by_name["new"].commits * 100)
    assert by_name["d"].growth == pytest.approx(by_name["new"].growth * 100)
    assert second.commits == pytest.approx(by_name["new"].commits * 101)


def test_one_look_for_scripts(root: str) -> None:
    """Without a terminal one frame is printed; JSON tells the same."""
    shmstore.Store(root).put("d\x1b[31m", "a", bytes(1 << 20))
    done = call("top", "--root", root)
    assert done.returncode == 0
    assert "d\\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout
    told = json.loads(call("top", "--once", "--json", "--root", root).stdout)
    assert told["schema"] == "shmstore.rates/1"
    assert [one["values"] for one in told["dags"]] == [1]
