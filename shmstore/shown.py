"""Text for a terminal: names that cannot drive it, sizes, times, columns. Pure."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

# Control, format (bidirectional overrides among them), surrogate, private and unassigned
# characters, and separators of lines and paragraphs.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - {"\\"}
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def safe(text: str) -> str:
    """A name as it can be printed: what a terminal might obey is escaped as Python does it."""
    if _PLAIN.issuperset(text):
        return text
    return "".join([_escaped(char) for char in text])


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isascii() and char.isprintable():
        return char
    if unicodedata.category(char) not in _UNSEEN:
        return char
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, columns: int) -> str:
    """A text in at most so many columns, with "…" where it was cut."""
    if width(text) <= columns:
        return text
    kept, room = [], columns - 1
    for char in text:
        room -= width(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + "…"


def size(nbytes: float) -> str:
    """A number of bytes with three digits, powers of 1024: "7.45 GiB"."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 999.5 or unit == "TiB":
            break
        value /= 1024
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def utc(time_ns: int) -> str:
    """Unix time in nanoseconds as ISO 8601 in UTC, to the microsecond."""
    try:
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):  # of a damaged page
        return f"{time_ns} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1000 % 1_000_000:06d}Z"


def local(time_ns: int) -> str:
    """Unix time in nanoseconds as a date and time of this machine, to the second."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"


def ago(seconds: float) -> str:
    """How long something is past, with one unit: "12 s", "3 min", "5 h", "2 d"."""
    seconds = max(seconds, 0)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def count(number: int, what: str, plural: str | None = None) -> str:
    """A number and its noun: "1 value", "2,000 values"."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def columns(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()
) -> Iterator[str]:
    """Lines of a table, each column as wide as its widest cell; all rows are read first.

    Args:
        heads: The columns' heads.
        rows: Their cells, safe to print.
        right: The columns that are set flush right.
    """
    table = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = []
        for at, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (wide - width(cell))
            cells.append(pad + cell if at in right else cell + pad)
        yield "  ".join(cells).rstrip()


def colours_wanted() -> bool:
    """False where NO_COLOR is set, or the terminal is dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
