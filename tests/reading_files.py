"""The oracle: reads a namespace's files as bytes, without a line of the store's code.

It knows the layout of pages, records and slots on its own, holds each part against
every other, and tells what it found and each thing that is wrong. It expects that no
writer is at work. What a test believes about a store, it checks here, not there.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64_intdigest

PAGE = 4096
PUT, DELETE, CHECKPOINT = 1, 2, 3
LIVE, CLEARED = b"LIVE....", b"CLEARED."
SPILLED = 2  # flag of a record: its segment lies on disk

_HEAD = struct.Struct("<QIBBHQqQQHHI")
_TOTALS = struct.Struct("<QQQQ")
_WORD = struct.Struct("<Q")
_EMPTY = b"\xffEMPTY\xff\xff"
_INDEX_HEADER, _SLOT = 128, 16
_TAG = 65521


@dataclass(frozen=True)
class Stored:
    """A record, as it lies in the log."""

    offset: int
    length: int
    op: int
    codec: int
    key: str
    key_hash: int
    nbytes: int
    segment: str | None
    meta: bytes
    payload: bytes
    totals: tuple[int, int, int, int]
    flags: int = 0

    @property
    def spilled(self) -> bool:
        """Whether its segment lies on disk."""
        return bool(self.flags & SPILLED)


@dataclass
class DagFiles:
    """What the files of one DAG say.

    ``records`` are the live ones by id; ``orphans`` are segments of no live record;
    ``leftovers`` are logs and indexes that are not current; ``faults`` is what is wrong.
    """

    path: Path
    dag_id: str = ""
    state: bytes = b""
    generation: bytes = b""
    log_number: int = 0
    index_number: int = 0
    counter: int = 0
    tail: int = 0
    indexed: int = 0
    log_size: int = 0
    used: int = 0
    limit: int = 0
    totals: tuple[int, int, int, int] = (0, 0, 0, 0)
    history: list[Stored] = field(default_factory=list)
    records: dict[str, Stored] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    leftovers: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> Path:
        """The control page's file."""
        return self.path / "manifest"

    @property
    def log(self) -> Path:
        """The current log's file."""
        return self.path / f"log.{self.log_number}"

    @property
    def index(self) -> Path:
        """The current index's file."""
        return self.path / f"index.{self.index_number}"


def read_namespace(root: str, namespace: str = "default") -> dict[str, DagFiles]:
    """All DAGs at their places, by dag_id."""
    found = (read_dag(path) for path in sorted((Path(root) / namespace / "dags").iterdir()))
    return {dag.dag_id: dag for dag in found}


def read(root: str, dag_id: str, namespace: str = "default") -> DagFiles:
    """One DAG. Raises KeyError if there is none."""
    return read_namespace(root, namespace)[dag_id]


def check(root: str, namespace: str = "default", *, orphans: int = 0) -> dict[str, DagFiles]:
    """All DAGs, none of which may have a fault, nor together more orphans than allowed."""
    dags = read_namespace(root, namespace)
    faults = [f"{dag.dag_id!r}: {fault}" for dag in dags.values() for fault in dag.faults]
    assert not faults, "; ".join(faults)
    lost = [f"{dag.dag_id}/{name}" for dag in dags.values() for name in dag.orphans]
    assert len(lost) <= orphans, f"segments of no record: {lost}"
    return dags


def trash(root: str, namespace: str = "default") -> list[str]:
    """What lies in the namespace's trash."""
    return sorted(os.listdir(Path(root) / namespace / "trash"))


def half_done(root: str, namespace: str = "default") -> list[str]:
    """The same without small segments that were viewed when their values died: gc frees them."""
    return [name for name in trash(root, namespace) if not name.startswith("viewed-")]


def pool(root: str, namespace: str = "default") -> dict[int, int]:
    """The emptied segments: the size of each by its inode."""
    found = {}
    for entry in os.scandir(Path(root) / namespace / "pool"):
        assert re.fullmatch("[0-9]+-[0-9]+-[0-9a-f]{16}", entry.name), f"what is {entry.name}?"
        found[entry.stat().st_ino] = entry.stat().st_size
    return found


@dataclass(frozen=True)
class Account:
    """The words of the namespace's page that are about memory, and the truth beside them."""

    capacity: int
    pool_limit: int
    used: int
    recounts: int
    allocated: int


def account(root: str, namespace: str = "default") -> Account:
    """What the control page says, and what all files below the namespace take."""
    base = Path(root) / namespace
    # The page before the files: what is freed in between makes the truth lower, not higher.
    page = (base / "control").read_bytes()
    blocks: dict[int, int] = {}
    for directory, _, names in os.walk(base):
        for name in names:
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            blocks[status.st_ino] = status.st_blocks * 512
    return Account(*(_word(page, word) for word in (8, 9, 10, 11)), sum(blocks.values()))


def spilled(root: str, namespace: str = "default") -> dict[str, int]:
    """What lies in the namespace's directory on disk: sizes by ``<generation>/<name>``."""
    place = Path(root) / namespace / "spill"
    found = {}
    for entry in os.scandir(place) if place.exists() else ():
        assert re.fullmatch("[0-9a-f]{32}", entry.name), f"what is {entry.name}?"
        for file in os.scandir(entry.path):
            assert re.fullmatch("spill-[0-9a-f]{16}", file.name), f"what is {file.name}?"
            found[f"{entry.name}/{file.name}"] = file.stat().st_size
    return found


def read_dag(path: Path) -> DagFiles:
    """The DAG in a directory."""
    dag = DagFiles(path)
    page = dag.manifest.read_bytes()
    _check_page(dag, "manifest", page, b"SHMDAG\r\n")
    size = _word(page, 6)
    dag.dag_id = page[128 : 128 + size].decode()
    dag.generation = page[24:40]
    dag.state = page[64:72]
    current = _word(page, 9)
    dag.log_number, dag.index_number = current >> 32, current & 0xFFFFFFFF
    dag.counter = _word(page, 10)
    if len(page) != PAGE:
        dag.faults.append(f"the manifest's size is {len(page)}")
    if dag.state not in (LIVE, CLEARED):
        dag.faults.append(f"its state is {dag.state!r}")
    _read_log(dag)
    newest = {one.key: one for one in dag.history if one.op != CHECKPOINT}
    dag.records = {key: one for key, one in newest.items() if one.op == PUT}
    _read_index(dag, newest)
    _read_directory(dag)
    return dag


def _word(raw: bytes, number: int) -> int:
    return int(_WORD.unpack_from(raw, number * 8)[0])


def _check_page(dag: DagFiles, what: str, page: bytes, magic: bytes) -> None:
    if page[:8] != magic:
        dag.faults.append(f"the {what}'s magic is {page[:8]!r}")
    if _word(page, 1) != 1:
        dag.faults.append(f"the {what}'s version is {_word(page, 1)}")
    if _word(page, 2) != xxh3_64_intdigest(page[:16] + page[24:64] + page[128:]):
        dag.faults.append(f"the {what}'s checksum is wrong")


def _read_log(dag: DagFiles) -> None:
    raw = dag.log.read_bytes()
    _check_page(dag, "log", raw[:PAGE], b"SHMLOG\r\n")
    if raw[24:48] != dag.generation + _WORD.pack(dag.log_number):
        dag.faults.append("the log is another DAG's")
    status = dag.log.stat()
    if status.st_blocks * 512 < status.st_size:
        dag.faults.append("the log has holes")
    dag.log_size, dag.tail, dag.indexed = len(raw), _word(raw, 8), _word(raw, 9)
    if not PAGE <= dag.indexed <= dag.tail <= len(raw):
        dag.faults.append(f"indexed {dag.indexed}, tail {dag.tail}, size {len(raw)}")
        return
    seed = int.from_bytes(dag.generation[:8], "little")
    at = PAGE
    while at < dag.tail:
        record = _read_record(raw, at, seed)
        if isinstance(record, str):
            dag.faults.append(record)
            return
        dag.history.append(record)
        at += record.length
    if at != dag.tail:
        dag.faults.append(f"the last record ends at {at}, the tail is {dag.tail}")
    _check_totals(dag)
    moved = [one.offset + one.length for one in dag.history if one.op == CHECKPOINT]
    base = moved[0] if moved else PAGE
    if _word(raw, 6) != base:
        dag.faults.append(f"the log's base is {_word(raw, 6)}, not {base}")


def _read_record(raw: bytes, at: int, seed: int) -> Stored | str:
    if at + _HEAD.size + _TOTALS.size > len(raw):
        return f"no room for a record at {at}"
    check, length, op, codec, flags, hashed, _created, nbytes, segment, key_size, _, meta_size = (
        _HEAD.unpack_from(raw, at)
    )
    whole = raw[at : at + length]
    if length % 8 or len(whole) < length or xxh3_64_intdigest(whole[8:], seed) != check:
        return f"the record at {at} fails its check"
    key = whole[_HEAD.size : _HEAD.size + key_size]
    meta_at = _HEAD.size + key_size
    payload_at = meta_at + meta_size
    inline = 0 if segment or op != PUT else nbytes
    if payload_at + inline + _TOTALS.size > length:
        return f"the record at {at} overflows"
    if op not in (PUT, DELETE, CHECKPOINT) or (op != CHECKPOINT) != bool(key):
        return f"the record at {at} has op {op} and key {key!r}"
    if op != CHECKPOINT and hashed != xxh3_64_intdigest(key):
        return f"the record at {at} has a wrong hash"
    return Stored(
        at,
        length,
        op,
        codec,
        key.decode(),
        hashed,
        nbytes,
        f"{'spill' if flags & SPILLED else 'seg'}-{segment:016x}" if segment else None,
        whole[meta_at:payload_at],
        whole[payload_at : payload_at + inline],
        _TOTALS.unpack(whole[-_TOTALS.size :]),
        flags,
    )


def _check_totals(dag: DagFiles) -> None:
    """Counts what the running totals of each record should be, and compares."""
    moved = next(
        (n for n, one in enumerate(dag.history) if one.op == CHECKPOINT), -1
    )  # what compaction moved keeps its old totals
    live: dict[str, Stored] = {}
    sequence = nbytes = dead = 0
    for number, one in enumerate(dag.history):
        old = live.pop(one.key, None)
        if old is not None:
            nbytes -= old.nbytes
            dead += old.length
        if one.op == PUT:
            live[one.key] = one
            nbytes += one.nbytes
        else:
            dead += one.length
        if one.op == CHECKPOINT:
            if number != moved or len(live) != number:
                dag.faults.append(f"a checkpoint at {one.offset} after {number} records")
            sequence = one.totals[0]
        else:
            sequence += 1
        expected = (sequence, len(live), nbytes, dead)
        if number >= moved and one.totals != expected:
            dag.faults.append(f"the totals at {one.offset} are {one.totals}, not {expected}")
            return
        dag.totals = expected


def _read_index(dag: DagFiles, newest: dict[str, Stored]) -> None:
    raw = dag.index.read_bytes()
    _check_page(dag, "index", raw[:_INDEX_HEADER], b"SHMIDX\r\n")
    if raw[24:48] != dag.generation + _WORD.pack(dag.index_number):
        dag.faults.append("the index is another DAG's")
    homes, room, dag.used = (_word(raw, number) for number in (6, 7, 8))
    dag.limit = homes * 2 // 3
    if len(raw) != _INDEX_HEADER + room * _SLOT or room < homes or homes & (homes - 1):
        dag.faults.append(f"the index has {homes} homes, room {room}, size {len(raw)}")
        return
    table = [
        (raw[at : at + 8], _word(raw, (at >> 3) + 1)) for at in range(_INDEX_HEADER, len(raw), 16)
    ]
    by_offset = {one.offset: one for one in newest.values() if one.offset < dag.indexed}
    found: set[int] = set()
    for place, (hash_bytes, word) in enumerate(table):
        if not word:
            if hash_bytes != _EMPTY:
                dag.faults.append(f"slot {place} is half written")
            continue
        hashed, offset = int.from_bytes(hash_bytes, "little"), word >> 16
        one = by_offset.get(offset)
        if word & 0xFFFF != (offset ^ hashed) % _TAG or one is None or one.key_hash != hashed:
            dag.faults.append(f"slot {place} is wrong: {hashed:#x} at {offset}")
        elif not all(table[between][1] for between in range(hashed & (homes - 1), place)):
            dag.faults.append(f"the key of slot {place} cannot be reached from its home")
        else:
            found.add(offset)
    missing = sorted(set(by_offset) - found)
    if missing:
        dag.faults.append(f"the index lacks the records at {missing}")
    if dag.used != sum(1 for _, word in table if word):
        dag.faults.append(f"the index says that {dag.used} slots are used")
    if table[-1][1]:
        dag.faults.append("the index's last slot is used")


def _read_directory(dag: DagFiles) -> None:
    present = {entry.name: entry.stat() for entry in os.scandir(dag.path)}
    on_disk = dag.path.parent.parent / "spill" / dag.generation[::-1].hex()
    if on_disk.is_dir():
        present |= {entry.name: entry.stat() for entry in os.scandir(on_disk)}
    wanted = {one.segment: one for one in dag.records.values() if one.segment}
    for name, one in wanted.items():
        if name not in present:
            dag.faults.append(f"{name} of {one.key!r} is missing")
        elif present[name].st_size != one.nbytes:
            dag.faults.append(f"{name} of {one.key!r} has {present[name].st_size} bytes")
    for name, status in present.items():
        if re.fullmatch("(seg|spill)-[0-9a-f]{16}", name):
            if name not in wanted:
                dag.orphans.add(name)
        elif re.fullmatch("(log|index)[.][0-9]+", name):
            if name not in (dag.log.name, dag.index.name):
                dag.leftovers.add(name)
        elif name not in ("manifest", "lock"):
            dag.faults.append(f"what is {name}?")
        if status.st_mode & 0o077:
            dag.faults.append(f"{name} has mode {status.st_mode:o}")
