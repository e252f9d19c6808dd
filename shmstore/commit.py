"""The commit: the order of steps by which changes become visible, under the lock.

Everything that may fail or take long comes before the commit point, the store of
the log's ``tail``. From there to the end of a change there is no call into Python
code, so that neither a signal handler nor a fork in one can come between.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from shmstore import compaction, crashpoints, files, names, record, recovery
from shmstore.descriptor import Descriptor
from shmstore.errors import EntryExists, NotFound, StoreBusy
from shmstore.index import IndexDamagedError
from shmstore.log import RESERVE
from shmstore.manifest import Manifest, Superseded
from shmstore.record import (
    COUNTER,
    DELETE,
    INDEXED,
    LENGTH_WORD,
    NBYTES_WORD,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    TAIL,
    USED,
)
from shmstore.view import View


class Change(NamedTuple):
    """One record to be committed; all that may fail or take long has been done.

    Attributes:
        op: PUT or DELETE.
        codec: Number of the codec.
        flags: Record flags.
        key: The id's bytes.
        hashed: ``record.key_hash(key)``.
        meta_size: Bytes of meta in ``middle``.
        middle: ``record.middle(key, meta, payload)``.
        nbytes: Size of the payload.
        segment: Number of the segment that holds the payload, or 0.
        unnamed: The segment's file, still without a name, or None.
        created_ns: Unix time, nanoseconds.
    """

    op: int
    codec: int
    flags: int
    key: bytes
    hashed: int
    meta_size: int
    middle: bytes
    nbytes: int
    segment: int
    unnamed: Descriptor | None
    created_ns: int


def commit(manifest: Manifest, changes: Sequence[Change], overwrite: bool = True) -> None:
    """Makes changes visible to every process, all or none.

    Args:
        manifest: The DAG.
        changes: At least one, all PUT or all DELETE, with distinct keys.
        overwrite: If False, a PUT of a key that has a value is refused.

    Raises:
        EntryExists: As said. Nothing was changed.
        NotFound: A DELETE of a key without a value. Nothing was changed.
        StoreFull: No room. Nothing was changed.
        StoreBusy: The lock's holder did not let go.
        Superseded: The DAG was cleared or has lost its place.

    If the process dies here, the changes are all there or none is: they are once
    the log's ``tail`` has been stored. At most the segment of one value is left
    without a record.
    """
    freed: list[int] = []
    try:
        manifest.guarded(_commit, manifest, changes, overwrite, freed)
    finally:
        if crashpoints.hook is not None:
            crashpoints.reach("commit:unlocked")
        for segment in freed:
            files.unlink(manifest.directory, names.segment_name(segment))


def _commit(
    manifest: Manifest, changes: Sequence[Change], overwrite: bool, freed: list[int]
) -> None:
    hook = crashpoints.hook
    if hook is not None:
        hook("commit:locked")
    view = recovery.settled(manifest, freed)
    try:
        view = _make_room(manifest, view, changes)
        planned, replaced, end = _plan(manifest, view, changes, overwrite)
    except IndexDamagedError:
        view = recovery.rebuild_index(manifest)
        view = _make_room(manifest, view, changes)
        planned, replaced, end = _plan(manifest, view, changes, overwrite)

    named: list[int] = []
    lock = manifest.lock
    log = view.log
    words, memory = log.words, log.view
    index = view.index
    slots, head, control = index.slots, index.head, manifest.control
    try:
        for change in changes:
            if change.unnamed is not None:
                _name_segment(manifest, change, named)
        if hook is not None:
            hook("commit:named")
        for _, _, offset, checksum, body, _, _ in planned:
            if lock.lost:
                raise _forked_inside(manifest)
            memory[offset + 8 : offset + 8 + len(body)] = body
            words[offset >> 3] = checksum
        if hook is not None:
            hook("commit:written")
        if lock.lost:
            raise _forked_inside(manifest)
    except BaseException:
        for segment in named:
            files.unlink(manifest.directory, names.segment_name(segment))
        raise

    words[TAIL] = end  # the commit point
    freed += replaced
    if hook is not None:
        hook("commit:tail")
    for planned_at, old, _, _, _, hashed, word in planned:
        at = planned_at
        if lock.lost:
            raise _forked_inside(manifest)
        if not old:
            while slots[at + 1]:  # taken by an earlier change of this commit
                at += 2
            slots[at] = hashed
            if hook is not None:
                hook("commit:slot-hash")
            head[USED] += 1
        slots[at + 1] = word
        if hook is not None:
            hook("commit:slot")
    words[INDEXED] = end
    if hook is not None:
        hook("commit:indexed")
    control[COUNTER] += len(changes)
    if hook is not None:
        hook("commit:counted")
    compaction.when_worth_it(manifest, view)


class _Planned(NamedTuple):
    at: int  # the slot's first word
    old: int  # the offset that the slot holds now, 0 if it is unused
    offset: int  # where the record comes to lie
    checksum: int
    body: bytes
    hashed: int
    word: int  # the slot's new second word


def _make_room(manifest: Manifest, view: View, changes: Sequence[Change]) -> View:
    """Extends the log and grows the index, so that nothing later fails for want of it."""
    need = view.log.words[TAIL]
    for change in changes:
        need += SMALLEST + len(change.middle)
    if changes[0].op == PUT:
        need += RESERVE
    if need > view.log.size:
        view.log = view.log.extend(manifest.directory, need)
    index = view.index
    if (index.head[USED] + len(changes)) * 3 > (index.mask + 1) * 2 and changes[0].op == PUT:
        view = recovery.grow(manifest, view, len(changes))
    return view


def _plan(
    manifest: Manifest, view: View, changes: Sequence[Change], overwrite: bool
) -> tuple[list[_Planned], list[int], int]:
    """What to write where. Changes nothing, so it may refuse.

    Returns:
        The records and their slots, the segments that are replaced, and the new
        tail.
    """
    log = view.log
    words = log.words
    offset = words[TAIL]
    sequence, live, nbytes, dead = log.totals()
    planned: list[_Planned] = []
    replaced: list[int] = []
    for op, codec, flags, key, hashed, meta_size, middle, size, segment, _, created in changes:
        at, old = view.locate(key, hashed)
        if old and (words[(old >> 3) + LENGTH_WORD] >> 32) & 0xFF == PUT:
            if op == PUT:
                if not overwrite:
                    raise EntryExists(manifest.dag_id, key.decode())
            else:
                live -= 1
            nbytes -= words[(old >> 3) + NBYTES_WORD]
            dead += words[(old >> 3) + LENGTH_WORD] & 0xFFFFFFFF
            if old_segment := words[(old >> 3) + SEGMENT_WORD]:
                replaced.append(old_segment)
        elif op == DELETE:
            raise NotFound(manifest.dag_id, key.decode())
        else:
            live += 1
        length = SMALLEST + len(middle)
        nbytes += size
        if op == DELETE:
            dead += length
        sequence += 1
        checksum, body = record.encode(
            op,
            codec,
            flags,
            hashed,
            created,
            size,
            segment,
            len(key),
            meta_size,
            middle,
            (sequence, live, nbytes, dead),
            log.seed,
        )
        planned.append(
            _Planned(at, old, offset, checksum, body, hashed, record.slot_word(offset, hashed))
        )
        offset += length
    return planned, replaced, offset


def _name_segment(manifest: Manifest, change: Change, named: list[int]) -> None:
    """Gives a written segment its name. A dead writer's is an orphan from here on.

    The memory of a writer killed before this is freed by the kernel.
    """
    directory = manifest.directory
    if not directory.intact():
        raise Superseded
    assert change.unnamed is not None
    if not change.unnamed.ours():
        raise OSError(errno.EBADF, "the descriptor of a value being stored was closed")
    named.append(change.segment)
    os.link(
        f"/proc/self/fd/{change.unnamed.fd}",
        names.segment_name(change.segment),
        dst_dir_fd=directory.fd,
        follow_symlinks=True,
    )


def _forked_inside(manifest: Manifest) -> StoreBusy:
    return StoreBusy(manifest.lock.what, 0.0, "the parent, which forked during a put")
