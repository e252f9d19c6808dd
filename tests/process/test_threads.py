"""Threads of one process that share a Store."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import shmstore
from tests import reading_files
from tests.process.errands import large

THREADS = 8


def at_once(body: Callable[[int], None]) -> None:
    """Runs ``body`` in eight threads, and raises what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            barrier.wait(30)
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("dags", [1, 3])
def test_eight_threads_on_one_store(store: shmstore.Store, dags: int) -> None:
    """Puts, gets, overwrites and deletes of eight threads add up at the end, in any DAG."""
    kept: list[dict[tuple[str, str], int]] = [{} for _ in range(THREADS)]

    def work(number: int) -> None:
        chance = random.Random(number)
        mine = kept[number]
        for step in range(250):
            place = (f"d{chance.randrange(dags)}", f"{number}/{chance.randrange(20)}")
            what = chance.random()
            if what < 0.55:
                store.put(*place, step if chance.random() < 0.8 else large(step))
                mine[place] = step
            elif what < 0.7 and place in mine:
                store.delete(*place)
                del mine[place]
            elif place in mine:
                value = store.get(*place)
                assert (value == mine[place]) if isinstance(value, int) else value[0] == mine[place]
            else:
                assert not store.has_value(*place)

    at_once(work)
    expected = {place: step for mine in kept for place, step in mine.items()}
    files = reading_files.check(store.root)
    found = {(dag.dag_id, id) for dag in files.values() for id in dag.records}
    assert found == set(expected)
    assert sum(store.count(f"d{number}") for number in range(dags)) == len(expected)
    for place, step in expected.items():
        value = store.get(*place)
        assert (value if isinstance(value, int) else value[0]) == step


def test_one_id_of_eight_threads(store: shmstore.Store) -> None:
    """A value that all overwrite is always one of theirs, whole, and the last one stays."""

    def work(number: int) -> None:
        for _ in range(60):
            store.put("d", "a", large(number))
            value = store.get("d", "a")
            assert (value == value[0]).all()
            assert 0 <= value[0] < THREADS

    at_once(work)
    files = reading_files.check(store.root)["d"]
    assert files.totals[:2] == (THREADS * 60, 1)


def test_threads_that_clear_what_others_put(store: shmstore.Store) -> None:
    """A clear by one thread disturbs no other's put; the last values stand."""

    def work(number: int) -> None:
        for step in range(40):
            store.put("d", f"{number}", step)
            if number == 0 and step % 10 == 9:
                store.clear("d")
        store.put("d", f"{number}/last", step)

    store.put("d", "start", 1)
    at_once(work)
    reading_files.check(store.root)
    store.put("d", "end", 1)
    assert store.has_value("d", "end")
    assert set(store.ids("d")) <= {"end", "start"} | {
        f"{number}{last}" for number in range(THREADS) for last in ("", "/last")
    }


def test_more_dags_than_are_kept_open(store: shmstore.Store) -> None:
    """A store that goes around among more DAGs than it keeps open loses none of them."""

    def work(number: int) -> None:
        for step in range(100):
            store.put(f"dag {step}", f"{number}", step * number)

    at_once(work)
    assert [info.entries for info in store.dags()] == [THREADS] * 100
    assert all(
        store.get(f"dag {step}", f"{number}") == step * number
        for step in range(100)
        for number in range(THREADS)
    )
    reading_files.check(store.root)


def test_only_one_of_many_puts_without_overwrite_wins(store: shmstore.Store) -> None:
    """Of eight threads that put the same new id with overwrite=False, one succeeds."""
    won: list[int] = []

    def work(number: int) -> None:
        try:
            store.put("d", "a", number, overwrite=False)
            won.append(number)
        except shmstore.EntryExists:
            pass

    at_once(work)
    assert won == [store.get("d", "a")]


_FORK_IN_AN_IMPORT = """
import os, signal, sys, threading
import shmstore
root, module, use = sys.argv[1:]
store = shmstore.Store(root)
store.put("d", "there", 1)
importing, forking, forked = (threading.Event() for _ in range(3))

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == module and not importing.is_set():
            importing.set()
            forking.wait()
            forked.wait(1)  # in vain if the fork waits for the import
        return None

sys.meta_path.insert(0, Slow())
os.register_at_fork(after_in_parent=forked.set)
thread = threading.Thread(target=eval, args=(use, globals()))
thread.start()
while not importing.wait(0.01):
    assert thread.is_alive(), "what is used does not need the module"
forking.set()
pid = os.fork()
if not pid:
    signal.alarm(10)
    eval(use)
    os._exit(0)
_, status = os.waitpid(pid, 0)
thread.join()
sys.exit(bool(status))
"""


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("shmstore.codecs.arrays", "store.put('d', 'a', __import__('numpy').zeros(9))"),
        ("shmstore.codecs.pickled", "store.put('d', 'a', slice(1))"),
        ("numpy.ma", "list(store.ids('d')), store.put('d', 'large', bytes(99999)), store.gc()"),
    ],
)
def test_a_child_waits_for_no_import_of_its_parents_threads(
    root: str, module: str, use: str
) -> None:
    """What a thread is importing at a fork is never imported in the child: the fork waits."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK_IN_AN_IMPORT, root, module, use],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if module == "numpy.ma":
        assert "does not need the module" in done.stderr, "it is not imported at all"
    else:
        assert done.returncode == 0, done.stderr
