"""Ids whose hashes crowd at the end of the index."""

from __future__ import annotations

from itertools import count, islice

import pytest
from xxhash import xxh3_64_intdigest

import shmstore
from tests import reading_files
from tests.fault.killing import call

_HOMES = 2048  # behind which there is padding for 1,023 keys
_CROWD = 1100


def _crowding() -> list[str]:
    """Ids that all hash to the last home of an index of up to 2,048 homes."""
    candidates = (f"{n:x}" for n in count())
    last = _HOMES - 1
    crowd = (id for id in candidates if xxh3_64_intdigest(id.encode()) & last == last)
    return list(islice(crowd, _CROWD))


def _put_crowd(root: str, step: int) -> None:
    store = shmstore.Store(root)
    ids = _crowding()
    for first in range(0, len(ids), step):
        store.put_many("dag", {id: id for id in ids[first : first + step]})
    assert all(store.get("dag", id) == id for id in ids)
    assert list(store.ids("dag")) == ids
    assert not store.has_value("dag", "none of them")
    store.delete_many("dag", ids[::2])
    assert list(store.ids("dag")) == ids[1::2]
    reading_files.check(root)


@pytest.mark.parametrize("step", [1, 100, _CROWD])
def test_ids_that_crowd_at_one_place_are_kept(root: str, step: int) -> None:
    """However many ids hash to the same place, each is stored and found, in one commit or many."""
    call(_put_crowd, root, step)
