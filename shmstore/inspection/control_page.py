"""A manifest's control page, read as it is now."""

from __future__ import annotations

import os
from typing import NamedTuple

from shmstore import names, record
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, UnusableRoot
from shmstore.record import PAGE


class Control(NamedTuple):
    """What a manifest's control page says.

    Attributes:
        dag_id: The DAG.
        generation: What tells it from one of the same name before or after.
        created_ns: When it was created, Unix time.
        live: False once it has been cleared.
        log_number: n of ``log.<n>``, the log in use.
        index_number: m of ``index.<m>``, the index in use.
        commits: The commit counter.
        wait_until_ns: Until when waiters have said that they wait, CLOCK_BOOTTIME; 0 for never.
        ttl_s: Seconds that it is kept unused, 0 for ever.
        touched_ns: When it was last used, CLOCK_BOOTTIME.
        swept_ns: When it was last swept by itself, CLOCK_BOOTTIME.
        epoch: How often it had been cleared everywhere when it began; None if no node knows it.
    """

    dag_id: str
    generation: int
    created_ns: int
    live: bool
    log_number: int
    index_number: int
    commits: int
    wait_until_ns: int
    ttl_s: int
    touched_ns: int
    swept_ns: int
    epoch: int | None


def read_control(directory: Descriptor) -> Control:
    """Reads a manifest's control page.

    Raises:
        FileNotFoundError: There is none.
        CorruptValue: It fails its check.
        UnusableRoot: Its format is of a newer version.
    """
    file = Descriptor.open(names.MANIFEST, os.O_RDONLY, within=directory.fd)
    page = os.pread(file.fd, PAGE + 1, 0)
    version = record.newer_version(page, record.MANIFEST_MAGIC)
    if version is not None:
        raise UnusableRoot(
            "a DAG's directory",
            f"its format version {version} is newer than {record.FORMAT_VERSION}, the newest "
            "that this version of shmstore reads; upgrade shmstore",
        )
    fault = record.page_fault(page, record.MANIFEST_MAGIC)
    if fault is None and len(page) != PAGE:
        fault = "its size is not that of a page"
    if fault is not None:
        raise CorruptValue(fault, names.MANIFEST)
    words = memoryview(page).cast("Q")
    size = words[record.ID_LENGTH]
    dag_id = page[record.ID_OFFSET : record.ID_OFFSET + size].decode(errors="replace")
    state = words[record.STATE]
    if state not in (record.LIVE, record.CLEARED):
        raise CorruptValue(f"its state is {state:#x}", names.MANIFEST, dag_id)
    epoch = words[record.EPOCH]
    return Control(
        dag_id,
        words[record.GENERATION_HIGH] << 64 | words[record.GENERATION_LOW],
        words[record.CREATED],
        state == record.LIVE,
        words[record.CURRENT] >> 32,
        words[record.CURRENT] & 0xFFFFFFFF,
        words[record.COUNTER],
        words[record.WAIT_DEADLINE],
        words[record.TTL],
        words[record.TOUCHED],
        words[record.SWEPT],
        epoch - 1 if epoch else None,
    )
