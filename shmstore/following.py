"""Following the logs of all DAGs of a namespace at once, for its node.

One thread's. A look costs a word read a DAG as long as nothing has changed. DAGs come and
go: new ones are offered, whoever follows says which it wants; of one that was cleared, its
log is read to the end before it is said to be gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from shmstore import doorbell, files, lookup
from shmstore.errors import CorruptValue, StoreError
from shmstore.follower import Follower, Taken
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import COUNTER, LIVE, STATE

# The clock of the file system stands still for so long between its ticks.
_TICK_NS = 20_000_000
_FROM_THE_BEGINNING = -(1 << 63)


class Seen(NamedTuple):
    """What a look has found.

    Attributes:
        taken: The next records of DAGs in which something was committed, not all if there are
            many.
        missed: DAGs of which DELETEs may have been missed.
        gone: The ids of DAGs that were cleared.
        faults: What cannot be followed, in words.
    """

    taken: list[tuple[Manifest, list[Taken]]]
    missed: list[Manifest]
    gone: list[str]
    faults: list[str]

    def __bool__(self) -> bool:
        return bool(self.taken or self.missed or self.gone)


class _Followed:
    """A DAG that is followed, and its commit counter when it was last looked at."""

    __slots__ = ("counter", "follower")

    def __init__(self, manifest: Manifest) -> None:
        self.follower = Follower.stored_since(manifest, _FROM_THE_BEGINNING, deletes=True)
        self.counter = -1


class Following:
    """The logs of a namespace's DAGs.

    Args:
        space: The namespace.
    """

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._followed: dict[str, _Followed] = {}
        #: Directories, by token, that are not to be followed.
        self._passed_over: dict[str, int] = {}
        self._listed_ns = 0

    def new(self) -> Iterator[tuple[str, Manifest | StoreError]]:
        """DAGs that are not followed yet, by token, or why one cannot be opened.

        Each is offered once; see ``add``.
        """
        now = time.time_ns()
        changed = os.fstat(self._space.dags.fd).st_mtime_ns
        if changed < self._listed_ns - _TICK_NS:
            return
        self._listed_ns = now
        tokens = files.listed(self._space.dags)
        if not tokens:
            lookup.check_space(self._space)
        for token in tokens:
            if token in self._followed:
                continue
            try:
                inode = os.stat(token, dir_fd=self._space.dags.fd).st_ino
                if self._passed_over.get(token) == inode:
                    continue
                self._passed_over[token] = inode
                manifest = lookup.open_at(self._space, token, None)
            except FileNotFoundError:
                continue
            except StoreError as error:
                yield token, error
                continue
            if manifest is not None:
                yield token, manifest

    def add(self, token: str, manifest: Manifest) -> None:
        """Follows a DAG: first all that is stored in it, then what is committed.

        Raises:
            Superseded: It was cleared meanwhile.
            CorruptValue: Its log is damaged.
        """
        doorbell.attend(manifest)
        self._followed[token] = _Followed(manifest)
        self._passed_over.pop(token, None)

    def look(self, thorough: bool = False) -> Seen:
        """What has changed since the last look; a part of it, if it is much.

        Args:
            thorough: Do not rely on the counters: a committer that was killed may have stored
                records and not counted them.
        """
        seen = Seen([], [], [], [])
        for token, one in list(self._followed.items()):
            manifest = one.follower.manifest
            control = manifest.control
            counter = control[COUNTER]
            if counter == one.counter and control[STATE] == LIVE and not thorough:
                continue
            try:
                taken = one.follower.take()
            except Superseded:
                seen.gone.append(manifest.dag_id)
                self._drop(token)
                continue
            except (CorruptValue, StoreError, OSError) as error:
                seen.faults.append(str(error))
                self._passed_over[token] = manifest.directory.inode
                del self._followed[token]
                continue
            if one.follower.missed:
                one.follower.missed = False
                seen.missed.append(manifest)
            if taken:
                seen.taken.append((manifest, taken))
            else:
                one.counter = counter  # read to its end, as of then
        return seen

    def _drop(self, token: str) -> None:
        del self._followed[token]
        self._listed_ns = 0  # a successor may stand there
