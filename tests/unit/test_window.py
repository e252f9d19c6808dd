"""The room for what is on its way to a node, and whose turn it is."""

from __future__ import annotations

import asyncio
import random

import pytest

from shmstore.node.window import MOST_BYTES, Flow, Room, Window

_MIB = 1 << 20


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _wide(window: Window, node: str = "a") -> Flow:
    flow = window.flow(node)
    flow.window = MOST_BYTES
    return flow


def test_all_flows_together_stay_below_the_bound() -> None:
    """However many want room, what is on its way from all nodes together has a bound."""

    async def run() -> None:
        window = Window()
        rng = random.Random(3)

        async def fetch(node: str) -> None:
            flow = _wide(window, node)
            for _ in range(30):
                room = await window.take(flow, rng.randrange(1, _MIB))
                await asyncio.sleep(0)
                room.give_back()

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(fetch(f"node {number % 5}"))
        assert MOST_BYTES - _MIB < window.highest <= MOST_BYTES
        assert window.on_its_way == 0

    asyncio.run(run())


def test_fetches_take_turns() -> None:
    """With room for one piece at a time, those who wait get it one after the other."""

    async def run() -> None:
        window = Window()
        flow = _wide(window)
        flow.window = 1
        turns: list[str] = []

        async def fetch(name: str) -> None:
            for _ in range(10):
                room = await window.take(flow, _MIB)
                turns.append(name)
                await asyncio.sleep(0)
                room.give_back()

        await asyncio.gather(*map(fetch, "abc"))
        assert "".join(turns[3:-3]) in "abc" * 10 + "bca" * 10 + "cab" * 10

    asyncio.run(run())


def test_small_ones_go_first() -> None:
    """Who is to go ahead of the others does, once there is room."""

    async def run() -> None:
        window = Window()
        flow = _wide(window)
        held = [await window.take(flow, _MIB) for _ in range(MOST_BYTES // _MIB)]
        turns: list[str] = []

        async def take(name: str, first: bool) -> Room:
            room = await window.take(flow, _MIB, first=first)
            turns.append(name)
            return room

        large = [asyncio.create_task(take("large", False)) for _ in range(3)]
        await _settle()
        small = asyncio.create_task(take("small", True))
        await _settle()
        for room in held:
            room.give_back()
        for task in (*large, small):
            (await task).give_back()
        assert turns[0] == "small"

    asyncio.run(run())


def test_who_gives_up_waiting_keeps_no_room() -> None:
    """A wait that is cancelled, also as it is granted, takes nothing; nor does a second return."""

    async def run() -> None:
        window = Window()
        flow = _wide(window)
        flow.window = 1
        room = await window.take(flow, _MIB)
        given_up = asyncio.create_task(window.take(flow, _MIB))
        granted = asyncio.create_task(window.take(flow, _MIB))
        await _settle()
        given_up.cancel()
        await _settle()
        room.give_back()
        room.give_back()
        granted.cancel()
        await asyncio.wait([given_up, granted])
        assert window.on_its_way == flow.on_its_way == 0
        (await asyncio.wait_for(window.take(flow, _MIB), 5)).give_back()

    asyncio.run(run())


@pytest.mark.parametrize("least_s", [0.001, 0.2])
def test_the_window_follows_the_delay(least_s: float) -> None:
    """It grows while pieces come undelayed, near or far, and shrinks when they queue."""
    flow = Flow()
    for _ in range(200):
        flow.came(_MIB, least_s)
    assert flow.window == MOST_BYTES
    for _ in range(200):
        flow.came(_MIB, least_s + 0.2)
    assert flow.window < MOST_BYTES // 8
    narrow = flow.window
    flow.lost()
    assert flow.window <= narrow


def test_what_is_asked_of_an_unknown_owner_is_there_soon_by_any_line() -> None:
    """At first no more than a narrow line carries in about a second; then as much as it carries."""
    narrow, wide = Flow(), Flow()
    assert narrow.window <= 256 << 10
    assert narrow.piece <= 64 << 10
    for _ in range(20):
        narrow.came(narrow.piece, narrow.piece / 250e3)
        wide.came(wide.piece, 1e-3)
    assert narrow.window <= 512 << 10
    assert narrow.piece <= 128 << 10
    assert wide.piece == _MIB
    assert wide.window > 8 * _MIB


def test_a_burst_at_the_start_is_not_taken_for_the_rate() -> None:
    """What a line lets through at once tells little: a piece stays within the window."""
    flow = Flow()
    flow.came(64 << 10, 0.04)
    assert flow.piece <= flow.window // 4
    grown = flow.piece
    flow.lost()
    assert flow.piece < grown
    wide = Flow()
    for _ in range(100):
        wide.came(wide.piece, 0.001)
    assert wide.piece == _MIB
