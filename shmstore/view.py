"""What one value of ``current`` names: a log and the index over it.

Finding a key in both, without a lock and under it. A reader without the lock may
meet a writer at work; what then looks odd is called doubtful and looked at again
under the lock, where whatever still looks odd is damage.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, Literal

from shmstore import record
from shmstore.descriptor import Descriptor
from shmstore.index import Index, IndexDamagedError
from shmstore.log import Log
from shmstore.record import EMPTY, HASH_WORD, HEAD_SIZE, KEY_SIZE_WORD, PUT, TAG, Record


class Doubt(Enum):
    """The answer of a probe that must be asked again under the lock."""

    DOUBTFUL = 0


DOUBTFUL: Final = Doubt.DOUBTFUL


class View:
    """The files in use as of one value of ``current``.

    Attributes:
        current: That value.
        log: The mapped log; replaced by a longer mapping of the same file.
        index: The mapped index.
    """

    __slots__ = ("_directory", "current", "index", "log")

    def __init__(self, directory: Descriptor, current: int, log: Log, index: Index) -> None:
        self._directory = directory
        self.current = current
        self.log = log
        self.index = index

    def cover(self, end: int) -> Log:
        """The log, mapped up to ``end`` at least, if it was extended by others.

        What is returned is to be used: a thread that looked earlier may set
        ``self.log`` to a shorter mapping at any time.

        Raises:
            FileNotFoundError: The log has been replaced.
        """
        log = self.log
        if end > log.size:
            log = self.log = log.refresh(self._directory)
        return log

    def probe(
        self, key: bytes, hashed: int, pending: Collection[int] = ()
    ) -> Record | Literal[Doubt.DOUBTFUL] | None:
        """The live record that the index has for a key, None, or DOUBTFUL. Needs no lock.

        Args:
            key: The key.
            hashed: Its hash.
            pending: Hashes of committed records that the index may lack: a writer that was
                stopped may have stored one of them in a slot, and nothing else yet.
        """
        index = self.index
        slots = index.slots
        first = at = (hashed & index.mask) * 2
        try:
            while word := slots[at + 1]:
                if slots[at] == hashed:
                    offset = word >> 16
                    if (offset ^ hashed) % TAG != word & 0xFFFF:
                        return DOUBTFUL
                    found = self.cover(offset + 1).read(offset)
                    if found is None:
                        return DOUBTFUL
                    if found.key == key:
                        return found if found.op == PUT else None
                    if found.key_hash != hashed:
                        return DOUBTFUL
                at += 2
            unused = slots[at]
            if unused != EMPTY and unused not in pending:
                return DOUBTFUL
            if not self._sound(self.log, first, at):
                return DOUBTFUL
        except (IndexError, FileNotFoundError):
            return DOUBTFUL
        return None

    def locate(self, log: Log, key: bytes, hashed: int) -> tuple[int, int]:
        """The slot of a key and the offset in it, 0 for a slot to be used. Under the lock.

        ``log`` is a mapping of our log up to its tail, which threads of this process
        that only read do not replace by a shorter one.

        A record that fails its check is taken for the key's if its hash is: a put
        then replaces it.

        Raises:
            IndexDamagedError: As its name says.
        """
        index = self.index
        slots = index.slots
        first = at = (hashed & index.mask) * 2
        try:
            while word := slots[at + 1]:
                if slots[at] == hashed:
                    offset = word >> 16
                    if (offset ^ hashed) % TAG != word & 0xFFFF:
                        raise IndexDamagedError
                    start = offset + HEAD_SIZE
                    if (
                        log.map[start : start + len(key)] == key
                        and log.words[(offset >> 3) + KEY_SIZE_WORD] & 0xFFFF == len(key)
                    ) or log.read(offset) is None:
                        return at, offset
                at += 2
            # A dead writer may have stored its hash there and nothing else.
            if slots[at] not in (EMPTY, hashed):
                raise IndexDamagedError
        except IndexError:
            raise IndexDamagedError from None
        if not self._sound(log, first, at):
            raise IndexDamagedError
        return at, 0

    def _sound(self, log: Log, first: int, end: int) -> bool:
        """Whether the slots that a miss passed over agree with the log.

        A flipped bit in one of them might hide the key that was looked for.
        """
        slots = self.index.slots
        for at in range(first, end, 2):
            hashed = slots[at]
            offset = record.slot_offset(slots[at + 1], hashed)
            if offset >= log.size:
                log = self.cover(offset + 1)
            if not log.length_at(offset) or log.words[(offset >> 3) + HASH_WORD] != hashed:
                return False
        return True
