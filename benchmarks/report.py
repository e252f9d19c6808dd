"""Showing answers: tables of a hundred columns, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.measuring import Answer, Figure, Target

WIDTH = 100
_NAME, _NUMBER, _SPREAD, _RATIO = 36, 16, 24, 24


def show(answer: Answer) -> str:
    """An answer as text."""
    lines = [f"{answer.name}: {answer.title}", "=" * WIDTH]
    operations = list(dict.fromkeys(figure.operation for figure in answer.figures.values()))
    for operation in operations:
        reference = answer.reference.get(operation)
        compared = f"x {reference}" if reference else ""
        lines.append(
            f"{operation:<{_NAME}}{'median':>{_NUMBER}}{'quartiles':>{_SPREAD}}{compared:>{_RATIO}}"
        )
        for (of, contestant), figure in answer.figures.items():
            if of == operation:
                ratio = ""
                if reference and answer.has(operation, reference):
                    below = answer.median(operation, reference)
                    ratio = f"{figure.median / below:,.2f}" if below else ""
                lines.append(_row(contestant, figure, ratio))
        lines.append("")
    lines += [_verdict(target) for target in answer.targets]
    lines += [f"  - {note}" for note in answer.notes]
    return "\n".join(lines) + "\n"


def verdicts(answers: Sequence[Answer]) -> str:
    """All that was asked, in one list."""
    asked = [target for answer in answers for target in answer.targets]
    missed = sum(not target.passed for target in asked)
    lines = ["What was asked", "=" * WIDTH, *map(_verdict, asked)]
    return "\n".join([*lines, f"{len(asked) - missed} of {len(asked)} reached"])


def as_json(machine: dict[str, Any], quick: bool, seconds: float, answers: Sequence[Answer]) -> str:
    """Everything, every round included."""
    return json.dumps(
        {
            "machine": machine,
            "quick": quick,
            "seconds": round(seconds, 1),
            "questions": [_question(answer) for answer in answers],
        },
        indent=1,
    )


def _row(contestant: str, figure: Figure, ratio: str) -> str:
    low, high = figure.quartiles
    spread = f"{_number(low)} .. {_number(high)}"
    median = f"{_number(figure.median)} {figure.unit}"
    return f"  {contestant:<{_NAME - 2}}{median:>{_NUMBER}}{spread:>{_SPREAD}}{ratio:>{_RATIO}}"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def _verdict(target: Target) -> str:
    mark = "  ok  " if target.passed else " MISS "
    sign = ">=" if target.at_least else "<="
    unit = f" {target.unit}" if target.unit else ""
    measured = f"{_number(target.value)}{unit} ({sign} {_number(target.limit)})"
    return f"[{mark}] {target.text:<64}{measured:>{WIDTH - 73}}"


def _question(answer: Answer) -> dict[str, Any]:
    return {
        "name": answer.name,
        "title": answer.title,
        "figures": [
            {
                "operation": figure.operation,
                "contestant": figure.contestant,
                "unit": figure.unit,
                "median": figure.median,
                "quartiles": figure.quartiles,
                "rounds": figure.rounds,
            }
            for figure in answer.figures.values()
        ],
        "targets": [
            {
                "text": target.text,
                "value": target.value,
                "limit": target.limit,
                "unit": target.unit,
                "at_least": target.at_least,
                "passed": target.passed,
            }
            for target in answer.targets
        ],
        "notes": answer.notes,
    }
