"""What gc did and what check found: plain, immutable facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GcAction:
    """One thing that gc freed, would free, or could not look at.

    Attributes:
        kind: "orphan" (a segment of no live value), "leftover" (a log or index that is
            not current), "trash" (a cleared DAG on its way out), "abandoned" (a DAG whose
            creator died), "cleared" (a DAG whose clearer died), "page" (a half-made
            control page), "expired" (a DAG unused for longer than it is kept), "pool" (an
            emptied segment), "viewed" (a dead value's segment that was viewed until now),
            "spilled" (what a DAG that is gone has on disk), "note" (what a dead process had
            reserved), "failed".
        dag_id: The DAG, or None.
        name: The file or directory.
        nbytes: Shared memory that was freed; memory that is still viewed comes back with
            the last view.
        why: The reason, for people.
    """

    kind: str
    dag_id: str | None
    name: str
    nbytes: int
    why: str

    def __str__(self) -> str:
        of = "" if self.dag_id is None else f" of DAG {self.dag_id!r}"
        size = f" ({self.nbytes:,} bytes)" if self.nbytes else ""
        return f"{self.kind}: {self.name}{of}{size}: {self.why}"


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a gc did, or would do.

    Attributes:
        dry_run: True if nothing was changed.
        actions: What was freed, in order, and what could not be looked at.
    """

    dry_run: bool
    actions: tuple[GcAction, ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes of shared memory freed, or to be freed."""
        return sum(action.nbytes for action in self.actions)

    @property
    def failed(self) -> tuple[GcAction, ...]:
        """What could not be looked at."""
        return tuple(action for action in self.actions if action.kind == "failed")

    def __str__(self) -> str:
        done = len(self.actions) - len(self.failed)
        things = "1 thing" if done == 1 else f"{done:,} things"
        verb = "would free" if self.dry_run else "freed"
        lines = [f"{verb} {self.freed_bytes:,} bytes in {things}"]
        if self.failed:
            lines[0] += f", {len(self.failed):,} failed"
        return "\n".join([*lines, *(f"  {action}" for action in self.actions)])


#: Kinds of ``GcAction`` that are findings of a check, too.
FREED_BY_GC = ("orphan", "leftover", "trash", "abandoned", "cleared", "page", "spilled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: "dag" (cannot be read), "log", "record" (fails its check), "index", "gap" (a
            dead writer's records are not in the index yet), "totals", "segment" (of a value:
            missing or too short), "stamp", "namespace", "account" (of a capacity: too low),
            "unknown" (a file that is not the store's), or what gc would free, in its words:
            "orphan", "leftover", "trash", "abandoned", "cleared", "page".
        dag_id: The DAG, or None.
        id: The value it concerns, or None.
        where: File, and offset if there is one.
        what: What is wrong, for people.
        fixed: True if it has been repaired.
    """

    kind: str
    dag_id: str | None
    id: str | None
    where: str
    what: str
    fixed: bool = False

    def __str__(self) -> str:
        of = "" if self.dag_id is None else f" of DAG {self.dag_id!r}"
        value = "" if self.id is None else f", value {self.id!r}"
        end = " (fixed)" if self.fixed else ""
        return f"{self.kind}: {self.where}{of}{value}: {self.what}{end}"
