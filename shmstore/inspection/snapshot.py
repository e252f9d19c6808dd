"""A namespace, read as it is now: nothing is made, locked, mapped for writing or cleared.

Unlike ``Namespace``, which makes what is missing and clears what an earlier start of the
machine left, this only looks: also at another host's files, or at a copy of some.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from shmstore import files, names, record
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, NotFound, StoreError, UnusableRoot
from shmstore.inspection.control_page import read_control
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.ledger import CAPACITY, POOL_LIMIT, SWEPT, USED
from shmstore.namespace import (
    BOOT_ID_HIGH,
    BOOT_ID_LOW,
    CREATED,
    MAGIC,
    NODE_BEAT,
    boot_id,
    control_fault,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_ROUNDS = 32


class NoStore(UnusableRoot):
    """There is no store at a path."""

    def _sentence(self) -> str:
        return f"There is no store at {self.path}: {self.why}."


class Settings(NamedTuple):
    """What a namespace's control page says.

    Attributes:
        created_ns: When it was created, Unix time.
        capacity: The most bytes of shared memory that it may take, 0 for no limit.
        used: The account of these bytes, kept where there is a capacity.
        pool_limit: The most bytes of emptied segments to keep; None if nobody chose.
        swept_ns: When it was last swept by itself, CLOCK_BOOTTIME.
        node_beat_ns: When the node was last alive, CLOCK_BOOTTIME; 0 for never.
        this_start: False if it is from before the machine's last start, or of another one.
    """

    created_ns: int
    capacity: int
    used: int
    pool_limit: int | None
    swept_ns: int
    node_beat_ns: int
    this_start: bool


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A DAG that cannot be read.

    Attributes:
        token: The name of its directory.
        dag_id: Its name; the directory's if that is all that can be told.
        error: Why.
    """

    token: str
    dag_id: str
    error: StoreError


class Snapshot:
    """A namespace, or the one DAG of a copied directory.

    Attributes:
        path: The namespace's directory; the DAG's, if that is all there is.
        root: The root's.
        name: The namespace's name.
        settings: What the control page says; None if it is not there or damaged.
        fault: Why the control page cannot be used, or None.
    """

    def __init__(self, root: str, name: str) -> None:
        """Looks at a namespace.

        Raises:
            NoStore: There is none at that place.
            UnusableRoot: It may not be read, or its format is of a newer version.
        """
        self.root, self.name = root, name
        self.path = os.path.join(root, name)
        self.settings: Settings | None = None
        self.fault: str | None = None
        self._only: str | None = None
        self.directory = _opened(self.path, root)
        if not _has(self.directory, names.CONTROL):
            raise NoStore(self.path, _no_store(root, name))
        self._read_control()
        try:
            self._dags = Descriptor.open(names.DAGS, _DIRECTORY, within=self.directory.fd)
        except FileNotFoundError:
            raise NoStore(self.path, "it has no directory of DAGs") from None

    @classmethod
    def at(cls, path: str, namespace: str | None = None) -> Snapshot:
        """Looks at a root, a namespace's directory or a DAG's, or at a copy of one.

        Args:
            path: The directory.
            namespace: Which namespace, if it is a root; else that of the environment, or
                the only one there.

        Raises:
            NoStore: It is none of these.
        """
        path = os.path.abspath(path)
        directory = _opened(path, path)
        if _has(directory, names.MANIFEST):
            return cls._of_dag(path, directory)
        if _has(directory, names.CONTROL):
            return cls(os.path.dirname(path), os.path.basename(path))
        found = namespaces(path)
        name = namespace or names.default_namespace()
        if namespace is None and name not in found and len(found) == 1:
            (name,) = found
        return cls(path, name)

    @classmethod
    def _of_dag(cls, path: str, directory: Descriptor) -> Snapshot:
        alone = cls.__new__(cls)
        alone.path, alone.directory = path, directory
        alone.root, alone._only = os.path.split(path)
        alone.name = ""
        alone.settings = alone.fault = None
        alone._dags = Descriptor.open(alone.root, _DIRECTORY)
        return alone

    @property
    def whole(self) -> bool:
        """False if this is the directory of one DAG, and there is no namespace around it."""
        return self._only is None

    @property
    def spill(self) -> str | None:
        """The directory on disk to which values are moved, or None."""
        try:
            return os.readlink(names.SPILL, dir_fd=self.directory.fd)
        except OSError:
            return None

    def check_there(self) -> None:
        """Raises NoStore if the namespace has been removed since it was opened."""
        if not self._dags.intact():
            raise NoStore(self.path, "it has been removed")

    def tokens(self) -> list[str]:
        """The names of the DAGs' directories, in order."""
        if self._only is not None:
            return [self._only]
        return sorted(files.listed(self._dags))

    def dags(self) -> Iterator[DagSnapshot | Unreadable]:
        """The DAGs that live, by the names of their directories."""
        for token in self.tokens():
            try:
                found = self._dag(token)
            except StoreError as error:
                yield Unreadable(token, self._name_of(token), error)
                continue
            if found is not None and found.control.live:
                yield found

    def dag(self, dag_id: str) -> DagSnapshot:
        """One DAG.

        Raises:
            NoDag: There is none of that name.
            CorruptValue: It cannot be read.
            UnusableRoot: Its format is of a newer version.
        """
        names.encode_id(dag_id, "dag_id")
        found = self._dag(self._only or names.dag_token(dag_id))
        if found is None or not found.control.live or found.dag_id != dag_id:
            raise NoDag(dag_id, self.path)
        return found

    def alone(self) -> DagSnapshot:
        """The one DAG, if this is the directory of one. Raises as ``dag``."""
        assert self._only is not None
        found = self._dag(self._only)
        if found is None or not found.control.live:
            raise NoDag(self._name_of(self._only), self.path)
        return found

    def named(self, argument: str) -> tuple[DagSnapshot, str | None]:
        """What a command's argument DAG or DAG/REST names; the longest DAG that there is.

        Returns:
            The DAG, and what follows the slash behind it, or None.

        Raises:
            NoDag: There is none. CorruptValue, UnusableRoot: as ``dag``.
        """
        ends = [at for at, char in enumerate(argument) if char == "/" and at]
        for end in (len(argument), *reversed(ends)):
            try:
                return self.dag(argument[:end]), argument[end + 1 :] or None
            except NoDag:
                continue
        raise NoDag(argument, self.path)

    def _dag(self, token: str) -> DagSnapshot | None:
        """The DAG in a directory; None if there is none."""
        for _ in range(_ROUNDS):
            try:
                directory = Descriptor.open(token, _DIRECTORY, within=self._dags.fd)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except PermissionError as error:
                raise _refused(os.path.join(self.path, names.DAGS, token), error) from None
            try:
                return DagSnapshot(directory, token, self.spill)
            except (FileNotFoundError, CorruptValue) as error:
                if not self._is_at(token, directory):
                    continue  # cleared as we looked, and maybe made anew
                if _cleared(directory):
                    return None  # by somebody who died before it was carried away
                raise self._damaged(token, error) from None
        raise CorruptValue("it is made anew without end", names.MANIFEST, self._name_of(token))

    def _is_at(self, token: str, directory: Descriptor) -> bool:
        try:
            status = os.stat(token, dir_fd=self._dags.fd)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == (directory.device, directory.inode)

    def _damaged(self, token: str, error: Exception) -> CorruptValue:
        if isinstance(error, CorruptValue):
            dag_id = error.dag_id or self._name_of(token)
            return CorruptValue(error.check, error.where, dag_id, error.id)
        return CorruptValue("it is missing", names.MANIFEST, self._name_of(token))

    def _name_of(self, token: str) -> str:
        return names.parse_dag_token(token) or token

    def files_in(self, place: str) -> dict[str, os.stat_result]:
        """The files of ``pool`` or of a directory in ``trash``, by name."""
        try:
            directory = Descriptor.open(place, _DIRECTORY, within=self.directory.fd)
        except OSError:
            return {}
        found = {}
        for name in files.listed(directory):
            try:
                found[name] = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                pass  # gone as we looked
        return found

    def _read_control(self) -> None:
        file = Descriptor.open(names.CONTROL, os.O_RDONLY, within=self.directory.fd)
        page = os.pread(file.fd, record.PAGE + 1, 0)
        newer = record.newer_version(page, MAGIC)
        if newer is not None:
            raise UnusableRoot(
                self.path,
                f"its format version {newer} is newer than {record.FORMAT_VERSION}, the newest "
                "that this version of shmstore reads; upgrade shmstore",
            )
        self.fault = control_fault(page)
        if self.fault is not None:
            return
        words = memoryview(page).cast("Q")
        pool = words[POOL_LIMIT]
        self.settings = Settings(
            words[CREATED],
            words[CAPACITY],
            words[USED],
            pool - 1 if pool else None,
            words[SWEPT],
            words[NODE_BEAT],
            words[BOOT_ID_HIGH] << 64 | words[BOOT_ID_LOW] == boot_id(),
        )


class NoDag(NotFound):
    """There is no DAG of that name."""

    def __init__(self, dag_id: str, where: str) -> None:
        super().__init__(dag_id, "", where)

    def _sentence(self) -> str:
        return f"There is no DAG {self.dag_id!r} in {self.where}."


def namespaces(root: str) -> list[str]:
    """The namespaces below a root, by name."""
    try:
        with os.scandir(root) as found:
            return sorted(
                one.name for one in found if os.path.exists(os.path.join(one.path, names.CONTROL))
            )
    except OSError:
        return []


def _cleared(directory: Descriptor) -> bool:
    try:
        return not read_control(directory).live
    except (OSError, StoreError):
        return False


def _has(directory: Descriptor, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _no_store(root: str, name: str) -> str:
    found = namespaces(root)
    if found:
        return f"there is no namespace {name!r} in {root}; there is {', '.join(found)}"
    return "it is no store, as it has no control page"


def _opened(path: str, root: str) -> Descriptor:
    try:
        return Descriptor.open(path, _DIRECTORY)
    except FileNotFoundError:
        if not os.path.isdir(root):
            raise NoStore(root, "there is no such directory") from None
        raise NoStore(path, _no_store(root, os.path.basename(path))) from None
    except NotADirectoryError:
        raise NoStore(path, "it is no directory") from None
    except PermissionError as error:
        raise _refused(path, error) from None


class Refused(UnusableRoot):
    """What is there may not be read."""

    def _sentence(self) -> str:
        return f"{self.path} may not be read: {self.why}."


def _refused(path: str, error: OSError) -> Refused:
    """The error for what may not be read; names whose it is, as far up as that is told."""
    place = path
    while place != "/":
        try:
            owner = os.stat(place).st_uid
        except OSError:
            place = os.path.dirname(place)
            continue
        if owner != os.geteuid():
            whose = "it" if place == path else place
            return Refused(path, f"{whose} belongs to user {owner} and you are {os.geteuid()}")
        break
    return Refused(path, os.strerror(error.errno or 0).lower())
