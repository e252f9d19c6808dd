"""Text for terminals: sizes, times, columns, and names that cannot drive one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore import shown


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1000 << 10, "0.98 MiB"),
        (8 << 30, "8.00 GiB"),
        (1 << 62, "4194304 TiB"),
    ],
)
def test_a_size_is_shown(nbytes: int, text: str) -> None:
    """With three digits, and never as a power of ten."""
    assert shown.size(nbytes) == text


@given(st.text())
def test_no_name_can_drive_a_terminal(name: str) -> None:
    """What is printed has no control, format or unassigned character, and says the same."""
    printed = shown.safe(name)
    assert not any(unicodedata.category(char)[0] == "C" for char in printed)
    assert not any(unicodedata.category(char) in ("Zl", "Zp") for char in printed)
    if printed == name:
        return
    assert "\\" in printed


def test_different_names_are_printed_differently() -> None:
    """A name that holds an escape is told from the character that the escape stands for."""
    assert shown.safe("a\nb") == "a\\nb"
    assert shown.safe("a\\nb") == "a\\\\nb"


@given(st.text(), st.integers(1, 30))
def test_a_cut_name_fits(name: str, columns: int) -> None:
    """In so many columns, wide characters included."""
    assert shown.width(shown.cut(shown.safe(name), columns)) <= columns


def test_columns_line_up() -> None:
    """Each as wide as its widest cell, numbers flush right."""
    lines = list(shown.columns(("A", "N"), [("x", "1"), ("\u6f22", "1000")], right=(1,)))
    assert lines == ["A      N", "x      1", "\u6f22  1000"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (1e6, "11 d")]
)
def test_how_long_ago(seconds: float, text: str) -> None:
    """With one unit."""
    assert shown.ago(seconds) == text


def test_the_time_of_a_damaged_page_is_no_error() -> None:
    """A number that is no time is shown as a number."""
    assert shown.utc(1 << 90).endswith(" ns")
    assert shown.local(1 << 90).endswith(" ns")
    assert shown.utc(0) == "1970-01-01T00:00:00.000000Z"
