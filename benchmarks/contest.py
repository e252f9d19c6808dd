"""A contest: the peers of one question, each started here and attached in a reader."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks import workers
from benchmarks.peers import Peer
from benchmarks.workers import Worker


@dataclass(frozen=True)
class Bench:
    """How to run.

    Attributes:
        place: Directory in shared memory for everything.
        quick: True to only try out that everything works, in seconds.
    """

    place: str
    quick: bool = False


@dataclass
class Contest:
    """Started peers and the processes that read from them.

    Attributes:
        peers: Those that take part.
        workers: Processes that have all of them attached.
        missing: What to do about those that do not.
    """

    peers: list[Peer] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """The peers' settings, and who is missing."""
        return [
            *(peer.note for peer in self.peers if peer.note),
            *(f"missing, so not compared: {what}" for what in self.missing),
        ]


@contextmanager
def held(place: str, kinds: Sequence[type[Peer]], readers: int = 1) -> Iterator[Contest]:
    """Starts peers below ``place`` and attaches them in ``readers`` other processes."""
    contest = Contest()
    with ExitStack() as stack:
        for kind in kinds:
            reason = kind.missing()
            if reason is not None:
                contest.missing.append(reason)
                continue
            peer = kind.start(place)
            stack.callback(peer.close)
            contest.peers.append(peer)
        addresses = [(type(peer), peer.address) for peer in contest.peers]
        for _ in range(readers):
            contest.workers.append(stack.enter_context(Worker(addresses)))
        for worker in contest.workers:
            worker.call(attach)
        settle()
        yield contest


_attached: dict[str, Peer] = {}


def attach() -> None:
    """In a worker: opens what it was given."""
    for kind, address in workers.given:
        _attached[kind.name] = kind(address)
    settle()


def settle() -> None:
    """Keeps what is there by now out of all collections, so that they take no time."""
    gc.collect()
    gc.freeze()


def attached(name: str) -> Any:
    """In a worker: the peer of a name."""
    return _attached[name]
