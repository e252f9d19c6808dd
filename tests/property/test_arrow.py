"""What pyarrow holds comes back as it was, viewed in place."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.codecs import arrow
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.errors import CorruptValue
from tests import arrow_strategies as some


def stored(value: Any) -> tuple[Encoded, pa.Buffer]:
    """Encodes a value and writes its parts where a segment would hold them."""
    encoded = arrow.encode(value)
    assert encoded is not None
    assert encoded.codec == 6
    assert encoded.nbytes == sum(map(len, encoded.parts))
    # pyarrow allocates on 64-byte boundaries, as segments begin.
    payload = pa.allocate_buffer(max(encoded.nbytes, 1))
    memoryview(payload).cast("B")[: encoded.nbytes] = b"".join(encoded.parts)
    return encoded, payload.slice(0, encoded.nbytes)


def back(value: Any) -> tuple[Any, pa.Buffer]:
    encoded, payload = stored(value)
    return arrow.decode(encoded.meta, memoryview(payload).cast("B")), payload


def assert_in_place(value: Any, payload: pa.Buffer) -> None:
    """Every buffer of the value lies in the payload, on a boundary of 64 bytes."""
    for address, size in some.memory(value):
        if size:
            assert payload.address <= address
            assert address + size <= payload.address + payload.size
            assert (address - payload.address) % ALIGNMENT == 0


def assert_told(encoded: Encoded, payload: pa.Buffer, value: Any) -> None:
    """``explain`` names exactly the bytes that the value views."""
    notes = arrow.explain(encoded.meta, encoded.nbytes)
    assert not any(note.copied for note in notes)
    viewed = {place for place in some.memory(value) if place[1]}
    assert sum(size for _, size in viewed) == sum(note.nbytes for note in notes)


@settings(deadline=None)
@given(some.arrays(depth=3))
def test_an_array_of_any_type_comes_back(array: pa.Array) -> None:
    encoded, payload = stored(array)
    again = arrow.decode(encoded.meta, memoryview(payload).cast("B"))
    assert type(again) is type(array)
    assert again.type == array.type
    again.validate(full=True)
    assert some.cells(again) == some.cells(array)
    assert_in_place(again, payload)
    assert_told(encoded, payload, again)


@settings(deadline=None)
@given(some.chunked_arrays())
def test_a_chunked_array_comes_back(array: pa.ChunkedArray) -> None:
    again, payload = back(array)
    assert type(again) is pa.ChunkedArray
    assert again.type == array.type
    again.validate(full=True)
    assert some.cells(again) == some.cells(array)
    assert_in_place(again, payload)


@settings(deadline=None)
@given(some.arrays(depth=2).filter(len), st.data())
def test_a_scalar_of_any_type_comes_back(array: pa.Array, data: st.DataObject) -> None:
    scalar = array[data.draw(st.integers(0, len(array) - 1))]
    again, _ = back(scalar)
    assert type(again) is type(scalar)
    assert again.type == scalar.type
    assert some.cell(again) == some.cell(scalar)


@settings(deadline=None)
@given(some.record_batches())
def test_a_record_batch_comes_back(batch: pa.RecordBatch) -> None:
    again, payload = back(batch)
    assert type(again) is pa.RecordBatch
    assert_same_columns(again, batch)
    assert_in_place(again, payload)


@settings(deadline=None)
@given(some.tables())
def test_a_table_comes_back(table: pa.Table) -> None:
    again, payload = back(table)
    assert type(again) is pa.Table
    assert_same_columns(again, table)
    assert_in_place(again, payload)


def assert_same_columns(again: Any, value: Any) -> None:
    assert again.schema.equals(value.schema, check_metadata=True)
    assert again.num_rows == value.num_rows
    again.validate(full=True)
    for new, old in zip(again.columns, value.columns, strict=True):
        assert new.type == old.type
        assert some.cells(new) == some.cells(old)


@settings(deadline=None)
@given(some.arrays(depth=2), st.data())
def test_a_schema_a_field_and_a_type_come_back(array: pa.Array, data: st.DataObject) -> None:
    schema = data.draw(some.schemas([array.type]))
    again, _ = back(schema)
    assert again.equals(schema, check_metadata=True)
    assert again.metadata == schema.metadata
    field, _ = back(schema.field(0))
    assert field.equals(schema.field(0), check_metadata=True)
    type_, _ = back(array.type)
    assert type(type_) is type(array.type)
    assert type_ == array.type


@settings(deadline=None)
@given(some.tables())
def test_a_table_is_a_plain_arrow_stream(table: pa.Table) -> None:
    _, payload = stored(table)
    again = pa.ipc.open_stream(payload).read_all()
    assert_same_columns(again, table)


@settings(deadline=None)
@given(some.tables(), st.data())
def test_a_changed_meta_is_noticed(table: pa.Table, data: st.DataObject) -> None:
    encoded, payload = stored(table)
    meta = bytearray(encoded.meta)
    at = data.draw(st.integers(0, len(meta) - 1))
    meta[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptValue):
        arrow.decode(bytes(meta), memoryview(payload).cast("B"))
    with pytest.raises(CorruptValue):
        arrow.explain(bytes(meta), encoded.nbytes)


@settings(deadline=None)
@given(some.tables(), st.data())
def test_a_cut_payload_or_meta_is_noticed(table: pa.Table, data: st.DataObject) -> None:
    encoded, payload = stored(table)
    view = memoryview(payload).cast("B")
    with pytest.raises(CorruptValue):
        arrow.decode(encoded.meta, view[: data.draw(st.integers(0, len(view) - 1))])
    with pytest.raises(CorruptValue):
        arrow.decode(encoded.meta[: data.draw(st.integers(0, len(encoded.meta) - 1))], view)
