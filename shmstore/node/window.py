"""How much may be on its way to this node at once, and whose turn it is.

The server holds for each client what that has not read yet, and drops a client that lets
too much come together. So what is asked for is bounded in all, and for each owner by a
window that follows the delay: it grows while what comes does not have to wait in a queue,
and shrinks when it does. Fetches take turns, piece by piece; small values go first.
"""

from __future__ import annotations

import asyncio
from collections import deque

from shmstore.node.protocol import LARGEST_PIECE

#: The most bytes on their way to this node, from all others together.
MOST_BYTES = 32 << 20

# An owner of whom nothing is known may be at the end of a narrow line: what is asked for at
# once must be there before it counts as lost. Where it comes fast both double each round trip.
_FIRST_BYTES = _LEAST_BYTES = 256 << 10
_FIRST_PIECE = 64 << 10
_LEAST_PIECE = 32 << 10
# A window has so many pieces, so that while one is taken in others are on their way.
_PIECES = 4
# What a piece may take on its way, seconds; the server hands on only what it has whole.
_PIECE_S = 0.5
# What a piece may wait in queues on its way, seconds: enough to keep all busy.
_QUEUE_S = 0.1
_EASED = 1 / 512  # by how much the least delay follows a longer one, a piece


class Flow:
    """What comes from one owner.

    Attributes:
        on_its_way: Bytes that were asked for and have not come.
        window: The most of them.
        usual_s: How long a piece takes, smoothed; None before the first.
    """

    __slots__ = ("_least_s", "_rate", "on_its_way", "usual_s", "window")

    def __init__(self) -> None:
        self.on_its_way = 0
        self.window = _FIRST_BYTES
        self.usual_s: float | None = None
        self._least_s = float("inf")
        self._rate: float | None = None

    @property
    def piece(self) -> int:
        """The most bytes that one piece should have."""
        if self._rate is None:
            return _FIRST_PIECE
        # Never what the window has not earned yet: the first bytes may come in a burst that
        # a narrow line allows itself, and tell of a rate that it does not have.
        most = min(int(self._rate * _PIECE_S), self.window // _PIECES, LARGEST_PIECE)
        return max(_LEAST_PIECE, most)

    def came(self, nbytes: int, took_s: float) -> None:
        """Takes note of a piece that came."""
        if took_s < self._least_s:
            self._least_s = took_s
        else:
            self._least_s += (took_s - self._least_s) * _EASED
        rate = nbytes / max(took_s, 1e-6)
        self._rate = rate if self._rate is None else self._rate * 0.8 + rate * 0.2
        self.usual_s = took_s if self.usual_s is None else self.usual_s * 0.8 + took_s * 0.2
        room = 1 - (took_s - self._least_s) / _QUEUE_S
        self._set(self.window + int(max(room, -0.5) * nbytes))

    def lost(self) -> None:
        """Takes note of a piece that did not come in time."""
        self._set(self.window // 2)
        if self._rate is not None:
            self._rate /= 2

    def _set(self, window: int) -> None:
        self.window = max(_LEAST_BYTES, min(window, MOST_BYTES))


class Room:
    """Room for one piece, taken until it is given back; giving it back twice does no harm."""

    __slots__ = ("_flow", "_nbytes", "_window")

    def __init__(self, window: Window, flow: Flow, nbytes: int) -> None:
        self._window = window
        self._flow = flow
        self._nbytes = nbytes

    def give_back(self, _: object = None) -> None:
        """Lets others have it. May be a task's callback."""
        nbytes, self._nbytes = self._nbytes, 0
        if nbytes:
            self._window._give(self._flow, nbytes)


class Window:
    """The room for what is on its way to this node.

    Attributes:
        on_its_way: Bytes that were asked for and have not come.
        highest: The most that it ever was.
    """

    def __init__(self) -> None:
        self.on_its_way = 0
        self.highest = 0
        self._flows: dict[str, Flow] = {}
        self._waiting: deque[tuple[asyncio.Future[None], Flow, int]] = deque()

    def flow(self, node: str) -> Flow:
        """What comes from a node."""
        return self._flows.setdefault(node, Flow())

    async def take(self, flow: Flow, nbytes: int, *, first: bool = False) -> Room:
        """Waits until it is one's turn and there is room for a piece; to be given back.

        A fetch waits for one piece at a time, so that all have their turns.

        Args:
            flow: Where it comes from.
            nbytes: Its size.
            first: To go ahead of the others.
        """
        if not self._waiting and self._fits(flow, nbytes):
            self._count(flow, nbytes)
            return Room(self, flow, nbytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one = (turn, flow, nbytes)
        if first:
            self._waiting.appendleft(one)
        else:
            self._waiting.append(one)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(flow, nbytes)
            else:
                self._waiting = deque(other for other in self._waiting if other is not one)
            raise
        return Room(self, flow, nbytes)

    def _give(self, flow: Flow, nbytes: int) -> None:
        self._count(flow, -nbytes)
        self._let_in()

    def _fits(self, flow: Flow, nbytes: int) -> bool:
        if self.on_its_way + nbytes > MOST_BYTES:
            return False
        return flow.on_its_way + nbytes <= flow.window or not flow.on_its_way

    def _count(self, flow: Flow, nbytes: int) -> None:
        flow.on_its_way += nbytes
        self.on_its_way += nbytes
        self.highest = max(self.highest, self.on_its_way)

    def _let_in(self) -> None:
        left = deque[tuple[asyncio.Future[None], Flow, int]]()
        for one in self._waiting:
            turn, flow, nbytes = one
            if turn.done():
                continue
            if self._fits(flow, nbytes):
                self._count(flow, nbytes)
                turn.set_result(None)
            else:
                left.append(one)
        self._waiting = left
