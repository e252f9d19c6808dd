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
from types import TracebackType

from shmstore import names
from shmstore.errors import StoreError
from shmstore.store import Store

KEPT = "demo-"
PASSING = "demo-run-"
_PASSING = re.compile(re.escape(PASSING) + "[0-9a-f]{8}")


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
        self._root = os.path.abspath(root or names.default_root())
        self._keep = keep
        self._made_root = not os.path.isdir(self._root)
        self._path = ""
        try:
            self._lock = self._claim()
            self.store = Store(self._root, os.path.basename(self._path))
            remove_leftovers(self._root)
        except BaseException:
            self._remove()
            raise

    def _claim(self) -> int:
        while True:
            name = (KEPT if self._keep else PASSING) + secrets.token_hex(4)
            path = os.path.join(self._root, name)
            try:
                os.makedirs(self._root, 0o700, exist_ok=True)
                os.mkdir(path, 0o700)
            except FileExistsError:
                if os.path.isdir(path):
                    continue
                Store(self._root, name)  # says what is wrong with the root
                raise
            except OSError:
                Store(self._root, name)
                raise
            self._path = path
            lock = _locked(path)
            if lock is not None:
                return lock

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keep and kind is None:
            self.store.close()
            os.close(self._lock)
            return
        try:
            for dag in self.store.dags():
                self.store.clear(dag.dag_id)
        except StoreError:
            pass  # the directory goes all the same
        self.store.close()
        self._remove()
        os.close(self._lock)

    def _remove(self) -> None:
        if self._path:
            shutil.rmtree(self._path, ignore_errors=True)
        if self._made_root:
            try:
                os.rmdir(self._root)
            except OSError:
                pass  # others have begun to use it


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
