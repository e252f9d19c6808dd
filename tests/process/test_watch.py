"""``watch``: every put once, in the order of the commits, wherever the log goes meanwhile."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import shmstore
from shmstore import commit, crashpoints, doorbell, follower, record
from tests import reading_files
from tests.fault.killing import Child, Parent, kill_at
from tests.process.errands import large
from tests.process.sleepers import DEADLINE_S, only_bells, until, until_asleep

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def new_ids(watch: shmstore.Watch) -> list[str]:
    """The ids of what there is by now, without waiting for more."""
    watch._timeout = 0
    ids = []
    while True:
        try:
            ids.append(next(watch).id)
        except shmstore.WaitTimeout:
            return ids


def log_number(store: shmstore.Store) -> int:
    return reading_files.read(store.root, "d").log_number


def compact(store: shmstore.Store, times: int = 1) -> None:
    """Overwrites one value until the log has been replaced so often."""
    wanted = log_number(store) + times
    while log_number(store) < wanted:
        for _ in range(20):
            store.put("d", "filler", "f" * 15_000)


# --- Where it begins -----------------------------------------------------------------


def test_from_now_on(store: shmstore.Store) -> None:
    """A watch gives what is put after the call that made it, as the put's own entry."""
    store.put("d", "before", 0)
    watch = store.watch("d")
    entries = [
        store.put("d", "small", 1, deps=["before"]),
        *store.put_many("d", {"a": 1, "b": large(2)}),
        store.put("d", "small", "again"),
        store.put("d", "large", large(3)),
    ]
    assert [next(watch) for _ in entries] == entries
    assert new_ids(watch) == []


def test_from_the_beginning(store: shmstore.Store) -> None:
    """since=0 gives what is stored, oldest first, once each, then what is put after that."""
    for id in ("a", "b", "c", "a", "gone", "large"):
        store.put("d", id, large(1) if id == "large" else id)
    store.delete("d", "gone")
    watch = store.watch("d", since=0)
    store.put("d", "later", 1)
    store.put("d", "b", 2)
    assert new_ids(watch) == ["b", "c", "a", "large", "later", "b"]


def test_since_a_time(store: shmstore.Store) -> None:
    """A datetime gives what is stored and was created then or later, then on."""
    entries = [store.put("d", id, id) for id in "abcdef"]
    for first in range(6):
        # To the microsecond, as datetimes are.
        moment = datetime.fromtimestamp(0, UTC) + timedelta(
            microseconds=entries[first].created_ns // 1000
        )
        expected = [
            e.id for e in entries if e.created_ns >= entries[first].created_ns // 1000 * 1000
        ]
        watch = store.watch("d", since=moment)
        resumed = store.watch("d", since=watch.position)
        assert new_ids(watch) == expected
        assert new_ids(resumed) == expected
    with store.watch("d", since=datetime.now(UTC) + timedelta(hours=1)) as watch:
        assert new_ids(watch) == []
        store.put("d", "now", 1)
        assert new_ids(watch) == ["now"]


def test_since_a_position(store: shmstore.Store) -> None:
    """A position, pickled, goes on behind the entry that was given last, wherever that was."""
    store.put("d", "a", 1)
    first = store.watch("d", since=0)
    store.put_many("d", {"b": 1, "c": 1})
    store.delete("d", "b")
    store.put("d", "d", 1)
    store.put("d", "a", 2)
    ids = ["a", "b", "c", "d", "a"]
    positions = [first.position]
    for id in ids:
        assert next(first).id == id
        positions.append(first.position)
    for start, position in enumerate(positions):
        again = pickle.loads(pickle.dumps(position))
        with store.watch("d", since=again) as watch:
            assert watch.position == position
            assert new_ids(watch) == ids[start:]
    first.close()
    assert first.position == positions[-1]


@pytest.mark.parametrize(
    ("since", "error"),
    [
        (1, ValueError),
        (-1, ValueError),
        (datetime(2020, 1, 1), ValueError),
        (True, TypeError),
        (0.0, TypeError),
        ("0", TypeError),
        ((1, 2), TypeError),
    ],
)
def test_a_beginning_that_is_none(store: shmstore.Store, since: Any, error: type) -> None:
    """What says nothing about where to begin is refused, and makes no DAG."""
    with pytest.raises(error):
        store.watch("d", since=since)
    assert store.dags() == []


@pytest.mark.parametrize("since", [None, 0, datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_dag_that_does_not_exist_yet(store: shmstore.Store, since: Any) -> None:
    """A watch of a DAG that nobody has written to gives its first value."""
    with store.watch("d", since=since) as watch:
        store.put("d", "first", 1)
        assert new_ids(watch) == ["first"]


# --- Along the log -------------------------------------------------------------------


def test_deletes_and_checkpoints_are_not_given(store: shmstore.Store) -> None:
    """Only puts are entries: no deletes, nor what compaction adds."""
    with store.watch("d") as watch:
        store.put_many("d", {"a": 1, "b": 2})
        store.delete("d", "a")
        assert new_ids(watch) == ["a", "b"]
        compact(store)
        store.delete("d", "b")
        store.put("d", "c", 1)
        assert set(new_ids(watch)[:-1]) == {"filler"}


def test_across_extension_of_the_log_and_growth_of_the_index(store: shmstore.Store) -> None:
    """A log that grows many times, with its index, is read to its end."""
    with store.watch("d") as watch:
        ids = [f"{number}" for number in range(3000)]
        for id in ids:
            store.put("d", id, "v" * 400)
        files = reading_files.read(store.root, "d")
        assert files.log_size > 20 * follower.PAGE * 16
        assert files.index_number > 3
        assert new_ids(watch) == ids


@pytest.mark.parametrize("times", [1, 2, 5])
def test_across_compaction(store: shmstore.Store, times: int) -> None:
    """Compactions that it did not see hide no value that is stored, and give none twice."""
    store.put_many("d", {"filler": 0, "old": 0})
    with store.watch("d") as watch:
        store.put("d", "a", 1)
        assert new_ids(watch) == ["a"]
        store.put("d", "b", 1)
        store.put("d", "a", 2)
        compact(store, times)
        store.put("d", "c", 1)
        ids = [id for id in new_ids(watch) if id != "filler"]
        assert ids == ["b", "a", "c"]
        resumed = store.watch("d", since=watch.position)
        compact(store, times)
        store.put("d", "d", 1)
        for each in (watch, resumed):
            assert [id for id in new_ids(each) if id != "filler"] == ["d"]


def test_one_compaction_hides_nothing_at_all(store: shmstore.Store) -> None:
    """What was replaced before its log was compacted is given, from the old log, which is gone."""
    store.put("d", "filler", 0)
    with store.watch("d") as watch:
        number = log_number(store)
        puts = 0
        while log_number(store) == number:
            store.put("d", "filler", "f" * 15_000)
            puts += 1
        # The log was extended and then replaced, and the watch had mapped its beginning only.
        assert puts > 30
        store.put("d", "last", 1)
        assert new_ids(watch) == ["filler"] * puts + ["last"]


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_position_across_compaction(store: shmstore.Store, times: int) -> None:
    """A position of before a compaction gives what came after it and is stored."""
    store.put_many("d", {f"old-{n}": n for n in range(50)})
    with store.watch("d", since=0) as watch:
        for _ in range(20):
            next(watch)
        position = watch.position
    store.put("d", "old-30", "new")
    compact(store, times)
    store.put("d", "last", 1)
    ids = [id for id in new_ids(store.watch("d", since=position)) if id != "filler"]
    rest = [f"old-{n}" for n in range(20, 50)]
    if times:
        rest.remove("old-30")
    assert ids == [*rest, "old-30", "last"]


@pytest.mark.parametrize("clears", [1, 2])
def test_across_clears(store: shmstore.Store, clears: int) -> None:
    """What was put before a clear is given, then what is put into the successor."""
    with store.watch("d") as watch:
        store.put_many("d", {"a": 1, "b": large(1)})
        for _ in range(clears):
            store.clear("d")
        store.put("d", "c", 1)
        store.put("d", "a", 1)
        assert new_ids(watch) == ["a", "b", "c", "a"]
        position = watch.position
        store.clear("d")
        store.put("d", "e", 1)
        assert new_ids(watch) == ["e"]
        assert new_ids(store.watch("d", since=position)) == ["e"]


def test_a_log_extended_before_the_clear(store: shmstore.Store) -> None:
    """A cleared log is read to its end although the watch had mapped only its beginning."""
    with store.watch("d") as watch:
        ids = [f"{number}" for number in range(300)]
        for id in ids:
            store.put("d", id, "v" * 2000)
        store.clear("d")
        assert new_ids(watch) == ids


def spill(store: shmstore.Store, id: str) -> None:
    """Replaces a value's record by one that says it was moved to the spill directory.

    Only the record: as if its segment had been moved.
    """
    manifest = store._dags.manifests["d"]
    key = id.encode()
    old = reading_files.read(store.root, "d").records[id]
    middle = record.middle(key, old.meta, old.payload)
    flagged = (
        record.PUT, old.codec, record.SPILLED, key, old.key_hash, len(old.meta), middle,
        old.nbytes, 0, None, 1,
    )  # fmt: skip
    commit.commit(manifest, (flagged,))


def test_spilled_values_are_not_new(store: shmstore.Store) -> None:
    """That a value was moved to disk is no news, unless its put was compacted away."""
    store.put_many("d", {"a": 1, "b": 2, "filler": 0})
    watch = store.watch("d", since=0)
    store.put("d", "c", 3)
    assert new_ids(watch)[-1] == "c"
    position = watch.position
    store.put("d", "e", 5)
    spill(store, "a")
    spill(store, "e")
    assert new_ids(watch) == ["e"]
    assert new_ids(store.watch("d", since=position)) == ["e"]
    compact(store)
    store.put("d", "last", 1)
    # The watch has gone from log to log; who begins anew finds nothing else of e.
    assert [id for id in new_ids(watch) if id != "filler"] == ["last"]
    found = [id for id in new_ids(store.watch("d", since=position)) if id != "filler"]
    assert found == ["a", "e", "last"]
    stored = [id for id in new_ids(store.watch("d", since=0)) if id != "filler"]
    assert stored == ["b", "c", "a", "e", "last"]


def test_what_a_dead_writer_committed_is_given(store: shmstore.Store) -> None:
    """A put whose writer was killed right after the commit point counts, and comes once."""
    store.put("d", "a", 1)
    with store.watch("d", since=0) as watch:
        kill_at("commit:tail", 1, lambda: shmstore.Store(store.root).put("d", "b", 2))
        assert new_ids(watch) == ["a", "b"]
        store.put("d", "c", 3)
        assert new_ids(watch) == ["c"]


def test_a_damaged_record_is_reported(store: shmstore.Store) -> None:
    """A watch stops at a record that fails its check, and says where."""
    store.put("d", "a", 1)
    with store.watch("d") as watch:
        store.put("d", "b", 2)
        store.put("d", "c", 3)
        files = reading_files.read(store.root, "d")
        place = files.records["b"].offset
        fd = os.open(files.log, os.O_RDWR)
        os.pwrite(fd, bytes([os.pread(fd, 1, place + 60)[0] ^ 1]), place + 60)
        os.close(fd)
        with pytest.raises(shmstore.CorruptValue, match=f"log.1 at {place}"):
            next(watch)


# --- Waiting -------------------------------------------------------------------------


def test_it_waits_for_the_next(store: shmstore.Store) -> None:
    """The iteration sleeps until something is put, also across compaction and clear."""

    def watcher(parent: Parent) -> None:
        only_bells()
        for entry in shmstore.Store(store.root).watch("d", since=0):
            parent.send(entry.id)
            if entry.id == "end":
                return

    store.put("d", "filler", 0)
    with Child(watcher, Parent) as child:
        assert child.receive() == "filler"
        for change in (lambda: None, lambda: compact(store), lambda: store.clear("d")):
            until_asleep(child.pid)
            change()
            store.put("d", "next", 1)
            while (id := child.receive()) == "filler":
                pass
            assert id == "next"
        until_asleep(child.pid)
        store.put("d", "end", 1)
        assert child.receive() == "end"
        assert child.receive() is None


def test_the_longest_wait_for_the_next(store: shmstore.Store) -> None:
    """A timeout is for each entry; after it the iteration goes on where it was."""
    with store.watch("d", timeout=0.02) as watch:
        for number in range(3):
            with pytest.raises(shmstore.WaitTimeout) as caught:
                next(watch)
            assert (caught.value.dag_id, caught.value.ids) == ("d", ())
            assert caught.value.waited_s >= 0.02
            store.put("d", f"{number}", 1)
            assert next(watch).id == f"{number}"


def test_close_ends_the_iteration(store: shmstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed in another thread, a waiting loop ends as loops do; closing twice is fine."""
    monkeypatch.setattr(doorbell, "LONGEST_S", 3600.0)
    watch = store.watch("d")
    ids: list[str] = []
    thread = threading.Thread(target=lambda: ids.extend(entry.id for entry in watch))
    thread.start()
    until_asleep()
    store.put("d", "a", 1)
    until(lambda: ids)
    until_asleep()
    watch.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert ids == ["a"]
    watch.close()
    assert list(watch) == []
    store.put("d", "b", 1)
    assert list(watch) == []
    assert watch.position == store.watch("d", since=watch.position).position


def test_watches_are_independent(store: shmstore.Store) -> None:
    """Two watches of one store, and one that a fork copied, each give everything."""
    one, other = store.watch("d"), store.watch("d")
    store.put_many("d", {"a": 1, "b": 1})
    assert next(one).id == "a"
    with Child(lambda: new_ids(one)) as child:
        assert child.receive() == ["b"]
    assert new_ids(one) == ["b"]
    assert new_ids(other) == ["a", "b"]


@pytest.mark.parametrize("before", [0, 1])
def test_a_removed_root(root: str, before: int) -> None:
    """What was put before the root was removed is given, then the error."""
    store = shmstore.Store(root)
    watch = store.watch("d")
    for number in range(before):
        store.put("d", f"{number}", 1)
    shutil.rmtree(root)
    for number in range(before):
        assert next(watch).id == f"{number}"
    with pytest.raises(shmstore.UnusableRoot):
        next(watch)


# --- At once -------------------------------------------------------------------------

_WRITERS, _PUTS = 3, 1500


def _write(root: str, name: int) -> None:
    store = shmstore.Store(root)
    for number in range(_PUTS):
        store.put("d", f"{name}/{number}", "v" * (number % 700))
        if number % 3 == 0:
            store.put("d", f"{name}/again", "w" * 3000)
        if number % 100 == 99:
            store.put_many("d", {f"{name}/many/{number}/{each}": each for each in range(5)})


def _follow(root: str, parent: Parent) -> list[tuple[str, int]]:
    only_bells()
    seen: list[tuple[str, int]] = []
    watch = shmstore.Store(root).watch("d")
    parent.send("watching")
    for entry in watch:
        seen.append((entry.id, watch.position.sequence))
        if entry.id == "end":
            break
    return seen


def test_none_is_missed_while_writers_race(store: shmstore.Store) -> None:
    """Watchers in other processes get all values of racing writers once, in one order."""
    watchers = [Child(_follow, store.root, Parent) for _ in range(2)]
    writers: list[Child] = []
    try:
        for child in watchers:
            assert child.receive() == "watching"
        writers = [Child(_write, store.root, name) for name in range(_WRITERS)]
        for child in writers:
            child.receive(90)
        store.put("d", "end", 1)
        seen = [child.receive(90) for child in watchers]
    finally:
        for child in watchers + writers:
            child.kill()
    assert reading_files.check(store.root)["d"].log_number > 3, "no compaction came between"
    for each in seen:
        numbers = [number for _, number in each]
        assert numbers == sorted(set(numbers))
        ids = [id for id, _ in each]
        for name in range(_WRITERS):
            mine = [id for id in ids if id.startswith(f"{name}/") and id.count("/") == 1]
            assert [id for id in mine if id != f"{name}/again"] == [
                f"{name}/{number}" for number in range(_PUTS)
            ]
        many = [id for id in ids if "/many/" in id]
        assert len(many) == len(set(many)) == _WRITERS * _PUTS // 100 * 5
    once = [[id for id, _ in each if not id.endswith("/again")] for each in seen]
    assert once[0] == once[1]


def test_a_clear_in_the_middle_of_a_step(store: shmstore.Store) -> None:
    """A put that is committed between a watch's look and its sleep is seen at once."""
    steps: list[Callable[[], Any]] = [
        lambda: store.put("d", "a", 1),
        lambda: store.clear("d"),
        lambda: store.put("d", "b", 1),
    ]

    def act(name: str) -> None:
        if name == "wait:announced" and steps:
            crashpoints.hook = None
            steps.pop(0)()
            crashpoints.hook = act

    with store.watch("d", timeout=DEADLINE_S) as watch:
        crashpoints.hook = act
        try:
            assert next(watch).id == "a"
            assert next(watch).id == "b"
        finally:
            crashpoints.hook = None
    assert steps == []


def test_a_log_that_was_missed(store: shmstore.Store) -> None:
    """What was put into a log that was replaced before the watch came to it is given."""
    store.put("d", "filler", 0)
    with store.watch("d") as watch:
        compact(store)
        store.put("d", "between", 1)
        compact(store)
        store.put("d", "last", 1)
        assert [id for id in new_ids(watch) if id != "filler"] == ["between", "last"]
