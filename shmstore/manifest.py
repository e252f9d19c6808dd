"""The manifest of one DAG, opened: its control page, its lock, its current files.

The log is the truth, the index is derived from it, and one word of the control
page, ``current``, says which files of both are in use. ``reading`` finds what is
stored, without the lock; ``commit`` changes it, under the lock; ``recovery`` goes on
where a dead writer stopped. If a process dies in any of them, what lies behind the
log's ``tail`` never happened; what lies between ``indexed`` and ``tail`` did, and the
next writer puts it into the index; files that ``current`` does not name are leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import ParamSpec, TypeVar

from shmstore import doorbell, files, names, record
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, UnusableRoot
from shmstore.forked import Again, here, refused
from shmstore.index import Index, IndexDamagedError
from shmstore.lock import Lock, LockLost
from shmstore.log import Log
from shmstore.namespace import Namespace
from shmstore.record import COUNTER, CURRENT, LIVE, PAGE, STATE, WAIT_DEADLINE
from shmstore.view import View

P = ParamSpec("P")
R = TypeVar("R")

_RETRIES = 64
_LOOK_EVERY_S = 0.001


class Superseded(Again):
    """This DAG was cleared, or its files are no longer at their place: reopen by path."""


class Manifest:
    """An open DAG. Threads of a process share it; a fork keeps it usable.

    Attributes:
        space: The namespace.
        dag_id: The DAG.
        directory: Its directory.
        generation: What tells this DAG from one of the same name before or after.
        created_ns: When it was created, Unix time.
        control: The control page as words.
        lock: The commit lock.
        view: The files in use when last looked; None before the first look.
        spilled: Its directory on disk, once it was needed.
        compact_at: Dead bytes that make this process try a compaction.
        look_at: When a reader looks again whether the files still are the DAG's.
    """

    __slots__ = (
        "compact_at",
        "control",
        "created_ns",
        "dag_id",
        "directory",
        "generation",
        "lock",
        "look_at",
        "space",
        "spilled",
        "view",
    )

    def __init__(self, space: Namespace, directory: Descriptor, dag_id: str | None) -> None:
        """Maps the control page of the DAG in ``directory``.

        Raises:
            FileNotFoundError: No manifest is there.
            CorruptValue: It fails a check, or is another DAG's.
            UnusableRoot: Its format is of a newer version.
        """
        file = Descriptor.open(names.MANIFEST, os.O_RDWR, within=directory.fd)
        try:
            page = os.pread(file.fd, PAGE, 0)
            fault: str | None = f"its size is {file.size:,} bytes"
            if file.size == PAGE:
                fault = _fault(page, dag_id)
            if fault:
                raise CorruptValue(fault, names.MANIFEST, dag_id)
            control = memoryview(files.map_shared(file.fd, PAGE)).cast("Q")
        finally:
            file.close()
        size = control[record.ID_LENGTH]
        self.dag_id = page[record.ID_OFFSET : record.ID_OFFSET + size].decode()
        if dag_id is not None and self.dag_id != dag_id:
            raise CorruptValue(f"it is the manifest of {self.dag_id!r}", names.MANIFEST, dag_id)
        self.space = space
        self.directory = directory
        self.generation = control[record.GENERATION_HIGH] << 64 | control[record.GENERATION_LOW]
        self.created_ns = control[record.CREATED]
        self.lock = Lock(directory, names.LOCK, f"DAG {self.dag_id!r}")
        self.control = control
        self.compact_at = 0
        self.look_at = 0.0
        self.view: View | None = None
        self.spilled: Descriptor | None = None

    @property
    def live(self) -> bool:
        """False once the DAG has been cleared.

        Raises:
            CorruptValue: The state is neither.
        """
        state = self.control[STATE]
        if state == LIVE:
            return True
        if state == record.CLEARED:
            return False
        raise CorruptValue(f"its state is {state:#x}", names.MANIFEST, self.dag_id)

    def check_live(self) -> None:
        """Raises Superseded once the DAG has been cleared."""
        if not self.live:
            raise Superseded

    def fresh(self) -> View:
        """The files in use now.

        Raises:
            Superseded: The DAG was cleared or has lost its place.
            IndexDamagedError: The index cannot be used.
            CorruptValue: The log cannot be used.
        """
        control = self.control
        if control[STATE] != LIVE:
            self.check_live()
        view = self.view
        if view is None or control[CURRENT] != view.current:
            view = self._open_current()
        return view

    def _open_current(self) -> View:
        """Maps the files that ``current`` names.

        Without the lock, they may be replaced between reading ``current`` and
        opening them: then it has changed, and is read again.
        """
        control = self.control
        for _ in range(_RETRIES):
            current = control[CURRENT]
            try:
                log = self.open_log(current)
            except FileNotFoundError:
                continue
            try:
                index = Index.open(self.directory, current & 0xFFFFFFFF, self.generation)
            except (FileNotFoundError, CorruptValue) as error:
                self.check_place()
                if control[CURRENT] != current:
                    continue
                raise IndexDamagedError from error
            if control[CURRENT] == current:
                self.view = view = View(self.directory, current, log, index)
                return view
        raise CorruptValue("its current files change without end", names.MANIFEST, self.dag_id)

    def open_log(self, current: int) -> Log:
        """Maps the log that ``current`` names.

        Raises:
            CorruptValue: It is missing or damaged, although ``current`` names it.
            FileNotFoundError: It has just been replaced.
        """
        number = current >> 32
        try:
            return Log.open(self.directory, number, self.generation)
        except (FileNotFoundError, CorruptValue) as error:
            self.check_place()
            if self.control[CURRENT] != current:
                raise FileNotFoundError from None
            check = error.check if isinstance(error, CorruptValue) else "it is missing"
            raise CorruptValue(check, names.log_name(number), self.dag_id) from None

    def check_place(self) -> None:
        """Raises Superseded if our files are no longer the DAG's."""
        self.check_live()
        if not self.directory.intact():
            raise Superseded

    def look(self) -> None:
        """``check_place``, now and then: a reader would not notice that the root has gone."""
        now = monotonic()
        if now > self.look_at:
            self.check_place()
            self.look_at = now + _LOOK_EVERY_S

    def switch(self, view: View) -> None:
        """Stores ``current``: the commit point of new files. Under the lock."""
        if here.lost:
            raise refused()
        self.control[CURRENT] = view.current
        self.view = view

    def guarded(self, body: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls ``body`` under the commit lock, with errors turned into ours."""
        counter = self.control[COUNTER]
        try:
            return self.lock.run(lambda _: body(*args, **kwargs), None)
        except LockLost:
            raise Superseded from None
        except TimeoutError:
            raise
        except OSError as error:
            raise self.converted(error) from error
        finally:
            # A dead writer's records were put into the index. Only then: woken waiters
            # that come here themselves would keep waking each other.
            if self.control[COUNTER] != counter and self.control[WAIT_DEADLINE]:
                doorbell.wake(self)

    def converted(self, error: OSError) -> Exception:
        """What an OSError of a system call on our files means to the caller."""
        if not self.directory.intact():
            return Superseded()
        return files.store_full(error, None, self.directory.fd) or UnusableRoot(
            f"the directory of DAG {self.dag_id!r}", str(error)
        )


def _fault(page: bytes, dag_id: str | None) -> str | None:
    version = record.newer_version(page, record.MANIFEST_MAGIC)
    if version is not None:
        raise UnusableRoot(
            f"the directory of DAG {dag_id!r}" if dag_id else "a DAG's directory",
            f"its format version {version} is newer than {record.FORMAT_VERSION}, the newest "
            "that this version of shmstore reads; upgrade shmstore",
        )
    return record.page_fault(page, record.MANIFEST_MAGIC)
