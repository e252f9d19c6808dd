"""Where segments are, and what becomes of those that no record names any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from shmstore import names, pool, spill
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreError
from shmstore.forked import here
from shmstore.manifest import Manifest
from shmstore.record import SPILLED

#: A segment's number, the size of its payload, and the flags of its record.
Retired: TypeAlias = tuple[int, int, int]


def segment_place(manifest: Manifest, number: int, flags: int) -> tuple[Descriptor, str]:
    """The directory and the name of a segment.

    Raises:
        UnusableRoot: The spill directory cannot be reached.
    """
    directory, spilled = segment_directory(manifest, flags)
    return directory, names.segment_name(number, spilled)


def segment_directory(manifest: Manifest, flags: int) -> tuple[Descriptor, bool]:
    """Where the segment of a record with these flags is, and whether that is on disk.

    Raises:
        UnusableRoot: The spill directory cannot be reached.
    """
    if flags & SPILLED:
        return spill.dag_directory(manifest), True
    return manifest.directory, False


def retire(manifest: Manifest, segments: Iterable[Retired]) -> None:
    """Frees segments whose records are dead, or keeps them for reuse. Not under the lock.

    If the process dies before it, they are orphans.
    """
    for number, nbytes, flags in segments:
        try:
            if flags & SPILLED:
                spill.remove(manifest, number)
            else:
                pool.retire(manifest.space, manifest.directory, names.segment_name(number), nbytes)
        except (OSError, StoreError):
            # The change stands. Out of descriptors, say: an orphan, which a sweep finds.
            if here.lost:
                raise
