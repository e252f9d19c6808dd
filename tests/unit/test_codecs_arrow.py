"""What the codec for pyarrow promises of single values, beyond the round trip."""

from __future__ import annotations

import mmap
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from shmstore.codecs import arrow
from shmstore.codecs.arrow_meta import unpack
from shmstore.codecs.encoded import ALIGNMENT, Encoded
from shmstore.errors import CorruptValue, Unserializable
from tests import arrow_strategies as some

ROWS = 100_000


def payload_of(encoded: Encoded) -> memoryview:
    return memoryview(b"".join(encoded.parts))


def encoded_of(value: Any) -> Encoded:
    encoded = arrow.encode(value)
    assert encoded is not None
    return encoded


def back(value: Any) -> Any:
    encoded = encoded_of(value)
    return arrow.decode(encoded.meta, payload_of(encoded))


def texts() -> pa.Array:
    return pa.array([f"a text of more than twelve bytes, {row}" for row in range(ROWS)])


def long_columns() -> dict[str, pa.Array]:
    """A column of each layout, all with ROWS rows."""
    text = texts()
    numbers = np.arange(ROWS, dtype=np.int32)
    offsets = np.arange(ROWS + 1, dtype=np.int32)
    zeros = pa.array(np.zeros(ROWS, np.int8))
    ones = np.ones(ROWS, np.int32)
    return {
        "int": pa.array(numbers),
        "bool": pa.array(numbers % 3 == 0),
        "nulls": pa.array(numbers, mask=numbers % 7 == 0),
        "string": text,
        "large_string": text.cast(pa.large_string()),
        "string_view": text.cast(pa.string_view()),
        "list": pa.ListArray.from_arrays(offsets, text),
        "list_view": pa.ListViewArray.from_arrays(numbers, ones, text),
        "list_view_of_views": pa.ListViewArray.from_arrays(
            numbers, ones, text.cast(pa.string_view())
        ),
        "fixed_size_list": pa.FixedSizeListArray.from_arrays(text, 1),
        "struct": pa.StructArray.from_arrays([text, pa.array(numbers)], ["a", "b"]),
        "struct_of_views": pa.StructArray.from_arrays([text.cast(pa.string_view())], ["a"]),
        "map": pa.MapArray.from_arrays(offsets, text, text),
        "dictionary": pa.DictionaryArray.from_arrays(numbers % 3, ["x", "y", "z"]),
        "run_end_encoded": pa.RunEndEncodedArray.from_arrays(pa.array(numbers + 1), text),
        "sparse_union": pa.UnionArray.from_sparse(zeros, [text]),
        "dense_union": pa.UnionArray.from_dense(zeros, pa.array(numbers), [text]),
        "null": pa.nulls(ROWS),
    }


LONG = long_columns()


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(("start", "length"), [(5003, 10), (ROWS - 9, 9), (0, 10)])
def test_of_a_slice_only_the_slice_is_stored(name: str, start: int, length: int) -> None:
    column = LONG[name].slice(start, length)
    for value in (column, pa.table({"a": LONG[name]}).slice(start, length)):
        encoded = encoded_of(value)
        assert encoded.nbytes < 8_000
        again = arrow.decode(encoded.meta, payload_of(encoded))
        again.validate(full=True)
        assert again.equals(value)


@pytest.mark.parametrize("name", sorted(LONG))
def test_of_an_empty_slice_nothing_is_stored(name: str) -> None:
    batch = pa.record_batch({"a": LONG[name]})
    for value in (LONG[name].slice(77, 0), batch.slice(77, 0), batch.slice(0, 0)):
        encoded = encoded_of(value)
        assert encoded.nbytes < 3_000
        again = arrow.decode(encoded.meta, payload_of(encoded))
        again.validate(full=True)
        assert again.equals(value)


def test_views_keep_their_nulls_and_short_values_when_they_are_shrunk() -> None:
    rows = [None if row % 5 == 0 else "x" * (row % 40) for row in range(5_000)]
    column = pa.array(rows, pa.string_view())
    sliced = column.slice(1_003, 200)
    encoded = encoded_of(sliced)
    assert encoded.nbytes < sliced.get_total_buffer_size() / 4
    again = arrow.decode(encoded.meta, payload_of(encoded))
    again.validate(full=True)
    assert again.to_pylist() == rows[1_003:1_203]


def test_views_that_use_their_data_are_not_copied() -> None:
    column = LONG["string_view"]
    assert own_bytes(encoded_of(column), column) > 0.99 * column.nbytes


def own_bytes(encoded: Encoded, value: Any) -> int:
    """How many bytes of the parts lie in the value's own memory."""
    places = some.memory(value)
    found = 0
    for part in encoded.parts:
        if len(part):
            address = np.frombuffer(part, np.uint8).ctypes.data
            found += len(part) * any(at <= address < at + size for at, size in places)
    return found


def test_nothing_of_a_large_table_is_copied_at_put() -> None:
    table = pa.table({name: column for name, column in LONG.items() if "list_view" not in name})
    encoded = encoded_of(table)
    assert own_bytes(encoded, table) > 0.99 * encoded.nbytes


@pytest.mark.parametrize("rows", [10, ROWS])
def test_each_buffer_starts_on_a_boundary_of_64_bytes(rows: int) -> None:
    batch = pa.record_batch(LONG).slice(0, rows)
    encoded = encoded_of(batch)
    payload = payload_of(encoded)
    again = arrow.decode(encoded.meta, payload)
    base = np.frombuffer(payload, np.uint8).ctypes.data
    viewed = [place for place in some.memory(again) if place[1]]
    assert len(viewed) > 20
    assert {(address - base) % ALIGNMENT for address, _ in viewed} == {0}


def test_explain_names_buffers_by_their_columns() -> None:
    table = pa.table(
        {
            "a": pa.array([1, None]),
            "b": pa.array([["x"], []], pa.list_(pa.string())),
            "c": pa.array(["p", "q"]).dictionary_encode(),
            "d": pa.array(["a text of more than twelve bytes", "y"], pa.string_view()),
            "e": pa.array([{"f": 1}, None]),
        }
    )
    encoded = encoded_of(table)
    notes = arrow.explain(encoded.meta, encoded.nbytes)
    assert {note.name: note.nbytes for note in notes} == {
        "a.validity": 1,
        "a.data": 16,
        "b.offsets": 12,
        "b.item.offsets": 8,
        "b.item.data": 1,
        "c.indices": 8,
        "c.dictionary.offsets": 12,
        "c.dictionary.data": 2,
        "d.views": 32,
        "d.data": 32,
        "e.validity": 1,
        "e.f.data": 16,
    }
    assert not any(note.copied for note in notes)


def test_a_view_keeps_the_mapping_alive_and_nothing_else_does() -> None:
    encoded = encoded_of(pa.table({"a": np.arange(1000)}))
    mapping = mmap.mmap(-1, encoded.nbytes)
    mapping[:] = b"".join(encoded.parts)
    table = arrow.decode(encoded.meta, memoryview(mapping))
    column = table.column(0)
    del table
    with pytest.raises(BufferError):
        mapping.close()
    assert column.to_pylist() == list(range(1000))
    del column
    mapping.close()


class TestExactness:
    """What is easily lost on the way."""

    @pytest.mark.parametrize("rows", [0, 3])
    def test_a_table_without_columns_keeps_its_rows(self, rows: int) -> None:
        for value in (pa.table({"a": range(rows)}), pa.record_batch({"a": pa.nulls(rows)})):
            again = back(value.select([]))
            assert type(again) is type(value)
            assert (again.num_rows, again.num_columns) == (rows, 0)

    def test_an_empty_table_keeps_its_dictionaries(self) -> None:
        table = pa.table({"a": pa.array(["x", "y"]).dictionary_encode()}).slice(0, 0)
        assert table.num_rows == 0
        assert back(table).column(0).chunk(0).dictionary.to_pylist() == ["x", "y"]

    def test_an_empty_table_of_dictionaries_in_lists_is_read(self) -> None:
        schema = pa.schema({"a": pa.list_(pa.dictionary(pa.int8(), pa.string_view()))})
        table = pa.Table.from_batches([], schema)
        assert back(table).equals(table)

    def test_chunks_keep_dictionaries_of_their_own(self) -> None:
        one = pa.array(["a", "b"]).dictionary_encode()
        two = pa.array(["c", "d", "e"]).dictionary_encode()
        nested = pa.chunked_array(
            [
                pa.ListArray.from_arrays([0, 1, 2], one),
                pa.ListArray.from_arrays([0, 1, 3], two),
            ]
        )
        structs = pa.chunked_array(
            [
                pa.StructArray.from_arrays([one, two.slice(0, 2)], ["a", "b"]),
                pa.StructArray.from_arrays([two.slice(1, 2), two.slice(0, 2)], ["a", "b"]),
            ]
        )
        table = pa.table({"nested": nested, "structs": structs})
        assert back(table).equals(table)
        flat = pa.chunked_array([one, two, one])
        again = back(flat)
        assert [chunk.dictionary.to_pylist() for chunk in again.chunks] == [
            ["a", "b"],
            ["c", "d", "e"],
            ["a", "b"],
        ]

    def test_fields_keep_metadata_and_nullability(self) -> None:
        field = pa.field("a", pa.int8(), nullable=False, metadata={"k": "v"})
        schema = pa.schema([field, field], metadata={"x": "y"})
        table = pa.Table.from_arrays([pa.array([1], pa.int8())] * 2, schema=schema)
        for value in (table, schema, field):
            again = back(value)
            assert again.equals(value, check_metadata=True)
        assert back(table).schema.metadata == {b"x": b"y"}

    def test_bits_of_nan_and_zero_are_kept(self) -> None:
        bits = [0x7FF8000000000001, 0xFFF8000000000123, 0x8000000000000000]
        array = pa.Array.from_buffers(
            pa.float64(), 3, [None, pa.py_buffer(struct.pack("<3Q", *bits))]
        )
        assert struct.unpack("<3Q", back(array).buffers()[1].to_pybytes()[:24]) == tuple(bits)

    def test_a_chunked_array_of_no_chunks_keeps_its_type(self) -> None:
        array = pa.chunked_array([], pa.dictionary(pa.int8(), pa.string()))
        again = back(array)
        assert again.type == array.type
        assert again.num_chunks == 0

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
    def test_a_tensor_keeps_shape_order_and_names(self, shape: tuple[int, ...], order: Any) -> None:
        cells = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape, order=order)
        names = ["x", "y", "z"][: len(shape)]
        for dim_names in (names, None):
            tensor = pa.Tensor.from_numpy(cells, dim_names)
            again = back(tensor)
            assert type(again) is pa.Tensor
            # Tensor.equals reads invalid memory for tensors without dimensions.
            np.testing.assert_array_equal(again.to_numpy(), cells)
            assert (again.type, again.shape, again.dim_names) == (
                tensor.type,
                tensor.shape,
                tensor.dim_names,
            )
            if cells.size:
                assert again.strides == tensor.strides

    def test_nulls_of_no_rows_come_back(self) -> None:
        union = pa.dense_union([pa.field("x", pa.int8())])
        for type_ in (union, pa.list_view(union), pa.struct([pa.field("a", union)])):
            assert back(pa.nulls(0, type_)).type == type_
            table = pa.table({"a": pa.chunked_array([], type_)})
            assert back(table).equals(table)

    def test_a_tensor_with_gaps_is_compacted(self) -> None:
        tensor = pa.Tensor.from_numpy(np.arange(24).reshape(4, 6)[::2, ::3])
        assert not tensor.is_contiguous
        again = back(tensor)
        assert again.equals(tensor)
        assert again.is_contiguous

    @pytest.mark.parametrize("content", [b"", b"abc"])
    def test_a_buffer_is_a_buffer_in_place(self, content: bytes) -> None:
        encoded = encoded_of(pa.py_buffer(content))
        again = arrow.decode(encoded.meta, payload_of(encoded))
        assert type(again) is pa.Buffer
        assert again.to_pybytes() == content

    def test_a_scalar_in_each_layout_comes_back(self) -> None:
        for column in LONG.values():
            scalar = column[7]
            again = back(scalar)
            assert type(again) is type(scalar)
            assert again.type == scalar.type
            assert some.cell(again) == some.cell(scalar)

    def test_more_rows_than_32_bits_count_are_written(self) -> None:
        array = pa.nulls(2**31 + 5)
        assert len(back(array)) == 2**31 + 5


class Label(pa.ExtensionType):
    """An extension type of the user's, with classes of its own."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__(pa.int32(), "tests.label")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.unit.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Label:
        return cls(serialized.decode())

    def __arrow_ext_class__(self) -> type:
        return Labels

    def __arrow_ext_scalar_class__(self) -> type:
        return LabelScalar


class Labels(pa.ExtensionArray):
    pass


class LabelScalar(pa.ExtensionScalar):
    pass


@pytest.fixture
def labels() -> Labels:
    return pa.ExtensionArray.from_storage(Label("m"), pa.array([1, None, 3], pa.int32()))


@pytest.fixture
def registered() -> Iterator[None]:
    pa.register_extension_type(Label(""))
    yield
    pa.unregister_extension_type("tests.label")


class TestExtensionTypes:
    """A type is read as itself, or the value is not stored as Arrow, or not read."""

    @pytest.mark.usefixtures("registered")
    def test_a_registered_type_comes_back_with_its_classes(self, labels: Labels) -> None:
        nested = pa.StructArray.from_arrays([labels], ["a"])
        for value in (labels, labels[0], labels.type, nested, pa.table({"a": labels})):
            again = back(value)
            assert type(again) is type(value)
            assert again == value
        assert back(labels).type.unit == "m"

    def test_a_type_that_is_not_registered_is_passed_on(self, labels: Labels) -> None:
        for value in (labels, labels[0], labels.type, pa.table({"a": labels})):
            assert arrow.encode(value) is None

    def test_a_type_registered_later_is_noticed(self, labels: Labels) -> None:
        assert arrow.encode(labels) is None
        pa.register_extension_type(Label(""))
        try:
            assert arrow.encode(labels) is not None
        finally:
            pa.unregister_extension_type("tests.label")
        assert arrow.encode(labels) is None

    def test_a_reader_without_the_type_is_told_to_register_it(self, labels: Labels) -> None:
        pa.register_extension_type(Label(""))
        try:
            values = [labels, labels.type, pa.table({"a": [1], "b": labels.slice(0, 1)})]
            all_encoded = [encoded_of(value) for value in values]
        finally:
            pa.unregister_extension_type("tests.label")
        for encoded in all_encoded:
            with pytest.raises(Unserializable, match=r"tests\.label .*register_extension_type"):
                arrow.decode(encoded.meta, payload_of(encoded))

    @pytest.mark.usefixtures("registered")
    def test_a_name_in_plain_metadata_does_not_make_a_type(self) -> None:
        field = pa.field("a", pa.int32(), metadata={"ARROW:extension:name": "tests.label"})
        table = pa.Table.from_arrays([pa.array([1], pa.int32())], schema=pa.schema([field]))
        assert arrow.encode(table) is None


class TestPassedOn:
    """What Arrow IPC would change goes to the next codec."""

    def test_a_dictionary_of_dictionaries(self) -> None:
        inner = pa.array(["a"]).dictionary_encode()
        value = pa.DictionaryArray.from_arrays([0], inner)
        assert arrow.encode(value) is None
        assert arrow.encode(value.type) is None

    def test_a_dictionary_of_an_extension_type(self) -> None:
        assert (
            arrow.encode(pa.DictionaryArray.from_arrays([0], pa.array([b"0" * 16], pa.uuid())))
            is None
        )

    def test_a_type_nested_too_deeply(self) -> None:
        array = pa.array([1])
        for _ in range(80):
            array = pa.StructArray.from_arrays([array], ["a"])
        assert arrow.encode(array) is None

    def test_a_subclass(self) -> None:
        class Mine(pa.Table):
            pass

        mine = Mine.from_arrays([pa.array([1])], ["a"])
        if type(mine) is Mine:
            assert arrow.encode(mine) is None
        assert arrow.encode(Mine) is None

    def test_other_objects_of_pyarrow(self) -> None:
        for value in (pa.default_memory_pool(), pa.KeyValueMetadata({"a": "b"}), pa):
            assert arrow.encode(value) is None


class Rereadable:
    """Exports its table as often as it is asked to."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.asked = 0

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        self.asked += 1
        return self.table.__arrow_c_stream__(requested_schema)


class Once(Rereadable):
    """Gives its stream away, then fails."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        if self.asked:
            raise RuntimeError("already consumed")
        return super().__arrow_c_stream__(requested_schema)


class Shared(Rereadable):
    """Every stream it gives continues the same reading."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(table.to_reader())


class Reader(Once):
    def __next__(self) -> object:
        raise NotImplementedError


TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}, metadata={"k": "v"})


class TestForeignStreams:
    """What exports a stream is stored if that does not use it up."""

    @pytest.mark.parametrize("table", [TABLE, TABLE.slice(0, 0), TABLE.select([])])
    def test_what_can_be_read_again_becomes_a_table(self, table: pa.Table) -> None:
        encoded = arrow.encode_stream(Rereadable(table))
        assert encoded is not None
        again = arrow.decode(encoded.meta, payload_of(encoded))
        assert type(again) is pa.Table
        assert again.equals(table)
        assert again.schema.equals(table.schema, check_metadata=True)

    def test_a_stream_without_columns_becomes_a_chunked_array(self) -> None:
        array = pa.chunked_array([[1, 2], [3]])
        encoded = arrow.encode_stream(Rereadable(array))
        assert encoded is not None
        assert arrow.decode(encoded.meta, payload_of(encoded)).equals(array)

    @pytest.mark.parametrize("cls", [Once, Shared])
    def test_what_can_be_read_once_is_refused(self, cls: type[Rereadable]) -> None:
        with pytest.raises(Unserializable, match="read only once"):
            arrow.encode_stream(cls(TABLE))

    def test_what_says_that_it_is_an_iterator_is_refused_untouched(self) -> None:
        reader = Reader(TABLE)
        with pytest.raises(Unserializable, match="read only once"):
            arrow.encode_stream(reader)
        assert reader.asked == 0

    def test_a_record_batch_reader_is_refused_untouched(self) -> None:
        reader = TABLE.to_reader()
        for encode in (arrow.encode, arrow.encode_stream):
            with pytest.raises(Unserializable, match="RecordBatchReader"):
                encode(reader)
        assert reader.read_all().equals(TABLE)

    def test_an_open_ipc_stream_is_refused_untouched(self) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, TABLE.schema) as writer:
            writer.write_table(TABLE)
        reader = pa.ipc.open_stream(sink.getvalue())
        with pytest.raises(Unserializable):
            arrow.encode(reader)
        assert reader.read_all().equals(TABLE)

    def test_a_stream_that_fails_is_refused_with_its_reason(self) -> None:
        class Broken:
            def __arrow_c_stream__(self, requested_schema: object = None) -> object:
                raise ValueError("the disk is gone")

        with pytest.raises(Unserializable, match="the disk is gone"):
            arrow.encode_stream(Broken())

    def test_a_class_derived_from_a_library_s_is_passed_on(self) -> None:
        class Frame(pl.DataFrame):
            pass

        assert arrow.encode_stream(Frame({"a": [1]})) is None


def test_polars_reads_the_payload() -> None:
    table = pa.table(
        {
            "a": [1, None, 3],
            "b": ["x", "a text of more than twelve bytes", None],
            "c": pa.array(["p", "q", "p"]).dictionary_encode(),
            "d": pa.array(["a text of more than twelve bytes"] * 3, pa.string_view()),
        }
    )
    payload = b"".join(encoded_of(table).parts)
    assert pl.read_ipc_stream(payload).to_dict(as_series=False) == table.to_pydict()


def test_changed_metadata_of_the_payload_is_noticed() -> None:
    table = pa.table(LONG).slice(0, 50)
    encoded = encoded_of(table)
    payload = bytearray(payload_of(encoded))
    facts = unpack(encoded.meta)
    position = 0
    for head, body in struct.iter_unpack("<IQ", facts.spans):
        for at in range(position, position + head, 7):
            changed = bytearray(payload)
            changed[at] ^= 0x5A
            with pytest.raises(CorruptValue, match="digest"):
                arrow.decode(encoded.meta, memoryview(changed))
        position += head + body
    assert position == len(payload)


def test_importing_the_table_of_codecs_imports_no_library() -> None:
    code = "import sys, shmstore.codecs;print({'pyarrow', 'polars', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
