"""A namespace: the directory that holds a store's DAGs, and its control page."""

from __future__ import annotations

import os
import shutil
import time
import uuid

from shmstore import files, names, record
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, UnusableRoot
from shmstore.forked import here, refused
from shmstore.ledger import CAPACITY, POOL_LIMIT, SWEPT, Ledger
from shmstore.lock import Lock
from shmstore.place import check_file_system, own_directory, try_out

MAGIC = int.from_bytes(b"SHMNSP\r\n", "little")
# Words of the control page, after MAGIC, VERSION and CHECKSUM.
BOOT_ID_LOW, BOOT_ID_HIGH, CREATED = 3, 4, 5
# Words 8 to 12 are the ledger's. The bell of the node, whether it sleeps at it, and when
# it was last alive, CLOCK_BOOTTIME in nanoseconds, or 0.
BELL, NODE_SLEEPS, NODE_BEAT = 13, 14, 15

_LARGEST_POOL = 1 << 30


class Namespace:
    """An open namespace.

    Attributes:
        path: Its directory's path.
        root: The root's path.
        name: Its name.
        directory: The open directory.
        dags: The open directory of DAGs.
        trash: The open directory of DAGs on their way in or out.
        pool: The open directory of emptied segments.
        lifecycle: The lock under which DAGs are cleared.
        control: The control page as words, for all processes to change.
        ledger: The account of its shared memory.
    """

    __slots__ = (
        "control",
        "dags",
        "directory",
        "ledger",
        "lifecycle",
        "name",
        "path",
        "pool",
        "root",
        "trash",
    )

    def __init__(self, root: str, name: str) -> None:
        """Opens the namespace, and creates root and namespace if they are missing.

        Raises:
            UnusableRoot: The place is not fit: not ours, not writable, on a file
                system that does not keep locks, or of a newer format.
            CorruptValue: Its control page is damaged.
            StoreFull: No room.
        """
        self.root = os.path.abspath(root)
        self.name = name
        self.path = os.path.join(self.root, name)
        try:
            own_directory(self.root, forbidden=0o022)
            own_directory(self.path, forbidden=0o077)
            flags = os.O_RDONLY | os.O_DIRECTORY
            self.directory = Descriptor.open(self.path, flags)
            if not _exists(self.directory, names.CONTROL):
                _create(self.directory, self.path)
            check_file_system(self.path)
            _check_control(self.directory, self.path)
            self.dags = Descriptor.open(names.DAGS, flags, within=self.directory.fd)
            self.trash = Descriptor.open(names.TRASH, flags, within=self.directory.fd)
            self.pool = Descriptor.open(names.POOL, flags, within=self.directory.fd)
            self.control = _map_control(self.directory)
        except TimeoutError:
            raise  # StoreBusy
        except OSError as error:
            raise files.store_full(error, None) or UnusableRoot(
                self.path, os.strerror(error.errno or 0).lower()
            ) from error
        what = f"namespace {name!r}"
        self.lifecycle = Lock(self.directory, names.LIFECYCLE_LOCK, what, rank=0)
        self.ledger = Ledger(self.directory, self.control, what)

    @property
    def pool_limit(self) -> int:
        """The most bytes of emptied segments to keep for reuse."""
        chosen = self.control[POOL_LIMIT]
        if chosen:
            return chosen - 1
        whole = self.control[CAPACITY]
        if not whole:
            status = os.fstatvfs(self.directory.fd)
            whole = status.f_blocks * status.f_frsize or _LARGEST_POOL * 4
        return min(whole // 4, _LARGEST_POOL)

    def set_pool_limit(self, nbytes: int) -> None:
        """Sets it, for all processes."""
        self.control[POOL_LIMIT] = nbytes + 1


def _exists(directory: Descriptor, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory.fd)
    except FileNotFoundError:
        return False
    return True


def _create(directory: Descriptor, path: str) -> None:
    """Makes the namespace's directories and, last and at once, its control page."""
    check_file_system(path)
    try_out(directory, path)
    for name in (names.DAGS, names.TRASH, names.POOL, names.RESERVATIONS):
        try:
            os.mkdir(name, 0o700, dir_fd=directory.fd)
        except FileExistsError:
            pass
    for name in (names.LIFECYCLE_LOCK, names.LEDGER_LOCK):
        Descriptor.open(name, os.O_RDWR | os.O_CREAT, within=directory.fd)
    file = Descriptor.open(".", os.O_TMPFILE | os.O_RDWR, within=directory.fd)
    files.write_all(file, [_control_page()])
    try:
        if here.lost:
            raise refused()
        source = f"/proc/self/fd/{file.fd}"
        os.link(source, names.CONTROL, dst_dir_fd=directory.fd, follow_symlinks=True)
    except FileExistsError:
        pass  # another process was faster, and may have mapped its page


def _control_page() -> bytes:
    boot = boot_id()
    page = bytearray(
        record.build_page(
            {
                record.MAGIC: MAGIC,
                record.VERSION: record.FORMAT_VERSION,
                BOOT_ID_LOW: boot & 0xFFFFFFFFFFFFFFFF,
                BOOT_ID_HIGH: boot >> 64,
                CREATED: time.time_ns(),
            }
        )
    )
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    page[SWEPT * 8 : SWEPT * 8 + 8] = now.to_bytes(8, "little")
    return bytes(page)


def _replace_control(directory: Descriptor) -> None:
    """Replaces the control page. Under the lifecycle lock.

    If the process dies here, the old page is still there, and the new one is left
    aside; whoever holds the lifecycle lock may remove that.
    """
    aside = names.control_aside()
    file = files.create_file(directory, aside)
    try:
        files.write_all(file, [_control_page()])
        files.rename(aside, directory, names.CONTROL, directory)
    except BaseException:
        files.unlink(directory, aside)
        raise
    finally:
        file.close()


def _map_control(directory: Descriptor) -> memoryview:
    file = Descriptor.open(names.CONTROL, os.O_RDWR, within=directory.fd)
    try:
        return memoryview(files.map_shared(file.fd, record.PAGE)).cast("Q")
    finally:
        file.close()


def _check_control(directory: Descriptor, path: str) -> None:
    page = read_control(directory)
    newer = record.newer_version(page, MAGIC)
    if newer is not None:
        raise UnusableRoot(
            path,
            f"its format version {newer} is newer than {record.FORMAT_VERSION}, the newest "
            "that this version of shmstore reads; upgrade shmstore or give another root",
        )
    fault = control_fault(page)
    if fault:
        raise CorruptValue(fault, os.path.join(path, names.CONTROL))
    stored = int.from_bytes(page[BOOT_ID_LOW * 8 : BOOT_ID_HIGH * 8 + 8], "little")
    if stored != boot_id():
        _clear_after_restart(directory)


def read_control(directory: Descriptor) -> bytes:
    """The bytes of a namespace's control page."""
    file = Descriptor.open(names.CONTROL, os.O_RDONLY, within=directory.fd)
    try:
        return os.pread(file.fd, record.PAGE, 0)
    finally:
        file.close()


def control_fault(page: bytes) -> str | None:
    """Why a control page cannot be used, or None if it can."""
    fault = record.page_fault(page, MAGIC)
    if fault is None and len(page) != record.PAGE:
        fault = f"its size is {len(page):,} bytes"
    return fault


def _clear_after_restart(directory: Descriptor) -> None:
    """Clears what is older than the machine's last start, whose locks are all gone.

    Moved aside and freed before the control page is renewed: whoever dies in
    between leaves the rest to the next one.
    """
    lock = Lock(directory, names.LIFECYCLE_LOCK, "the namespace", rank=0)

    def move_aside(_: None) -> None:
        trash = Descriptor.open(names.TRASH, os.O_RDONLY | os.O_DIRECTORY, within=directory.fd)
        dags = Descriptor.open(names.DAGS, os.O_RDONLY | os.O_DIRECTORY, within=directory.fd)
        page = read_control(directory)
        stored = int.from_bytes(page[BOOT_ID_LOW * 8 : BOOT_ID_HIGH * 8 + 8], "little")
        if stored == boot_id():
            return  # somebody else has done it
        for token in files.listed(dags):
            files.rename(token, dags, names.scratch_name("old"), trash)
        for name in (names.POOL, names.RESERVATIONS):
            place = Descriptor.open(name, os.O_RDONLY | os.O_DIRECTORY, within=directory.fd)
            for old in files.listed(place):
                files.unlink(place, old)
        _remove_spilled(directory)
        for name in files.listed(trash):
            files.remove_tree(trash, name)
        _replace_control(directory)

    lock.run(move_aside, None)


def _remove_spilled(directory: Descriptor) -> None:
    """What lies on disk of DAGs that are gone; the next ``spill.set_place`` makes it anew."""
    try:
        shutil.rmtree(os.readlink(names.SPILL, dir_fd=directory.fd), ignore_errors=True)
    except FileNotFoundError:
        return
    files.unlink(directory, names.SPILL)


def boot_id() -> int:
    """What tells this start of the machine from others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return uuid.UUID(file.read().strip()).int
