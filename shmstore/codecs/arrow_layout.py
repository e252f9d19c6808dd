"""Which buffer of an Arrow message belongs to which column, and what a slice need not store.

A record batch lists its buffers without names, in the order in which its
columns are walked from the outside in. The same walk over the schema's types
gives each a name, such as ``a.validity`` or ``b.item.offsets``. Dictionaries
travel in messages of their own, numbered in the order in which the walk meets
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from shmstore.codecs.arrow_ipc import Body
from shmstore.codecs.encoded import flat

#: Key in a field's metadata that names the extension type it was written with.
EXTENSION_KEY = b"ARROW:extension:name"

#: Views of at most this many bytes hold their value themselves.
_INLINE_BYTES = 12
_VIEW_BYTES = 16
#: So many views are looked at to estimate how much of the data they use.
_SAMPLE = 4096
#: Less than this is not worth a look.
_WASTE_BYTES = 4096
_EMPTY = memoryview(b"")
_INT32_MAX = 2**31 - 1


#: What a buffer is for, where that matters; for offsets the number is their width.
PLAIN, VIEWS, INDICES, OFFSETS, LARGE_OFFSETS = 0, 1, 2, 4, 8


class _Buffer(NamedTuple):
    """A buffer in the walk: what it holds, what it is for, the number of its column."""

    name: str
    use: int
    node: int


class Slots(NamedTuple):
    """The buffers of one kind of message.

    Attributes:
        first: Index of the first one's name in ``Layout.names``.
        uses: For each buffer what it is for; data buffers follow views.
        nodes: For each buffer the number of its column, counted at every depth.
    """

    first: int
    uses: list[int]
    nodes: list[int]


class Layout(NamedTuple):
    """The buffers of a schema's messages.

    Attributes:
        names: What each buffer holds; the data buffers of a view column share one.
        record: Those of a record batch.
        dictionaries: Those of each dictionary batch, by its id.
        encoded: For each name whether the buffer is part of a dictionary or refers to it.
        list_views: Whether any column, at any depth, holds list views.
    """

    names: list[str]
    record: Slots
    dictionaries: list[Slots]
    encoded: list[bool]
    list_views: bool

    def slots(self, dictionary: int) -> Slots:
        """The buffers of the message with this dictionary id, -1 for a record batch."""
        return self.record if dictionary < 0 else self.dictionaries[dictionary]


@lru_cache(maxsize=64)
def layout(schema: bytes) -> Layout:
    """The layout for a schema, given as the metadata of its message."""
    walk = _Walk()
    record = _Columns()
    for field in read_schema(schema):
        walk.field(field.name, field.type, record)
    names: list[str] = []
    encoded: list[bool] = []
    found = []
    for columns in (record, *walk.dictionaries):
        buffers = columns.buffers
        found.append(Slots(len(names), [one.use for one in buffers], [one.node for one in buffers]))
        for name, use, _ in buffers:
            names.append(name)
            if use == VIEWS:
                names.append(name.removesuffix("views") + "data")
            encoded += [columns is not record or use == INDICES] * (len(names) - len(encoded))
    return Layout(names, found[0], found[1:], encoded, walk.list_views)


def read_schema(metadata: bytes) -> pa.Schema:
    """The schema in the metadata of a schema message."""
    prefix = b"\xff\xff\xff\xff" + len(metadata).to_bytes(4, "little")
    return pa.ipc.read_schema(pa.py_buffer(prefix + metadata))


class _Columns:
    """The columns of one kind of message, as far as they have been walked."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.nodes = 0

    def add(self, name: str, use: int = PLAIN) -> None:
        """Adds a buffer of the column that was begun last."""
        self.buffers.append(_Buffer(name, use, self.nodes - 1))


class _Walk:
    """Visits the types of a schema in the order in which a message lists them."""

    def __init__(self) -> None:
        self.dictionaries: list[_Columns] = []
        self.list_views = False

    def field(self, name: str, type_: pa.DataType, columns: _Columns) -> None:
        """Adds the buffers of a column of this type."""
        if isinstance(type_, pa.BaseExtensionType):
            self.field(name, type_.storage_type, columns)
            return
        columns.nodes += 1
        if types.is_null(type_):
            return
        if types.is_run_end_encoded(type_):
            self.field(f"{name}.run_ends", type_.run_end_type, columns)
            self.field(f"{name}.values", type_.value_type, columns)
            return
        if types.is_union(type_):
            columns.add(f"{name}.types")
            if type_.mode == "dense":
                columns.add(f"{name}.offsets")
            self._children(name, type_, columns)
            return
        columns.add(f"{name}.validity")
        if types.is_dictionary(type_):
            columns.add(f"{name}.indices", INDICES)
            values = _Columns()
            self.dictionaries.append(values)
            self.field(f"{name}.dictionary", type_.value_type, values)
        elif types.is_struct(type_):
            self._children(name, type_, columns)
        elif types.is_fixed_size_list(type_):
            self.field(f"{name}.item", type_.value_type, columns)
        elif types.is_list_view(type_) or types.is_large_list_view(type_):
            self.list_views = True
            columns.add(f"{name}.offsets")
            columns.add(f"{name}.sizes")
            self.field(f"{name}.item", type_.value_type, columns)
        elif types.is_map(type_):
            columns.add(f"{name}.offsets", OFFSETS)
            columns.nodes += 1
            columns.add(f"{name}.entries.validity")
            self.field(f"{name}.key", type_.key_type, columns)
            self.field(f"{name}.value", type_.item_type, columns)
        elif types.is_list(type_) or types.is_large_list(type_):
            columns.add(f"{name}.offsets", LARGE_OFFSETS if types.is_large_list(type_) else OFFSETS)
            self.field(f"{name}.item", type_.value_type, columns)
        elif types.is_string_view(type_) or types.is_binary_view(type_):
            columns.add(f"{name}.views", VIEWS)
        elif types.is_string(type_) or types.is_binary(type_):
            columns.add(f"{name}.offsets", OFFSETS)
            columns.add(f"{name}.data")
        elif types.is_large_string(type_) or types.is_large_binary(type_):
            columns.add(f"{name}.offsets", LARGE_OFFSETS)
            columns.add(f"{name}.data")
        else:
            columns.add(f"{name}.data")

    def _children(self, name: str, type_: Any, columns: _Columns) -> None:
        for index in range(type_.num_fields):
            child = type_.field(index)
            self.field(f"{name}.{child.name}", child.type, columns)


def extension_names(schema: pa.Schema) -> tuple[int, list[str]]:
    """How many columns, at any depth, have an extension type, and which have only its name.

    A type that this process has not registered is read as its storage type, and
    its name stays in the field's metadata.
    """
    count = 0
    unknown = []
    for field in _fields(schema):
        if isinstance(field.type, pa.BaseExtensionType):
            count += 1
        elif field.metadata and EXTENSION_KEY in field.metadata:
            unknown.append(field.metadata[EXTENSION_KEY].decode("utf-8", "replace"))
    return count, unknown


def _fields(schema: pa.Schema) -> Iterator[pa.Field]:
    pending = list(schema)
    while pending:
        field = pending.pop()
        yield field
        type_ = field.type
        while isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
            yield pa.field("", type_)
        if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
            pending.append(pa.field("", type_.value_type))
        else:
            pending += [type_.field(index) for index in range(type_.num_fields)]


def sizes(layout: Layout, bodies: Sequence[Body]) -> Sequence[int]:
    """Bytes that lie under each of the layout's names, over all messages."""
    if len(bodies) == 1 and len(bodies[0].sizes) == len(layout.names):
        return bodies[0].sizes
    totals = [0] * len(layout.names)
    for body in bodies:
        slots = layout.slots(body.dictionary)
        remaining = iter(body.sizes)
        counts = iter(body.variadic)
        at = slots.first
        for use in slots.uses:
            totals[at] += next(remaining)
            at += 1
            if use == VIEWS:
                totals[at] += sum(islice(remaining, next(counts)))
                at += 1
    return totals


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
        if use >= OFFSETS and len(buffers[at]) > use and body.nodes[2 * node] == 0:
            shrunk[at] = memoryview(bytes(use))
        at += 1
    return shrunk


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
