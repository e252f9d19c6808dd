"""Values on disk: segments that made room in shared memory, read by the same code.

``spill`` in the namespace's directory is a symbolic link to a directory on disk that
was made for this namespace alone. In it each DAG has a directory named by its
generation, so that a DAG's successor never meets its files. A spilled segment gets its
name under the DAG's lock and is listed by the DAG's log, like one in shared memory, and
is never written again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat

from shmstore import files, mounts, names
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import UnusableRoot
from shmstore.forked import here, refused
from shmstore.lock import LockLost
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace, boot_id

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_OWNER = ".json"  # beside the directory: whose it is
_LARGEST_OWNER = 1 << 16


def place(space: Namespace) -> str | None:
    """The namespace's own directory on disk, or None if it does not spill."""
    try:
        return os.readlink(names.SPILL, dir_fd=space.directory.fd)
    except FileNotFoundError:
        return None


def set_place(space: Namespace, path: str) -> None:
    """Makes a namespace spill to a directory of its own in ``path``, for all processes.

    If the process dies here, a directory on disk is left that the next call with the
    same path removes.

    Raises:
        UnusableRoot: The path is not fit, or the namespace has values spilled elsewhere.
    """
    path = os.path.abspath(path)
    try:
        space.lifecycle.run(_set_place, (space, path))
    except LockLost:
        raise UnusableRoot(space.path, "it has been removed while it was in use") from None
    except TimeoutError:
        raise
    except OSError as error:
        raise UnusableRoot(
            path, f"values cannot be spilled there: {os.strerror(error.errno or 0).lower()}"
        ) from error


def _set_place(order: tuple[Namespace, str]) -> None:
    space, path = order
    os.makedirs(path, mode=0o700, exist_ok=True)
    present = place(space)
    if present is not None and os.path.dirname(present) == path and os.path.isdir(present):
        return
    _try_out(path)
    if present is not None:
        _leave(space, present, path)
    _remove_stale(space, path)
    own = os.path.join(path, f"shmstore-{os.geteuid()}-{os.urandom(8).hex()}")
    file = Descriptor.open(own + _OWNER, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        files.write_all(file, [json.dumps(_owner(space)).encode()])
        os.fsync(file.fd)
    finally:
        file.close()
    reach("spill:owned")
    if here.lost:
        raise refused()
    os.mkdir(own, 0o700)
    reach("spill:made")
    link = f".{names.SPILL}-{os.urandom(8).hex()}"
    if here.lost:
        raise refused()
    os.symlink(own, link, dir_fd=space.directory.fd)
    files.rename(link, space.directory, names.SPILL, space.directory)
    reach("spill:linked")


def _leave(space: Namespace, present: str, path: str) -> None:
    """Removes the directory that the namespace has, if there is no value in it."""
    try:
        for name in _generations(present):
            _rmdir(os.path.join(present, name))
        # Fails if a DAG has a directory in it again.
        _rmdir(present)
    except OSError as error:
        raise UnusableRoot(
            path,
            f"namespace {space.name!r} has values spilled to {os.path.dirname(present)}; "
            "clear those DAGs first, or go on spilling there",
        ) from error
    try:
        os.unlink(present + _OWNER)
    except FileNotFoundError:
        pass


def _rmdir(path: str) -> None:
    """Removes an empty directory. It may be gone: who clears a DAG removes its own."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _try_out(path: str) -> None:
    status = os.stat(path)
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise UnusableRoot(
            path,
            "values cannot be spilled there: other users may change what is in it "
            f"(mode {stat.S_IMODE(status.st_mode):04o}); run chmod 700 {path}",
        )
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise UnusableRoot(
            path,
            "values cannot be spilled there: its file system cannot make files without a name "
            f"({os.strerror(error.errno or 0).lower()})",
        ) from error


def _owner(space: Namespace) -> dict[str, object]:
    status = os.fstat(space.directory.fd)
    return {
        "boot_id": f"{boot_id():032x}",
        "device": status.st_dev,
        "inner_path": mounts.inner_path(space.path),
        "path": space.path,  # for people
    }


def _remove_stale(space: Namespace, path: str) -> None:
    """Removes what namespaces that are gone have left in ``path``.

    Gone are those of an earlier start of the machine, and those that stood where this
    namespace stands now, at the same place of the same file system. Of others nothing can
    be known: they may be in other containers.
    """
    me = _owner(space)
    for name in os.listdir(path):
        if not (name.startswith(f"shmstore-{os.geteuid()}-") and name.endswith(_OWNER)):
            continue
        try:
            owner = json.loads(_own_file(os.path.join(path, name)))
            here_before = all(owner[key] == me[key] for key in ("inner_path", "device"))
            own = os.path.join(path, name.removesuffix(_OWNER))
            if (owner["boot_id"] != me["boot_id"] or here_before) and own != place(space):
                shutil.rmtree(own, ignore_errors=True)
                if not os.path.lexists(own):
                    os.unlink(own + _OWNER)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being removed by somebody else, or none of ours


def _own_file(path: str) -> bytes:
    """What a file of this user's holds.

    Others may write into the directory, too: what they put there under such a name, a
    pipe that nobody writes to say, is neither read nor waited for.

    Raises:
        ValueError: It is no file, or somebody else's.
    """
    file = Descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise ValueError(f"{path} is not ours")
        return os.pread(file.fd, _LARGEST_OWNER, 0)
    finally:
        file.close()


def generations(space: Namespace) -> list[int]:
    """The generations of the DAGs that have a directory on disk."""
    at = place(space)
    return [] if at is None else [int(name, 16) for name in _generations(at)]


def _generations(path: str) -> list[str]:
    try:
        return [name for name in os.listdir(path) if names.is_generation(name)]
    except FileNotFoundError:
        return []


def dag_directory(manifest: Manifest, make: bool = False) -> Descriptor:
    """The open directory on disk of a DAG.

    Args:
        manifest: The DAG.
        make: Make it if it is not there.

    Raises:
        UnusableRoot: It cannot be reached.
    """
    found = manifest.spilled
    if found is not None and found.intact():
        return found
    at = place(manifest.space)
    if at is None:
        raise UnusableRoot(
            manifest.space.path, "it has spilled values, but its link to them is gone"
        )
    name = names.generation_name(manifest.generation)
    try:
        whole = Descriptor.open(at, _DIRECTORY)
        try:
            if make:
                _make(whole, name)
            manifest.spilled = Descriptor.open(name, _DIRECTORY, within=whole.fd)
        finally:
            whole.close()
    except OSError as error:
        raise UnusableRoot(
            at,
            "the values that were spilled there cannot be reached: "
            f"{os.strerror(error.errno or 0).lower()}",
        ) from error
    return manifest.spilled


def _make(whole: Descriptor, name: str) -> None:
    if here.lost:
        raise refused()
    try:
        os.mkdir(name, 0o700, dir_fd=whole.fd)
    except FileExistsError:
        pass


def remove(manifest: Manifest, number: int) -> None:
    """Removes a spilled segment that no record names any more."""
    files.unlink(dag_directory(manifest), names.segment_name(number, spilled=True))


def remove_generation(space: Namespace, generation: int) -> OSError | None:
    """Removes all that was spilled of a DAG that has been cleared.

    What a death leaves here, or what fails, is for the next sweep.

    Returns:
        What kept it from it, or None.
    """
    at = place(space)
    if at is None:
        return None
    path = os.path.join(at, names.generation_name(generation))
    failed: OSError | None = None
    try:
        for name in os.listdir(path):
            try:
                os.unlink(os.path.join(path, name))
            except FileNotFoundError:
                pass  # somebody else is at it
            except OSError as error:
                failed = error
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # Not empty: a value that was being moved came too late, or what failed above.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            failed = error
    return failed
