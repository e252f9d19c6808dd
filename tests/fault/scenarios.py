"""What the victims of the kill tests do: every operation with the steps it goes through.

Each scenario names the crash points that its operation reaches, in order; a process is
killed at each. ``commits_at`` is the step from which on the operation has happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import shmstore
from shmstore import compaction, doorbell, lookup, reading, record, relief
from tests import reading_files
from tests.fault import killing

WORK, BYSTANDER = "work", "bystander"

_INLINE = ("commit:locked", "commit:written", "commit:named", "commit:tail")
# A small value into a DAG that is open takes a way of its own.
_SHORT = ("commit:locked", "commit:written", "commit:tail")
_SEGMENT = ("segment:opened", "segment:written")
_NEW_SLOT = ("commit:slot-hash", "commit:slot")
_END = ("commit:indexed", "commit:counted", "commit:unlocked")


@dataclass(frozen=True)
class Scenario:
    """One operation.

    Attributes:
        act: What the victim does.
        steps: The crash points that it reaches.
        change: The DAG's values that are other afterwards; None for those that are gone.
        commits_at: From this step on ``change`` holds; a victim killed at an earlier one
            has changed nothing.
        prepare: What else is done before, given the root and the values; may change both.
        just_before: What is done when all others have looked and before the victim begins.
        clears: The whole DAG is gone afterwards.
        orphans: Segments that a kill may leave without a record.
        dag_id: The DAG it is done to.
        unviewed: Values that nobody views meanwhile.
    """

    act: Callable[[shmstore.Store], Any]
    steps: tuple[str, ...]
    change: dict[str, Any] = field(default_factory=dict)
    commits_at: int = -1
    prepare: Callable[[str, dict[str, Any]], None] | None = None
    just_before: Callable[[str], None] | None = None
    clears: bool = False
    orphans: int = 1
    dag_id: str = WORK
    unviewed: tuple[str, ...] = ()

    def values_after(self, before: dict[str, Any]) -> dict[str, Any]:
        """The DAG's values once the operation has happened."""
        if self.clears:
            return {}
        return {id: v for id, v in {**before, **self.change}.items() if v is not None}


def large(seed: int) -> np.ndarray[Any, Any]:
    """64 KiB, in a segment."""
    return np.arange(8192, dtype=np.int64) * 3 + seed


def begin(root: str) -> dict[str, Any]:
    """Stores the values that every scenario begins with; returns those of ``WORK``."""
    with shmstore.Store(root) as store:
        values: dict[str, Any] = {f"small-{n}": {"n": n, "text": "x" * n} for n in range(4)}
        values |= {f"large-{n}": large(n) for n in range(3)}
        for id, value in values.items():
            store.put(WORK, id, value)
        store.put(BYSTANDER, "inline", {"is": "here"})
        store.put(BYSTANDER, "segment", large(99))
        return values


def _put(id: str, value: Any) -> Callable[[shmstore.Store], Any]:
    return lambda store: store.put(WORK, id, value)


def _put_open(id: str, value: Any) -> Callable[[shmstore.Store], Any]:
    def act(store: shmstore.Store) -> None:
        store.count(WORK)  # opens the DAG
        store.put(WORK, id, value)

    return act


_MANY = {"new-small": {"many": 1}, "small-1": "other", "new-large": large(7), "large-1": large(8)}


def _put_many(store: shmstore.Store) -> None:
    store.put_many(WORK, _MANY)


def _announce_a_wait(store: shmstore.Store) -> None:
    store._dags.write(WORK, doorbell.listen)


def _fill_index(root: str, values: dict[str, Any]) -> None:
    """Makes the next new key grow the index."""
    files = reading_files.read(root, WORK)
    more = {f"filler-{n}": n for n in range(files.limit - files.used)}
    with shmstore.Store(root) as store:
        store.put_many(WORK, more)
    values |= more


_LAST_INLINE = "i" * (14 << 10)


def _fill_log(root: str, values: dict[str, Any]) -> None:
    """Makes the next inline value of 14 KiB extend the log."""
    with shmstore.Store(root) as store:
        n = 0
        while (files := reading_files.read(root, WORK)).tail + 22_600 < files.log_size:
            values[f"filler-{n}"] = "f" * 2000
            store.put(WORK, f"filler-{n}", "f" * 2000)
            n += 1


def _waste_log(root: str, values: dict[str, Any]) -> None:
    """Makes the next overwrite of 14 KiB compact the log."""
    values["wasted"] = _LAST_INLINE
    with shmstore.Store(root) as store:
        while True:
            store.put(WORK, "wasted", _LAST_INLINE)
            dead = reading_files.read(root, WORK).totals[3]
            if dead > compaction.FLOOR - (14 << 10):
                break
        assert dead <= compaction.FLOOR


def _damage_slot(id: str) -> Callable[[str], None]:
    def damage(root: str) -> None:
        files = reading_files.read(root, WORK)
        raw = bytearray(files.index.read_bytes())
        hashed = files.records[id].key_hash.to_bytes(8, "little")
        at = raw.index(hashed, 128) + 8  # the tag of its slot
        fd = os.open(files.index, os.O_RDWR)
        os.pwrite(fd, bytes([raw[at] ^ 0x10]), at)
        os.close(fd)

    return damage


def _killed(
    point: str, act: Callable[[shmstore.Store], Any], change: dict[str, Any], occurrence: int = 1
) -> Callable[[str, dict[str, Any]], None]:
    """An earlier victim, whose operation had happened."""

    def prepare(root: str, values: dict[str, Any]) -> None:
        killing.kill_at(point, occurrence, lambda: act(shmstore.Store(root)))
        values |= change

    return prepare


def _killed_growing(root: str, values: dict[str, Any]) -> None:
    _fill_index(root, values)
    killing.kill_at("grow:switched", 1, lambda: shmstore.Store(root).put(WORK, "more", 1))


def _killed_compacting(root: str, values: dict[str, Any]) -> None:
    _waste_log(root, values)
    killing.kill_at(
        "compact:index-written", 1, lambda: shmstore.Store(root).put(WORK, "wasted", _LAST_INLINE)
    )


def _killed_clearing(root: str, values: dict[str, Any]) -> None:
    killing.kill_at("clear:marked", 1, lambda: shmstore.Store(root).clear(WORK))
    values.clear()


def set_word(path: Path, word: int, value: int) -> None:
    """Stores a word of a page in its file, as no call of the store would."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, value.to_bytes(8, "little"), word * 8)
    os.close(fd)


def age(root: str, dag_id: str, seconds: float) -> None:
    """Makes a DAG look as if it had last been used so long before."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    manifest = reading_files.read(root, dag_id).manifest
    set_word(manifest, record.TOUCHED, now - int(seconds * 1e9))


def _litter(root: str, values: dict[str, Any]) -> None:
    """Leaves one of everything that killed processes leave."""
    _killed_growing(root, values)  # an index
    killing.kill_at("commit:named", 1, lambda: shmstore.Store(root).put_many(WORK, _MANY))
    killing.kill_at("create:whole", 1, lambda: shmstore.Store(root).put("another", "a", 1))
    shmstore.Store(root).put("other", "a", 1)
    killing.kill_at("clear:renamed", 1, lambda: shmstore.Store(root).clear("other"))


def _left_to_the_next(root: str, values: dict[str, Any]) -> None:
    """Leaves an orphan and an index, and a DAG that has not been swept for long."""
    _killed_growing(root, values)
    killing.kill_at("commit:named", 1, lambda: shmstore.Store(root).put(WORK, "new", large(3)))


def _long_unswept(root: str) -> None:
    set_word(reading_files.read(root, WORK).manifest, record.SWEPT, 0)


def _kept_a_second(root: str, _: dict[str, Any]) -> None:
    shmstore.Store(root).set_ttl(WORK, 1)


def big(seed: int, kib: int = 256) -> np.ndarray[Any, Any]:
    """So large that its segment is kept for reuse."""
    return np.arange(kib * 128, dtype=np.int64) + seed


def _put_big(root: str, values: dict[str, Any], **settings: Any) -> None:
    with shmstore.Store(root, **settings) as store:
        store.put(WORK, "big", big(1))
    values["big"] = big(1)


def _pool_one(root: str, values: dict[str, Any]) -> None:
    """Leaves an emptied segment of 256 KiB."""
    _put_big(root, values)
    with shmstore.Store(root) as store:
        store.put(WORK, "spare", big(2))
        store.delete(WORK, "spare")


def _disk(root: str) -> str:
    return f"{root}/disk"


def _spill_big(store: shmstore.Store) -> None:
    manifest = lookup.find_dag(store._dags.space, WORK)
    assert manifest is not None
    record = reading.find(manifest, b"big")
    assert record is not None
    relief.spill_one(manifest, record)


def _spilled(root: str, values: dict[str, Any]) -> None:
    _put_big(root, values, spill=_disk(root))
    with shmstore.Store(root) as store:
        _spill_big(store)


def _short_of_room(root: str, values: dict[str, Any]) -> None:
    """Leaves less under the capacity than a value of 256 KiB takes."""
    _put_big(root, values, spill=_disk(root))
    taken = reading_files.account(root).allocated
    shmstore.Store(root, capacity=taken + (200 << 10), pool=0)


def _put_short_of_room(store: shmstore.Store) -> None:
    view = store.get(BYSTANDER, "segment")  # stays where it is
    store.put(WORK, "new", big(5))
    del view


_SECOND = 180  # enough for the index to grow a second time
_CREATE = (
    "create:directory",
    "create:claimed",
    "create:log-created",
    "create:log-written",
    "create:index-created",
    "create:index-written",
    "create:whole",
    "create:renamed",
)
_GROW = ("grow:index-created", "grow:index-written", "grow:switched", "grow:done")
_EXTEND = ("extend:allocated", "extend:mapped")
_REBUILD = ("rebuild:index-created", "rebuild:index-written", "rebuild:switched")
_COMPACT = (
    "compact:begin",
    "compact:log-created",
    "compact:log-written",
    "compact:index-created",
    "compact:index-written",
    "compact:switched",
    "compact:done",
)
_CLEAR = ("clear:locked", "clear:marked", "clear:counted", "clear:renamed", "clear:freed")
_REDO_SLOT = ("commit:slot-hash", "redo:slot")
_REDO_MANY = ("commit:locked", "redo:begin", *_REDO_SLOT * len(_MANY), "redo:done")
_FREE = (*("sweep:file",) * 4, "sweep:directory")
_MOVE = (*_SEGMENT, *_INLINE, "commit:slot", *_END)
_AFTER_REDO = (*_INLINE[1:], *_NEW_SLOT, *_END)

SCENARIOS = {
    "put-new-small": Scenario(
        _put("new", {"v": 1}), (*_INLINE, *_NEW_SLOT, *_END), {"new": {"v": 1}}, 3
    ),
    "put-new-large": Scenario(
        _put("new", large(5)), (*_SEGMENT, *_INLINE, *_NEW_SLOT, *_END), {"new": large(5)}, 5
    ),
    "overwrite-small": Scenario(
        _put("small-2", [2]), (*_INLINE, "commit:slot", *_END), {"small-2": [2]}, 3
    ),
    "overwrite-large": Scenario(
        _put("large-1", large(6)),
        (*_SEGMENT, *_INLINE, "commit:slot", *_END),
        {"large-1": large(6)},
        5,
    ),
    "open-put-new": Scenario(
        _put_open("new", {"v": 1}), (*_SHORT, *_NEW_SLOT, *_END), {"new": {"v": 1}}, 2
    ),
    "open-overwrite": Scenario(
        _put_open("small-2", {"v": 2}), (*_SHORT, "commit:slot", *_END), {"small-2": {"v": 2}}, 2
    ),
    "open-overwrite-large": Scenario(
        _put_open("large-1", "small now"),
        (*_SHORT, "commit:slot", *_END),
        {"large-1": "small now"},
        2,
    ),
    "open-compact": Scenario(
        _put_open("wasted", "w" * (14 << 10)),
        (*_SHORT, "commit:slot", "commit:indexed", "commit:counted", *_COMPACT, "commit:unlocked"),
        {"wasted": "w" * (14 << 10)},
        2,
        _waste_log,
    ),
    "delete-large": Scenario(
        lambda store: store.delete(WORK, "large-0"),
        (*_INLINE, "commit:slot", *_END),
        {"large-0": None},
        3,
    ),
    "put-many": Scenario(
        _put_many,
        (*_SEGMENT * 2, *_INLINE, *_NEW_SLOT, "commit:slot", *_NEW_SLOT, "commit:slot", *_END),
        _MANY,
        7,
        orphans=2,  # of one commit: those of its values
    ),
    "grow": Scenario(
        _put("new", 1),
        ("commit:locked", *_GROW, *_INLINE[1:], *_NEW_SLOT, *_END),
        {"new": 1},
        7,
        _fill_index,
    ),
    "extend": Scenario(
        _put("new", _LAST_INLINE),
        (
            "commit:locked",
            *_EXTEND,
            *_INLINE[1:],
            *_NEW_SLOT,
            *_END,
        ),
        {"new": _LAST_INLINE},
        5,
        _fill_log,
    ),
    "compact": Scenario(
        _put("wasted", "w" * (14 << 10)),
        (*_INLINE, "commit:slot", "commit:indexed", "commit:counted", *_COMPACT, "commit:unlocked"),
        {"wasted": "w" * (14 << 10)},
        3,
        _waste_log,
    ),
    "create": Scenario(
        lambda store: store.put("fresh", "new", 1),
        (*_CREATE, *_INLINE, *_NEW_SLOT, *_END),
        {"new": 1},
        11,
        lambda _, values: values.clear(),
        dag_id="fresh",
    ),
    "clear": Scenario(lambda store: store.clear(WORK), _CLEAR, commits_at=1, clears=True),
    "rebuild": Scenario(
        _put("small-2", "again"),
        ("commit:locked", *_REBUILD, *_INLINE, "commit:slot", *_END),
        {"small-2": "again"},
        7,
        just_before=_damage_slot("small-2"),
    ),
    "wait": Scenario(_announce_a_wait, ("wait:announced",), orphans=0),
    # Double faults: the victim meets what an earlier one left.
    "redo": Scenario(
        _put("new", 2),
        (*_REDO_MANY, *_AFTER_REDO),
        {"new": 2},
        len(_REDO_MANY) + 2,
        _killed("commit:tail", _put_many, _MANY),
        orphans=4,
    ),
    "redo-half": Scenario(
        _put("new", 2),
        (*_REDO_MANY, *_AFTER_REDO),
        {"new": 2},
        len(_REDO_MANY) + 2,
        _killed("commit:slot", _put_many, _MANY, 2),
        orphans=4,
    ),
    "redo-half-slot": Scenario(
        _put("new", 2),
        (*_REDO_MANY, *_AFTER_REDO),
        {"new": 2},
        len(_REDO_MANY) + 2,
        _killed("commit:slot-hash", _put_many, _MANY),
        orphans=4,
    ),
    "redo-delete": Scenario(
        _put("new", 2),
        ("commit:locked", "redo:begin", *_REDO_SLOT, "redo:done", *_AFTER_REDO),
        {"new": 2},
        7,
        _killed("commit:tail", lambda store: store.delete(WORK, "large-0"), {"large-0": None}),
        orphans=2,
    ),
    "grow-again": Scenario(
        lambda store: store.put_many(WORK, {f"second-{n}": n for n in range(_SECOND)}),
        ("commit:locked", *_GROW, *_INLINE[1:], *_NEW_SLOT * _SECOND, *_END),
        {f"second-{n}": n for n in range(_SECOND)},
        7,
        _killed_growing,
    ),
    "compact-again": Scenario(
        _put("wasted", "w" * (14 << 10)),
        (*_INLINE, "commit:slot", "commit:indexed", "commit:counted", *_COMPACT, "commit:unlocked"),
        {"wasted": "w" * (14 << 10)},
        3,
        _killed_compacting,
    ),
    "put-into-cleared": Scenario(
        _put("new", 3),
        ("clear:renamed", *_CREATE, *_INLINE, *_NEW_SLOT, *_END),
        {"new": 3},
        12,
        _killed_clearing,
    ),
    "clear-cleared": Scenario(
        lambda store: store.clear(WORK),
        ("clear:renamed", "clear:freed"),
        commits_at=0,
        prepare=_killed_clearing,
        clears=True,
    ),
    # Sweeping changes no value, so it has happened before it begins.
    "gc": Scenario(
        lambda store: store.gc(),
        (
            *("sweep:locked", "sweep:locked", "sweep:leftover", "sweep:orphan", "sweep:orphan"),
            *_FREE * 2,
        ),
        commits_at=0,
        prepare=_litter,
        orphans=2,
    ),
    "gc-gap": Scenario(
        lambda store: store.gc(),
        ("sweep:locked", *_REDO_MANY[1:], "sweep:locked", "sweep:orphan"),
        commits_at=0,
        prepare=_killed("commit:tail", _put_many, _MANY),
        orphans=1,
    ),
    "gc-cleared": Scenario(
        lambda store: store.gc(),
        ("sweep:locked", "clear:renamed", *("sweep:file",) * 7, "sweep:directory"),
        commits_at=0,
        prepare=_killed_clearing,
        clears=True,
    ),
    "gc-expired": Scenario(
        lambda store: store.gc(),
        (
            *("sweep:locked", "clear:locked", "clear:marked", "clear:counted", "clear:renamed"),
            *("sweep:file",) * 7,
            "sweep:directory",
        ),
        commits_at=2,
        prepare=_kept_a_second,
        just_before=lambda root: age(root, WORK, 5),
        clears=True,
    ),
    "sweep-on-opening": Scenario(
        lambda store: store.count(WORK),
        ("sweep:stamped", "sweep:locked", "sweep:leftover", "sweep:orphan"),
        commits_at=0,
        prepare=_left_to_the_next,
        just_before=_long_unswept,
    ),
    **{
        f"reuse-{name}": Scenario(
            _put("big", big(3, kib)),
            ("pool:claimed", "pool:written", *_INLINE, "commit:slot", *_END, "pool:retired"),
            {"big": big(3, kib)},
            5,
            _pool_one,
        )
        for name, kib in (("whole", 256), ("cut", 200), ("grown", 300))
    },
    "gc-pool": Scenario(
        lambda store: store.gc(),
        ("sweep:locked", "sweep:locked", "pool:emptied"),
        commits_at=0,
        prepare=_pool_one,
    ),
    "capacity": Scenario(
        _put("new", large(5)),
        ("ledger:reserved", *_SEGMENT, *_INLINE, *_NEW_SLOT, *_END),
        {"new": large(5)},
        6,
        lambda root, values: _put_big(root, values, capacity="1 GiB"),
    ),
    "set-capacity": Scenario(
        lambda store: shmstore.Store(store.root, capacity="1 GiB"),
        ("ledger:limited", "ledger:counting", "ledger:counting"),
        commits_at=0,
    ),
    "set-spill": Scenario(
        lambda store: shmstore.Store(store.root, spill=_disk(store.root)),
        ("spill:owned", "spill:made", "spill:linked"),
        commits_at=0,
    ),
    # Moving a value changes nothing for who reads it.
    "spill": Scenario(
        _spill_big,
        (*_SEGMENT, *_INLINE, "commit:slot", *_END, "pool:retired"),
        commits_at=0,
        prepare=lambda root, values: _put_big(root, values, spill=_disk(root)),
    ),
    "put-that-moves": Scenario(
        _put_short_of_room,
        (
            *("sweep:locked", "sweep:locked", "ledger:counting", *_MOVE * 4),
            *("pool:retired", "pool:emptied", "ledger:reserved"),
            *(*_SEGMENT, *_INLINE, *_NEW_SLOT, *_END),
        ),
        {"new": big(5)},
        51,
        _short_of_room,
        unviewed=("big", "large-0", "large-1", "large-2"),
    ),
    "recount": Scenario(
        lambda store: store._dags.space.ledger.recount(),
        ("ledger:counting",),
        commits_at=0,
        prepare=lambda root, values: _put_big(root, values, capacity="1 GiB"),
    ),
    "overwrite-spilled": Scenario(
        _put("big", "small"), (*_INLINE, "commit:slot", *_END), {"big": "small"}, 3, _spilled
    ),
    "delete-spilled": Scenario(
        lambda store: store.delete(WORK, "big"),
        (*_INLINE, "commit:slot", *_END),
        {"big": None},
        3,
        _spilled,
    ),
    "clear-spilled": Scenario(
        lambda store: store.clear(WORK), _CLEAR, commits_at=1, prepare=_spilled, clears=True
    ),
    "set-ttl": Scenario(lambda store: store.set_ttl(WORK, 1000), ("ttl:stored",), commits_at=0),
}

# A commit of many records is not killed at each of its slots, nor a put at each of the
# values that it moves.
_LONG = {
    "grow-again": {*range(11), _SECOND, *range(2 * _SECOND + 6, 2 * _SECOND + 11)},
    "put-that-moves": {2, 4, 7, 8, 12, 36, 37, 38, 43, 44, 45, 47, 50, 51, 56},
}

KILLS = [
    (name, step)
    for name, scenario in SCENARIOS.items()
    for step in range(len(scenario.steps))
    if step in _LONG.get(name, {step})
]
