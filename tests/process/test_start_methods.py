"""Every way to start a process: each finds the same store, at once."""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.process import errands

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

METHODS = ("fork", "spawn", "forkserver")
PACKAGES = ("multiprocessing", "multiprocess")
IDS = ("part/0", "part/1", "part/2", "part/3")
TIMEOUT_S = 60


def fill(store: shmstore.Store) -> None:
    for number, id in enumerate(IDS):
        store.put("d", id, errands.large(number + 1))


def check_answers(store: shmstore.Store, answers: list[tuple[int, int]]) -> None:
    for number, (id, (total, pid)) in enumerate(zip(IDS, answers, strict=True)):
        assert total == (number + 1) * 5000
        assert store.get("d", f"{id}/sum") == total
        assert store.entry("d", f"{id}/sum").producer.pid == pid
        assert pid != os.getpid()
        assert np.array_equal(store.get("d", f"{id}/twice"), errands.large(2 * (number + 1)))
    assert sorted(store.ids("d", prefix="part/0")) == ["part/0", "part/0/sum", "part/0/twice"]
    reading_files.check(store.root)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_pool_gets_the_store_and_references_as_arguments(
    store: shmstore.Store, package: str, method: str
) -> None:
    """Workers of a pool, however started, read and write through a pickled Store or Ref."""
    fill(store)
    context: Any = importlib.import_module(package).get_context(method)
    with context.Pool(2) as pool:
        orders = [(store, "d", id) for id in IDS]
        answers = pool.map_async(errands.answer_in_order, orders).get(TIMEOUT_S)
        refs = [store.ref("d", f"{id}/twice") for id in IDS]
        totals = pool.map_async(errands.total_of, refs).get(TIMEOUT_S)
        with pytest.raises(shmstore.NotFound) as caught:
            pool.apply_async(errands.missing, (store.ref("d", "nobody's"),)).get(TIMEOUT_S)
        pool.close()
        pool.join()
    assert totals == [2 * (number + 1) * 5000 for number in range(len(IDS))]
    assert (caught.value.dag_id, caught.value.id) == ("d", "nobody's")
    check_answers(store, answers)


def test_multiprocess_ships_closures_over_the_store(store: shmstore.Store) -> None:
    """A lambda that holds the store is pickled by dill and works in the worker."""
    import multiprocess

    fill(store)
    with multiprocess.get_context("fork").Pool(1) as pool:
        closure = lambda name: int(store.get("d", name)[0])  # noqa: E731
        got = pool.apply_async(closure, ("part/2",)).get(TIMEOUT_S)
        pool.close()
        pool.join()
    assert got == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool_executor_shares_the_store(store: shmstore.Store, method: str) -> None:
    """Workers of ``concurrent.futures`` read and write as the parent does."""
    import multiprocessing

    fill(store)
    context: Any = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        futures = [executor.submit(errands.answer, store, "d", id) for id in IDS]
        answers = [future.result(TIMEOUT_S) for future in futures]
        missed = executor.submit(errands.missing, store.ref("d", "none")).exception(TIMEOUT_S)
    assert isinstance(missed, shmstore.NotFound)
    assert missed.id == "none"
    check_answers(store, answers)


def test_a_thread_pool_executor_shares_the_store(store: shmstore.Store) -> None:
    """Threads use one Store at once."""
    fill(store)
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(errands.answer, store, "d", id) for id in IDS]
        totals = [future.result(TIMEOUT_S)[0] for future in futures]
    assert totals == [5000, 10000, 15000, 20000]
    reading_files.check(store.root)


PROGRAM = """
import shmstore
store = {store}
array = store.get("d", "from the test")
assert not array.flags.writeable
store.put("d", "from the program", int(array.sum()))
with store:
    store.put_many("e", {{"a": 1, "b": [array]}})
"""


@pytest.mark.parametrize("way", ["arguments", "environment"])
def test_an_unrelated_program_needs_only_root_and_namespace(root: str, way: str) -> None:
    """Two programs that share nothing but two names, given or in the environment, share values."""
    store = shmstore.Store(root, "the_test")
    store.put("d", "from the test", errands.large(7))
    told = way == "arguments"
    call = f"shmstore.Store({root!r}, 'the_test')" if told else "shmstore.Store()"
    names = {} if told else {"SHMSTORE_ROOT": root, "SHMSTORE_NAMESPACE": "the_test"}
    base = {key: value for key, value in os.environ.items() if not key.startswith("SHMSTORE_")}
    subprocess.run(
        [sys.executable, "-c", PROGRAM.format(store=call)],
        env=base | names,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert store.get("d", "from the program") == 35000
    assert np.array_equal(store.get("e", "b")[0], errands.large(7))
    assert [info.dag_id for info in store.dags()] == ["d", "e"]


def test_another_namespace_sees_nothing(root: str) -> None:
    """Namespaces of one root are strangers to each other."""
    shmstore.Store(root, "one").put("d", "a", 1)
    other = shmstore.Store(root, "other")
    assert not other.has_value("d", "a")
    assert other.dags() == []
    other.clear("d")
    assert shmstore.Store(root, "one").get("d", "a") == 1
