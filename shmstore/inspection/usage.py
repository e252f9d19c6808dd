"""What the files of a namespace take, and for what: every byte once.

What counts is what files really take (``st_blocks``), as of the moment when each was
looked at: beside busy writers the parts need not add up to the byte.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from shmstore import files, names
from shmstore.descriptor import Descriptor
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.inspection.snapshot import Snapshot, Unreadable

_BLOCK = 512
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class DagUsage:
    """What one DAG takes, bytes.

    Attributes:
        dag_id: The DAG.
        values: How many live.
        payload: What its live values' payloads hold, wherever they lie.
        segments: Files of live values.
        log: Its log, inline values and what is dead in it included, and its page.
        dead: What of the log no live record needs: compaction frees it.
        index: Its index.
        leftover: Segments of no live value, logs and indexes not in use: gc frees them.
        spilled: Values moved to disk.
    """

    dag_id: str
    values: int
    payload: int
    segments: int
    log: int
    dead: int
    index: int
    leftover: int
    spilled: int

    @property
    def shared(self) -> int:
        """Shared memory that it takes."""
        return self.segments + self.log + self.index + self.leftover


@dataclass(frozen=True, slots=True)
class Usage:
    """What a namespace takes, bytes.

    Attributes:
        dags: Its DAGs, those that can be read.
        unreadable: What directories of DAGs take that cannot be read.
        pool: Emptied segments, kept for reuse.
        trash: Cleared DAGs on their way out, and dead values' segments that are viewed.
        other: The namespace's own pages, locks and notes.
        capacity: The most that it may take, 0 for no limit.
        account: What the account says that it takes; kept where there is a capacity.
        file_system: Size of the root's file system, 0 for no limit.
        free: What is free of that.
    """

    dags: tuple[DagUsage, ...]
    unreadable: int
    pool: int
    trash: int
    other: int
    capacity: int
    account: int
    file_system: int
    free: int

    @property
    def shared(self) -> int:
        """Shared memory that the namespace takes."""
        return sum(one.shared for one in self.dags) + sum(
            (self.unreadable, self.pool, self.trash, self.other)
        )

    @property
    def reclaimable(self) -> int:
        """What a gc, or a compaction, would free of it."""
        dead = sum(one.leftover + one.dead for one in self.dags)
        return dead + self.pool + self.trash


def usage(looked: Snapshot) -> Usage:
    """Looks at every file of a namespace, or of one DAG."""
    dags, unreadable = [], 0
    for dag in looked.dags():
        if isinstance(dag, Unreadable):
            unreadable += _below(looked, os.path.join(names.DAGS, dag.token))
        else:
            dags.append(of_dag(dag))
    settings = looked.settings
    status = os.fstatvfs(looked.directory.fd)
    whole = looked.whole
    return Usage(
        tuple(dags),
        unreadable,
        _below(looked, names.POOL) if whole else 0,
        _below(looked, names.TRASH) if whole else 0,
        _own(looked) if whole else 0,
        settings.capacity if settings else 0,
        settings.used if settings and settings.capacity else 0,
        status.f_blocks * status.f_frsize,
        status.f_bavail * status.f_frsize,
    )


def of_dag(dag: DagSnapshot) -> DagUsage:
    """What one DAG takes."""
    live, spilled = dag.named_segments()
    control = dag.control
    current = (names.log_name(control.log_number), names.index_name(control.index_number))
    segments = log = index = leftover = 0
    for name in files.listed(dag.directory):
        took = files.allocated(dag.directory, name)
        number = names.parse_segment_name(name)
        if number in live:
            segments += took
        elif name == current[1]:
            index += took
        elif name == current[0] or not (number or names.parse_numbered(name)):
            log += took  # with the manifest's page
        else:
            leftover += took
    totals = dag.totals
    return DagUsage(
        dag.dag_id, totals.live, totals.nbytes, segments, log, totals.dead, index, leftover, spilled
    )


def by(looked: Snapshot, what: str) -> list[tuple[str, int, int]]:
    """The live values grouped: name of the group, how many values, bytes of their payloads.

    Args:
        looked: The namespace.
        what: "type", "producer" (process and host), "host" or "origin".
    """
    groups: dict[str, list[int]] = {}
    for dag in looked.dags():
        if isinstance(dag, Unreadable):
            continue
        for entry in dag.entries():
            name = {
                "type": entry.type_name,
                "producer": f"{entry.producer.pid} on {entry.producer.host}",
                "host": entry.producer.host,
                "origin": entry.origin or "(this host)",
            }[what]
            group = groups.setdefault(name, [0, 0])
            group[0] += 1
            group[1] += entry.nbytes
    found = [(name, count, nbytes) for name, (count, nbytes) in groups.items()]
    return sorted(found, key=lambda one: (-one[2], one[0]))


def _own(looked: Snapshot) -> int:
    apart = (names.DAGS, names.POOL, names.TRASH)
    found = [name for name in files.listed(looked.directory) if name not in apart]
    return sum(_below(looked, name) for name in found)


def _below(looked: Snapshot, path: str) -> int:
    """What a file or directory of the namespace takes, with what is in it."""
    return _tree(looked.directory, path)


def _tree(directory: Descriptor, name: str) -> int:
    try:
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_blocks * _BLOCK
        inner = Descriptor.open(name, _DIRECTORY, within=directory.fd)
    except OSError:
        return 0  # gone as we looked, or not for us to see
    return status.st_blocks * _BLOCK + sum(_tree(inner, one) for one in _names(inner))


def _names(directory: Descriptor) -> Iterable[str]:
    try:
        return files.listed(directory)
    except OSError:
        return ()
