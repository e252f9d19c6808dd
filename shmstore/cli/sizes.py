"""Sizes for people. Pure."""

from __future__ import annotations


def shown(nbytes: float) -> str:
    """A number of bytes in B, KB or MB."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    if nbytes < 1_000_000:
        return f"{nbytes / 1000:.1f} KB"
    return f"{nbytes / 1_000_000:,.1f} MB"
