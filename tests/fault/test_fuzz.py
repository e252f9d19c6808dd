"""Mutated values of every codec, decoded with distrust: some thousands, the same each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmstore import codecs
from shmstore.codecs.trust import Trust
from tests.fault.killing import call
from tools import fuzz_values

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fuzz_values.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_no_mutated_value_crashes_its_reader_or_runs_anything(seed: int) -> None:
    """The fuzzer's first rounds; ``tools/fuzz_values.py`` goes on for as long as is wanted."""
    ran = subprocess.run(
        [sys.executable, TOOL, "--seed", str(seed), "--rounds", "1500", "--seconds", "90"],
        env=os.environ | {"RUST_BACKTRACE": "0"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 crashed" in ran.stdout


def _crashing(codec: int, meta: bytes, payload: memoryview, trust: Trust) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def _running(codec: int, meta: bytes, payload: memoryview, trust: Trust) -> Any:
    os.system("true")


def _trusting(codec: int, meta: bytes, payload: memoryview, trust: Trust) -> Any:
    return codecs.decode(4, *_IMPORTING)


def _raising(codec: int, meta: bytes, payload: memoryview, trust: Trust) -> Any:
    raise ValueError("not one of the store's errors")


_ENCODED = codecs.encode([os.system])
_IMPORTING = _ENCODED.meta, memoryview(b"".join(_ENCODED.parts))


@pytest.mark.parametrize("decode", [_crashing, _running, _trusting, _raising])
def test_the_fuzzer_notices_what_must_not_happen(decode: fuzz_values.Decode) -> None:
    """A crash, a command, a name that is imported, an error of another kind: each is found."""
    found, line = call(lambda: fuzz_values.run(1, 1, 60, decode=decode), timeout_s=90)
    assert len(found) == 1, line
