"""Creating DAGs: a DAG comes to its place whole, by one rename."""

from __future__ import annotations

import errno
import os
import time

import numpy as np

from shmstore import doorbell, expiry, files, index, log, names, record
from shmstore.clearing import finish_clearing, free_tree
from shmstore.crashpoints import reach
from shmstore.descriptor import Descriptor
from shmstore.forked import here
from shmstore.lock import between_forks
from shmstore.lookup import DIRECTORY, check_space, converted, open_at
from shmstore.manifest import Manifest
from shmstore.namespace import Namespace

_NEW_BYTES = log.FIRST_SIZE + index.FIRST_HOMES * 3 * record.SLOT


def find_or_create_dag(space: Namespace, dag_id: str) -> Manifest:
    """Opens a DAG, creating it if need be. Several may try: all get the same one.

    Raises:
        StoreFull: No room for a new DAG; nothing was changed.
    """
    token = names.dag_token(dag_id)
    while True:
        found = open_at(space, token, dag_id)
        if found is not None:
            return found
        finish_clearing(space, token)
        between_forks(_create, space, token, dag_id)


def _create(space: Namespace, token: str, dag_id: str) -> None:
    """Builds a DAG aside and renames it to its place.

    Nothing has happened if another creator or a sweep was faster. If the process dies
    here, the half-built directory stays in ``trash``.
    """
    aside = names.scratch_name("new")
    files.check_small(space.trash, _NEW_BYTES)
    try:
        os.mkdir(aside, 0o700, dir_fd=space.trash.fd)
        try:
            try:
                directory = Descriptor.open(aside, DIRECTORY, within=space.trash.fd, inherit=False)
            except FileNotFoundError:
                return  # swept before it was ours
            reach("create:directory")
            # Held to the end: so a sweep tells it from what a dead creator left.
            if not files.claimed(directory, space.trash, aside):
                return
            reach("create:claimed")
            _build(space, directory, dag_id)
            reach("create:whole")
            space.ledger.still(files.rename, aside, space.trash, token, space.dags)
        except BaseException:
            if not here.lost:
                free_tree(space, aside)
            raise
    except TimeoutError:
        raise  # StoreBusy
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return  # another creator was faster
        check_space(space)
        raise converted(space, error) from error
    reach("create:renamed")
    doorbell.ring(space)


def _build(space: Namespace, directory: Descriptor, dag_id: str) -> None:
    generation = int.from_bytes(os.urandom(16), "little")
    raw = dag_id.encode()
    page = bytearray(
        record.build_page(
            {
                record.MAGIC: record.MANIFEST_MAGIC,
                record.VERSION: record.FORMAT_VERSION,
                record.GENERATION_LOW: generation & 0xFFFFFFFFFFFFFFFF,
                record.GENERATION_HIGH: generation >> 64,
                record.CREATED: time.time_ns(),
                record.ID_LENGTH: len(raw),
            },
            rest=raw,
        )
    )
    now = expiry.now_ns()
    for word, value in (
        (record.STATE, record.LIVE),
        (record.CURRENT, 1 << 32 | 1),
        (record.TOUCHED, now),
        (record.SWEPT, now),
    ):
        page[word * 8 : word * 8 + 8] = value.to_bytes(8, "little")
    nothing = np.empty(0, dtype=np.uint64)
    files.create_file(directory, names.LOCK)
    log.create(directory, 1, generation, [], 0, "create", space.ledger)
    homes = index.FIRST_HOMES
    index.create(directory, 1, generation, nothing, nothing, homes, "create", space.ledger)
    reserved = space.ledger.reserve(len(page))
    with space.ledger.new_file(directory, names.MANIFEST, reserved) as file:
        files.write_all(file, [bytes(page)])
