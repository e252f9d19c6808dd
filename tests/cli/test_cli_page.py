"""docs/cli.md, held to the commands: what it shows is what they print."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstore.cli import COMMANDS
from tests.cli import sample

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
#: The root that the page shows.
SHOWN_ROOT = "/dev/shm/shmstore-1000"

# What differs from run to run, on the page and in what is printed.
_VARYING = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{6}Z)?", "<time>"),
    (r"seg-[0-9a-f]{16}", "<segment>"),
    (r"process \d+ on [^\s,]+", "<process>"),
    (r"\d+ (s|min) ago", "<ago>"),
    (r'"pid": \d+', "<pid>"),
    (r'"host": "[^"]*"', "<host>"),
    (r"(file system|free of it) +[\d.]+ [KMGT]?i?B", "<size>"),
    (r'"(at_ns|generation)": \d+', "<number>"),
    (r" +", " "),
)


def _blocks() -> list[tuple[str, str]]:
    found = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    calls = []
    for block in found:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            calls.append((command, printed))
    return calls


def _alike(text: str) -> str:
    for pattern, word in _VARYING:
        text = re.sub(pattern, word, text)
    return text.strip()


@pytest.fixture(scope="module")
def made() -> Iterator[str]:
    """The store of the page."""
    root = tempfile.mkdtemp(dir="/dev/shm")
    sample.make(root)
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize(("command", "printed"), _blocks(), ids=[c for c, _ in _blocks()])
def test_the_page_shows_what_is_printed(made: str, command: str, printed: str) -> None:
    """Each call on the page, made on the page's store, prints what stands under it."""
    program, *args = shlex.split(command)
    assert program == "shmstore"
    done = sample.call(*args, SHMSTORE_ROOT=made, PYTHONWARNINGS="ignore")
    told = (done.stdout + done.stderr).replace(made, SHOWN_ROOT)
    assert _alike(told) == _alike(printed)
    assert done.returncode in (0, 1, 3, 5)


def test_the_page_names_every_command() -> None:
    """No command is missing from docs/cli.md."""
    named = set(re.findall(r"`(?:shmstore )?([a-z]+)(?=[ `/])", PAGE))
    assert not set(COMMANDS) - named


def test_the_page_names_every_option() -> None:
    """Every option that a command has is told about by its help; the common ones on the page."""
    for option in ("--root", "--namespace", "--at", "--json", "--force", "--nats"):
        assert f"`{option}" in PAGE
