"""Lists what stores have left in shared memory: runs without installation.

Prints one line a file or directory of a store's root below /dev/shm (or the
directories given), with its size, and exits with 1 if there is any. Changes
nothing. Its use: compare before and after a test run.
"""

from __future__ import annotations

import sys
from pathlib import Path


def stores_below(place: Path) -> list[Path]:
    """The directories below ``place`` that look like the root of a store."""
    if not place.is_dir():
        return []
    return [
        root
        for root in sorted(place.iterdir())
        if root.is_dir() and (root.name.startswith("shmstore") or any(root.glob("*/control")))
    ]


def main(places: list[str]) -> int:
    """Prints the leftovers and returns the exit code."""
    found = False
    for place in places or ["/dev/shm"]:
        for root in stores_below(Path(place)):
            found = True
            files = [file for file in root.rglob("*") if file.is_file()]
            size = sum(file.stat().st_blocks * 512 for file in files)
            print(f"{root}: {len(files)} files, {size:,} bytes")
    return int(found)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
