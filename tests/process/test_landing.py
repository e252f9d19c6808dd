"""A value on its way in, without a network: any order of pieces, and room for deletes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from xxhash import xxh3_128_hexdigest

import shmstore
from shmstore import lookup, provenance
from shmstore.lock import impatience
from shmstore.log import RESERVE
from shmstore.node.landing import Cleared, Damaged, Head, Landing
from shmstore.record import TAIL
from tests import reading_files
from tests.fault.killing import Child, Parent


def _landing(store: shmstore.Store, meta: bytes, payload: bytes) -> Landing:
    head = Head(2, 1_000, len(meta), len(payload))
    landing = Landing(store._dags, "dag", "id", head, "a")
    landing.begin()
    return landing


def _land(store: shmstore.Store, meta: bytes, payload: bytes) -> None:
    landing = _landing(store, meta, payload)
    try:
        landing.write(0, meta + payload)
        landing.commit()
    finally:
        landing.end()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("deps", "nbytes"), [(0, 0), (0, 5), (300, 10_000), (3_000, 300_000)])
def test_pieces_may_come_in_any_order_and_twice(
    store: shmstore.Store, seed: int, deps: int, nbytes: int
) -> None:
    """Pieces of any size, in any order, some of them twice and cut otherwise, make the value."""
    rng = random.Random(seed)
    meta = provenance.build_meta(b"", bytes, [f"dep {n}".encode() * 9 for n in range(deps)])
    payload = rng.randbytes(nbytes)
    everything = meta + payload
    cuts = sorted({0, len(everything), *(rng.randrange(len(everything)) for _ in range(12))})
    pieces = list(pairwise(cuts))
    for _ in range(5):
        start = rng.randrange(len(everything))
        pieces.append((start, rng.randint(start, len(everything))))
    rng.shuffle(pieces)
    landing = _landing(store, meta, payload)
    try:
        for start, end in pieces:
            landing.write(start, everything[start:end])
        assert landing.checksum() == xxh3_128_hexdigest(everything)
        landing.commit()
    finally:
        landing.end()
    assert bytes(store.get_buffer("dag", "id")) == payload
    entry = store.entry("dag", "id")
    assert (len(entry.deps), entry.origin, entry.created_ns) == (deps, "a", 1_000)
    reading_files.check(store.root)


def _hold(parent: Parent, root: str) -> None:
    manifest = lookup.find_dag(shmstore.Store(root)._dags.space, "dag")
    assert manifest is not None

    def until_told() -> None:
        parent.send("holds it")
        parent.receive()

    manifest.guarded(until_told)


def test_an_event_loop_does_without_a_lock_rather_than_wait(store: shmstore.Store) -> None:
    """At once is StoreBusy at once; the same without it waits for the holder."""
    store.put("dag", "other", 1)
    meta = provenance.build_meta(b"", bytes)
    head = Head(2, 1_000, len(meta), 5)
    with Child(_hold, Parent, store.root) as holder:
        assert holder.receive() == "holds it"
        for _ in range(2):
            landing = Landing(store._dags, "dag", "id", head, "a", at_once=True)
            with impatience(), pytest.raises(shmstore.StoreBusy) as busy:
                landing.begin()
                landing.write(0, meta + b"value")
                landing.commit()
            assert busy.value.waited_s < 1
            landing.end()
        assert not store.has_value("dag", "id")
        holder.send()
        _land(store, meta, b"value")
        assert holder.join() == 0
    assert store.get("dag", "id") == b"value"


def test_a_value_with_a_hole_is_not_stored(store: shmstore.Store) -> None:
    """Not before every byte is here; and nothing is taken that lies outside of it."""
    meta = provenance.build_meta(b"", bytes)
    everything = meta + bytes(range(256)) * 200
    landing = _landing(store, meta, everything[len(meta) :])
    try:
        landing.write(0, everything[:1000])
        landing.write(1001, everything[1001:])
        for at in (-1, len(everything)):
            with pytest.raises(Damaged):
                landing.write(at, b"x")
        with pytest.raises(Damaged):
            landing.commit()
        assert not store.has_value("dag", "id")
        landing.write(1000, everything[1000:1001])
        landing.commit()
    finally:
        landing.end()
    assert bytes(store.get_buffer("dag", "id")) == everything[len(meta) :]


def test_a_copy_that_is_refreshed_leaves_room_for_deletes(store: shmstore.Store) -> None:
    """A copy that replaces a copy leaves the log its reserve, as a put does."""
    meta = provenance.build_meta(b"", bytes)
    for number in range(300):
        _land(store, meta, bytes([number & 255]) * 900)
        view = store._dags.manifests["dag"].fresh()
        assert view.log.words[TAIL] + RESERVE <= view.log.size
    assert bytes(store.get_buffer("dag", "id")) == bytes([299 & 255]) * 900


def test_a_dag_that_is_cleared_and_used_again_takes_nothing(store: shmstore.Store) -> None:
    """A landing into a DAG that was cleared meanwhile is not stored in its successor."""
    meta = provenance.build_meta(b"", bytes)
    landing = _landing(store, meta, b"x")
    try:
        landing.write(0, meta + b"x")
        store.clear("dag")
        store.put("dag", "other", 1)
        with pytest.raises(Cleared):
            landing.commit()
    finally:
        landing.end()
    assert list(store.ids("dag")) == ["other"]
