"""``shmstore gc``, run for real on stores that other processes have left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import lookup
from tests.fault.killing import kill_at

SHMSTORE = Path(sys.executable).with_name("shmstore")


def call(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHMSTORE, "gc", *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def _leave_an_orphan(root: str) -> None:
    kill_at("commit:named", 1, lambda: shmstore.Store(root).put("d", "v", np.arange(100_000)))


def _orphans(root: str) -> list[str]:
    with shmstore.Store(root) as store:
        manifest = lookup.find_dag(store._dags.space, "d")
        assert manifest is not None
        return [n for n in os.listdir(manifest.directory.fd) if n.startswith("seg-")]


def test_what_a_killed_process_left_is_freed(root: str) -> None:
    """Said first, then done, then there is nothing more to do; JSON tells the same."""
    shmstore.Store(root).put("d", "kept", 1)
    _leave_an_orphan(root)
    said = call("--root", root, "--dry-run", "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert told["dry_run"] is True
    assert [action["kind"] for action in told["actions"]] == ["orphan"]
    assert told["freed_bytes"] >= 800_000
    assert len(_orphans(root)) == 1
    done = call("--root", root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("freed ")
    assert _orphans(root) == []
    assert call(SHMSTORE_ROOT=root).stdout == "freed 0 bytes in 0 things\n"
    assert shmstore.Store(root).get("d", "kept") == 1


def test_dags_that_nobody_has_used_for_long_go(root: str) -> None:
    """Older than the span, and no others; none without the option."""
    shmstore.Store(root).put("d", "v", 1)
    assert "expired" not in call("--root", root).stdout
    assert "expired" not in call("--root", root, "--older-than", "1h").stdout
    assert shmstore.Store(root).get("d", "v") == 1
    with shmstore.Store(root) as store:
        manifest = lookup.find_dag(store._dags.space, "d")
        assert manifest is not None
        from shmstore.record import TOUCHED

        manifest.control[TOUCHED] -= 2 * 3600 * 1_000_000_000
    assert "expired" in call("--root", root, "--older-than", "1h").stdout
    assert shmstore.Store(root).dags() == []


@pytest.mark.parametrize(
    ("args", "sentence", "code"),
    [
        (["--older-than", "soon"], "no time span", 2),
        (["--namespace", "no such"], "letters", 2),
        (["--namespace", "nowhere"], "no namespace 'nowhere'", 3),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    root: str, args: list[str], sentence: str, code: int
) -> None:
    """One sentence, the exit code that fits, and nothing is made that was not there."""
    shmstore.Store(root).put("d", "v", 1)
    done = call("--root", root, *args)
    assert done.returncode == code
    assert sentence in done.stderr
    assert not (Path(root) / "nowhere").exists()
