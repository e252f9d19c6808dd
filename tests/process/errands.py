"""What other processes are sent to do; importable, so that spawn can find it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import shmstore


def large(seed: int, size: int = 5000) -> np.ndarray[Any, Any]:
    """An array that gets a segment of its own, every element of which tells the seed."""
    return np.full(size, seed, dtype=np.int64)


def answer(store: shmstore.Store, dag_id: str, id: str) -> tuple[int, int]:
    """Gets an array, stores its sum and twice the array; returns the sum and the pid."""
    array = store.get(dag_id, id)
    total = int(array.sum())
    store.put(dag_id, f"{id}/sum", total, deps=[id])
    store.put(dag_id, f"{id}/twice", array * 2)
    return total, os.getpid()


def answer_in_order(order: tuple[shmstore.Store, str, str]) -> tuple[int, int]:
    """``answer`` for pools that map over one argument."""
    return answer(*order)


def total_of(ref: shmstore.Ref) -> int:
    """The sum of the array that a reference names."""
    return int(ref.get().sum())


def missing(ref: shmstore.Ref) -> None:
    """Gets a value that is not there: the error must reach the parent whole."""
    ref.get()
