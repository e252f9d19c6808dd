"""What lies at a DAG's place: opening the DAGs that are there, one or all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from shmstore import files, names
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, StoreError, UnusableRoot
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def find_dag(space: Namespace, dag_id: str) -> Manifest | None:
    """Opens a DAG, or returns None if it does not exist or has been cleared."""
    return open_at(space, names.dag_token(dag_id), dag_id)


def open_at(space: Namespace, token: str, dag_id: str | None) -> Manifest | None:
    """Opens the DAG at a place; None if none is there, or it has been cleared."""
    manifest = open_any(space, token, dag_id)
    return manifest if manifest is not None and manifest.live else None


def open_any(space: Namespace, token: str, dag_id: str | None) -> Manifest | None:
    """Opens what lies at a DAG's place, also if it has been cleared; None if nothing does."""
    try:
        directory = Descriptor.open(token, DIRECTORY, within=space.dags.fd)
        try:
            manifest = Manifest(space, directory, dag_id)
        except FileNotFoundError:
            if not is_at(space, token, directory):
                return None  # carried away as we looked
            raise CorruptValue("it is missing", names.MANIFEST, dag_id) from None
    except FileNotFoundError:
        check_space(space)
        return None
    except OSError as error:
        raise converted(space, error) from error
    return manifest


def is_at(space: Namespace, token: str, directory: Descriptor) -> bool:
    """Whether a directory is the one at a DAG's place."""
    try:
        status = os.stat(token, dir_fd=space.dags.fd)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == (directory.device, directory.inode)


def every_dag(space: Namespace) -> Iterator[tuple[str, Manifest | StoreError]]:
    """The token of each DAG that lives, in order, and the DAG, or why it cannot be read."""
    try:
        tokens = sorted(files.listed(space.dags))
    except OSError as error:
        raise converted(space, error) from error
    if not tokens:
        check_space(space)
    for token in tokens:
        try:
            manifest = open_at(space, token, None)
        except StoreError as error:
            yield token, error
            continue
        if manifest is not None:
            yield token, manifest


def check_space(space: Namespace) -> None:
    """Raises UnusableRoot if the namespace has been removed."""
    if not space.dags.intact():
        raise UnusableRoot(
            space.path, "it has been removed while it was in use; open a new Store to start afresh"
        )


def converted(space: Namespace, error: OSError) -> StoreError:
    """What an OSError of a system call on the namespace means to the caller."""
    return files.store_full(error, None, space.directory.fd) or UnusableRoot(space.path, str(error))
