"""Clearing DAGs: their end, and freeing what they leave.

A DAG's end is the state CLEARED in its control page: from that store on it is gone for
everyone, and whoever meets it still at its place carries it away, by one rename.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from shmstore import doorbell, files, names, pool, spill
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, UnusableRoot
from shmstore.files import remove_tree
from shmstore.forked import here, refused
from shmstore.lock import Lock, LockLost
from shmstore.lookup import DIRECTORY, check_space, converted, is_at, open_at
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace
from shmstore.record import CLEARED, COUNTER, STATE

_ATTEMPTS = 100


def clear_dag(space: Namespace, dag_id: str) -> bool:
    """Removes a DAG with all its values; returns whether there was one.

    Views that are held stay as they are. If the process dies before CLEARED is
    stored, nothing has happened; after that the DAG is gone, and whoever meets
    its directory frees it.
    """
    token = names.dag_token(dag_id)
    found: bool | None = False
    for _ in range(_ATTEMPTS):
        try:
            found = _clear_whole(space, token, dag_id)
        except CorruptValue:
            found = _clear_damaged(space, token, dag_id)
        if found is not None:
            break
    finish_clearing(space, token)
    empty_trash(space)
    reach("clear:freed")
    return bool(found)


def _clear_whole(space: Namespace, token: str, dag_id: str) -> bool | None:
    """Clears a DAG that can be opened; None to look again."""
    manifest = open_at(space, token, dag_id)
    if manifest is None:
        return False
    try:
        if space.lifecycle.run(_mark_and_move, (space, token, manifest, None)) is None:
            return None
        spill.remove_generation(space, manifest.generation)
        return True
    except LockLost:
        check_space(space)
        if is_at(space, token, manifest.directory):
            raise CorruptValue("it is missing", names.LOCK, dag_id) from None
        return None
    except TimeoutError:
        raise
    except OSError as error:
        raise converted(space, error) from error
    finally:
        doorbell.wake(manifest)


def clear_if(
    space: Namespace, manifest: Manifest, judge: Callable[[Manifest], bool], lock: Lock
) -> str | None:
    """Clears a DAG if ``judge`` says so once nobody else can change it.

    Args:
        space: The namespace.
        manifest: The DAG.
        judge: Asked under both locks.
        lock: The lifecycle lock, or another object for it.

    Returns:
        The name in ``trash`` under which it is to be freed, or None.

    Raises:
        StoreBusy: A lock's holder did not let go.
        LockLost: A lock's file is gone.
    """
    token = names.dag_token(manifest.dag_id)
    return lock.run(_mark_and_move, (space, token, manifest, judge))


def clear_dag_if(space: Namespace, dag_id: str, judge: Callable[[Manifest], bool]) -> bool:
    """As ``clear_dag``, of a DAG that ``judge`` says so of once nobody else can change it."""
    manifest = open_at(space, names.dag_token(dag_id), dag_id)
    if manifest is None:
        return False
    try:
        if clear_if(space, manifest, judge, space.lifecycle) is None:
            return False
    except LockLost:
        return False  # cleared by somebody else, or removed
    finally:
        doorbell.wake(manifest)
    spill.remove_generation(space, manifest.generation)
    empty_trash(space)
    return True


def _clear_damaged(space: Namespace, token: str, dag_id: str) -> bool | None:
    """Clears a DAG that cannot be opened; None to look again."""
    try:
        return space.lifecycle.run(_move_damaged, (space, token, dag_id)) or None
    except LockLost:
        check_space(space)
        return None
    except TimeoutError:
        raise
    except OSError as error:
        raise converted(space, error) from error


def _move_damaged(dag: tuple[Namespace, str, str]) -> bool:
    """Carries away a damaged DAG, if it still is there. Under the lifecycle lock.

    Who has it open sees CLEARED all the same: the word is written into the file.
    """
    space, token, dag_id = dag
    try:
        directory = Descriptor.open(token, DIRECTORY, within=space.dags.fd)
    except FileNotFoundError:
        return False
    try:
        if not Manifest(space, directory, dag_id).live:
            return False
        os.stat(names.LOCK, dir_fd=directory.fd)
        return False  # a successor, which is sound
    except (CorruptValue, FileNotFoundError):
        pass
    try:
        file = Descriptor.open(names.MANIFEST, os.O_RDWR, within=directory.fd)
        files.write_all(file, [CLEARED.to_bytes(8, "little")], STATE * 8)
    except FileNotFoundError:
        pass
    _move_aside(space, token)
    return True


_Clearing: TypeAlias = tuple[Namespace, str, Manifest, Callable[[Manifest], bool] | None]


def _mark_and_move(dag: _Clearing) -> str | None:
    """Under the lifecycle lock. None if the DAG was cleared by somebody else, or is to stay."""
    return dag[2].lock.run(_mark_and_move_locked, dag)


def _mark_and_move_locked(dag: _Clearing) -> str | None:
    space, token, manifest, judge = dag
    reach("clear:locked")
    gone = not manifest.live or (judge is not None and not judge(manifest))
    if here.lost:
        raise refused()  # not even to try again, which would clear a successor
    if gone:
        return None
    manifest.control[STATE] = CLEARED
    reach("clear:marked")
    if here.lost:
        raise refused()
    manifest.control[COUNTER] += 1
    reach("clear:counted")
    return _move_aside(space, token)


def _move_aside(space: Namespace, token: str) -> str:
    aside = names.scratch_name("old")
    space.ledger.still(files.rename, token, space.dags, aside, space.trash)
    reach("clear:renamed")
    return aside


def finish_clearing(
    space: Namespace, token: str, lock: Lock | None = None, look_only: bool = False
) -> str | None:
    """Carries a cleared DAG away that its clearer left at its place.

    The state is read again under the lifecycle lock: by then somebody else may
    have carried it away and a successor may stand there.

    Args:
        space: The namespace.
        token: The DAG's.
        lock: Another object for the lifecycle lock, or None.
        look_only: Leave it where it is.

    Returns:
        The name in ``trash`` under which it is to be freed, or where it is left; None if
        there was none.
    """

    def finish(_: None) -> str | None:
        try:
            directory = Descriptor.open(token, DIRECTORY, within=space.dags.fd)
            left = not Manifest(space, directory, None).live
        except (FileNotFoundError, CorruptValue):
            return None
        if not left:
            return None
        return token if look_only else _move_aside(space, token)

    try:
        os.stat(token, dir_fd=space.dags.fd)
        return (lock or space.lifecycle).run(finish, None)
    except FileNotFoundError:
        return None
    except LockLost:
        check_space(space)
        raise UnusableRoot(space.path, "its lifecycle.lock is gone") from None


def empty_trash(space: Namespace) -> int:
    """Frees cleared DAGs, whoever cleared them; those being built are left alone.

    What cannot be freed now, for want of descriptors say, the next clear frees.

    Returns:
        How many there were.
    """
    found = 0
    try:
        for name in files.listed(space.trash):
            if name.startswith("old-"):
                free_tree(space, name)
                found += 1
    except OSError:
        pass
    return found


def free_tree(space: Namespace, name: str) -> None:
    """Frees a cleared DAG, or one half built; large segments may be kept for reuse.

    Others may be doing the same.
    """
    try:
        directory = Descriptor.open(name, DIRECTORY, within=space.trash.fd)
    except FileNotFoundError:
        return  # somebody else is faster
    for file in files.listed(directory):
        if names.parse_segment_name(file) is None:
            space.ledger.unlink(directory, file)
            continue
        try:
            status = os.stat(file, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        pool.retire(space, directory, file, status.st_size)
    remove_tree(space.trash, name)
