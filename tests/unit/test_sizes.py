"""Sizes as people write them."""

from __future__ import annotations

import pytest

from shmstore.sizes import parse_size


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (12345, 12345),
        ("0", 0),
        ("4096", 4096),
        ("8GiB", 8 << 30),
        ("8 GiB", 8 << 30),
        (" 8gib ", 8 << 30),
        ("8G", 8 << 30),
        ("8Gi", 8 << 30),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("1.5kB", 1500),
        ("1.5KiB", 1536),
        ("2TB", 2 * 10**12),
        ("1PiB", 1 << 50),
        ("7B", 7),
        ("7 b", 7),
        ("4611686018427387903", (1 << 62) - 1),
    ],
)
def test_a_size_is_read(given: object, expected: int) -> None:
    """Powers of 1024 with an i or a lone letter, powers of 1000 with a B, exact to the byte."""
    assert parse_size(given, "capacity") == expected


@pytest.mark.parametrize(
    "given",
    ["", "GiB", "eight GiB", "8 GiBs", "8QB", "-5", "1e9", "0x10", "1,000", "8 Gi B", "nan"],
)
def test_nonsense_is_refused(given: str) -> None:
    """In a sentence that names the argument and shows how to write one."""
    with pytest.raises(ValueError, match=r"capacity must be a size such as '8GiB' or '500MB'"):
        parse_size(given, "capacity")


@pytest.mark.parametrize("given", [-1, 1 << 62, "5000000 PiB"])
def test_what_is_no_amount_of_memory_is_refused(given: object) -> None:
    """Negative and absurd ones."""
    with pytest.raises(ValueError, match="pool must lie between 0 and 4 EiB"):
        parse_size(given, "pool")


@pytest.mark.parametrize("given", [None, True, 1.5, b"8GiB", [8]])
def test_other_types_are_refused(given: object) -> None:
    """By their type's name."""
    with pytest.raises(TypeError, match=f"or a size such as '8GiB', not {type(given).__name__}"):
        parse_size(given, "capacity")
