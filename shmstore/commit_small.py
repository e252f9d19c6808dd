"""The commonest commit by far: one small plain value, with everything as it should be.

The same steps in the same order as in ``commit``, spelled out for one record that lies
in the log, without the loops and calls that several records and segments need: that
makes a put of a small dict a fifth faster. Whatever is not the common case is left to
``commit`` before anything has been changed. A change to the order of steps is to be
made in both.
"""

from __future__ import annotations

from time import time_ns

from xxhash import xxh3_64_intdigest as checksum

from shmstore import compaction, crashpoints, doorbell
from shmstore.codecs.plain import PLAIN
from shmstore.entry import INLINE, Entry
from shmstore.forked import here, refused
from shmstore.lock import LockLost
from shmstore.log import RESERVE
from shmstore.manifest import Manifest
from shmstore.provenance import bare_metas, build_meta, this_process
from shmstore.record import (
    COUNTER,
    CURRENT,
    EMPTY,
    FLAGS_SHIFT,
    HEAD_SIZE,
    INDEXED,
    KEY_SIZE_WORD,
    LENGTH_WORD,
    LIVE,
    NBYTES_WORD,
    PADS,
    PAGE,
    PUT,
    SEGMENT_WORD,
    SMALLEST,
    STATE,
    TAG,
    TAIL,
    TOTALS_SIZE,
    USED,
    WAIT_DEADLINE,
    key_hash,
    pack_head,
    pack_totals,
    unpack_totals,
)
from shmstore.retired import Retired, retire

_new = tuple.__new__


def put_small(
    manifest: Manifest, dag_id: str, id: str, key: bytes, kind: type, payload: bytes
) -> Entry | None:
    """Stores a small plain value without deps, replacing what is there.

    Args:
        manifest: The DAG.
        dag_id: Its name.
        id: The value's id.
        key: The id's bytes.
        kind: The value's type.
        payload: The value, pickled.

    Returns:
        Its entry; None if this is not the common case after all, and nothing was
        changed.

    Raises:
        StoreBusy: The lock's holder did not let go; nothing was changed.

    If the process dies here, the value is whole or absent.
    """
    meta = bare_metas.get(kind) or build_meta(b"", kind)
    nbytes = len(payload)
    now = time_ns()
    middle = key + meta + payload + PADS[-(len(key) + len(meta) + nbytes) & 7]
    freed: list[Retired] = []
    try:
        done = manifest.lock.run(
            _commit, (manifest, key, key_hash(key), len(meta), middle, nbytes, now, freed)
        )
    except TimeoutError:
        raise
    except (LockLost, OSError, IndexError):
        return None
    finally:
        if crashpoints.hook is not None:
            crashpoints.reach("commit:unlocked")
        if manifest.control[WAIT_DEADLINE]:
            doorbell.wake(manifest)
        if freed:
            retire(manifest, freed)
    if not done:
        return None
    return _new(
        Entry,
        (dag_id, id, "plain", kind.__name__, nbytes, INLINE, now, this_process(), None, ()),
    )


def _commit(
    order: tuple[Manifest, bytes, int, int, bytes, int, int, list[Retired]],
) -> bool:
    """Under the lock. The comments on the steps are in ``commit``."""
    manifest, key, hashed, meta_size, middle, nbytes, now, freed = order
    view = manifest.view
    if view is None:
        return False
    hook = crashpoints.hook
    if hook is not None:
        hook("commit:locked")
    control = manifest.control
    log, index = view.log, view.index
    words = log.words
    offset = words[TAIL]
    length = SMALLEST + len(middle)
    end = offset + length
    if (
        control[STATE] != LIVE
        or control[CURRENT] != view.current
        or offset != words[INDEXED]
        or end + RESERVE > log.size
        or index.head[USED] >= index.limit
        or offset <= PAGE
    ):
        return False

    # What is there now. A miss is not verified as ``locate`` does: at worst a damaged
    # slot goes on hiding an older record of the key, which this one replaces anyway.
    slots = index.slots
    at = (hashed & index.mask) * 2
    while word := slots[at + 1]:
        if slots[at] == hashed:
            break
        at += 2
    old = word >> 16
    old_words = old >> 3
    key_size = len(key)
    if word:
        start = old + HEAD_SIZE
        if (
            (old ^ hashed) % TAG != word & 0xFFFF
            or log.map[start : start + key_size] != key
            or words[old_words + KEY_SIZE_WORD] & 0xFFFF != key_size
        ):
            return False
    elif slots[at] != EMPTY or at >= index.last:
        return False
    sequence, live, live_bytes, dead = unpack_totals(log.map, offset - TOTALS_SIZE)
    head = words[old_words + LENGTH_WORD] if old else 0
    segment = old_bytes = 0
    if head >> 32 & 0xFF == PUT:
        old_bytes = words[old_words + NBYTES_WORD]
        live_bytes = live_bytes - old_bytes if old_bytes <= live_bytes else 0
        dead += head & 0xFFFFFFFF
        segment = words[old_words + SEGMENT_WORD]
    else:
        live += 1

    body = (
        pack_head(length, PUT, PLAIN, 0, hashed, now, nbytes, 0, key_size, 0, meta_size)
        + middle
        + pack_totals(sequence + 1, live, live_bytes + nbytes, dead)
    )
    check = checksum(body, log.seed)
    if here.lost:
        raise refused()
    log.view[offset + 8 : end] = body
    words[offset >> 3] = check
    if hook is not None:
        hook("commit:written")
    if here.lost:
        raise refused()

    words[TAIL] = end  # the commit point
    if segment:
        freed += ((segment, old_bytes, head >> FLAGS_SHIFT),)
    if hook is not None:
        hook("commit:tail")
    if here.lost:
        raise refused()
    if not old:
        slots[at] = hashed
        if hook is not None:
            hook("commit:slot-hash")
            if here.lost:  # forked by the hook
                raise refused()
        index.head[USED] += 1
    slots[at + 1] = offset << 16 | (offset ^ hashed) % TAG
    if hook is not None:
        hook("commit:slot")
        if here.lost:
            raise refused()
    words[INDEXED] = end
    if hook is not None:
        hook("commit:indexed")
    control[COUNTER] += 1
    if hook is not None:
        hook("commit:counted")
    if dead > compaction.FLOOR:
        compaction.when_worth_it(manifest, view, log, dead)
    return True
