"""What a bucket says of its keys. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: The header of what says that a key was removed.
OPERATION = "KV-Operation"


@dataclass(frozen=True)
class Kept:
    """What a bucket says of a key."""

    key: str
    value: bytes
    revision: int
    removed: bool
    """Whether it is a marker that the key was removed."""


@dataclass(frozen=True)
class Stream:
    """What tells a bucket from another of the same name, before or after it."""

    created: str
    last_revision: int


class WrongRevision(Exception):
    """The key changed since it was looked at; nothing was written."""
