"""Where a run keeps its values: a namespace of its own, gone when the run is over.

A run holds a ``flock`` on its namespace's directory for its life. So the next run
can tell what a killed one left, and removes it; what was kept has another name.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from shmstore import names
from shmstore.errors import StoreError
from shmstore.store import Store

KEPT = "demo-"
PASSING = "demo-run-"
_NATS = "SHMSTORE_NATS"
_PASSING = re.compile(re.escape(PASSING) + "[0-9a-f]{8}")


class Ground:
    """A directory of a root, for one run: held for the run's life, then removed or kept.

    Attributes:
        root: The store's root.
        name: The directory's name there.
        path: Where it is.
    """

    def __init__(self, root: str | None, keep: bool) -> None:
        """Makes it, and the root if need be.

        Args:
            root: The store's root, or None for the default.
            keep: Whether it is to stay when the run succeeds.

        Raises:
            StoreError: The root is not fit for a store.
        """
        self.root = os.path.abspath(root or names.default_root())
        self.keep = keep
        self.path = ""
        self._made_root = not os.path.isdir(self.root)
        try:
            self._lock = self._claim()
        except BaseException:
            self._remove()
            raise
        self.name = os.path.basename(self.path)

    def _claim(self) -> int:
        while True:
            name = (KEPT if self.keep else PASSING) + secrets.token_hex(4)
            path = os.path.join(self.root, name)
            try:
                os.makedirs(self.root, 0o700, exist_ok=True)
                os.mkdir(path, 0o700)
            except FileExistsError:
                if os.path.isdir(path):
                    continue
                Store(self.root, name)  # says what is wrong with the root
                raise
            except OSError:
                Store(self.root, name)
                raise
            self.path = path
            lock = _locked(path)
            if lock is not None:
                return lock

    def leave(self, keep: bool) -> None:
        """Ends the run's hold on it.

        Args:
            keep: Whether it stays.
        """
        if not keep:
            self._remove()
        os.close(self._lock)

    def _remove(self) -> None:
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._made_root:
            try:
                os.rmdir(self.root)
            except OSError:
                pass  # others have begun to use it


class Place:
    """A namespace for one run; removed on leaving, unless it is kept and all went well.

    Attributes:
        store: The store there.
    """

    def __init__(self, root: str | None, keep: bool) -> None:
        """Creates it.

        Args:
            root: The store's root, or None for the default.
            keep: Leave it when the run succeeds.

        Raises:
            StoreError: The root is not fit for a store.
        """
        self._ground = Ground(root, keep)
        try:
            self.store = Store(self._ground.root, self._ground.name)
            remove_leftovers(self._ground.root)
        except BaseException:
            self._ground.leave(keep=False)
            raise

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keep = self._ground.keep and kind is None
        if not keep:
            try:
                for dag in self.store.dags():
                    self.store.clear(dag.dag_id)
            except StoreError:
                pass  # the directory goes all the same
        self.store.close()
        self._ground.leave(keep)


@contextmanager
def without_network() -> Iterator[None]:
    """Hides from stores and nodes that the person has a NATS server: a run is none of its business.

    Otherwise a store would start a node for its namespace there.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_NATS)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def remove_leftovers(root: str) -> list[str]:
    """Removes what killed runs left; returns its names.

    Args:
        root: The store's root.
    """
    removed = []
    for name in sorted(os.listdir(root)):
        if not _PASSING.fullmatch(name):
            continue
        path = os.path.join(root, name)
        lock = _locked(path)
        if lock is None:
            continue  # its run is alive
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        removed.append(name)
    return removed


def _locked(path: str) -> int | None:
    """Locks a directory for this process; None if another has it or it is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
