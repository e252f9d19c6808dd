"""Which buffer of an Arrow message belongs to which column.

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

import pyarrow as pa
from pyarrow import types

from shmstore.codecs.arrow_messages import Body

#: Key in a field's metadata that names the extension type it was written with.
EXTENSION_KEY = b"ARROW:extension:name"

#: What a buffer is for.
PLAIN, VALIDITY, VIEWS, INDICES, OFFSETS, LARGE_OFFSETS, MAP_OFFSETS = range(7)


class _Buffer(NamedTuple):
    """A buffer in the walk: what it holds, what it is for, its column, the structs around."""

    name: str
    use: int
    node: int
    structs: tuple[int, ...]


class Place(NamedTuple):
    """What one buffer of a value is.

    Attributes:
        name: The path of its column, and what it holds of it.
        use: What it is for.
        encoded: Whether it is part of a dictionary, or refers to one.
        structs: Numbers of the places that say which of the structs around are null.
    """

    name: str
    use: int
    encoded: bool
    structs: tuple[int, ...]


class Slots(NamedTuple):
    """The buffers of one kind of message.

    Attributes:
        first: Number of the first one's place.
        uses: For each buffer what it is for; data buffers follow views.
        nodes: For each buffer the number of its column, counted at every depth.
    """

    first: int
    uses: list[int]
    nodes: list[int]


class Layout(NamedTuple):
    """The buffers of a schema's messages.

    Attributes:
        schema: What the schema is read as.
        places: What each buffer is; the data buffers of a view column share one place.
        record: Those of a record batch.
        dictionaries: Those of each dictionary batch, by its id.
        scattered: Whether any column, at any depth, holds list views or dense unions.
    """

    schema: pa.Schema
    places: list[Place]
    record: Slots
    dictionaries: list[Slots]
    scattered: bool

    def slots(self, dictionary: int) -> Slots:
        """The buffers of the message with this dictionary id, -1 for a record batch."""
        return self.record if dictionary < 0 else self.dictionaries[dictionary]


@lru_cache(maxsize=64)
def layout(schema: bytes) -> Layout:
    """The layout for a schema, given as the metadata of its message."""
    walk = _Walk()
    record = _Columns()
    read = read_schema(schema)
    for field in read:
        walk.field(field.name, field.type, record)
    places: list[Place] = []
    found = []
    for columns in (record, *walk.dictionaries):
        buffers = columns.buffers
        found.append(
            Slots(len(places), [one.use for one in buffers], [one.node for one in buffers])
        )
        numbers: list[int] = []
        for name, use, _, structs in buffers:
            numbers.append(len(places))
            encoded = columns is not record or use == INDICES
            around = tuple(numbers[struct] for struct in structs)
            places.append(Place(name, use, encoded, around))
            if use == VIEWS:
                places.append(Place(name.removesuffix("views") + "data", PLAIN, encoded, around))
    return Layout(read, places, found[0], found[1:], walk.scattered)


def read_schema(metadata: bytes) -> pa.Schema:
    """The schema in the metadata of a schema message."""
    prefix = b"\xff\xff\xff\xff" + len(metadata).to_bytes(4, "little")
    return pa.ipc.read_schema(pa.py_buffer(prefix + metadata))


class _Columns:
    """The columns of one kind of message, as far as they have been walked."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.nodes = 0

    def add(self, name: str, use: int = PLAIN, structs: tuple[int, ...] = ()) -> int:
        """Adds a buffer of the column that was begun last; returns its number."""
        self.buffers.append(_Buffer(name, use, self.nodes - 1, structs))
        return len(self.buffers) - 1


class _Walk:
    """Visits the types of a schema in the order in which a message lists them."""

    def __init__(self) -> None:
        self.dictionaries: list[_Columns] = []
        self.scattered = False

    def field(
        self, name: str, type_: pa.DataType, columns: _Columns, structs: tuple[int, ...] = ()
    ) -> None:
        """Adds the buffers of a column of this type.

        Args:
            name: The path of the column.
            type_: Its type.
            columns: What it is added to.
            structs: Numbers of the validity buffers of the structs directly around it.
        """
        if isinstance(type_, pa.BaseExtensionType):
            self.field(name, type_.storage_type, columns, structs)
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
                self.scattered = True
                columns.add(f"{name}.offsets")
            self._children(name, type_, columns, ())
            return
        validity = columns.add(f"{name}.validity", VALIDITY, structs)
        if types.is_dictionary(type_):
            columns.add(f"{name}.indices", INDICES)
            values = _Columns()
            self.dictionaries.append(values)
            self.field(f"{name}.dictionary", type_.value_type, values)
        elif types.is_struct(type_):
            self._children(name, type_, columns, (*structs, validity))
        elif types.is_fixed_size_list(type_):
            self.field(f"{name}.item", type_.value_type, columns)
        elif types.is_list_view(type_) or types.is_large_list_view(type_):
            self.scattered = True
            columns.add(f"{name}.offsets")
            columns.add(f"{name}.sizes")
            self.field(f"{name}.item", type_.value_type, columns)
        elif types.is_map(type_):
            columns.add(f"{name}.offsets", MAP_OFFSETS)
            columns.nodes += 1
            columns.add(f"{name}.entries.validity", VALIDITY)
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

    def _children(self, name: str, type_: Any, columns: _Columns, structs: tuple[int, ...]) -> None:
        for index in range(type_.num_fields):
            child = type_.field(index)
            self.field(f"{name}.{child.name}", child.type, columns, structs)


def extension_names(schema: pa.Schema) -> tuple[int, list[str]]:
    """How many columns, at any depth, have an extension type, and which have only its name.

    A type that this process has not registered is read as its storage type, and
    its name stays in the field's metadata.
    """
    count = 0
    unknown = []
    for field in fields_of(schema):
        if isinstance(field.type, pa.BaseExtensionType):
            count += 1
        elif field.metadata and EXTENSION_KEY in field.metadata:
            unknown.append(field.metadata[EXTENSION_KEY].decode("utf-8", "replace"))
    return count, unknown


def fields_of(schema: pa.Schema) -> Iterator[pa.Field]:
    """All fields of a schema, at every depth."""
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
    """Bytes that lie in each of the layout's places, over all messages."""
    if len(bodies) == 1 and len(bodies[0].sizes) == len(layout.places):
        return bodies[0].sizes
    totals = [0] * len(layout.places)
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
