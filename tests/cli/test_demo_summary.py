"""The demo's statistics: those of parts, merged, against those of the whole."""

from __future__ import annotations

import decimal
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.demo import memory, summary

TYPES = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float16(): st.floats(width=16, allow_infinity=False),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(-1e150, 1e150) | st.sampled_from([math.inf, -math.inf, math.nan]),
    pa.decimal128(20, 3): st.decimals(-(10**16), 10**16, places=3),
    pa.decimal64(10, 2): st.decimals(-(10**7), 10**7, places=2),
}


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    return (
        pa.array(values, pa.float32()).cast(kind)
        if kind == pa.float16()
        else pa.array(values, kind)
    )


@pytest.mark.parametrize("kind", TYPES, ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_merged_parts_equal_the_whole(kind: pa.DataType, data: st.DataObject) -> None:
    """However a column is cut, the merged summaries are those that Arrow has of the whole."""
    parts = data.draw(
        st.lists(st.lists(st.none() | TYPES[kind], max_size=8), min_size=1, max_size=5)
    )
    tables = [pa.table({"x": column(kind, part)}) for part in parts]
    merged = summary.merge_tables(summary.summarize(table) for table in tables)
    assert summary.differences(merged, summary.whole(pa.concat_tables(tables))) == []


def test_a_part_of_many_slices() -> None:
    """A column longer than several slices, in chunks, has the summary of the whole."""
    count = 3 * summary.SLICE_ROWS + 5
    table = pa.table({"x": pa.chunked_array([range(count), [None, 7], []], pa.int64())})
    merged = summary.merge_tables([summary.summarize(table)])
    assert merged["x"]["count"] == count + 1
    assert merged["x"]["nulls"] == 1
    assert summary.differences(merged, summary.whole(table)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("count", 4), ("nulls", 1), ("min", 2), ("max", 4), ("mean", 2.00001), ("std", None)],
)
def test_each_difference_is_found(key: str, value: Any) -> None:
    """A merged summary that is wrong in any one figure is told from the right one."""
    right = summary.whole(pa.table({"x": [1, 2, 3]}))
    wrong = {"x": right["x"] | {key: value}}
    (difference,) = summary.differences(wrong, right)
    assert difference.startswith(f"x: {key} is {value!r} instead of ")
    assert summary.differences({}, right) == ["columns [] instead of ['x']"]


def test_columns_of_the_same_name_are_told_apart() -> None:
    """Two numeric columns of one name have two summaries; other columns have none."""
    table = pa.table([[1], ["a"], [2]], names=["x", "y", "x"])
    found = summary.summarize(table)
    assert {name: one["max"] for name, one in found.items()} == {"x #0": 1, "x #2": 2}
    decimals = pa.table({"d": [decimal.Decimal("1.5"), None]})
    assert summary.summarize(decimals)["d"]["min"] == decimal.Decimal("1.5")


def test_own_memory_is_not_what_is_shared() -> None:
    """RssAnon is a process's own; pages of shared memory and of files are counted apart."""
    status = "Name:\tx\nVmRSS:\t 35 kB\nRssAnon:\t 5 kB\nRssFile:\t 10 kB\nRssShmem:\t 20 kB\n"
    found = memory.parse(status)
    assert found == memory.Memory(own=5 << 10, shared=30 << 10)
    assert found.since(memory.Memory(10 << 10, 10 << 10)) == memory.Memory(0, 20 << 10)


def test_ctrl_c_while_arrow_reads_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arrow takes the signal for itself while it reads a CSV: the demo was stopped, not misled."""
    import pyarrow.csv

    from shmstore.demo import source
    from shmstore.demo.stop import Stopped

    def cancelled(*_: object, **__: object) -> None:
        raise pa.ArrowCancelled("Operation cancelled")

    (tmp_path / "own.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(pyarrow.csv, "read_csv", cancelled)
    for read in (lambda: source._read(str(tmp_path / "own.csv")), source._flights):
        with pytest.raises(Stopped):
            read()
