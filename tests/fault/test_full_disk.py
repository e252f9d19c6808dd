"""Shared memory and the disk behind it are full: StoreFull names both, nothing is lost."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.fault.enclosed import mount_tmpfs, with_mounts

_MEMORY, _DISK = 64 << 20, 24 << 20
_WORDS = 3 << 16  # 1.5 MiB a value


def _value(n: int) -> np.ndarray[Any, Any]:
    return np.full(_WORDS, n)


def _fill(store: shmstore.Store) -> tuple[dict[str, int], shmstore.StoreFull]:
    kept: dict[str, int] = {}
    while True:
        n = len(kept)
        try:
            store.put("dag", f"id-{n}", _value(n))
        except shmstore.StoreFull as full:
            assert not store.has_value("dag", f"id-{n}")
            return kept, full
        kept[f"id-{n}"] = n


def _all_there(store: shmstore.Store, kept: dict[str, int]) -> None:
    assert set(store.ids("dag")) == set(kept)
    for id, n in kept.items():
        got = store.get("dag", id)
        assert got[0] == n
        assert (got == n).all()


def _run_full(root: str, capacity: str | None) -> None:
    memory = mount_tmpfs(f"{root}/memory", _MEMORY)
    disk = mount_tmpfs(f"{root}/disk", _DISK)
    options = {"spill": disk} if capacity is None else {"spill": disk, "capacity": capacity}
    store = shmstore.Store(memory, **options)
    kept, full = _fill(store)
    allowed = _MEMORY if capacity is None else 32 << 20
    assert "and of" in full.what, full
    assert "nothing was changed" in str(full)
    # Both are in use, up to nearly their ends.
    assert len(kept) * _WORDS * 8 > (allowed + _DISK) * 0.8
    status = os.statvfs(disk)
    assert status.f_bavail * status.f_frsize < 2 * _WORDS * 8
    for reader in (store, shmstore.Store(memory)):
        _all_there(reader, kept)
    reading_files.check(memory)
    # And so it stays when others try; what is small still finds a place in the log.
    for n in range(3):
        with pytest.raises(shmstore.StoreFull):
            shmstore.Store(memory).put("dag", f"more-{n}", _value(n))
        with pytest.raises(shmstore.StoreFull):
            store.put_many("dag", {f"many-{n}-{m}": _value(m) for m in range(3)})
    _all_there(store, kept)
    view = store.get("dag", "id-0")  # on disk: the oldest go first
    newest = f"id-{len(kept) - 1}"
    for id in ("id-1", newest, "id-2", f"id-{len(kept) - 2}"):
        store.delete("dag", id)
        del kept[id]
    for n in range(2):
        store.put("dag", f"again-{n}", _value(100 + n))
        kept[f"again-{n}"] = 100 + n
    _all_there(store, kept)
    assert (view == 0).all()
    reading_files.check(memory)
    del view
    assert store.clear("dag").cleared
    assert sum(len(names) for _, _, names in os.walk(disk)) <= 1, "left on the disk"
    again, _ = _fill(store)
    assert len(again) >= len(kept) - 2
    _all_there(store, again)


@pytest.mark.parametrize("capacity", [None, "32MiB"])
def test_memory_and_the_disk_behind_it_run_full(root: str, capacity: str | None) -> None:
    """StoreFull names both, all is readable, deletes make room again; no SIGBUS."""
    with_mounts(_run_full, root, capacity, timeout_s=90.0)


def _fill_while_others_do(root: str) -> None:
    """The disk is filled by somebody else while values are being moved there."""
    memory = mount_tmpfs(f"{root}/memory", _MEMORY)
    disk = mount_tmpfs(f"{root}/disk", _DISK)
    store = shmstore.Store(memory, spill=disk)
    with open(f"{disk}/ballast", "wb", buffering=0) as ballast:
        ballast.write(bytes(_DISK - (3 << 20)))
    kept, full = _fill(store)
    assert "and of" in full.what, full
    _all_there(store, kept)
    os.unlink(f"{disk}/ballast")
    for n in range(5):
        store.put("dag", f"after-{n}", _value(n))
        kept[f"after-{n}"] = n
    _all_there(store, kept)
    reading_files.check(memory)


def test_a_disk_that_others_have_filled(root: str) -> None:
    """What others write there counts; once they have left, values are moved again."""
    with_mounts(_fill_while_others_do, root, timeout_s=90.0)
