"""Sizes and times as callers give them: "8GiB", 2.5 seconds. Pure."""

from __future__ import annotations

import math
import re
from typing import SupportsFloat, SupportsIndex

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgtp]?)(i?)b?)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_LARGEST = 1 << 62


def parse_size(value: object, what: str) -> int:
    """The bytes of a size.

    Args:
        value: An int, or a str: a number and optionally a unit, with powers of 1024
            ("KiB", "MiB", ...) or 1000 ("kB", "MB", ...). A lone letter ("8G") is a
            power of 1024.
        what: The argument's name, for the error's sentence.

    Raises:
        TypeError: It is neither.
        ValueError: It is negative, too large, or no size.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(
            f"{what} must be bytes as int or a size such as '8GiB', not "
            f"{type(value).__name__}: {value!r:.80}"
        )
    if isinstance(value, int):
        nbytes = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"{what} must be a size such as '8GiB' or '500MB', not {value!r:.80}")
        number, unit, binary = match[1], (match[2] or "").lower(), match[3]
        decimal = unit and not binary and value.strip().lower().endswith("b")
        factor = (1000 if decimal else 1024) ** _POWERS[unit]
        nbytes = round(float(number) * factor) if "." in number else int(number) * factor
    if not 0 <= nbytes < _LARGEST:
        raise ValueError(f"{what} must lie between 0 and 4 EiB, not {value!r:.80}")
    return nbytes


def parse_seconds(value: object, what: str) -> float:
    """A time in seconds, which may be infinite.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (SupportsFloat, SupportsIndex)):
        raise TypeError(
            f"{what} must be seconds or None, not {type(value).__name__}: {value!r:.80}"
        )
    try:
        seconds = float(value)
    except OverflowError:  # a whole number of more than 300 digits
        seconds = math.inf if isinstance(value, int) and value > 0 else -math.inf
    if not seconds >= 0:
        raise ValueError(f"{what} must not be negative seconds or NaN: {value!r:.80}")
    return seconds
