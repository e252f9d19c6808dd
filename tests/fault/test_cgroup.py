"""A real memory cgroup: a put past its limit is an exception, not a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import cgroup, mounts
from tests import reading_files
from tests.fault.killing import Child, call

_MIB = 1 << 20
_LIMIT = 96 * _MIB


@pytest.fixture
def bounded() -> Iterator[Path]:
    """A memory cgroup with a limit, made where this machine lets us."""
    errors: list[str] = []
    for mount in mounts.read():
        first = mount.kind == "cgroup" and "memory" in mount.options
        if not first and mount.kind != "cgroup2":
            continue
        made = Path(mount.point, f"shmstore-test-{os.getpid()}")
        limit = made / ("memory.limit_in_bytes" if first else "memory.max")
        try:
            made.mkdir()
        except OSError as error:
            errors.append(str(error))
            continue
        try:
            limit.write_text(str(_LIMIT))
            yield made
        except OSError as error:
            errors.append(str(error))
            continue
        finally:
            made.rmdir()
        return
    # The one test here that needs more of a machine than a kernel and namespaces.
    pytest.skip(f"this machine lets us make no memory cgroup: {'; '.join(errors) or 'none'}")


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _fill(group: Path, root: str, nbytes: int) -> tuple[int, str]:
    """Puts values of a size until it is told that there is no more room."""
    _enter(group)
    store = shmstore.Store(root)
    kept = 0
    while True:
        try:
            store.put("dag", f"id-{kept}", np.full(nbytes // 8, kept))
        except shmstore.StoreFull as full:
            what = full.what
            break
        kept += 1
    for n in range(kept):
        assert (store.get("dag", f"id-{n}") == n).all()
    # A delete helps, and so do others.
    for n in range(max(2 * _MIB // nbytes, 1) * 3):
        store.delete("dag", f"id-{n}")
    store.put("dag", "again", np.full(nbytes // 8, 7))
    assert (store.get("dag", "again") == 7).all()
    return kept, what


@pytest.mark.parametrize("nbytes", [20 << 10, 300 << 10, 2 << 20, 11 << 20])
def test_a_cgroup_is_filled_and_nobody_is_killed(root: str, bounded: Path, nbytes: int) -> None:
    """Values of any size up to the limit, then StoreFull; a delete makes room again."""
    kept, what = call(_fill, bounded, root, nbytes)
    assert what == cgroup.WHAT
    assert kept * nbytes > _LIMIT * 0.6, "refused long before the limit"
    reading_files.check(root)


def _put_small(group: Path, root: str) -> tuple[int, str]:
    _enter(group)
    store = shmstore.Store(root)
    count = 0
    while True:
        try:
            store.put_many("dag", {f"id-{count + n}": "x" * 9000 for n in range(200)})
        except shmstore.StoreFull as full:
            assert store.count("dag") == count
            return count, full.what
        count += 200


def test_inline_values_fill_a_cgroup(root: str, bounded: Path) -> None:
    """The log is not extended past the limit; what it holds stays readable."""
    count, what = call(_put_small, bounded, root)
    assert what == cgroup.WHAT
    assert count * 9000 > _LIMIT * 0.3
    assert shmstore.Store(root).get("dag", f"id-{count - 1}") == "x" * 9000
    reading_files.check(root)


def _put_dags(group: Path, root: str) -> tuple[int, str]:
    _enter(group)
    store = shmstore.Store(root)
    count = 0
    while True:
        try:
            store.put(f"dag-{count}", "id", count)
        except shmstore.StoreFull as full:
            return count, full.what
        count += 1


def test_dags_fill_a_cgroup(root: str, bounded: Path) -> None:
    """DAGs are made up to the limit, and all of them are whole."""
    count, what = call(_put_dags, bounded, root)
    assert what == cgroup.WHAT
    assert count > 100
    assert len(reading_files.check(root)) == count


def _put_larger(group: Path, root: str) -> Any:
    _enter(group)
    store = shmstore.Store(root)
    with pytest.raises(shmstore.StoreFull) as refused:
        # Pages of zeroes that were never written to cost the process nothing.
        store.put("dag", "huge", np.zeros(_LIMIT // 8 + 1000))
    return refused.value


def test_a_value_larger_than_the_limit(root: str, bounded: Path) -> None:
    """It is refused before anything of it is written, with all figures."""
    value = call(_put_larger, bounded, root)
    assert value.what == cgroup.WHAT
    assert value.limit == _LIMIT
    assert value.asked == _LIMIT + 8000
    assert 0 < value.free < _LIMIT
    assert not list(shmstore.Store(root).ids("dag"))
    reading_files.check(root)


def _write_unchecked(group: Path, root: str) -> None:
    _enter(group)
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    for _ in range(_LIMIT // _MIB + 8):
        os.write(fd, bytes(_MIB))


def test_what_the_check_prevents(root: str, bounded: Path) -> None:
    """Without it the kernel kills the writer: otherwise this file would show nothing."""
    with Child(_write_unchecked, bounded, root) as child:
        assert child.join() == -signal.SIGKILL
