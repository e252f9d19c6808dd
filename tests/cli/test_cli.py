"""The command line's frame: what is loaded when, and how it answers mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shmstore
from shmstore.cli import COMMANDS

SHMSTORE = Path(sys.executable).with_name("shmstore")


def call(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHMSTORE, *args], check=False, capture_output=True, text=True, timeout=60
    )


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_no_part_of_the_command_line() -> None:
    """``import shmstore`` loads neither click nor rich nor a demo nor their libraries."""
    loaded = loaded_after("import shmstore")
    unwanted = {"click", "rich", "shmstore.cli", "shmstore.demo", "multiprocess", "pyarrow"}
    assert not loaded & unwanted


def test_listing_the_commands_loads_none_of_them() -> None:
    """``shmstore --help`` lists every command without importing what the commands need."""
    loaded = loaded_after(
        "from click.testing import CliRunner\n"
        "from shmstore.cli import main\n"
        "result = CliRunner().invoke(main, ['--help'])\n"
        "assert result.exit_code == 0, result.output"
    )
    assert "shmstore.cli" in loaded
    assert not loaded & {"rich", "shmstore.cli.demo", "shmstore.demo", "multiprocess", "pyarrow"}


def test_help_names_every_command() -> None:
    """``shmstore --help`` names each command, and each can be loaded and asked for help."""
    listing = call("--help")
    assert listing.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in listing.stdout
        answer = call(name, "--help")
        assert answer.returncode == 0, answer.stderr
        assert f"Usage: shmstore {name}" in answer.stdout


def test_version() -> None:
    """``shmstore --version`` tells the package's version."""
    assert call("--version").stdout == f"shmstore, version {shmstore.__version__}\n"


@pytest.mark.parametrize("args", [["demmo"], ["--nope"], ["demo", "--nope"]])
def test_an_unknown_command_or_option_is_a_usage_error(args: list[str]) -> None:
    """A mistake in the call gives one sentence on stderr and exit code 2, no traceback."""
    answer = call(*args)
    assert answer.returncode == 2
    assert "No such" in answer.stderr
    assert "Traceback" not in answer.stderr
