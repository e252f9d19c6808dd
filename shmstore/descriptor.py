"""File descriptors that know which file they are.

User code sometimes closes descriptors it does not own (daemonizing with
``closerange``, a double close). The number may then belong to a file of the
user's, and using or closing it would harm that file. So a descriptor remembers
its file's identity and is checked before it is used for something that matters.

In a forked child, the descriptors that stand for something the parent is doing
(a lock, a segment half written) are closed at once: the child must neither keep
a dead parent's lock nor the memory of a value that was never stored.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from weakref import WeakSet

from shmstore.forked import here, refused

# Descriptors that mappings leave to the rest of the process, at most.
_MARGIN = 256

_not_for_children: WeakSet[Descriptor] = WeakSet()


def open_descriptor(name: str, flags: int, mode: int, within: int | None) -> int:
    """``os.open``, with the soft limit of descriptors raised when it is reached."""
    try:
        return os.open(name, flags, mode, dir_fd=within)
    except OSError as error:
        if error.errno != errno.EMFILE or not raise_limit():
            raise
    return os.open(name, flags, mode, dir_fd=within)


def raise_limit() -> bool:
    """Raises the soft limit of descriptors towards the hard one; False if that is reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, hard):
        return False
    more = soft * 2 if hard == resource.RLIM_INFINITY else min(soft * 2, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    return True


def spare(fd: int) -> bool:
    """False if the process's descriptors are running short, as far as they can be had.

    A duplicate gets the lowest free number, so all below it are in use.

    Args:
        fd: Any descriptor.
    """
    while True:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return True
        try:
            lowest = os.dup(fd)
            os.close(lowest)
        except OSError:
            lowest = soft
        if lowest < soft - min(soft // 8, _MARGIN):
            return True
        if not raise_limit():
            return False


class Descriptor:
    """An open file and its identity. Closed when it goes out of use."""

    __slots__ = ("__weakref__", "device", "fd", "inode", "size")

    def __init__(self) -> None:
        self.fd = -1
        self.device = self.inode = self.size = -1

    @classmethod
    def open(
        cls,
        name: str,
        flags: int,
        *,
        within: int | None = None,
        mode: int = 0o600,
        inherit: bool = True,
    ) -> Descriptor:
        """Opens ``name``, relative to the directory descriptor ``within``.

        Args:
            name: A path, or a name within that directory.
            flags: As of ``os.open``.
            within: The directory's descriptor.
            mode: Of a file that is made.
            inherit: False to close it in forked children.
        """
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        opened = cls()
        if not inherit:
            _not_for_children.add(opened)
        if here.lost and flags & os.O_CREAT:
            raise refused()
        # From here on closing is the object's business alone, whatever interrupts.
        opened.fd = open_descriptor(name, flags, mode, within)
        status = os.fstat(opened.fd)
        opened.device, opened.inode = status.st_dev, status.st_ino
        opened.size = status.st_size
        return opened

    def ours(self) -> bool:
        """True while the number is still our file."""
        return self._links() >= 0

    def intact(self) -> bool:
        """True while the number is still our file and the file still has a name."""
        return self._links() > 0

    def _links(self) -> int:
        try:
            status = os.fstat(self.fd)
        except OSError:
            return -1
        if status.st_ino != self.inode or status.st_dev != self.device:
            return -1
        return status.st_nlink

    def close(
        self,
        fstat: Callable[[int], os.stat_result] = os.fstat,
        close: Callable[[int], None] = os.close,
    ) -> None:
        """Closes the file, unless the number has become somebody else's.

        By functions of its own: as the interpreter ends, it takes the module's names away.
        """
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            status = fstat(fd)
            known = self.inode >= 0
            if not known or (status.st_ino == self.inode and status.st_dev == self.device):
                close(fd)
        except OSError:
            pass  # closed by somebody else

    def __del__(self) -> None:
        self.close()


def close_in_child() -> None:
    """After a fork, in the child: lets go of what is the parent's business."""
    for descriptor in list(_not_for_children):
        descriptor.close()
    _not_for_children.clear()
