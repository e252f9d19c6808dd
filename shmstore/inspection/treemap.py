"""A squarified treemap: rectangles whose areas are as given sizes, as square as may be. Pure.

By the method of Bruls, Huizing and van Wijk: sizes in falling order are laid in rows along
the shorter side; a row takes one more as long as that makes its worst rectangle squarer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """Where one thing lies."""

    x: float
    y: float
    width: float
    height: float


def squarified(sizes: Sequence[float], width: float, height: float) -> list[Rectangle]:
    """The rectangles of sizes, in their order.

    Args:
        sizes: Positive, in falling order.
        width: Of the whole.
        height: Of the whole.
    """
    total = sum(sizes)
    if not total:
        return []
    scale = width * height / total
    areas = [size * scale for size in sizes]
    placed: list[Rectangle] = []
    x = y = 0.0
    row: list[float] = []
    for area in areas:
        side = min(width - x, height - y)
        if row and _worst([*row, area], side) > _worst(row, side):
            x, y = _lay(placed, row, x, y, width, height)
            row = []
        row.append(area)
    _lay(placed, row, x, y, width, height)
    return placed


def _worst(row: Sequence[float], side: float) -> float:
    """How far from square the worst rectangle of a row along a side is; 1 is a square."""
    whole = sum(row)
    return max(side * side * max(row) / whole**2, whole**2 / (side * side * min(row)))


def _lay(
    placed: list[Rectangle], row: Sequence[float], x: float, y: float, width: float, height: float
) -> tuple[float, float]:
    """Lays a row along the shorter side of what is free; returns where the rest begins."""
    whole = sum(row)
    if width - x >= height - y:
        thick = whole / (height - y)
        for area in row:
            placed.append(Rectangle(x, y, thick, area / thick))
            y += area / thick
        return x + thick, placed[-len(row)].y
    thick = whole / (width - x)
    for area in row:
        placed.append(Rectangle(x, y, area / thick, thick))
        x += area / thick
    return placed[-len(row)].x, y + thick
