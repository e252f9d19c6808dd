"""The doorbell of a DAG: sleeping until something is committed, and waking who sleeps.

A waiter sleeps in the kernel (futex) on the low half of the manifest's commit counter.
Before it does, it leaves a deadline in the page, up to which committers are to wake;
one that finds the deadline over, or none, pays one word read. Nothing is counted and
nothing is taken back, so a waiter may be killed at any time: its deadline runs out.

No wake-up is lost. A waiter reads the counter, leaves its deadline, looks for what it
waits for, and only then sleeps, unless the counter has changed. A committer raises the
counter, lets its lock go, a system call, and only then reads the deadline. So either the
committer sees the deadline or the kernel sees the new counter. A committer killed in
between wakes nobody: so a sleep ends after a second at the latest, and its sleeper looks.

A namespace's node follows all its DAGs, and sleeps at one bell in the namespace's page.
It leaves a mark that it sleeps, looks at all counters once more, and sleeps. The committer
that sees the mark takes it away and rings: so while the node is awake, nobody rings.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shmstore.crashpoints import reach
from shmstore.namespace import BELL, NODE_SLEEPS
from shmstore.record import COUNTER, WAIT_DEADLINE

if TYPE_CHECKING:
    from shmstore.manifest import Manifest
    from shmstore.namespace import Namespace

#: The longest sleep, seconds. What nobody rings for is noticed after that.
LONGEST_S = 1.0
#: How far ahead a waiter's deadline lies when it is left.
AHEAD_NS = 4_000_000_000
# It is left anew when less than this remains; more than the longest sleep.
_ENOUGH_NS = 2_000_000_000

_WAIT, _WAKE, _EVERYONE = 0, 1, 0x7FFFFFFF
#: The number of the system call ``futex`` with 64-bit times, by machine.
FUTEX: Final = {
    "x86_64": 202,
    "aarch64": 98,
    "riscv64": 98,
    "loongarch64": 98,
    "ppc64le": 221,
}
# Between two looks at the counter where there is no futex.
_NAP_S = 0.005
_EXPECTED: Final = frozenset((0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT))

#: Takes a page's words, the number of one of them, the operation, its value, and the
#: longest sleep in seconds or None; returns an errno.
_Call = Callable[[memoryview, int, int, int, "float | None"], int]
_futex: _Call | None = None


def listen(manifest: Manifest) -> int:
    """Asks committers to ring from now on; returns the counter, to be given to ``wait``.

    What was committed before the counter was read is found by a look after this call;
    what is committed later ends the ``wait``.

    If the process dies here, committers ring in vain for some seconds.
    """
    control = manifest.control
    seen = control[COUNTER]
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if control[WAIT_DEADLINE] < now + _ENOUGH_NS:
        # Only ever raised: of two that do so at once, the later deadline must stay.
        # Nothing that a forked child could do twice: it may raise it as well.
        while control[WAIT_DEADLINE] < now + AHEAD_NS:
            control[WAIT_DEADLINE] = now + AHEAD_NS
    reach("wait:announced")
    return seen


def wait(manifest: Manifest, seen: int, timeout_s: float) -> None:
    """Sleeps until the counter is no longer ``seen``, or for ``timeout_s`` at most.

    Returns early for no reason at times, and at once for a signal.
    """
    _sleep(manifest.control, COUNTER, seen, min(timeout_s, LONGEST_S))


def _sleep(page: memoryview, word: int, seen: int, timeout_s: float) -> None:
    if timeout_s <= 0:
        return
    if _call(page, word, _WAIT, seen & 0xFFFFFFFF, timeout_s) not in _EXPECTED:
        deadline = time.monotonic() + timeout_s
        while page[word] == seen and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_S))


def wake(manifest: Manifest) -> None:
    """Wakes all who sleep, of every process, if anybody waits; and the node, if it sleeps.

    Callers look at the deadline themselves, first: that nobody has ever waited is
    common, and a call is dear. To be called after the lock has been let go.
    """
    control = manifest.control
    if control[WAIT_DEADLINE] > time.clock_gettime_ns(time.CLOCK_BOOTTIME):
        _call(control, COUNTER, _WAKE, _EVERYONE, None)
    ring(manifest.space)


# --- The node's bell --------------------------------------------------------------------


def attend(manifest: Manifest) -> None:
    """Has the committers of a DAG look whether the node sleeps, from now on.

    They come to that only if there is a deadline, be it over.
    """
    if not manifest.control[WAIT_DEADLINE]:
        listen(manifest)


def ring(space: Namespace) -> None:
    """Wakes the namespace's node, if it sleeps.

    If the process dies here, the node looks a second later.
    """
    page = space.control
    if page[NODE_SLEEPS]:
        # Before the bell: the mark that the node leaves after it must not be taken away.
        page[NODE_SLEEPS] = 0
        # Never what it was before, also of two that ring at once.
        page[BELL] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        _call(page, BELL, _WAKE, _EVERYONE, None)


def mark_asleep(space: Namespace) -> int:
    """Has committers ring; returns what ``sleep`` takes. The node then looks once more."""
    page = space.control
    seen = page[BELL]
    page[NODE_SLEEPS] = 1
    return seen


def mark_awake(space: Namespace) -> None:
    """Takes the mark away."""
    space.control[NODE_SLEEPS] = 0


def sleep(space: Namespace, seen: int, timeout_s: float) -> bool:
    """Sleeps until somebody rings, or for ``timeout_s`` at most; whether somebody did."""
    _sleep(space.control, BELL, seen, timeout_s)
    return bool(space.control[BELL] != seen)


def _call(page: memoryview, word: int, operation: int, value: int, timeout_s: float | None) -> int:
    global _futex
    call = _futex
    if call is None:
        call = _futex = _find_futex()
    return call(page, word, operation, value, timeout_s)


def _find_futex() -> _Call:
    """The system call, or what stands for it where there is none."""
    number = FUTEX.get(os.uname().machine)
    try:
        import ctypes  # on first use: a store whose values nobody waits for needs it not
    except ImportError:
        return _no_futex
    if number is None or ctypes.sizeof(ctypes.c_long) != 8:
        return _no_futex

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    half, get_errno = ctypes.c_uint32, ctypes.get_errno
    c_long, address_of = ctypes.c_long, ctypes.addressof
    times = ctypes.c_int64 * 2
    syscall.argtypes = (c_long, ctypes.c_void_p, ctypes.c_int, half, ctypes.c_void_p)

    def futex(
        page: memoryview, word: int, operation: int, value: int, timeout_s: float | None
    ) -> int:
        # Shared, not private: the sleepers are of other processes.
        counter = half.from_buffer(page, word * 8)
        longest = None
        if timeout_s is not None:
            nanoseconds = int(timeout_s * 1e9)
            longest = times(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        if syscall(number, address_of(counter), operation, value, longest) >= 0:
            return 0
        return get_errno()

    return futex


def _no_futex(
    page: memoryview, word: int, operation: int, value: int, timeout_s: float | None
) -> int:
    return errno.ENOSYS
