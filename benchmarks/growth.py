"""Does shared memory grow with the number of overwrites?"""

from __future__ import annotations

import os

import numpy as np

from benchmarks import place
from benchmarks.contest import Bench
from benchmarks.measuring import Answer
from benchmarks.peers import Shmstore

NAME = "growth"
TITLE = "shared memory over 100,000 overwrites of values of mixed size"

_IDS = 100
_LOOKS = 20
# Bytes of arrays, inline and in segments, small ones most often.
_SIZES = np.array([64, 512, 4 << 10, 15 << 10, 40 << 10, 150 << 10, 600 << 10])
_CHANCES = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.06, 0.04])


def run(bench: Bench) -> Answer:
    """Overwrites at random, and looks at intervals what the files take."""
    answer = Answer(NAME, TITLE)
    overwrites = 2_000 if bench.quick else 100_000
    root = os.path.join(bench.place, "growth")
    chance = np.random.default_rng(1)
    peer = Shmstore(root)
    values = [np.arange(size // 8) for size in _SIZES]
    current = np.zeros(_IDS, dtype=np.int64)
    taken: list[int] = []
    for number in range(overwrites):
        which = number % _IDS if number < _IDS else int(chance.integers(_IDS))
        kind = int(chance.choice(len(values), p=_CHANCES))
        peer.put(f"value {which}", values[kind])
        current[which] = _SIZES[kind]
        if (number + 1) % (overwrites // _LOOKS) == 0:
            taken.append(place.allocated(root))
            operation = "shared memory" if len(taken) > _LOOKS // 2 else "shared memory, first half"
            answer.add(operation, Shmstore.name, taken[-1] / 1e6, "MB")
            answer.add("values in it", Shmstore.name, float(current.sum()) / 1e6, "MB")
    peer.close()
    shown = ", ".join(f"{one / 1e6:.1f}" for one in taken)
    answer.notes += [
        f"{overwrites:,} overwrites of {_IDS} ids, {_SIZES[0]} bytes to {_SIZES[-1] >> 10} KiB",
        f"MB at {_LOOKS} intervals: {shown}",
    ]
    ratio = max(taken[_LOOKS // 2 :]) / max(taken[: _LOOKS // 2])
    answer.ask("flat: the second half's most at most 1.25 times the first half's", ratio, 1.25)
    return answer
