"""Sets of words in arrays, by sorting.

What numpy has for it imports more of numpy when it is first called. A child that is forked
by one thread while another imports would wait for ever for the same import. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def union(first: Words, second: Words) -> Words:
    """What is in either, in rising order, each once."""
    both = np.concatenate((first, second))
    both.sort()
    once = np.ones(len(both), dtype=np.bool_)
    once[1:] = both[1:] != both[:-1]
    return both[once]


def among(words: Words, others: Words) -> NDArray[np.bool_]:
    """Which words are among others."""
    if not len(others):
        return np.zeros(len(words), dtype=np.bool_)
    others = np.sort(others)
    at = np.minimum(np.searchsorted(others, words), len(others) - 1)
    found: NDArray[np.bool_] = others[at] == words
    return found
