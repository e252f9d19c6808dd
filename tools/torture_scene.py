"""What the processes of a run share, and what is planned for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import shmstore

SHARED = ("shared-0", "shared-1")
AWAITED = "awaited"
OWN_IDS, SHARED_IDS, CONTENDED_IDS, AWAITED_IDS = 24, 6, 6, 8

#: Bytes of the memory by which all are told.
OVER, LEAVE, INTERRUPTED = 0, 1, 2

#: How a worker ends when something is wrong with the runner or the store.
BROKEN = 3
#: How it ends when it did not get to the point at which it was to be killed.
MISSED = 4


@dataclass(frozen=True)
class Scene:
    """What all workers of a run share.

    Attributes:
        seed: Of the run.
        root: The store's.
        ledgers: Directory of the ledgers.
        stop: Memory shared by all: a byte each for "the round is over", "the run is over"
            and "somebody wants the run to end".
        capacity: Bytes of shared memory that the store may take, 0 for no limit.
        pool: Bytes of emptied segments that it may keep, 0 for what it chooses.
    """

    seed: int
    root: str
    ledgers: str
    stop: Any
    capacity: int = 0
    pool: int = 0

    def store(self) -> shmstore.Store:
        """A new store."""
        return shmstore.Store(self.root)

    @property
    def over(self) -> bool:
        """Whether everybody is to stop."""
        return bool(self.stop[OVER])

    @property
    def ending(self) -> bool:
        """Whether the witness is to leave."""
        return bool(self.stop[LEAVE])

    @property
    def interrupted(self) -> bool:
        """Whether the run is to end before its time."""
        return bool(self.stop[INTERRUPTED])


@dataclass(frozen=True)
class Plan:
    """What is to become of a worker.

    Attributes:
        slot: Its place among those that run at once; decides which DAG is its own.
        steps: How many calls it may make.
        point: The crash point at which it is killed, or forks; None for neither.
        occurrence: The how-maniest time.
        forks: If True, it forks there instead of being killed.
        floor: Dead bytes from which on a log is compacted.
        sweeps: If True, opening a DAG sweeps it each time, not once a minute.
    """

    slot: int
    steps: int
    point: str | None = None
    occurrence: int = 1
    forks: bool = False
    floor: int = 1 << 20
    sweeps: bool = False
