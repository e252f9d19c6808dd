"""Arrow data, arrays and frames as a hostile host may craft them: refused, without a crash."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xxhash

from shmstore import codecs
from shmstore.codecs import arrays, arrow_meta, polars_meta
from shmstore.codecs.encoded import Encoded
from shmstore.codecs.trust import NOBODY
from shmstore.errors import CorruptValue, UnsafeValue
from tests.fault.test_gadgets import attempt, refused

TEXT = "a text of more than twelve bytes"


def stream_of(table: pa.Table, kind: int = arrow_meta.TABLE, **options: Any) -> Encoded:
    """A value of the codec for Arrow around any stream: its meta says what the stream is."""
    sink = pa.BufferOutputStream()
    writer = pa.ipc.RecordBatchStreamWriter(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True, **options)
    )
    writer.write_table(table)
    writer.close()
    return around(sink.getvalue().to_pybytes(), table.num_rows, kind)


def around(stream: bytes, rows: int, kind: int = arrow_meta.TABLE) -> Encoded:
    # One span over all of it: what is digested says nothing about what is in it.
    spans = struct.pack("<IQ", len(stream), 0)
    meta = arrow_meta.pack(kind, rows, xxhash.xxh3_64_intdigest(stream), b"", spans)
    return Encoded(6, meta, [stream], len(stream))


def with_buffers(type_: pa.DataType, length: int, *buffers: bytes | None, **more: Any) -> pa.Table:
    """A table of one column over any memory."""
    held = [None if each is None else pa.py_buffer(each) for each in buffers]
    return pa.table({"a": pa.Array.from_buffers(type_, length, held, **more)})


def i32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def i64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def patched(table: pa.Table, find: bytes, put: bytes) -> Encoded:
    """A stream of a table in which some bytes are others: pyarrow does not write these."""
    encoded = stream_of(table)
    stream = bytes(encoded.parts[0])
    assert stream.count(find) == 1
    return around(stream.replace(find, put), table.num_rows)


INT = pa.array([1, 2, 3])
NULL_LAST = b"\x01"
STRINGS = pa.table({"a": ["abc", "defgh"]})
LISTS = pa.table({"a": [[7, 8, 9], [1]]})
MAPS = pa.table({"a": pa.array([[(7, 8)] * 3, [(1, 2)]], pa.map_(pa.int64(), pa.int64()))})
RUNS = pa.table({"a": pa.RunEndEncodedArray.from_arrays(
    pa.array([300, 500], pa.int32()), pa.array([1, 2]), pa.run_end_encoded(pa.int32(), pa.int64())
)})  # fmt: skip
PATCHED: dict[str, Callable[[], Encoded]] = {
    "offsets beyond the data": lambda: patched(STRINGS, i32(0, 3, 8), i32(0, 3, 9999)),
    "falling offsets": lambda: patched(STRINGS, i32(0, 3, 8), i32(0, 9, 8)),
    "negative offsets": lambda: patched(STRINGS, i32(0, 3, 8), i32(-5, 3, 8)),
    "large offsets": lambda: patched(
        pa.table({"a": pa.array(["abc", "defgh"], pa.large_string())}),
        i64(0, 3, 8), i64(0, 1 << 40, 8),
    ),
    "offsets of lists": lambda: patched(LISTS, i32(0, 3, 4), i32(0, 3, 4000)),
    "offsets of maps": lambda: patched(MAPS, i32(0, 3, 4), i32(0, 3, 4000)),
    "run ends that fall": lambda: patched(RUNS, i32(300, 500), i32(900, 500)),
    "run ends too short": lambda: patched(RUNS, i32(300, 500), i32(300, 400)),
}  # fmt: skip
TABLES: dict[str, Callable[[], pa.Table]] = {
    "no UTF-8": lambda: with_buffers(pa.string(), 1, None, i32(0, 2), b"\xff\xfe"),
    "a view beyond the data": lambda: with_buffers(
        pa.string_view(), 1, None, struct.pack("<i4sii", 20, b"abcd", 0, 1000), b"abcd" * 10
    ),
    "a view of no buffer": lambda: with_buffers(
        pa.string_view(), 1, None, struct.pack("<i4sii", 20, b"abcd", 7, 0), b"abcd" * 10
    ),
    "a view of a negative buffer": lambda: with_buffers(
        pa.binary_view(), 1, None, struct.pack("<i4sii", 20, b"abcd", -3, 0), b"abcd" * 10
    ),
    "a view of negative size": lambda: with_buffers(
        pa.binary_view(), 1, None, struct.pack("<i4sii", -20, b"abcd", 0, 0), b"abcd" * 10
    ),
    "an empty view beyond the data": lambda: with_buffers(
        pa.string_view(), 2, NULL_LAST,
        struct.pack("<i12si4sii", 1, b"a", 1 << 30, b"abcd", 0, 1 << 30), b"abcd",
    ),
    "an empty view of no buffer": lambda: with_buffers(
        pa.binary_view(), 2, NULL_LAST,
        struct.pack("<i12si4sii", 1, b"a", 100, b"abcd", 1 << 20, 0), b"abcd",
    ),
    "an empty view in a list": lambda: pa.table({"a": pa.ListArray.from_arrays(
        pa.array([0, 2], pa.int32()),
        with_buffers(
            pa.string_view(), 2, NULL_LAST,
            struct.pack("<i12si4sii", 1, b"a", 1 << 30, b"abcd", 9, 1 << 30), b"abcd",
        ).column(0).chunk(0),
    )}),
    "an empty view in a dictionary": lambda: pa.table({"a": pa.DictionaryArray.from_arrays(
        pa.array([0, 0], pa.int8()),
        with_buffers(
            pa.string_view(), 2, NULL_LAST,
            struct.pack("<i12si4sii", 1, b"a", 1 << 30, b"abcd", 9, 1 << 30), b"abcd",
        ).column(0).chunk(0),
        safe=False,
    )}),
    "a list view beyond its values": lambda: with_buffers(
        pa.list_view(pa.int64()), 1, None, i32(2), i32(4000), children=[INT]
    ),
    "an empty list view beyond its values": lambda: with_buffers(
        pa.list_view(pa.int64()), 2, NULL_LAST, i32(0, 1 << 30), i32(1, 1 << 30), children=[INT]
    ),
    "an empty large list view beyond its values": lambda: with_buffers(
        pa.large_list_view(pa.int64()), 2, NULL_LAST, i64(0, 1 << 60), i64(1, 1 << 60),
        children=[INT],
    ),
    "an index beyond its dictionary": lambda: pa.table({"a": pa.DictionaryArray.from_arrays(
        pa.array([0, 100], pa.int8()), pa.array(["x"]), safe=False
    )}),
    "a negative index": lambda: pa.table({"a": pa.DictionaryArray.from_arrays(
        pa.array([-7], pa.int8()), pa.array(["x"]), safe=False
    )}),
    "a type code of no child": lambda: with_buffers(
        pa.dense_union([pa.field("x", pa.int64())]), 1, None, b"\x05", i32(0), children=[INT]
    ),
    "an offset beyond its child": lambda: with_buffers(
        pa.dense_union([pa.field("x", pa.int64())]), 1, None, b"\x00", i32(5000), children=[INT]
    ),
    "a decimal too long": lambda: with_buffers(pa.decimal128(1), 1, None, b"\x7f" * 16),
    "a time beyond the day": lambda: with_buffers(pa.time32("s"), 1, None, i32(1 << 30)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_arrow_data_that_is_not_valid_is_refused(name: str) -> None:
    """Whatever refers to memory that is not there, also where nobody looks at first."""
    table = TABLES[name]()
    for kind in (arrow_meta.TABLE, arrow_meta.BATCH, arrow_meta.CHUNKED):
        refused(stream_of(table, kind), CorruptValue)


@pytest.mark.parametrize("name", PATCHED)
def test_arrow_data_that_pyarrow_does_not_write_is_refused(name: str) -> None:
    """Offsets that lead out of their data."""
    refused(PATCHED[name](), CorruptValue)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_data_is_refused(codec: str) -> None:
    """A few kilobytes do not become a gigabyte."""
    table = pa.table({"a": np.zeros(1 << 20)})
    encoded = stream_of(table, compression=codec)
    assert encoded.nbytes < table.nbytes / 100
    assert "compressed" in refused(encoded, CorruptValue)


def test_data_as_it_should_be_is_read() -> None:
    """What refuses the others is not the way in which they are made."""
    assert attempt(stream_of(pa.table({"a": ["x", None, TEXT]})))[0] == "decoded"
    views = pa.array(["x", None, TEXT], pa.string_view())
    assert attempt(stream_of(pa.table({"a": views})))[0] == "decoded"


def test_no_class_of_an_extension_type_runs() -> None:
    """A schema that names one is refused before it is parsed, registered or not."""
    ran: list[bytes] = []

    class Spy(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.int64(), "tests.spy")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"x"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
            ran.append(serialized)
            return cls()

    def field(name: str) -> pa.Field:
        return pa.field("a", pa.int64(), metadata={"ARROW:extension:name": name})

    pa.register_extension_type(Spy())
    try:
        for name in ("tests.spy", "arrow.py_extension_type", "unknown"):
            plain = field(name)
            nested = pa.field("s", pa.struct([pa.field("l", pa.list_(plain))]))
            for one in (plain, nested):
                schema = pa.schema([one])
                for kind in (arrow_meta.SCHEMA, arrow_meta.FIELD, arrow_meta.TYPE):
                    ran.clear()
                    payload = schema.serialize().to_pybytes()
                    ran.clear()
                    meta = arrow_meta.pack(kind, 0, xxhash.xxh3_64_intdigest(payload))
                    with pytest.raises(UnsafeValue, match=name):
                        codecs.decode(6, meta, memoryview(payload), NOBODY)
                    assert not ran
        table = pa.table({"a": pa.ExtensionArray.from_storage(Spy(), INT)})
        encoded = stream_of(table)
        ran.clear()
        with pytest.raises(UnsafeValue, match=r"tests\.spy"):
            codecs.decode(6, encoded.meta, memoryview(encoded.parts[0]), NOBODY)
        assert not ran
    finally:
        pa.unregister_extension_type("tests.spy")


@pytest.mark.parametrize(
    ("type_", "shape", "size"),
    [
        (pa.string(), "1", 8),
        (pa.list_(pa.int8()), "2", 16),
        (pa.null(), "1", 8),
        (pa.int64(), "-1 -8", 64),
        (pa.int64(), "4294967296 4294967296", 0),
        (pa.int8(), "9223372036854775807 2", 0),
        (pa.int64(), "1 " * 100, 8),
        (pa.int64(), "x", 8),
        (pa.int64(), "9" * 5000, 8),
    ],
    ids=str,
)
def test_a_tensor_is_of_numbers_and_of_its_size(type_: pa.DataType, shape: str, size: int) -> None:
    """Never an array of objects, whose memory would be addresses."""
    schema = pa.schema([pa.field("value", type_)], metadata={"shape": shape, "order": "C"})
    meta = arrow_meta.pack(arrow_meta.TENSOR, 0, 0, schema.serialize().to_pybytes())
    refused(Encoded(6, meta, [b"A" * size], size), CorruptValue)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack("<Ii", 0xFFFFFFFF, -8),
        struct.pack("<Ii", 0xFFFFFFFF, 1 << 30),
        struct.pack("<Ii", 0xFFFFFFFF, 8) + b"\xff" * 8,
        struct.pack("<Ii", 0xFFFFFFFF, 16) + struct.pack("<IiII", 4, 1 << 30, 0, 0),
        struct.pack("<Ii", 0xFFFFFFFF, 16) + struct.pack("<IiII", 4, -(1 << 30), 0, 0),
        struct.pack("<Ii", 100, 0),
    ],
    ids=lambda stream: stream.hex()[:40],
)
def test_metadata_that_leads_nowhere_is_refused(stream: bytes) -> None:
    """Offsets of a flatbuffer are believed by nobody before they are checked."""
    refused(around(stream, 0), CorruptValue)
    payload = memoryview(stream)
    meta = arrow_meta.pack(arrow_meta.SCHEMA, 0, xxhash.xxh3_64_intdigest(payload))
    refused(Encoded(6, meta, [stream], len(stream)), CorruptValue)


# --- Arrays ----------------------------------------------------------------------------


def array_meta(shape: tuple[int, ...], dtype: bytes, order: int = 0) -> bytes:
    return struct.pack(f"<BB{len(shape)}Q", order, len(shape), *shape) + dtype


ARRAYS: dict[str, tuple[bytes, int]] = {
    "objects": (array_meta((1,), b"|O"), 8),
    "objects in a field": (
        array_meta((1,), b'{"names":["a"],"formats":["|O"],"offsets":[0],"itemsize":8}'), 8,
    ),
    "a Python expression": (array_meta((1,), b"i8,O"), 8),
    "a size that overflows": (array_meta((1 << 63, 2), b"<q"), 0),
    "a size that wraps": (array_meta(((1 << 61) + 1,), b"<q"), 8),
    "too many dimensions": (array_meta((1,) * 65, b"<q"), 8),
    "more than there is": (array_meta((2,), b"<q"), 8),
    "less than there is": (array_meta((1,), b"<q"), 16),
    "no order": (array_meta((1,), b"<q", 7), 8),
    "endless nothing": (array_meta((1 << 62,), b"|V0"), 0),
    "endless rows of nothing": (array_meta((2, 1 << 40, 0), b"<d"), 0),
    "a field outside": (
        array_meta((1,), b'{"names":["a"],"formats":["<q"],"offsets":[8],"itemsize":8}'), 8,
    ),
    "a negative offset": (
        array_meta((1,), b'{"names":["a"],"formats":["<q"],"offsets":[-8],"itemsize":8}'), 8,
    ),
    "a huge field": (
        array_meta((1,), b'{"names":["a"],"formats":[["<q",[2147483647,2147483647]]],'
                   b'"offsets":[0],"itemsize":8}'), 8,
    ),
    "a negative subarray": (
        array_meta((1,), b'{"names":["a"],"formats":[["<q",[-1]]],"offsets":[0],"itemsize":8}'), 8,
    ),
    "fields in no end": (array_meta((1,), b'{"formats":[' * 2000 + b"]}" * 2000), 8),
    "a title that is none": (
        array_meta((1,), b'{"names":["a"],"formats":["<q"],"offsets":[0],"itemsize":8,'
                   b'"titles":[{"a":1}]}'), 8,
    ),
    "characters beyond Unicode": (array_meta((2,), b"<U1"), 8),
    "such characters in a field": (
        array_meta((1,), b'{"names":["a"],"formats":["<U2"],"offsets":[0],"itemsize":8}'), 8,
    ),
    "a generic of no unit": (array_meta((1,), b"<M8[0s]"), 8),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_a_meta_of_an_array_says_what_numpy_may_be_told(name: str) -> None:
    """Dtypes of plain memory, within the payload; the same anywhere within a pickle."""
    meta, size = ARRAYS[name]
    refused(Encoded(arrays.ARRAY, meta, [b"\xff" * size], size), CorruptValue)


# --- pandas ----------------------------------------------------------------------------


def changed(value: Any, change: Callable[[dict[str, Any]], Any]) -> Encoded:
    """A value of pandas whose meta was changed."""
    encoded = codecs.encode(value)
    assert encoded.codec == 8
    spec = json.loads(encoded.meta)
    change(spec)
    return Encoded(8, json.dumps(spec).encode(), encoded.parts, encoded.nbytes)


def overwritten(value: Any, find: bytes, put: bytes) -> Encoded:
    """A value of pandas whose payload was changed."""
    encoded = codecs.encode(value)
    payload = b"".join(encoded.parts)
    assert payload.count(find) == 1
    return Encoded(8, encoded.meta, [payload.replace(find, put)], encoded.nbytes)


def i8(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}b", *numbers)


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [1.5, 2.5, 3.5]})
CATEGORIES = pd.Series(pd.Categorical.from_codes([0, 1, 2, 1], ["a", "b", "c"]))
LEVELS = pd.MultiIndex.from_arrays([["x", "y", "z"], [3, 4, 5]])
SPARSE = pd.Series(pd.arrays.SparseArray([0, 0, 7, 0, 9]))
BLOCKED = pd.Series(pd.arrays.SparseArray([0, 0, 7, 0, 9], kind="block"))


def set_to(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    def change(spec: Any) -> None:
        for step in path[:-1]:
            spec = spec[step]
        spec[path[-1]] = to

    return change


PANDAS: dict[str, Callable[[], Encoded]] = {
    "codes beyond the categories": lambda: overwritten(CATEGORIES, i8(0, 1, 2, 1), i8(0, 1, 99, 1)),
    "codes below the categories": lambda: overwritten(CATEGORIES, i8(0, 1, 2, 1), i8(0, 1, -9, 1)),
    "codes beyond the levels": lambda: overwritten(
        pd.DataFrame(index=LEVELS).index, i8(0, 1, 2) + bytes(61) + i8(0, 1, 2),
        i8(0, 1, 2) + bytes(61) + i8(0, 1, 77),
    ),
    "positions beyond the array": lambda: overwritten(SPARSE, i32(2, 4), i32(2, 1 << 30)),
    "negative positions": lambda: overwritten(SPARSE, i32(2, 4), i32(-9, 4)),
    "positions that fall": lambda: overwritten(SPARSE, i32(2, 4), i32(4, 2)),
    "blocks beyond the array": lambda: overwritten(BLOCKED, i32(2, 4), i32(2, 1 << 30)),
    "a block of objects": lambda: changed(
        FRAME, set_to("blocks", 0, "values", "dtype", to="|O")
    ),
    "a dtype that is an expression": lambda: changed(
        FRAME, set_to("blocks", 0, "values", "dtype", to="i8,O")
    ),
    "a dtype of two": lambda: changed(FRAME, set_to("blocks", 0, "values", "dtype", to="f4,f4")),
    "a buffer outside": lambda: changed(FRAME, set_to("blocks", 0, "values", "at", to=1 << 40)),
    "a negative buffer": lambda: changed(FRAME, set_to("blocks", 0, "values", "at", to=-64)),
    "a shape that overflows": lambda: changed(
        FRAME, set_to("blocks", 0, "values", "shape", to=[1 << 62, 1 << 62])
    ),
    "a negative shape": lambda: changed(
        FRAME, set_to("blocks", 0, "values", "shape", to=[-1, -3])
    ),
    "columns without end": lambda: changed(FRAME, set_to("columns", to={
        "k": "range", "start": 0, "stop": 1 << 40, "step": 1})),
    "a range beyond 64 bits": lambda: changed(FRAME, set_to("index", to={
        "k": "range", "start": 0, "stop": 1 << 70, "step": 1})),
    "a column twice": lambda: changed(FRAME, set_to("blocks", 0, "at", to={"list": [1]})),
    "a column that is not there": lambda: changed(
        FRAME, set_to("blocks", 0, "at", to={"list": [5]})
    ),
    "another number of rows": lambda: changed(FRAME, set_to("index", to={
        "k": "range", "start": 0, "stop": 9, "step": 1})),
    "a zone that is a path": lambda: changed(
        pd.Series(pd.date_range("2020", periods=2, tz="UTC")),
        set_to("values", "tz", to="../../../etc/passwd"),
    ),
    "no such kind": lambda: changed(FRAME, set_to("blocks", 0, "values", "k", to="evil")),
    "deep": lambda: Encoded(8, b'{"v":1,"type":' + b"[" * 100_000, [b""], 0),
    "a list": lambda: Encoded(8, b"[]", [b""], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PANDAS)
def test_what_pandas_would_believe_is_checked(name: str) -> None:
    """Codes, positions and blocks, by which pandas reads without a look at them."""
    refused(PANDAS[name](), CorruptValue)


def test_a_part_of_a_frame_is_decoded_with_distrust_too() -> None:
    """A pickle within a frame may not do more than one that is a value."""
    import os

    from tests.elsewhere import call_of

    evil = call_of(os.system, "true")
    encoded = codecs.encode(FRAME)
    spec = json.loads(encoded.meta)
    payload = b"".join(encoded.parts)
    payload += bytes(-len(payload) % 64)
    part = {
        "at": len(payload),
        "nbytes": evil.nbytes,
        "codec": 4,
        "meta": binascii.b2a_base64(evil.meta, newline=False).decode(),
    }
    payload += b"".join(evil.parts)
    for change in (
        set_to("attrs", to=part),
        set_to("index", "name", to=part),
        set_to("blocks", 0, "values", to={"k": "opaque", **part}),
        set_to("blocks", 0, "values", to={"k": "object", "shape": [1, 3], "part": part}),
    ):
        crafted = json.loads(json.dumps(spec))
        change(crafted)
        meta = json.dumps(crafted).encode()
        assert "posix.system" in refused(Encoded(8, meta, [payload], len(payload)), UnsafeValue)


# --- polars ----------------------------------------------------------------------------


def polars_value(frame: pl.DataFrame, **changes: Any) -> Encoded:
    """A frame whose meta says something else."""
    encoded = codecs.encode(frame)
    facts = polars_meta.unpack(encoded.meta)
    payload = b"".join(encoded.parts)
    apart = changes.get("apart", payload[len(payload) - facts.apart_size :])
    meta = polars_meta.pack(
        facts.kind,
        changes.get("height", facts.height),
        apart,
        changes.get("schema", facts.schema.decode()),
        changes.get("notes", facts.notes),
        stream=changes.get("stream", facts.stream),
    )
    parts = [payload[: len(payload) - facts.apart_size], apart]
    return Encoded(7, meta, parts, sum(map(len, parts)))


def of_stream(table: pa.Table, schema: str) -> Encoded:
    """A frame around any Arrow table."""
    stream = stream_of(table)
    meta = polars_meta.pack(polars_meta.FRAME, len(table), b"", schema, {}, stream=stream.meta)
    return Encoded(7, meta, stream.parts, stream.nbytes)


PLAIN = pl.DataFrame({"a": [3, 1, 2]})
WIDE = pl.DataFrame({"a": pl.Series([1, 2], dtype=pl.Int128)})
POLARS: dict[str, Callable[[], Encoded]] = {
    "a column that is not sorted": lambda: polars_value(PLAIN, notes={"sorted": {"0": False}}),
    "a sorted column that is not there": lambda: polars_value(
        PLAIN, notes={"sorted": {"7": False}}
    ),
    "a sorted column of negative number": lambda: polars_value(
        PLAIN, notes={"sorted": {"-1": False}}
    ),
    "columns apart that are not there": lambda: polars_value(PLAIN, notes={"apart": [5]}),
    "columns apart without bytes": lambda: polars_value(PLAIN, notes={"apart": [0]}),
    "bytes that are no stream": lambda: polars_value(WIDE, apart=b"x" * 64),
    "a stream that is cut": lambda: polars_value(
        WIDE, apart=b"".join(codecs.encode(WIDE).parts)[-200:-8]
    ),
    "another dtype": lambda: polars_value(PLAIN, schema='[["a", "Object"]]'),
    "another height": lambda: polars_value(PLAIN, height=5),
    "no schema": lambda: polars_value(PLAIN, schema="5"),
    "arrays of width 0": lambda: of_stream(
        pa.table({"a": pa.array([[]] * 3, pa.list_(pa.int8(), 0))}), '[["a", ["Array", 0, "Int8"]]]'
    ),
}


@pytest.mark.parametrize("name", POLARS)
def test_what_polars_would_believe_is_checked(name: str) -> None:
    """Flags, heights, dtypes and its own format."""
    refused(POLARS[name](), CorruptValue, UnsafeValue)


def test_an_unknown_codec_is_refused() -> None:
    """Numbers of no codec, and metas of another one."""
    for codec in (0, 10, 200, 255):
        refused(Encoded(codec, b"", [b"N."], 2), CorruptValue)
    for codec in (3, 4, 6, 7, 8, 9):
        for meta in (b"", b"\0" * 64, b"\xff" * 64):
            refused(Encoded(codec, meta, [b"x" * 64], 64), CorruptValue, UnsafeValue)
