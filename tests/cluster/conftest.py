"""A real NATS server a test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstore.demo.server import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream, on a free port of loopback."""
    with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def other_root() -> Iterator[str]:
    """Another host's root."""
    path = tempfile.mkdtemp(dir="/dev/shm")
    yield path
    shutil.rmtree(path, ignore_errors=True)
