"""What the files of a namespace take, and for what: every byte once.

What counts is what files really take (``st_blocks``), as of the moment when each was
looked at: beside busy writers the parts need not add up to the byte.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from shmstore import files, names
from shmstore.descriptor import Descriptor
from shmstore.inspection.control_page import Control
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.inspection.snapshot import Snapshot, Unreadable
from shmstore.record import Totals

_BLOCK = 512
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class DagUsage:
    """What one DAG takes, bytes, as of one look.

    Attributes:
        control: Its control page.
        totals: Its running totals: live values, their payloads, dead bytes of its log.
        segments: Files of live values.
        log: Its log, inline values and what is dead in it included, and its page.
        index: Its index.
        leftover: Segments of no live value, logs and indexes not in use: gc frees them.
        spilled: Values moved to disk.
    """

    control: Control
    totals: Totals
    segments: int
    log: int
    index: int
    leftover: int
    spilled: int

    @property
    def dag_id(self) -> str:
        """The DAG."""
        return self.control.dag_id

    @property
    def shared(self) -> int:
        """Shared memory that it takes."""
        return self.segments + self.log + self.index + self.leftover


@dataclass(frozen=True, slots=True)
class Usage:
    """What a namespace takes, bytes.

    Attributes:
        dags: Its DAGs, those that can be read.
        unreadable: Those that cannot.
        damaged: What the directories of these take.
        pool: Emptied segments, kept for reuse.
        trash: Cleared DAGs on their way out, and dead values' segments that are viewed.
        other: The namespace's own pages, locks and notes.
        capacity: The most that it may take, 0 for no limit.
        account: What the account says that it takes; kept where there is a capacity.
        file_system: Size of the root's file system, 0 for no limit.
        free: What is free of that.
    """

    dags: tuple[DagUsage, ...]
    unreadable: tuple[Unreadable, ...]
    damaged: int
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
            (self.damaged, self.pool, self.trash, self.other)
        )

    @property
    def reclaimable(self) -> int:
        """What a gc, or a compaction, would free of it."""
        dead = sum(one.leftover + one.totals.dead for one in self.dags)
        return dead + self.pool + self.trash


def usage(looked: Snapshot) -> Usage:
    """Looks at every file of a namespace, or of one DAG; at one DAG at a time."""
    dags: list[DagUsage] = []
    unreadable: list[Unreadable] = []
    for dag in looked.dags():
        if isinstance(dag, Unreadable):
            unreadable.append(dag)
        else:
            dags.append(of_dag(dag))
    damaged = (_below(looked, os.path.join(names.DAGS, one.token)) for one in unreadable)
    settings = looked.settings
    status = os.fstatvfs(looked.directory.fd)
    whole = looked.whole
    return Usage(
        tuple(dags),
        tuple(unreadable),
        sum(damaged),
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
    return DagUsage(control, dag.totals, segments, log, index, leftover, spilled)


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
    return _taken(looked.directory, path)


def _taken(directory: Descriptor, name: str) -> int:
    try:
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_blocks * _BLOCK
        inner = Descriptor.open(name, _DIRECTORY, within=directory.fd)
    except OSError:
        return 0  # gone as we looked, or not for us to see
    own = status.st_blocks * _BLOCK
    return own + sum(_taken(inner, one) for one in files.listed(inner))
