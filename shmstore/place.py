"""Whether a directory is fit for a store: whose it is, and what its file system promises.

Locks and mappings keep their promises on a local file system only, and only on tmpfs
are they fast; so the place is looked at, and tried out, when a namespace is created.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import warnings

from shmstore import files, mounts, record
from shmstore.descriptor import Descriptor
from shmstore.errors import UnusableRoot

_REFUSED = {
    "overlay": "an overlay: its files change identity, and locks with them",
    "fuse": "a FUSE file system: locks and mappings need not work",
    "nfs": "a network file system: locks and mappings do not reach across",
    "nfs4": "a network file system: locks and mappings do not reach across",
    "cifs": "a network file system: locks and mappings do not reach across",
    "smb3": "a network file system: locks and mappings do not reach across",
    "ceph": "a network file system: locks and mappings do not reach across",
    "lustre": "a network file system: locks and mappings do not reach across",
    "9p": "a file system shared with another machine: mappings do not reach across",
    "virtiofs": "a file system shared with another machine: mappings do not reach across",
}
_fit: set[str] = set()  # paths that this process has looked at


class SlowRootWarning(UserWarning):
    """The root is not in shared memory."""


def own_directory(path: str, forbidden: int) -> None:
    """Makes a directory, or checks that one is ours and closed to others."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
        link = os.lstat(path)
    except PermissionError:
        raise UnusableRoot(path, "you may not write there; give another root") from None
    except (FileExistsError, NotADirectoryError):
        raise UnusableRoot(path, "it is no directory") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UnusableRoot(path, "it is no directory")
    owner = status.st_uid if link.st_uid == os.geteuid() else link.st_uid
    if owner != os.geteuid():
        raise UnusableRoot(
            path,
            f"it belongs to user {owner} and you are {os.geteuid()}; every user "
            "has a root of their own",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden and not mode & stat.S_ISVTX:
        raise UnusableRoot(
            path, f"other users may change what is in it (mode {mode:04o}); run chmod 700 {path}"
        )


def check_file_system(path: str) -> None:
    """Refuses a file system that does not keep locks; warns of one that is not in memory."""
    if path in _fit:
        return
    kind = mounts.file_system(path)
    for unfit, why in _REFUSED.items():
        if kind == unfit or kind.startswith(unfit + "."):
            raise UnusableRoot(path, f"it is on {kind}, {why}; use /dev/shm or another tmpfs")
    _fit.add(path)
    if kind not in ("tmpfs", "ramfs"):
        warnings.warn(
            f"{path} is on {kind}, not in shared memory (tmpfs): every value is written to "
            "disk sooner or later, and reading one back may wait for the disk",
            SlowRootWarning,
            stacklevel=5,
        )


def try_out(directory: Descriptor, path: str) -> None:
    """Tests what the store relies on: a mapping keeps its file's lock alive."""
    reason = "its file system does not keep locks and mappings as the store needs them"
    try:
        file = Descriptor.open(".", os.O_TMPFILE | os.O_RDWR, within=directory.fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise UnusableRoot(path, reason + " (no O_TMPFILE)") from None
        raise
    try:
        files.write_all(file, [bytes(record.PAGE)])
        leased = os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(leased, fcntl.LOCK_SH | fcntl.LOCK_NB)
            mapping = mmap.mmap(leased, record.PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(leased)
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            mapping.close()
        raise UnusableRoot(path, reason + " (a mapping does not keep its lock)")
    finally:
        file.close()
