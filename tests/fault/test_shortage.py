"""What runs short in the middle of making room, and who comes in between."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore import index, lock, log
from shmstore.descriptor import Descriptor
from shmstore.ledger import Ledger
from shmstore.lock import Lock
from tests import reading_files


def _names(root: str) -> list[str]:
    return sorted(p.name for p in (Path(root) / "default" / "dags" / "d").iterdir())


def test_a_log_that_finds_no_room_after_the_index_has_grown(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction then works on the index that is current, not on the one before it."""
    store, other = shmstore.Store(root), shmstore.Store(root)
    for n in range(40):
        store.put("d", "wasted", f"{n}" * 3000)
    files = reading_files.read(root, "d")
    store.put_many("d", {f"filler-{n}": n for n in range(files.limit - files.used)})
    assert other.get("d", "filler-0") == 0
    extend = log.Log.extend
    refused: list[int] = []

    def full_once(
        self: log.Log, directory: Descriptor, need: int, headroom: int, ledger: Ledger
    ) -> log.Log:
        if not refused:
            refused.append(need)
            raise shmstore.StoreFull("shared memory")
        return extend(self, directory, need, headroom, ledger)

    monkeypatch.setattr(log.Log, "extend", full_once)
    new = {f"new-{n}": "x" * 900 for n in range(60)}
    store.put_many("d", new)
    assert refused
    other.put("d", "by the other", 1)
    assert store.get("d", "by the other") == 1
    for seen in (store, other, shmstore.Store(root)):
        assert seen.get_many("d", new) == new
    reading_files.check(root)


def test_a_compaction_that_fails_leaves_no_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compaction had written when it failed is given back; the put stands."""
    store = shmstore.Store(root)
    store.put("d", "kept", 1)
    before = _names(root)
    failed: list[int] = []

    def no_space(*_: Any, **__: Any) -> None:
        failed.append(1)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(index, "create", no_space)
    for n in range(120):
        store.put("d", "wasted", f"{n:03}" * 4000)
    assert failed
    assert _names(root) == before
    assert store.get("d", "wasted") == "119" * 4000
    reading_files.check(root)


class _Restless(Mapping[str, int]):
    """Gives its items in another order each time, as a Dag does that others write to."""

    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[str]:
        self.turn += 1
        return iter([f"k{(n + self.turn) % 10}" for n in range(10)])

    def __len__(self) -> int:
        return 10

    def __getitem__(self, id: str) -> int:
        return int(id[1:])


def test_put_many_of_a_mapping_that_changes(store: shmstore.Store) -> None:
    """Each value lands under its own id, whatever the mapping does meanwhile."""
    store.put_many("d", _Restless())
    assert dict(store.dag("d")) == {f"k{n}": n for n in range(10)}


def test_a_handler_that_comes_while_a_second_lock_is_waited_for(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot take the first lock, and so cannot let go of it either."""
    for name in ("outer", "inner"):
        Path(root, name).touch()
    directory = Descriptor.open(root, os.O_RDONLY | os.O_DIRECTORY)
    outer, inner = Lock(directory, "outer", "outer", rank=0), Lock(directory, "inner", "inner")
    raised: list[type[BaseException]] = []

    def handler(*_: object) -> None:
        try:
            outer.run(lambda _: None, None)
        except shmstore.StoreBusy as error:
            raised.append(type(error))

    def still_held() -> bool:
        with open(f"{root}/outer", "rb") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def body(_: None) -> bool:
        with pytest.raises(shmstore.StoreBusy):
            inner.run(lambda _: None, None)
        return still_held()

    monkeypatch.setattr(lock, "TIMEOUT_S", 0.4)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with open(f"{root}/inner", "rb") as somebody:
            fcntl.flock(somebody, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert outer.run(body, None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised == [shmstore.StoreBusy]
    assert not still_held()
