"""A long and lossy wire: ``python -m tests.cluster.wire NEAR FAR DELAY LOSS``.

Makes two tap devices in the network namespace that it is started in, and carries frames from
each to the other, DELAY seconds later, but for the share LOSS of them. It is what ``tc netem``
does, for kernels that were built without. Says "ready"; the devices end with the process.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_LARGEST_FRAME = 1 << 16
# As a router's: what does not fit is lost.
_MOST_FRAMES = 1000


def _tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return fd


def _carry(ends: tuple[int, int], delay_s: float, loss: float) -> None:
    """Carries frames, forever."""
    chance = random.Random(7)
    under_way: deque[tuple[float, int, bytes]] = deque()  # in the order of their coming
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select(ends, (), (), wait_s)
        for end in ready:
            frame = os.read(end, _LARGEST_FRAME)
            if chance.random() >= loss and len(under_way) < _MOST_FRAMES:
                other = ends[1] if end == ends[0] else ends[0]
                under_way.append((time.monotonic() + delay_s, other, frame))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, end, frame = under_way.popleft()
            try:
                os.write(end, frame)
            except OSError:
                pass  # its device is down, or full: lost


if __name__ == "__main__":
    near, far, delay, loss = sys.argv[1:]
    taps = _tap(near), _tap(far)
    print("ready", flush=True)
    _carry(taps, float(delay), float(loss))
