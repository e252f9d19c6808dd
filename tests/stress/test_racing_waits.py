"""No wake-up is lost, however puts and waits race (I6). At length: see ``racing_waits``."""

from __future__ import annotations

from tests import reading_files
from tests.stress.racing_waits import race_from_nothing, race_in_a_ring


def test_no_wake_up_is_lost_in_a_ring(root: str) -> None:
    """20,000 puts, each waited for as it comes by the next of three processes."""
    assert race_in_a_ring(root, 20_000) >= 19_990
    reading_files.check(root)


def test_no_first_announcement_is_lost(root: str) -> None:
    """5,000 times, a put races with the very first announcement that somebody waits."""
    race_from_nothing(root, 5_000)
