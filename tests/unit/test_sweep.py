"""The plan of a sweep: from what is there to what goes, without a file."""

from __future__ import annotations

import pickle

import pytest

import shmstore
from shmstore.names import segment_name
from shmstore.survey import Listing, current_names
from shmstore.sweep_plan import DagSeen, plan

NOTHING: frozenset[str] = frozenset()


def seen(segments: set[int], live: set[int], numbered: set[str], current: int) -> DagSeen:
    return DagSeen(
        "dag",
        Listing(frozenset(segments), frozenset(numbered), NOTHING),
        current_names(current),
        frozenset(live),
    )


def test_nothing_goes_that_is_needed() -> None:
    """The current log and index and the segments of live records stay."""
    assert plan(seen({1, 2}, {1, 2}, {"log.3", "index.7"}, 3 << 32 | 7)) == []
    assert plan(seen(set(), set(), set(), 1 << 32 | 1)) == []


def test_what_no_record_names_goes() -> None:
    """Each listed segment of no live record is one action, with its reason."""
    actions = plan(seen({1, 2, 3}, {2}, {"log.1", "index.1"}, 1 << 32 | 1))
    assert [(one.kind, one.name) for one in actions] == [
        ("orphan", segment_name(1)),
        ("orphan", segment_name(3)),
    ]
    assert all(one.dag_id == "dag" and one.why and not one.nbytes for one in actions)


def test_files_that_are_not_current_go() -> None:
    """Logs and indexes of other numbers go, newer ones, too: their writer died."""
    numbered = {"log.3", "log.4", "index.6", "index.7", "index.8", "log.30"}
    actions = plan(seen(set(), set(), numbered, 3 << 32 | 7))
    assert [one.name for one in actions] == ["index.6", "index.8", "log.30", "log.4"]
    assert {one.kind for one in actions} == {"leftover"}


def test_a_record_may_name_what_was_not_listed() -> None:
    """Segments that came after the listing are nobody's orphans."""
    assert plan(seen({1}, {1, 99}, {"log.1", "index.1"}, 1 << 32 | 1)) == []


def test_a_report_says_what_was_done() -> None:
    """A report sums up, in figures and in words, and survives pickling."""
    freed = shmstore.GcAction("orphan", "dag", "seg-1", 4096, "no value needs it")
    failed = shmstore.GcAction("failed", "bad", "bad", 0, "it is damaged")
    report = shmstore.GcReport(False, (freed, freed, failed))
    assert report.freed_bytes == 8192
    assert report.failed == (failed,)
    assert str(report).splitlines() == [
        "freed 8,192 bytes in 2 things, 1 failed",
        "  orphan: seg-1 of DAG 'dag' (4,096 bytes): no value needs it",
        "  orphan: seg-1 of DAG 'dag' (4,096 bytes): no value needs it",
        "  failed: bad of DAG 'bad': it is damaged",
    ]
    assert str(shmstore.GcReport(True, (freed,))).startswith("would free 4,096 bytes in 1 thing\n")
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        (
            shmstore.Finding("segment", "dag", "a", "seg-1", "it is missing"),
            "segment: seg-1 of DAG 'dag', value 'a': it is missing",
        ),
        (
            shmstore.Finding("index", "dag", None, "index.1", "a slot is wrong", True),
            "index: index.1 of DAG 'dag': a slot is wrong (fixed)",
        ),
        (
            shmstore.Finding("trash", None, None, "trash/old-1", "it was cleared"),
            "trash: trash/old-1: it was cleared",
        ),
    ],
)
def test_a_finding_says_what_is_wrong(finding: shmstore.Finding, shown: str) -> None:
    """A finding names the place, the DAG and the value that it concerns."""
    assert str(finding) == shown
