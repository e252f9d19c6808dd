"""What may be seen when: judges what was read by what was put. Pure.

Each change of a place has an interval in which it took effect: from its intent to its
acknowledgement or, if the writer was killed in between, to its death, and then it may as
well never have happened. A change *certainly* happened if it was acknowledged or if
somebody has seen it. What was seen must be possible: its change had begun before the look
ended, and no change that certainly happened began after it was over and ended before the
look began. That holds for places that one process writes and for those that all write.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tools import torture_ledger as ledger
from tools.torture_values import GONE, SOME, writer_of

Place: TypeAlias = tuple[str, str]  # dag_id, id

CLEAR = "clear"


@dataclass(slots=True, eq=False)
class Change:
    """One call that changes one place or several.

    Attributes:
        writer: Who called.
        what: Which call.
        dag_id: The DAG.
        versions: By id, GONE for those to be removed; empty for a clear.
        begin: When it was about to be called, monotonic nanoseconds.
        end: When it had returned, or its caller was dead.
        certain: Whether it certainly happened.
    """

    writer: int
    what: str
    dag_id: str
    versions: dict[str, int]
    begin: int
    end: int
    certain: bool

    def __str__(self) -> str:
        sure = "acknowledged or seen" if self.certain else "in doubt, its writer was killed"
        return f"{self.begin} .. {self.end} writer {self.writer} {self.what}: {sure}"


@dataclass(slots=True)
class Look:
    """Somebody has seen a version of a place, between two points in time."""

    writer: int
    begin: int
    end: int
    version: int


@dataclass
class Fault:
    """Something that must not be, and the place's history."""

    text: str
    dag_id: str = ""
    id: str = ""
    history: list[str] = field(default_factory=list)


class History:
    """The changes and looks of one round; what stood before it is known for certain."""

    def __init__(self) -> None:
        self.standing: dict[Place, int] = {}
        self._start()

    def _start(self) -> None:
        self.changes: list[Change] = []
        self.looks: dict[Place, list[Look]] = defaultdict(list)
        self.faults: list[Fault] = []
        self.kept = 0
        self.killed: list[str] = []
        self.refusals: dict[str, int] = defaultdict(int)

    def take(self, writer: int, events: list[list[Any]], death: int) -> None:
        """Takes over one ledger.

        Args:
            writer: Whose it is.
            events: What ``torture_ledger.collect`` gave.
            death: When the writer was certainly dead.
        """
        under_way: dict[int, Change] = {}
        for kind, *rest in events:
            if kind == ledger.DO:
                number, begin, what, dag_id, versions = rest
                change = Change(writer, what, dag_id, versions, begin, death, False)
                under_way[number] = change
                self.changes.append(change)
            elif kind == ledger.OK:
                change = under_way.pop(rest[0])
                change.end, change.certain = rest[1], True
            elif kind == ledger.NO:
                self.changes.remove(under_way.pop(rest[0]))
                self.refusals[rest[2]] += 1
            elif kind == ledger.SAW:
                begin, end, dag_id, id, version = rest
                self.looks[dag_id, id].append(Look(writer, begin, end, version))
            elif kind == ledger.KEPT:
                self.kept += rest[0]
            elif kind == ledger.KILLED:
                self.killed.append(rest[2])
            else:
                self.faults.append(Fault(*rest))

    def judge(self, found: dict[Place, int], now: int) -> list[Fault]:
        """Everything that is wrong, once nobody is at work any more.

        Args:
            found: The version of each value that is there now.
            now: When nobody was at work any more and nothing had been read.
        """
        places = set(self.standing) | set(found) | set(self.looks)
        places |= {(one.dag_id, id) for one in self.changes for id in one.versions}
        by_place = self._by_place(places)
        for place in places:
            self.looks[place].append(Look(-1, now, now, found.get(place, GONE)))
        faults = self.faults
        for fault in faults:
            if fault.id:
                fault.history = self.story(
                    (fault.dag_id, fault.id), by_place.get((fault.dag_id, fault.id), [])
                )
        for place in places:
            self._learn(place, by_place[place])
        for place in sorted(places):
            faults += self._judge_place(place, by_place[place])
        faults += self._halves(by_place, found)
        return faults

    def settle(self, found: dict[Place, int]) -> None:
        """What was found stands from now on; whatever it replaced must never come back."""
        self.standing = dict(found)
        self._start()

    def story(self, place: Place, changes: list[Change]) -> list[str]:
        """All that is known of a place, in order of time."""
        lines = [(0, f"stood before: {_named(self.standing.get(place, GONE))}")]
        for change in changes:
            if change.writer >= 0:
                version = change.versions.get(place[1], GONE)
                lines.append((change.begin, f"{change} -> {_named(version)}"))
        for look in self.looks[place]:
            who = f"writer {look.writer}" if look.writer >= 0 else "at the end all"
            lines.append(
                (look.begin, f"{look.begin} .. {look.end} {who} saw {_named(look.version)}")
            )
        return [text for _, text in sorted(lines, key=lambda line: line[0])]

    def _by_place(self, places: set[Place]) -> dict[Place, list[Change]]:
        by_place: dict[Place, list[Change]] = {
            place: [Change(-1, "stood", place[0], {place[1]: version}, 0, 0, True)]
            for place in places
            for version in (self.standing.get(place, GONE),)
        }
        in_dag: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            in_dag[place[0]].append(place)
        for change in self.changes:
            if change.what == CLEAR:
                for place in in_dag[change.dag_id]:
                    by_place[place].append(change)
            for id in change.versions:
                by_place[change.dag_id, id].append(change)
        return by_place

    def _learn(self, place: Place, changes: list[Change]) -> None:
        """Who has seen a value knows that its change was over by then."""
        by_version = {one.versions.get(place[1], GONE): one for one in changes}
        for look in self.looks[place]:
            change = by_version.get(look.version)
            if change is not None and look.version != GONE:
                change.end, change.certain = min(change.end, look.end), True

    def _judge_place(self, place: Place, changes: list[Change]) -> Iterator[Fault]:
        id = place[1]
        by_version: dict[int, list[Change]] = defaultdict(list)
        for change in changes:
            by_version[change.versions.get(id, GONE)].append(change)
        certain = sorted((one.end, one.begin) for one in changes if one.certain)
        ends = [end for end, _ in certain]
        latest = [0]  # of those that ended first, the last one to begin
        for _, begin in certain:
            latest.append(max(latest[-1], begin))
        for look in self.looks[place]:
            replaced = latest[bisect_left(ends, look.begin)]
            if look.version == SOME:
                candidates = [one for one in changes if one.versions.get(id, GONE) != GONE]
            else:
                candidates = by_version.get(look.version, [])
            if not any(one.begin <= look.end and one.end >= replaced for one in candidates):
                why = "which was replaced before" if candidates else "which was never put"
                if look.version == GONE and not candidates:
                    why = "though nobody removed what there was"
                text = f"writer {look.writer} saw {_named(look.version)}, {why}"
                if look.version == SOME:
                    text = f"writer {look.writer} was told that there is a value"
                yield Fault(text, *place, self.story(place, changes))

    def _halves(self, by_place: dict[Place, list[Change]], found: dict[Place, int]) -> list[Fault]:
        """Changes of several places that a kill has cut in two."""
        faults = []
        for change in self.changes:
            if change.certain:
                continue
            happened, not_happened = [], []
            for place in [place for place, all_of in by_place.items() if change in all_of]:
                version = change.versions.get(place[1], GONE)
                now = found.get(place, GONE)
                candidates = [
                    one for one in by_place[place] if one.versions.get(place[1], GONE) == now
                ]
                possible = [one for one in candidates if self._stands(one, by_place[place])]
                if now == version and possible == [change]:
                    happened.append(place)
                elif now != version and all(one.end < change.begin for one in candidates):
                    not_happened.append(place)
            if happened and not_happened:
                text = f"{change} happened to {happened[:9]} but not to {not_happened[:9]}"
                faults.append(
                    Fault(text, *happened[0], self.story(happened[0], by_place[happened[0]]))
                )
        return faults

    @staticmethod
    def _stands(change: Change, changes: list[Change]) -> bool:
        return not any(one.certain and one.begin > change.end for one in changes)


def _named(version: int) -> str:
    if version == GONE:
        return "nothing"
    if version == SOME:
        return "something"
    return f"version {version:#x} of writer {writer_of(version)}"
