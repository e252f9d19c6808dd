"""How many memory mappings this process may still make: vm.max_map_count.

At that limit not only ``mmap`` fails, but whatever needs memory of its own: malloc,
the interpreter, a thread. So the store stops mapping before it is reached, and leaves
the rest to them. The kernel tells nobody how many mappings a process has but by
listing them, so they are counted seldom: after half of what was left has been used, and
when a second has gone by, as others make mappings, too.
"""

from __future__ import annotations

from time import monotonic

_DEFAULT = 65_530
_AGAIN_S = 1.0

_most = 0  # 0: not read yet
_left = 0  # mappings to be made before they are counted again
_again_at = 0.0  # not counted again before, if there was none left
_recount_at = 0.0  # counted again then, however many are left


def may_map() -> bool:
    """True if one more mapping leaves enough for what is not the store's."""
    global _left
    _left -= 1
    return (_left >= 0 and monotonic() < _recount_at) or _count()


def _count() -> bool:
    global _most, _left, _again_at, _recount_at
    now = monotonic()
    if now < _again_at:
        return False
    if not _most:
        _most = _limit()
    left = _most - margin(_most) - counted()
    if left <= 0:
        _again_at = now + _AGAIN_S  # until then, what others give back is not seen
        return False
    _left = left // 2
    _recount_at = now + _AGAIN_S
    return True


def margin(most: int) -> int:
    """Mappings that are left to what is not the store's."""
    return min(most // 8, 4096)


def counted() -> int:
    """The mappings that this process has; 0 if the kernel does not tell."""
    count = 0
    try:
        with open("/proc/self/maps", "rb", buffering=0) as table:
            while piece := table.read(1 << 14):
                count += piece.count(b"\n")
    except MemoryError:
        return 1 << 30  # there is the answer
    except OSError:
        return 0
    return count


def _limit() -> int:
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _DEFAULT
