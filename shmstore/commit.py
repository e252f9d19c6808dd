"""The commit: the order of steps by which changes become visible, under the lock.

Everything that may fail or take long comes before the commit point, the store of
the log's ``tail``. From there to the end of a change there is no call into Python
code, so that neither a signal handler nor a fork in one can come between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest as checksum

from shmstore import compaction, crashpoints, doorbell, recovery
from shmstore.descriptor import Descriptor
from shmstore.errors import CorruptValue, EntryExists, NotFound
from shmstore.forked import Again, here, refused
from shmstore.index import IndexDamagedError, IndexFullError
from shmstore.lock import LockLost
from shmstore.log import RESERVE
from shmstore.manifest import Manifest, Superseded
from shmstore.record import (
    COUNTER,
    CURRENT,
    FLAGS_SHIFT,
    INDEXED,
    LENGTH_WORD,
    LIVE,
    NBYTES_WORD,
    PAGE,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    SPILLED,
    STATE,
    TAG,
    TAIL,
    TOTALS_SIZE,
    USED,
    WAIT_DEADLINE,
    Record,
    pack_head,
    pack_totals,
    unpack_totals,
)
from shmstore.retired import Retired, retire, segment_place
from shmstore.room import mend, with_room
from shmstore.writing import Written

_MENDINGS = 4  # tries of one commit

#: One record to be committed, all that may fail or take long having been done: op
#: (PUT or DELETE), codec, flags, key (the id's bytes), hash of the key, bytes of meta
#: in the middle, middle (as of ``record.middle``), size of the payload, number of the
#: segment that holds it or 0, the written segment, still without its name, or None, and
#: the time (Unix, nanoseconds). A bare tuple: every put makes one.
Change: TypeAlias = tuple[int, int, int, bytes, int, int, bytes, int, int, Written | None, int]


# Places in a Change.
OP: Final = 0
FLAGS: Final = 2
KEY: Final = 3
MIDDLE: Final = 6
SEGMENT: Final = 8
WRITTEN: Final = 9


class Replaced(Again):
    """The value is no longer the one that the change was decided for."""


def commit(
    manifest: Manifest,
    changes: Sequence[Change],
    overwrite: bool = True,
    judged: Record | None = None,
) -> None:
    """Makes changes visible to every process, all or none.

    Args:
        manifest: The DAG.
        changes: At least one, all PUT or all DELETE, with distinct keys.
        overwrite: If False, a PUT of a key that has a value is refused.
        judged: The record that the single change was decided for; if it is no
            longer its key's newest one, nothing happens.

    Raises:
        Replaced: See ``judged``. Nothing was changed.
        EntryExists: As said. Nothing was changed.
        NotFound: A DELETE of a key without a value. Nothing was changed.
        StoreFull: No room. Nothing was changed.
        StoreBusy: The lock's holder did not let go.
        Superseded: The DAG was cleared or has lost its place.

    If the process dies here, the changes are all there or none is: they are once
    the log's ``tail`` has been stored. At most this commit's segments are left without
    records.
    """
    freed: list[Retired] = []
    try:
        for _ in range(_MENDINGS):
            try:
                manifest.lock.run(_commit, (manifest, changes, overwrite, judged, freed))
                break
            except (IndexDamagedError, IndexFullError) as error:
                # Nothing has been changed.
                manifest.guarded(mend, manifest, error, len(changes))
        else:
            raise CorruptValue("a mended index is damaged again", "its index", manifest.dag_id)
    except LockLost:
        raise Superseded from None
    except TimeoutError:
        raise
    except OSError as error:
        raise manifest.converted(error) from error
    finally:
        if crashpoints.hook is not None:
            crashpoints.reach("commit:unlocked")
        # Read after the lock was let go, not before: see ``doorbell``.
        if manifest.control[WAIT_DEADLINE]:
            doorbell.wake(manifest)
        if freed:
            retire(manifest, freed)


def _commit(
    order: tuple[Manifest, Sequence[Change], bool, Record | None, list[Retired]],
) -> None:
    """Under the lock. One long function: calls are what a put's time goes into."""
    manifest, changes, overwrite, judged, freed = order
    hook = crashpoints.hook
    if hook is not None:
        hook("commit:locked")
    control = manifest.control
    view = manifest.view
    if (
        view is None
        or control[STATE] != LIVE
        or control[CURRENT] != view.current
        or (tail := view.log.words[TAIL]) != view.log.words[INDEXED]
        or not PAGE <= tail <= view.log.size
        or tail & 7
    ):
        view = recovery.settled(manifest, freed)
        tail = view.log.words[TAIL]

    # 1. Room, so that nothing below fails for want of it.
    putting = changes[0][OP] == PUT
    # What frees memory, deletes and what moves a value elsewhere, may use what is kept.
    growing = putting and (judged is None or not changes[0][FLAGS] & SPILLED)
    size = SMALLEST * len(changes) + (RESERVE if growing else 0)
    for change in changes:
        size += len(change[MIDDLE])
    # By a name of its own: readers of this process may set view.log meanwhile.
    log, index = view.log, view.index
    if tail + size > log.size or (growing and index.head[USED] + len(changes) > index.limit):
        del view, log, index  # else they would keep what a compaction is to free
        view, log = with_room(manifest, size, len(changes) if growing else 0)
        index = view.index
        tail = log.words[TAIL]

    # 2. The records come to lie behind the tail, where they do not count yet, so
    # this may refuse at any of them.
    words, memory, seed = log.words, log.view, log.seed
    offset = tail
    sequence = live = live_bytes = dead = 0
    if offset > PAGE:
        sequence, live, live_bytes, dead = unpack_totals(log.map, offset - TOTALS_SIZE)
    slotted: list[tuple[int, int, int, int]] = []
    taken: set[int] = set()
    replaced: list[Retired] = []
    slots = index.slots
    unnamed = False
    for op, codec, flags, key, hashed, meta_size, middle, nbytes, segment, written, now in changes:
        at, old = view.locate(log, key, hashed)
        if not old:
            while at in taken or slots[at + 1]:  # by an earlier change of this commit
                at += 2
            if at >= index.last:
                raise IndexFullError
            taken.add(at)
        if judged is not None and (not old or log.read(old) != judged):
            raise Replaced
        head = words[(old >> 3) + LENGTH_WORD] if old else 0
        if head >> 32 & 0xFF == PUT:
            if not putting:
                live = max(live - 1, 0)
            elif not overwrite:
                raise EntryExists(manifest.dag_id, key.decode())
            old_bytes = words[(old >> 3) + NBYTES_WORD]
            live_bytes = max(live_bytes - old_bytes, 0)
            dead += head & 0xFFFFFFFF
            if old_segment := words[(old >> 3) + SEGMENT_WORD]:
                replaced.append((old_segment, old_bytes, head >> FLAGS_SHIFT))
        elif putting:
            live += 1
        else:
            raise NotFound(manifest.dag_id, key.decode())
        length = SMALLEST + len(middle)
        sequence += 1
        live_bytes += nbytes
        if not putting:
            dead += length
        if written is not None:
            unnamed = True
        end = offset + length
        body = (
            pack_head(
                length, op, codec, flags, hashed, now, nbytes, segment, len(key), 0, meta_size
            )
            + middle
            + pack_totals(sequence, live, live_bytes, dead)
        )
        check = checksum(body, seed)
        if here.lost:
            raise refused()
        memory[offset + 8 : end] = body
        words[offset >> 3] = check
        slotted.append((at, old, hashed, offset << 16 | (offset ^ hashed) % TAG))
        offset = end
    if hook is not None:
        hook("commit:written")
    if unnamed:
        _name_segments(manifest, changes)
    if hook is not None:
        hook("commit:named")
    if here.lost:
        raise refused()

    # 3. The commit point. From here on no call into Python comes between, unless
    # a test has set the hook: no handler of a signal may run half-way, or fork.
    words[TAIL] = offset
    freed += replaced
    if hook is not None:
        hook("commit:tail")
    # 4. The index follows.
    for at, old, hashed, word in slotted:
        if here.lost:
            raise refused()
        if not old:
            slots[at] = hashed
            if hook is not None:
                hook("commit:slot-hash")
                if here.lost:  # forked by the hook
                    raise refused()
            index.head[USED] += 1
        slots[at + 1] = word
        if hook is not None:
            hook("commit:slot")
    if here.lost:
        raise refused()
    words[INDEXED] = offset
    if hook is not None:
        hook("commit:indexed")
    control[COUNTER] += 1
    if hook is not None:
        hook("commit:counted")
    if dead > compaction.FLOOR:
        compaction.when_worth_it(manifest, view, log, dead)


def _name_segments(manifest: Manifest, changes: Sequence[Change]) -> None:
    """Gives written segments their names. A dead writer's are orphans from here on."""
    directory = manifest.directory
    if not directory.intact():
        raise Superseded
    named: list[tuple[Written, Descriptor, str]] = []
    try:
        for change in changes:
            written = change[WRITTEN]
            if written is not None:
                place, name = segment_place(manifest, change[SEGMENT], change[FLAGS])
                named.append((written, place, name))
                written.name(place, name)
        for written, _, _ in named:
            written.open_to_readers()
    except BaseException:
        if not here.lost:
            for written, place, name in named:
                written.take_back(place, name)
        raise
