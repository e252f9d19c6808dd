"""The benchmark's command works from end to end, and its numbers mean what they say."""

import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import many_entries, measuring, place, report
from benchmarks.measuring import Answer, Target

_CHECKOUT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-m", "benchmarks"]


def _files_of(pid: int) -> list[str]:
    return [name for name in os.listdir(place.SHARED_MEMORY) if name.startswith(place.prefix(pid))]


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [*_COMMAND, *arguments],
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("command", "questions"),
    [
        ("local", ("small", "arrays")),
        ("local", ("entries",)),
        ("local", ("tables", "writers")),
        ("tool", ("inspection",)),
        ("memory", ("reuse", "waking", "growth")),
    ],
)
def test_the_smallest_run_shows_and_writes_every_figure(
    tmp_path: Path, command: str, questions: tuple[str, ...]
) -> None:
    """Questions run to their end one after another, and what is shown is what is written."""
    path = tmp_path / "figures.json"
    asked = [word for question in questions for word in ("--only", question)]
    shown = _run(command, "--quick", *asked, "--json", str(path))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [answer["name"] for answer in written["questions"]] == [*questions]
    assert written["quick"] is True
    assert written["machine"]["cores"] >= 1
    for answer in written["questions"]:
        names = {figure["contestant"].partition(",")[0] for figure in answer["figures"]}
        assert "shmstore" in names
        for figure in answer["figures"]:
            assert figure["operation"] in shown
            assert figure["median"] == pytest.approx(statistics.median(figure["rounds"]))
            assert all(number >= 0 for number in figure["rounds"])
        for target in answer["targets"]:
            assert target["text"] in shown
            below = target["value"] <= target["limit"]
            above = target["value"] >= target["limit"]
            assert target["passed"] is (above if target["at_least"] else below)


@pytest.mark.parametrize("call", ["put", "get"])
def test_the_profile_names_the_functions_of_the_hot_path(call: str) -> None:
    """The profile of a call shows the store's own function, and times that are scaled to it."""
    shown = _run("profile", "--quick", call)
    assert f"Store.{call}" in shown
    assert f"{call} of a two-key dict" in shown


def test_without_arguments_it_lists_the_questions() -> None:
    """The bare command says what there is to ask, and measures nothing."""
    shown = _run()
    assert all(name in shown for name in ("small", "tables", "writers", "reuse", "growth"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_in_shared_memory(number: int) -> None:
    """Ctrl-C and SIGTERM in the middle of a run remove its files and end its processes."""
    running = subprocess.Popen(
        [*_COMMAND, "local", "--quick", "--only", "small"],
        cwd=_CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert running.stderr is not None
        # It says so once it has its directory, before it starts its processes.
        assert any("measuring small" in line for line in running.stderr)
        deadline = time.monotonic() + 30
        while not (children := _children(running.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert _files_of(running.pid)
        os.kill(running.pid, number)
        running.wait(60)
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
        assert running.stderr is not None
        running.stderr.close()
    assert running.returncode != 0
    assert not _files_of(running.pid)
    assert not [pid for pid in children if _runs(pid)]


def test_no_round_favours_who_comes_first() -> None:
    """Over as many rounds as contestants, each has every position once."""
    turns = list(measuring.in_turn("abc", 3, warm_up=0))
    assert [name for _, name in turns] == list("abcbcacab")


def test_a_warm_up_has_a_number_of_its_own() -> None:
    """Rounds before the first are negative, so that none is taken for a figure."""
    assert [number for number, _ in measuring.in_turn("ab", 2, warm_up=1)] == [-1, -1, 0, 0, 1, 1]


def test_a_pause_in_a_few_calls_is_not_the_figure() -> None:
    """What a call takes is not what the scheduler gave to others meanwhile."""
    pauses = iter([0.05, *[0.0] * 99])

    def call() -> None:
        pause = next(pauses)
        if pause:
            time.sleep(pause)

    assert measuring.time_each(call, [()] * 100) < 400


def test_targets_are_held_against_the_side_they_name() -> None:
    """An upper bound is missed from above, a lower one from below, and both say so."""
    assert not Target("", 3.1, 3).passed
    assert Target("", 2.9, 3).passed
    assert not Target("", 4.9, 5, at_least=True).passed
    assert Target("", 5.1, 5, at_least=True).passed
    answer = Answer("n", "t", {"put": "floor"})
    for name, took in (("floor", 2.0), ("shmstore", 5.0), ("shmstore", 7.0)):
        answer.add("put", name, took)
    answer.ask("put at most 2 times", answer.ratio("put", "shmstore", "floor"), 2)
    shown = report.show(answer)
    assert "[ MISS ] put at most 2 times" in shown
    assert "3.00" in shown
    assert max(map(len, shown.splitlines())) <= report.WIDTH


def test_anonymous_memory_that_is_taken_is_seen() -> None:
    """A DAG that cost 15 MB to open would show, since the probe sees what was taken."""
    before = many_entries.anonymous_kb()
    # Fresh from the kernel: what malloc gives may have been taken, and freed, before.
    with mmap.mmap(-1, 20 << 20, mmap.MAP_PRIVATE) as taken:
        taken.write(b"\1" * len(taken))
        seen = many_entries.anonymous_kb() - before
        assert len(taken) / 1000 * 0.9 < seen * 1.024


def test_opening_a_dag_that_lacks_its_value_is_an_error() -> None:
    """No time is given for a get that did not find what it should."""
    with place.temporary() as path, pytest.raises(ValueError, match="gave back None"):
        many_entries.open_dag(path, "nothing", "value 0", True)
