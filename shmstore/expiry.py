"""How long a DAG is kept unused, and since when it is.

Two words of the control page: its time to live, and when it was last used. Both are
stored whole and mean something alone, so a death between any two steps does no harm.
Time is CLOCK_BOOTTIME: it goes on while the machine sleeps, is not set by anybody, and
is the same for all processes.
"""

from __future__ import annotations

import math
import time

from shmstore.crashpoints import reach
from shmstore.forked import here, refused
from shmstore.manifest import Manifest
from shmstore.record import TOUCHED, TTL
from shmstore.sizes import parse_seconds

_SECOND_NS = 1_000_000_000
_LONGEST_S = 1 << 33  # in nanoseconds it still fits into a word


def now_ns() -> int:
    """The time that ages are measured with, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def checked_seconds(seconds: object, what: str) -> int:
    """Whole seconds of what a caller gave, rounded up; 0 if it is None.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, not a number, or longer than 272 years.
    """
    if seconds is None:
        return 0
    given = parse_seconds(seconds, what)
    if given >= _LONGEST_S:
        raise ValueError(f"{what} must be from 0 to {_LONGEST_S - 1:,} seconds, not {seconds!r}")
    return math.ceil(given)


def keep_noting(manifest: Manifest) -> None:
    """Notes that a DAG is in use, and has its lock note it from now on.

    For those who open it to use it; whoever only looks after it must not.
    """
    noted = manifest.control[TOUCHED : TOUCHED + 1]
    if not here.lost:
        noted[0] = now_ns()
    manifest.lock.noted = noted


def set_ttl(manifest: Manifest, seconds: int) -> None:
    """Stores the time to live, under the lock, so that no cleared DAG gets it.

    Raises:
        Superseded: The DAG was cleared or has lost its place.

    If the process dies here, the DAG has either the old or the new one.
    """

    def store() -> None:
        manifest.check_live()
        if here.lost:
            raise refused()
        manifest.control[TTL] = seconds
        reach("ttl:stored")

    manifest.guarded(store)


def unused_ns(manifest: Manifest) -> int:
    """For how long nobody has written to or opened a DAG."""
    return max(now_ns() - manifest.control[TOUCHED], 0)


def limit_s(manifest: Manifest, older_than_s: int | None) -> int | None:
    """How long a DAG is kept unused: its own time, else the one given, else for ever."""
    return manifest.control[TTL] or older_than_s


def expired(manifest: Manifest, older_than_s: int | None = None) -> bool:
    """Whether a DAG has been unused for longer than it is to be kept.

    Args:
        manifest: The DAG.
        older_than_s: For one that has no time to live of its own; None keeps it.
    """
    limit = limit_s(manifest, older_than_s)
    return limit is not None and unused_ns(manifest) > limit * _SECOND_NS
