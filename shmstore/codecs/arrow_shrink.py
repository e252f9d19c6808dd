"""Leaves out of a stream what a slice does not use and the IPC writer keeps all the same.

The writer cuts most columns to the slice. It does not cut the data of string
and binary views, the values of list views, those of dense unions that start at
their first row, and the offsets of columns without rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from shmstore.codecs.arrow_layout import LARGE_OFFSETS, MAP_OFFSETS, OFFSETS, VIEWS, layout
from shmstore.codecs.arrow_messages import Body
from shmstore.codecs.encoded import flat

#: Views of at most this many bytes hold their value themselves.
_INLINE_BYTES = 12
_VIEW_BYTES = 16
#: So many views are looked at to estimate how much of the data they use.
_SAMPLE = 4096
#: Less than this is not worth a look.
_WASTE_BYTES = 4096
_EMPTY = memoryview(b"")
_INT32_MAX = 2**31 - 1


_OFFSET_BYTES = {OFFSETS: 4, LARGE_OFFSETS: 8, MAP_OFFSETS: 4}


def shrink(schema: bytes, body: Body, buffers: list[memoryview]) -> list[memoryview]:
    """Leaves out bytes that the IPC writer keeps though no value refers to them.

    A slice or a filtered column of views shares the whole column's data
    buffers, and an empty slice keeps the whole column's offsets.

    Returns:
        As many buffers, some of them smaller: their number is in the metadata.
    """
    shrunk = list(buffers)
    slots = layout(schema).slots(body.dictionary)
    counts = iter(body.variadic)
    at = 0
    for use, node in zip(slots.uses, slots.nodes, strict=True):
        if use == VIEWS:
            end = at + 1 + next(counts)
            smaller = _shrink_column(buffers[at - 1], buffers[at], buffers[at + 1 : end])
            if smaller is not None:
                shrunk[at:end] = [*smaller, *[_EMPTY] * (end - at - 2)]
            at = end
            continue
        width = _OFFSET_BYTES.get(use)
        if width and len(buffers[at]) > width and body.nodes[2 * node] == 0:
            shrunk[at] = memoryview(bytes(width))
        at += 1
    return shrunk


def trim(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Leaves out values that no list view and no dense union of a slice refers to.

    The IPC writer keeps all values in front of a slice, or those of the whole
    column. List views are copied to see how much that is, at any depth; dense
    unions are looked at only where they are columns.
    """
    columns = []
    for column in batch.columns:
        if types.is_union(column.type):
            columns.append(_trim_union(column))
            continue
        try:
            copy = pa.concat_arrays([column])
        except pa.ArrowException:
            copy = column
        smaller = copy.get_total_buffer_size() + _WASTE_BYTES < column.get_total_buffer_size()
        columns.append(copy if smaller else column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _trim_union(union: pa.UnionArray) -> pa.UnionArray:
    if union.type.mode != "dense":
        return union
    codes = _slice_of(union, 1, np.int8)
    offsets = _slice_of(union, 2, np.int32).copy()
    children = []
    for index, code in enumerate(union.type.type_codes):
        child = union.field(index)
        chosen = codes == code
        used = offsets[chosen]
        start, stop = (int(used.min()), int(used.max()) + 1) if len(used) else (0, 0)
        offsets[chosen] -= start
        children.append(child.slice(start, stop - start))
    buffers = [None, pa.py_buffer(codes), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(union.type, len(union), buffers, children=children)


def _slice_of(union: pa.UnionArray, number: int, dtype: type) -> Any:
    """Of a buffer the part that belongs to the slice; pyarrow's attributes give all of it."""
    if not len(union):
        return np.empty(0, dtype)
    start = union.offset * np.dtype(dtype).itemsize
    return np.frombuffer(union.buffers()[number], dtype, len(union), start)


def _shrink_column(
    validity: memoryview, views: memoryview, data: list[memoryview]
) -> tuple[memoryview, memoryview] | None:
    total = sum(map(len, data))
    count = len(views) // _VIEW_BYTES
    if total <= _WASTE_BYTES:
        return None
    if count == 0:
        return _EMPTY, _EMPTY
    lengths = np.frombuffer(views, "<i4").reshape(count, 4)[:, 0]
    step = -(-count // _SAMPLE)
    if _long_bytes(lengths[::step]) * step * 2 > total:
        return None
    present = None
    if len(validity):
        bits = np.frombuffer(validity, np.uint8)
        present = np.unpackbits(bits, count=count, bitorder="little").astype(bool)
        lengths = np.where(present, lengths, 0)
    used = _long_bytes(lengths)
    if used * 2 > total or used > _INT32_MAX:
        return None
    return _gather(views, data, lengths)


def _long_bytes(lengths: Any) -> int:
    return int(lengths[lengths > _INLINE_BYTES].sum(dtype=np.int64))


def _gather(
    views: memoryview, data: list[memoryview], lengths: Any
) -> tuple[memoryview, memoryview]:
    """Copies what the views refer to into one buffer.

    Args:
        views: The views.
        data: Their data buffers.
        lengths: The views' lengths, 0 for nulls (whose views may hold anything).
    """
    old = np.frombuffer(views, "<i4").reshape(len(lengths), 4)
    new = np.where((lengths > 0)[:, None], old, 0).astype("<i4")
    long = np.flatnonzero(lengths > _INLINE_BYTES)
    pieces = [
        data[index][offset : offset + length] for length, _, index, offset in old[long].tolist()
    ]
    ends = np.cumsum(lengths[long], dtype=np.int64)
    new[long, 2] = 0
    new[long, 3] = ends - lengths[long]
    return flat(new.data), memoryview(b"".join(pieces))
