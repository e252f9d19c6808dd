"""Hypothesis strategies for values of pyarrow, and what it takes to compare them.

Arrays are built from buffers and children rather than from Python lists, and
are slices of longer ones more often than not: offsets, unused bytes and set
bits beyond the end are where codecs go wrong.
"""

from __future__ import annotations

import decimal
import string
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

_TEXT = st.text(max_size=30)
_BYTES = st.binary(max_size=30)
_SMALL = st.integers(-100, 100)

FLAT: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    *[
        (type_(), st.integers(np.iinfo(name).min, np.iinfo(name).max))
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        for type_ in [getattr(pa, name)]
    ],
    (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.string(), _TEXT),
    (pa.large_string(), _TEXT),
    (pa.string_view(), _TEXT),
    (pa.binary(), _BYTES),
    (pa.large_binary(), _BYTES),
    (pa.binary_view(), _BYTES),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.date32(), _SMALL),
    (pa.date64(), _SMALL.map(lambda day: day * 86_400_000)),
    (pa.time32("ms"), st.integers(0, 86_399_999)),
    (pa.time64("ns"), st.integers(0, 10**12)),
    (pa.timestamp("s"), _SMALL),
    (pa.timestamp("ns", "Europe/Berlin"), _SMALL),
    (pa.duration("us"), _SMALL),
    (pa.month_day_nano_interval(), st.tuples(_SMALL, _SMALL, _SMALL)),
    *[
        (type_(5, 2), st.integers(-9999, 9999).map(lambda n: decimal.Decimal(n).scaleb(-2)))
        for type_ in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256)
    ],
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.json_(), st.just("{}")),
    (pa.bool8(), st.integers(0, 1)),
]

_NAMES = st.text(string.ascii_letters + "é. ", max_size=5)


@st.composite
def arrays(draw: st.DrawFn, length: int | None = None, depth: int = 2) -> pa.Array:
    """An array of any type, of this length, often a slice of a longer one."""
    if length is None:
        length = draw(st.integers(0, 12))
    before, after = draw(st.sampled_from([(0, 0), (0, 3), (1, 0), (3, 2), (9, 5)]))
    whole = length + before + after
    build = draw(st.sampled_from(_NESTED)) if depth and draw(st.booleans()) else _flat
    return build(draw, whole, depth - 1).slice(before, length)


def _nulls(draw: st.DrawFn, length: int) -> pa.Array:
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    return pa.array(draw(st.one_of(st.just([False] * length), flags)), pa.bool_())


def _offsets(draw: st.DrawFn, length: int, end: int) -> list[int]:
    cuts = st.lists(st.integers(0, end), min_size=length + 1, max_size=length + 1)
    return sorted(draw(cuts))


def _flat(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    type_, cells = draw(st.sampled_from(FLAT))
    nullable = st.one_of(st.none(), cells) if draw(st.booleans()) else cells
    values = draw(st.lists(nullable, min_size=length, max_size=length))
    return pa.array(values, type_)


def _list(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    large = draw(st.booleans())
    child = draw(arrays(depth=depth))
    offsets = pa.array(_offsets(draw, length, len(child)), pa.int64() if large else pa.int32())
    cls = pa.LargeListArray if large else pa.ListArray
    return cls.from_arrays(offsets, child, mask=_nulls(draw, length))


def _list_view(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    large = draw(st.booleans())
    child = draw(arrays(depth=depth))
    starts = draw(st.lists(st.integers(0, len(child)), min_size=length, max_size=length))
    sizes = [draw(st.integers(0, len(child) - start)) for start in starts]
    width = pa.int64() if large else pa.int32()
    cls = pa.LargeListViewArray if large else pa.ListViewArray
    return cls.from_arrays(
        pa.array(starts, width), pa.array(sizes, width), child, mask=_nulls(draw, length)
    )


def _fixed_size_list(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    width = draw(st.integers(1, 3))
    child = draw(arrays(length * width, depth=depth))
    return pa.FixedSizeListArray.from_arrays(child, width, mask=_nulls(draw, length))


def _struct(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    names = draw(st.lists(_NAMES, min_size=0, max_size=3))
    if not names:
        return pa.StructArray.from_buffers(pa.struct([]), length, [None], children=[])
    children = [draw(arrays(length, depth=depth)) for _ in names]
    return pa.StructArray.from_arrays(children, names, mask=_nulls(draw, length))


def _map(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    count = draw(st.integers(0, 12))
    keys = pa.array([f"key {index}" for index in range(count)], pa.string())
    items = draw(arrays(count, depth=depth))
    offsets = pa.array(_offsets(draw, length, count), pa.int32())
    return pa.MapArray.from_arrays(offsets, keys, items)


def _dictionary(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    count = draw(st.integers(1, 5))
    values = draw(arrays(count, depth=depth).filter(lambda array: is_dictionary_value(array.type)))
    indices = draw(
        st.lists(st.none() | st.integers(0, count - 1), min_size=length, max_size=length)
    )
    width = draw(st.sampled_from([pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64()]))
    return pa.DictionaryArray.from_arrays(
        pa.array(indices, width), values, ordered=draw(st.booleans())
    )


def _run_ends(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    cuts = sorted(draw(st.sets(st.integers(1, max(length, 1)), max_size=4)) | {max(length, 1)})
    width = draw(st.sampled_from([pa.int16(), pa.int32(), pa.int64()]))
    values = draw(arrays(len(cuts), depth=0))
    array = pa.RunEndEncodedArray.from_arrays(pa.array(cuts, width), values)
    return array.slice(0, length)


def _sparse_union(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    children = [draw(arrays(length, depth=depth)) for _ in range(2)]
    return pa.UnionArray.from_sparse(_type_codes(draw, length), children, ["x", "y"])


def _dense_union(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    codes = _type_codes(draw, length)
    told = codes.to_pylist()
    offsets = [told[:index].count(code) for index, code in enumerate(told)]
    children = [draw(arrays(told.count(code), depth=depth)) for code in range(2)]
    return pa.UnionArray.from_dense(codes, pa.array(offsets, pa.int32()), children, ["x", "y"])


def _type_codes(draw: st.DrawFn, length: int) -> pa.Array:
    codes = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    return pa.array(draw(codes), pa.int8())


def _tensors(draw: st.DrawFn, length: int, depth: int) -> pa.Array:
    cells = pa.array(np.arange(length * 4, dtype=np.float32))
    storage = pa.FixedSizeListArray.from_arrays(cells, 4)
    type_ = pa.fixed_shape_tensor(pa.float32(), [2, 2], dim_names=["x", "y"])
    return pa.ExtensionArray.from_storage(type_, storage)


def is_dictionary_value(type_: pa.DataType) -> bool:
    """Whether Arrow IPC has a form for dictionaries of this type."""
    return not (pa.types.is_dictionary(type_) or isinstance(type_, pa.BaseExtensionType))


_NESTED = [
    _list,
    _list_view,
    _fixed_size_list,
    _struct,
    _map,
    _dictionary,
    _run_ends,
    _sparse_union,
    _dense_union,
    _tensors,
]


@st.composite
def chunked_arrays(draw: st.DrawFn) -> pa.ChunkedArray:
    """Chunks of one type, none included; dictionaries may differ from chunk to chunk."""
    array = draw(arrays())
    cuts = _offsets(draw, draw(st.integers(0, 3)), len(array))
    chunks = [array.slice(a, b - a) for a, b in pairwise(cuts)]
    return pa.chunked_array(chunks, array.type)


_METADATA = st.none() | st.dictionaries(st.binary(max_size=5), st.binary(max_size=5), max_size=2)


@st.composite
def schemas(draw: st.DrawFn, types: list[pa.DataType]) -> pa.Schema:
    """A schema with these types: any names, also twice, and any metadata."""
    fields = [pa.field(draw(_NAMES), type_, metadata=draw(_METADATA) or None) for type_ in types]
    return pa.schema(fields, metadata=draw(_METADATA))


@st.composite
def record_batches(draw: st.DrawFn) -> pa.RecordBatch:
    """A batch of up to four columns; without columns it may have rows."""
    length = draw(st.integers(0, 12))
    columns = draw(st.lists(arrays(length, depth=1), max_size=4))
    if not columns:
        return pa.record_batch({"a": pa.nulls(length)}).select([])
    schema = draw(schemas([column.type for column in columns]))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table whose chunks are cut anywhere."""
    batch = draw(record_batches())
    cuts = [0, *_offsets(draw, draw(st.integers(0, 2)), batch.num_rows), batch.num_rows]
    batches = [batch.slice(a, b - a) for a, b in pairwise(cuts)]
    return pa.Table.from_batches(batches, batch.schema)


def cells(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """What an array holds, in a form in which == tells all differences.

    pyarrow's ``equals`` finds NaN unequal to itself and -0.0 equal to 0.0.
    """
    return [cell(scalar) for scalar in array]


def cell(scalar: pa.Scalar) -> Any:
    """What a scalar holds; see ``cells``."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ExtensionScalar):
        return cell(scalar.value)
    if isinstance(scalar, pa.UnionScalar):
        return scalar.type_code, cell(scalar.value)
    if isinstance(scalar, pa.DictionaryScalar):
        return scalar.index.as_py(), cell(scalar.value)
    if isinstance(scalar, pa.RunEndEncodedScalar):
        return cell(scalar.value)
    if isinstance(scalar, pa.ListScalar):
        # The base class of the scalars of all lists, list views and maps.
        return cells(scalar.values)
    if isinstance(scalar, pa.StructScalar):
        return tuple(cell(scalar[index]) for index in range(len(scalar.type)))
    if pa.types.is_floating(scalar.type):
        return struct.pack("<d", scalar.as_py())
    if isinstance(scalar, (pa.TimestampScalar, pa.DurationScalar, pa.Time64Scalar)):
        return scalar.value
    return scalar.as_py()


def memory(value: Any) -> list[tuple[int, int]]:
    """Address and size of every buffer that a value of pyarrow uses, at any depth."""
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        return [place for column in value.columns for place in memory(column)]
    if isinstance(value, pa.ChunkedArray):
        return [place for chunk in value.chunks for place in memory(chunk)]
    places = [(buffer.address, buffer.size) for buffer in value.buffers() if buffer is not None]
    return places + [place for held in _dictionaries(value) for place in memory(held)]


def _dictionaries(array: pa.Array) -> list[pa.Array]:
    """The dictionaries of an array; ``buffers`` leaves them out."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return _dictionaries(array.storage)
    if pa.types.is_dictionary(type_):
        return [array.dictionary]
    if pa.types.is_struct(type_) or pa.types.is_union(type_):
        children = [array.field(index) for index in range(type_.num_fields)]
    elif pa.types.is_map(type_):
        children = [array.keys, array.items]
    elif isinstance(array, pa.RunEndEncodedArray) or type_.num_fields:
        children = [array.values]
    else:
        children = []
    return [held for child in children for held in _dictionaries(child)]
