"""What polars holds comes back with the same dtypes, names and cells."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from polars.testing.parametric import dataframes, series

from shmstore.codecs import polars_frames
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.codecs.polars_dtypes import has_width_zero, is_named, spec
from shmstore.errors import CorruptValue, Unserializable
from tests import arrow_strategies as some

CATEGORIES = frozenset({"Categorical", "Enum"})


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """Polars' lazy engine opens descriptors when it first runs, and keeps them."""
    pl.DataFrame({"a": [1]}).lazy().select(pl.len()).collect()


def stored(value: Any) -> tuple[Encoded, pa.Buffer]:
    """Encodes a value and writes its parts where a segment would hold them."""
    encoded = polars_frames.encode(value)
    assert encoded is not None
    assert encoded.codec == polars_frames.CODEC
    assert encoded.nbytes == sum(map(len, encoded.parts))
    payload = pa.allocate_buffer(max(encoded.nbytes, 1))
    memoryview(payload).cast("B")[: encoded.nbytes] = b"".join(encoded.parts)
    return encoded, payload.slice(0, encoded.nbytes)


def decoded(encoded: Encoded, payload: pa.Buffer) -> Any:
    return polars_frames.decode(encoded.meta, memoryview(payload).cast("B"))


def assert_same(again: pl.DataFrame, frame: pl.DataFrame) -> None:
    assert type(again) is pl.DataFrame
    assert again.schema == frame.schema
    assert again.shape == frame.shape
    for new, old in zip(again.get_columns(), frame.get_columns(), strict=True):
        # equals finds 0.0 and -0.0 equal, repr does not.
        assert new.equals(old, check_dtypes=True, check_names=True, null_equal=True)
        assert repr(new.to_list()) == repr(old.to_list())
        for flag in ("SORTED_ASC", "SORTED_DESC"):
            assert new.flags[flag] == old.flags[flag]


FRAMES = dataframes(max_cols=4, max_size=8, excluded_dtypes=[pl.Object])


@settings(deadline=None, max_examples=60)
@given(FRAMES, st.booleans(), st.integers(0, 4))
def test_a_frame_comes_back(frame: pl.DataFrame, whole: bool, start: int) -> None:
    if not whole:
        frame = pl.concat([frame.slice(start, 3), frame.slice(1)], rechunk=False)
    described = [spec(dtype) for dtype in frame.dtypes]
    if any(map(has_width_zero, described)):
        with pytest.raises(Unserializable, match="width 0"):
            polars_frames.encode(frame)
        return
    encoded, payload = stored(frame)
    again = decoded(encoded, payload)
    assert_same(again, frame)
    assert_told(encoded, payload, again)


def assert_told(encoded: Encoded, payload: pa.Buffer, frame: pl.DataFrame) -> None:
    """``explain`` says viewed of what lies in the payload, and copied of what does not."""
    inside: set[tuple[int, int]] = set()
    outside: set[tuple[int, int]] = set()
    notes = polars_frames.explain(encoded.meta, encoded.nbytes)
    apart = [note for note in notes if "polars' own format" in note.why]
    for column in frame.get_columns():
        described = spec(column.dtype)
        if is_named(described, frozenset({"Int128", "UInt128"})):
            assert apart
            assert apart[0].copied
            continue
        if is_named(described, CATEGORIES):
            # Exporting categories copies them; their codes are exported in place.
            if is_named(described, frozenset({"Decimal"})):
                return
            if column.null_count() == len(column):
                return  # its codes need not be those of the payload: there are none
            column = column.to_physical()  # noqa: PLW2901
        for address, size in places(column):
            here = payload.address <= address < payload.address + payload.size
            (inside if here else outside).add((address, size))
            assert not here or (address - payload.address) % ALIGNMENT == 0
    viewed = sum(note.nbytes for note in notes if not note.copied)
    assert sum(size for _, size in inside) >= viewed
    if all(column.n_chunks() == 1 for column in frame.get_columns()):
        # A note is for all chunks, and what one chunk needs copied another may not. Bitmaps
        # to be merged are left in place where polars sees that merging changes nothing.
        merged = sum(note.nbytes for note in notes if "merges" in note.why)
        assert sum(size for _, size in inside) <= viewed + merged
    if not any(note.copied for note in notes):
        assert not outside


def places(column: pl.Series) -> list[tuple[int, int]]:
    table = column.to_frame().to_arrow(compat_level=pl.CompatLevel.newest())
    return [place for place in some.memory(table) if place[1]]


@settings(deadline=None, max_examples=30)
@given(series(max_size=8, excluded_dtypes=[pl.Object]), st.text(max_size=5))
def test_a_series_comes_back(column: pl.Series, name: str) -> None:
    assume(not has_width_zero(spec(column.dtype)))
    column = column.rename(name)
    again = decoded(*stored(column))
    assert type(again) is pl.Series
    assert_same(again.to_frame(), column.to_frame())


@settings(deadline=None, max_examples=30)
@given(dataframes(max_cols=3, max_size=8, excluded_dtypes=[pl.Object, pl.Array]))
def test_a_frame_is_a_plain_arrow_stream(frame: pl.DataFrame) -> None:
    assume(not any(is_named(spec(t), frozenset({"Int128", "UInt128"})) for t in frame.dtypes))
    _, payload = stored(frame)
    table = pa.ipc.open_stream(payload).read_all()
    table.validate(full=True)
    assert table.column_names == frame.columns
    assert table.num_rows == frame.height


@settings(deadline=None, max_examples=30)
@given(FRAMES, st.data())
def test_a_changed_or_cut_meta_is_noticed(frame: pl.DataFrame, data: st.DataObject) -> None:
    assume(not any(has_width_zero(spec(dtype)) for dtype in frame.dtypes))
    encoded, payload = stored(frame)
    changed = bytearray(encoded.meta)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    for meta in (bytes(changed), encoded.meta[:at]):
        with pytest.raises(CorruptValue):
            polars_frames.decode(meta, memoryview(payload).cast("B"))
        with pytest.raises(CorruptValue):
            polars_frames.explain(meta, encoded.nbytes)


@settings(deadline=None, max_examples=30)
@given(FRAMES, st.data())
def test_a_cut_payload_is_noticed(frame: pl.DataFrame, data: st.DataObject) -> None:
    assume(not any(has_width_zero(spec(dtype)) for dtype in frame.dtypes))
    encoded, payload = stored(frame)
    cut = data.draw(st.integers(0, encoded.nbytes - 1))
    with pytest.raises(CorruptValue):
        polars_frames.decode(encoded.meta, memoryview(payload).cast("B")[:cut])
