"""What /proc/locks tells of a lock's holder, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shmstore import holder

_PLACE = "00:19:4711"
_DEVICE, _INODE = os.makedev(0, 0x19), 4711
_HERE = "Name:\tpython\nNSpid:\t88\n"
_BELOW = "Name:\tpython\nNSpid:\t88\t2\n"


def _line(pid: int, place: str = _PLACE, kind: str = "FLOCK ", arrow: str = "") -> str:
    return f"1: {arrow}{kind} ADVISORY  WRITE {pid} {place} 0 EOF\n"


@pytest.mark.parametrize(
    ("locks", "status", "apart", "expected"),
    [
        (_line(5, "00:19:4712") + _line(88), _HERE, False, "process 88"),
        (_line(88), _HERE, True, "process 88"),
        (_line(0), _HERE, True, holder.OUTSIDE),
        (_line(0), _HERE, False, holder.OUTSIDE),
        (_line(88), _BELOW, True, "process 88 of the pid namespace that /proc shows"),
        ("", _HERE, False, None),
        ("", _HERE, True, holder.OUTSIDE),
        (_line(88, arrow="-> "), _HERE, False, None),
        (_line(88, kind="POSIX "), _HERE, False, None),
        (_line(88, "00:1a:4711"), _HERE, False, None),
        ("nonsense\n\n" + _line(7), _HERE, False, "process 7"),
    ],
)
def test_who_holds_a_lock(locks: str, status: str, apart: bool, expected: str | None) -> None:
    """A pid is given as one only where it means a process of this pid namespace."""
    assert holder.told(locks, status, apart, _DEVICE, _INODE) == expected


def _imported(timeout: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from shmstore import lock; print(lock.TIMEOUT_S)"],
        env=os.environ | {"SHMSTORE_LOCK_TIMEOUT": timeout},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("given", "seconds"), [("", 30.0), ("2.5", 2.5), ("0", 0.0)])
def test_the_timeout_is_taken_from_the_environment(given: str, seconds: float) -> None:
    """SHMSTORE_LOCK_TIMEOUT says how long a lock is waited for; 30 s without it."""
    assert float(_imported(given).stdout) == seconds


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", "30s"])
def test_a_timeout_that_is_none_is_refused(given: str) -> None:
    """A SHMSTORE_LOCK_TIMEOUT that is no number of seconds is said to be wrong, at import."""
    ran = _imported(given)
    assert ran.returncode
    last = ran.stderr.strip().splitlines()[-1]
    assert last == (
        f"ValueError: SHMSTORE_LOCK_TIMEOUT must be a number of seconds, 0 or more, not {given!r}"
    )
