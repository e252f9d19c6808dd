"""What the tests of the demo work on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest


@pytest.fixture
def root(root: str) -> str:
    """A path in shared memory at which nothing is yet."""
    return os.path.join(root, "own")


@pytest.fixture
def table() -> pa.Table:
    """5,000 rows in three parts of 1,250, 1,250 and 2,500, with nulls, NaN and strings."""
    numbers = np.arange(5000)
    return pa.table(
        {
            "kind": np.array(["a", "b", "c", "c"])[numbers % 4],
            "whole": pa.array(numbers, mask=numbers % 7 == 0),
            "real": np.sin(numbers) * 1e6,
            "text": [f"row {number}" for number in numbers],
        }
    )


@pytest.fixture
def csv(tmp_path: Path, table: pa.Table) -> str:
    """The table as a CSV file."""
    path = tmp_path / "own.csv"
    pyarrow.csv.write_csv(table, path)
    return str(path)
