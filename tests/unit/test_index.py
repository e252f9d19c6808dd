"""The index: built in one pass as if key by key, and each key found in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmstore import files, index, record
from shmstore.descriptor import Descriptor
from shmstore.index import FIRST_HOMES, Index, IndexDamagedError
from shmstore.ledger import Ledger

GENERATION = 0x1234_5678_9ABC_DEF0_1122_3344_5566_7788
# Few distinct homes, whole collisions, and homes at the very end of the table.
hashes = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 3),
    st.integers(FIRST_HOMES - 4, FIRST_HOMES - 1),
    st.sampled_from([0, record.EMPTY, 2**64 - 1]),
)


def naive(pairs: list[tuple[int, int]], homes: int, room: int) -> set[int]:
    """The places that linear probing takes, inserting key by key in any order."""
    taken: set[int] = set()
    for hashed, _ in pairs:
        at = hashed & (homes - 1)
        while at in taken:
            at += 1
        taken.add(at)
    assert max(taken, default=0) < room
    return taken


def build(pairs: list[tuple[int, int]], homes: int = FIRST_HOMES) -> tuple[np.ndarray, int, int]:
    array = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    return index.build(array[:, 0], array[:, 1], homes)


@given(st.lists(hashes, max_size=400))
@example([2**64 - 1] * 300)
@example([FIRST_HOMES - 1] * 170)
@example([])
def test_building_at_once_takes_the_places_of_inserting_one_by_one(keys: list[int]) -> None:
    """Every key lies where probing finds it; all else is empty, the last slot in any case."""
    pairs = [(hashed, record.PAGE + 8 * number) for number, hashed in enumerate(keys)]
    table, homes, room = build(pairs)
    assert homes >= FIRST_HOMES
    assert homes & (homes - 1) == 0
    assert len(keys) * 3 <= homes * 2
    assert room == len(table) > homes
    used = {int(place) for place in np.flatnonzero(table[:, 1])}
    assert used == naive(pairs, homes, room)
    assert room - 1 not in used
    found = {}
    for place in used:
        hashed, word = (int(value) for value in table[place])
        offset = record.slot_offset(word, hashed)
        assert all(between in used for between in range(hashed & (homes - 1), place))
        found[offset] = hashed
    assert found == {offset: hashed for hashed, offset in pairs}
    empty = np.delete(table, sorted(used), axis=0)
    assert (empty[:, 0] == np.uint64(record.EMPTY)).all()


def test_a_table_of_many_keys() -> None:
    """A hundred thousand random keys keep the load and the padding within bounds."""
    chance = np.random.default_rng(7)
    keys = chance.integers(0, 2**63, 100_000, dtype=np.uint64)
    offsets = np.arange(len(keys), dtype=np.uint64) * 8 + record.PAGE
    table, homes, room = index.build(keys, offsets, FIRST_HOMES)
    assert homes == 1 << 18
    assert room == homes + 1024
    assert np.count_nonzero(table[:, 1]) == len(keys)


@pytest.fixture
def directory(root: str) -> Iterator[Descriptor]:
    opened = Descriptor.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    opened.close()


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50))
def test_entries_of_a_built_table(keys: list[int]) -> None:
    """What was put in comes out, through the words of the table alone."""
    pairs = sorted((hashed, record.PAGE + 8 * n) for n, hashed in enumerate(keys))
    table, _, _ = build(pairs)
    made = Index.__new__(Index)
    made.number = 1
    made.slots = memoryview(table).cast("B").cast("Q")
    got_hashes, got_offsets = made.entries()
    assert sorted(zip(got_hashes.tolist(), got_offsets.tolist(), strict=True)) == pairs


def _ledger(directory: Descriptor) -> Ledger:
    """The account of a namespace without a capacity."""
    return Ledger(directory, memoryview(bytearray(record.PAGE)).cast("Q"), "a namespace")


def test_a_file_is_what_was_built(directory: Descriptor) -> None:
    """Written and mapped again, the index has its keys, its counts and no holes."""
    keys = np.arange(300, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    offsets = np.arange(300, dtype=np.uint64) * 8 + record.PAGE
    index.create(directory, 3, GENERATION, keys, offsets, FIRST_HOMES, "create", _ledger(directory))
    made = Index.open(directory, 3, GENERATION)
    got_hashes, got_offsets = made.entries()
    assert dict(zip(got_hashes.tolist(), got_offsets.tolist(), strict=True)) == dict(
        zip(keys.tolist(), offsets.tolist(), strict=True)
    )
    assert made.head[record.USED] == 300
    assert made.limit < made.mask + 1 < made.room
    status = os.stat("index.3", dir_fd=directory.fd)
    assert status.st_blocks * 512 >= status.st_size


def test_a_file_of_another_dag_or_number_is_refused(directory: Descriptor) -> None:
    """An index is tied to its DAG's generation and to its own number."""
    nothing = np.empty(0, dtype=np.uint64)
    index.create(
        directory, 3, GENERATION, nothing, nothing, FIRST_HOMES, "create", _ledger(directory)
    )
    os.link("index.3", "index.4", src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    for number, generation in ((3, GENERATION + 1), (4, GENERATION)):
        with pytest.raises(index.CorruptValue, match="another DAG"):
            Index.open(directory, number, generation)
    file = Descriptor.open("index.3", os.O_RDWR, within=directory.fd)
    os.ftruncate(file.fd, file.size - 16)
    with pytest.raises(index.CorruptValue, match="size"):
        Index.open(directory, 3, GENERATION)
    files.unlink(directory, "index.3")
    with pytest.raises(FileNotFoundError):
        Index.open(directory, 3, GENERATION)


def test_a_wrong_tag_is_damage(directory: Descriptor) -> None:
    """A slot whose tag does not fit its hash and offset is not read as an entry."""
    one = np.array([5], dtype=np.uint64)
    index.create(
        directory, 3, GENERATION, one, one * 8192, FIRST_HOMES, "create", _ledger(directory)
    )
    made = Index.open(directory, 3, GENERATION)
    made.slots[5 * 2 + 1] ^= 1 << 30
    with pytest.raises(IndexDamagedError):
        made.entries()
