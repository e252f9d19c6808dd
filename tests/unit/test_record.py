"""Records: what is encoded is decoded, and nothing damaged ever is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shmstore import record

word = st.integers(0, 2**64 - 1)
records = st.fixed_dictionaries(
    {
        "op": st.sampled_from([record.PUT, record.DELETE]),
        "codec": st.integers(0, 255),
        "flags": st.integers(0, 2**16 - 1),
        "created_ns": st.integers(-(2**63), 2**63 - 1),
        "segment": st.one_of(st.just(0), word),
        "key": st.binary(min_size=1, max_size=60),
        "meta": st.binary(max_size=60),
        "payload": st.binary(max_size=200),
        "nbytes": word,
        "totals": st.tuples(word, word, word, word),
        "seed": word,
    }
)


def encode(one: dict[str, Any]) -> bytes:
    """A whole record's bytes. Its payload is inline if it has no segment."""
    inline = one["payload"] if one["op"] == record.PUT and not one["segment"] else b""
    check, body = record.encode(
        one["op"],
        one["codec"],
        one["flags"],
        record.key_hash(one["key"]),
        one["created_ns"],
        len(inline) if inline or not one["segment"] else one["nbytes"],
        one["segment"],
        len(one["key"]),
        len(one["meta"]),
        record.middle(one["key"], one["meta"], inline),
        one["totals"],
        one["seed"],
    )
    return check.to_bytes(8, "little") + body


@given(records)
def test_what_is_encoded_is_decoded(one: dict[str, Any]) -> None:
    """Every field comes back, the payload if it is inline, and the length is a multiple of 8."""
    raw = encode(one)
    found = record.decode(raw, one["seed"])
    assert found is not None
    inline = one["op"] == record.PUT and not one["segment"]
    assert found == record.Record(
        length=len(raw),
        op=one["op"],
        codec=one["codec"],
        flags=one["flags"],
        key_hash=record.key_hash(one["key"]),
        created_ns=one["created_ns"],
        nbytes=len(one["payload"]) if inline else (one["nbytes"] if one["segment"] else 0),
        segment=one["segment"],
        key=one["key"],
        meta=one["meta"],
        payload=one["payload"] if inline else b"",
    )
    assert len(raw) % 8 == 0
    assert record.unpack_totals(raw, len(raw) - record.TOTALS_SIZE) == one["totals"]


@given(records, st.data())
def test_a_damaged_record_never_decodes(one: dict[str, Any], data: st.DataObject) -> None:
    """A flipped bit anywhere, checksum included, makes it None."""
    raw = bytearray(encode(one))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert record.decode(bytes(raw), one["seed"]) is None


@given(records, st.data())
def test_a_record_that_was_cut_or_grew_never_decodes(
    one: dict[str, Any], data: st.DataObject
) -> None:
    """A prefix of a record is none, nor is one with something behind it."""
    raw = encode(one)
    assert record.decode(raw[: data.draw(st.integers(0, len(raw) - 1))], one["seed"]) is None
    assert record.decode(raw + bytes(8), one["seed"]) is None


@given(records, word)
def test_a_record_of_another_dag_never_decodes(one: dict[str, Any], seed: int) -> None:
    """Checksums are seeded by the DAG, so what an older file left in memory does not pass."""
    assume(seed != one["seed"])
    assert record.decode(encode(one), seed) is None


@given(st.binary(max_size=300), word)
def test_any_bytes_can_be_looked_at(raw: bytes, seed: int) -> None:
    """Decoding arbitrary bytes answers None and raises nothing."""
    assert record.decode(raw, seed) is None


@given(st.integers(0, 2**48 - 1), word)
def test_a_slots_word_gives_its_offset_back(offset: int, hashed: int) -> None:
    """The word keeps offset and tag in 64 bits, and is 0 for no real record."""
    made = record.slot_word(offset, hashed)
    assert 0 <= made < 2**64
    assert record.slot_offset(made, hashed) == offset
    assert made or offset == 0


@given(st.integers(record.PAGE, 2**40), word, st.integers(0, 63))
def test_a_flipped_bit_in_a_slot_is_noticed(offset: int, hashed: int, bit: int) -> None:
    """One flipped bit, in the word or in the hash, never gives the offset of another record."""
    made = record.slot_word(offset, hashed)
    assert record.slot_offset(made ^ 1 << bit, hashed) == -1
    assert record.slot_offset(made, hashed ^ 1 << bit) == -1


@given(st.binary(max_size=64), st.data())
def test_a_page_with_a_flipped_bit_has_a_fault(rest: bytes, data: st.DataObject) -> None:
    """Every bit of a page but those on the line that changes is covered by its checksum."""
    words = {record.MAGIC: record.MANIFEST_MAGIC, record.VERSION: record.FORMAT_VERSION}
    page = bytearray(record.build_page(words, rest=rest))
    assert record.page_fault(bytes(page), record.MANIFEST_MAGIC) is None
    at = data.draw(st.one_of(st.integers(0, 63), st.integers(128, record.PAGE - 1)))
    page[at] ^= 1 << data.draw(st.integers(0, 7))
    assert record.page_fault(bytes(page), record.MANIFEST_MAGIC)
    assert record.newer_version(bytes(page), record.MANIFEST_MAGIC) is None


def test_a_page_of_a_newer_version_is_told_from_a_damaged_one() -> None:
    """A whole page with a higher version says which; a damaged one does not."""
    words = {record.MAGIC: record.LOG_MAGIC, record.VERSION: record.FORMAT_VERSION + 5}
    page = record.build_page(words)
    assert record.newer_version(page, record.LOG_MAGIC) == record.FORMAT_VERSION + 5
    assert record.newer_version(page, record.INDEX_MAGIC) is None
    assert "version is 6" in (record.page_fault(page, record.LOG_MAGIC) or "")


@pytest.mark.parametrize("changing", [record.STATE, record.CURRENT, record.TAIL, record.USED])
def test_words_that_change_are_not_checked(changing: int) -> None:
    """What writers store in the header's second line does not spoil its checksum."""
    page = bytearray(record.build_page({record.MAGIC: record.LOG_MAGIC, record.VERSION: 1}))
    page[changing * 8] ^= 0xFF
    assert record.page_fault(bytes(page), record.LOG_MAGIC) is None
