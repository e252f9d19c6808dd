"""The manifest's bytes: pages, records and slots, encoded and decoded.

Pure: no I/O. ``docs/format.md`` describes the same layout for other languages.
All integers are little-endian. A *word* is an aligned 8-byte unsigned integer;
shared state changes by storing one word.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

FORMAT_VERSION = 1
PAGE = 4096

# --- The manifest's control page: word numbers -----------------------------------
MANIFEST_MAGIC = int.from_bytes(b"SHMDAG\r\n", "little")
LIVE = int.from_bytes(b"LIVE....", "little")
CLEARED = int.from_bytes(b"CLEARED.", "little")

MAGIC, VERSION, CHECKSUM, GENERATION_LOW, GENERATION_HIGH, CREATED, ID_LENGTH = range(7)
# On a cache line of their own: what changes.
STATE, CURRENT, COUNTER, WAIT_DEADLINE = range(8, 12)
# Seconds that the DAG is kept unused, 0 for ever; when it was last used, and last swept
# by itself, CLOCK_BOOTTIME in nanoseconds.
TTL, TOUCHED, SWEPT = range(12, 15)
# How often the DAG had been cleared on all nodes when it began, plus 1; 0 as long as no
# node has seen it.
EPOCH = 15
ID_OFFSET = 128

# --- The log's page 0: word numbers ----------------------------------------------
LOG_MAGIC = int.from_bytes(b"SHMLOG\r\n", "little")
# MAGIC, VERSION, CHECKSUM, GENERATION_LOW, GENERATION_HIGH as above, then
LOG_NUMBER = 5
#: Offset behind the records that compaction moved there and their CHECKPOINT.
BASE = 6
TAIL, INDEXED = 8, 9

# --- The index's first line: word numbers ----------------------------------------
INDEX_MAGIC = int.from_bytes(b"SHMIDX\r\n", "little")
INDEX_NUMBER = 5
HOMES, ROOM, USED = 6, 7, 8
INDEX_HEADER = 128
SLOT = 16
#: The hash word of a slot that was never used; zeroes are therefore damage.
EMPTY = int.from_bytes(b"\xffEMPTY\xff\xff", "little")

# --- Records -----------------------------------------------------------------------
PUT, DELETE, CHECKPOINT = 1, 2, 3
#: Record flag: the value came from another host and is decoded with distrust.
UNTRUSTED = 1
#: Record flag: no new value, the payload of an old one was moved to the spill directory.
SPILLED = 2
#: Where a record's flags are in its word ``LENGTH_WORD``.
FLAGS_SHIFT = 48

_HEAD = struct.Struct("<IBBHQqQQHHI")  # what follows the checksum
HEAD_SIZE = 8 + _HEAD.size
_WHOLE_HEAD = struct.Struct("<QIBBHQqQQHHI")
_TOTALS = struct.Struct("<QQQQ")
TOTALS_SIZE = _TOTALS.size
#: A record is its checksum, then these around ``middle``; see ``encode``.
pack_head = _HEAD.pack
pack_totals = _TOTALS.pack
unpack_totals = _TOTALS.unpack_from
unpack_head = _WHOLE_HEAD.unpack_from
SMALLEST = HEAD_SIZE + TOTALS_SIZE
#: Bytes of a record that the store writes; the format allows 4 GiB.
LARGEST = 1 << 30
#: Modulus of a slot's tag: the largest prime below 2**16.
TAG = 65521

_new = tuple.__new__  # a third of what calling the class costs
#: Zeroes up to a multiple of 8.
PADS = [bytes(n) for n in range(8)]


class Totals(NamedTuple):
    """Running totals at the end of every record, so that no kill can make them drift.

    Attributes:
        sequence: Records committed to this DAG up to here, across compactions.
        live: Values that live.
        nbytes: Their payloads' bytes.
        dead: Bytes of the log that no live record needs.
    """

    sequence: int
    live: int
    nbytes: int
    dead: int


# Words of a record, from its start.
LENGTH_WORD, HASH_WORD, CREATED_WORD, NBYTES_WORD, SEGMENT_WORD, KEY_SIZE_WORD = range(1, 7)


class Record(NamedTuple):
    """One record, decoded. Fields as in ``docs/format.md``."""

    length: int
    op: int
    codec: int
    flags: int
    key_hash: int
    created_ns: int
    nbytes: int
    segment: int
    key: bytes
    meta: bytes
    payload: bytes


#: The hash by which the index finds a key. A hash that is 0 or ``EMPTY`` by chance does
#: no harm: whether a slot is used is judged by its other word.
key_hash = xxh3_64_intdigest


def middle(key: bytes, meta: bytes, payload: bytes | memoryview = b"") -> bytes:
    """The part of a record that does not depend on where it comes to lie."""
    return b"".join((key, meta, payload, PADS[-(len(key) + len(meta) + len(payload)) & 7]))


def encode(
    op: int,
    codec: int,
    flags: int,
    hashed: int,
    created_ns: int,
    nbytes: int,
    segment: int,
    key_size: int,
    meta_size: int,
    middle: bytes,
    totals: tuple[int, int, int, int],
    seed: int,
) -> tuple[int, bytes]:
    """A record as its checksum and the bytes that follow it.

    Args:
        op: PUT, DELETE or CHECKPOINT.
        codec: Number of the codec.
        flags: Record flags.
        hashed: The key's hash.
        created_ns: Unix time, nanoseconds.
        nbytes: Size of the payload.
        segment: Number of the payload's segment, or 0.
        key_size: Bytes of the key in ``middle``.
        meta_size: Bytes of meta in it.
        middle: What ``middle()`` made of key, meta and payload.
        totals: The fields of ``Totals`` after this record.
        seed: The DAG's seed of checksums.
    """
    body = (
        pack_head(
            SMALLEST + len(middle),
            op,
            codec,
            flags,
            hashed,
            created_ns,
            nbytes,
            segment,
            key_size,
            0,
            meta_size,
        )
        + middle
        + pack_totals(*totals)
    )
    return xxh3_64_intdigest(body, seed), body


def decode(raw: bytes, seed: int) -> Record | None:
    """Decodes a record's bytes, or None if they fail a check."""
    size = len(raw)
    if size < SMALLEST:
        return None
    (
        check,
        length,
        op,
        codec,
        flags,
        hashed,
        created_ns,
        nbytes,
        segment,
        key_size,
        _,
        meta_size,
    ) = unpack_head(raw)
    if check != xxh3_64_intdigest(raw[8:], seed):
        return None
    meta_at = HEAD_SIZE + key_size
    payload_at = meta_at + meta_size
    end = payload_at if segment or op != PUT else payload_at + nbytes
    if length != size or end + TOTALS_SIZE > size:
        return None
    return _new(
        Record,
        (
            length,
            op,
            codec,
            flags,
            hashed,
            created_ns,
            nbytes,
            segment,
            raw[HEAD_SIZE:meta_at],
            raw[meta_at:payload_at],
            raw[payload_at:end],
        ),
    )


def slot_word(offset: int, hashed: int) -> int:
    """A slot's second word: the record's offset and a tag that ties it to the hash."""
    return offset << 16 | (offset ^ hashed) % TAG


def slot_offset(word: int, hashed: int) -> int:
    """The offset in a slot's word, or -1 if its tag is wrong."""
    offset = word >> 16
    return offset if (offset ^ hashed) % TAG == word & 0xFFFF else -1


def static_checksum(page: bytes) -> int:
    """The checksum of a page's parts that never change.

    These are its first line, without the word ``CHECKSUM``, and what follows its
    second line, on which the words lie that do change.
    """
    return xxh3_64_intdigest(page[:16] + page[24:64] + page[128:])


def build_page(words: dict[int, int], size: int = PAGE, rest: bytes = b"") -> bytes:
    """A page with the given words, ``rest`` at ``ID_OFFSET``, and its checksum."""
    page = bytearray(size)
    for number, value in words.items():
        page[number * 8 : number * 8 + 8] = value.to_bytes(8, "little")
    page[ID_OFFSET : ID_OFFSET + len(rest)] = rest
    page[CHECKSUM * 8 : CHECKSUM * 8 + 8] = static_checksum(bytes(page)).to_bytes(8, "little")
    return bytes(page)


def newer_version(page: bytes, magic: int) -> int | None:
    """The page's format version if it is newer than ours, else None."""
    version = int.from_bytes(page[8:16], "little")
    ours = int.from_bytes(page[:8], "little") == magic
    # A version is trusted to be one if its page is whole otherwise.
    whole = int.from_bytes(page[16:24], "little") == static_checksum(page)
    return version if ours and whole and version > FORMAT_VERSION else None


def page_fault(page: bytes, magic: int) -> str | None:
    """Why a page cannot be used, or None if it can."""
    if int.from_bytes(page[:8], "little") != magic:
        return "it does not begin with its magic number"
    if int.from_bytes(page[16:24], "little") != static_checksum(page):
        return "its header's checksum is wrong"
    version = int.from_bytes(page[8:16], "little")
    if version != FORMAT_VERSION:
        return f"its format version is {version}, not {FORMAT_VERSION}"
    return None
