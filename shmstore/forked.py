"""Whether this process is a child that was forked in the middle of a change.

A signal handler or a finalizer may fork while its thread is inside a change of shared
state. The child then comes back into the middle of what its parent is doing. It must
not do it a second time: by then the parent, or others, have gone on. So until it has
left the change, ``here.lost`` is true, and each step that touches shared state looks
at it first, with no call between the look and the step, in which a handler could run.
"""

from __future__ import annotations

from shmstore.errors import StoreBusy


class _Here:
    """Facts about this process.

    Attributes:
        lost: True in a child that has yet to leave the change it was forked in.
        forks: Rises in each child: a call that finds it raised was begun by the parent.
    """

    __slots__ = ("forks", "lost")

    def __init__(self) -> None:
        self.lost = False
        self.forks = 0


here = _Here()


class Again(Exception):
    """Base of what says, within a change, that it is to be looked again.

    A child that has lost its parent's lock may meet it, like any contradiction, in what
    others are changing: to look again would be to make its parent's change once more.
    """


def refused() -> StoreBusy:
    """What a step raises that the child must not take."""
    return StoreBusy("a change", 0.0, "the parent, which forked in the middle of it")
