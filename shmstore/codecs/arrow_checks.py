"""What is looked at before and after Arrow reads data that came from another host.

Before: the metadata of each message, which tells of compressed bodies (a few
kilobytes can stand for gigabytes) and of extension types (whose classes run when a
schema is read). It is taken apart here without believing any offset in it. After: all
values, as Arrow itself validates them, and what lies in the empty slots of views,
which it does not look at and later casts do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
from pyarrow import types

from shmstore.codecs.arrow_layout import EXTENSION_KEY, fields_of
from shmstore.codecs.arrow_messages import CONTINUATION, DICTIONARY_BATCH, PREFIX, RECORD_BATCH
from shmstore.codecs.trust import unsafe
from shmstore.errors import CorruptValue

_SCHEMA: Final = 1
#: Fields of a schema at every depth that are looked at, and how deep they may lie.
_MOST_FIELDS: Final = 100_000
_DEEPEST: Final = 64

#: Extension types whose metadata Arrow checks, and those that pandas registers.
_KNOWN: Final = frozenset(
    {
        b"arrow.bool8", b"arrow.fixed_shape_tensor", b"arrow.json", b"arrow.opaque",
        b"arrow.uuid", b"arrow.variable_shape_tensor", b"pandas.interval", b"pandas.period",
    }
)  # fmt: skip


def damaged(check: str) -> CorruptValue:
    """The error for Arrow data that must not be read."""
    return CorruptValue(check, "Arrow data of another host")


# --- Before: the metadata ------------------------------------------------------------


class _Flat:
    """A flatbuffer whose every offset is checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def number(self, at: int, size: int, *, signed: bool = False) -> int:
        if not 0 <= at <= len(self._data) - size:
            raise damaged("an offset leads out of the metadata")
        return int.from_bytes(self._data[at : at + size], "little", signed=signed)

    def root(self) -> int:
        return self.number(0, 4)

    def field(self, table: int, number: int) -> int:
        """Where a field of a table lies, 0 if it is absent."""
        vtable = table - self.number(table, 4, signed=True)
        if 4 + 2 * number + 2 > self.number(vtable, 2):
            return 0
        offset = self.number(vtable + 4 + 2 * number, 2)
        return table + offset if offset else 0

    def refer(self, at: int) -> int:
        """The table, vector or string that a field refers to."""
        return at + self.number(at, 4)

    def tables(self, table: int, number: int) -> Iterator[int]:
        """The tables of a vector that is a field."""
        at = self.field(table, number)
        if at:
            vector = self.refer(at)
            for index in range(self.number(vector, 4)):
                yield self.refer(vector + 4 + 4 * index)

    def text(self, table: int, number: int) -> bytes:
        at = self.field(table, number)
        if not at:
            return b""
        start = self.refer(at)
        size = self.number(start, 4)
        if start + 4 + size > len(self._data):
            raise damaged("a text leads out of the metadata")
        return self._data[start + 4 : start + 4 + size]


def check_stream(payload: memoryview) -> None:
    """Refuses a stream whose messages are compressed or of unknown types.

    Raises:
        CorruptValue: As said, or it is no stream.
        UnsafeValue: It needs a class of an extension type.
    """
    for _ in _messages(payload):
        pass


def record_batches(payload: memoryview) -> Iterator[memoryview]:
    """The messages of a stream that hold its rows; it must have no dictionaries."""
    for number, (kind, message) in enumerate(_messages(payload)):
        if number and kind != RECORD_BATCH:
            raise damaged("a message that holds no rows")
        if number:
            yield message


def _messages(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The kind of each message of a stream, and all of it, checked."""
    at, size = 0, len(payload)
    first = True
    while True:
        start = at
        at += PREFIX.size
        if at > size:
            raise damaged("a stream without an end")
        mark, length = PREFIX.unpack_from(payload, start)
        if mark != CONTINUATION or not 0 <= length <= size - at:
            raise damaged("what should be a message is none")
        if not length:
            return
        kind, body = _check_message(bytes(payload[at : at + length]), first)
        at += length + body
        if at > size:
            raise damaged("a message ends outside of the stream")
        yield kind, payload[start:at]
        first = False


def check_schema(message: memoryview | bytes) -> None:
    """Refuses a schema, as a message with its prefix, that names unknown types."""
    if len(message) < PREFIX.size:
        raise damaged("a schema that is cut off")
    mark, length = PREFIX.unpack_from(message, 0)
    if mark != CONTINUATION or length != len(message) - PREFIX.size:
        raise damaged("what should be a schema is none")
    check_schema_metadata(bytes(message[PREFIX.size :]))


def check_schema_metadata(metadata: bytes) -> None:
    """Refuses the metadata of a schema's message that names unknown types."""
    _check_message(metadata, True)


def _check_message(metadata: bytes, first: bool) -> tuple[int, int]:
    """Checks one message; gives its kind and the size of its body."""
    flat = _Flat(metadata)
    message = flat.root()
    kind_at, header_at, body_at = (flat.field(message, number) for number in (1, 2, 3))
    kind = flat.number(kind_at, 1) if kind_at else 0
    body = flat.number(body_at, 8, signed=True) if body_at else 0
    if not header_at or body < 0 or body % 8:
        raise damaged("a message without a header")
    header = flat.refer(header_at)
    if first is not (kind == _SCHEMA):
        raise damaged("a stream does not begin with its schema")
    if kind == _SCHEMA:
        if EXTENSION_KEY in metadata:
            _check_extensions(flat, header)
        return kind, body
    if kind == DICTIONARY_BATCH:
        data = flat.field(header, 1)
        if not data:
            raise damaged("a dictionary without values")
        header = flat.refer(data)
    elif kind != RECORD_BATCH:
        raise damaged(f"a message of type {kind}")
    if flat.field(header, 3):
        raise damaged("it is compressed")
    return kind, body


def _check_extensions(flat: _Flat, schema: int) -> None:
    pending = [(field, 1) for field in flat.tables(schema, 1)]
    seen = 0
    while pending:
        field, depth = pending.pop()
        seen += 1
        if seen > _MOST_FIELDS or depth > _DEEPEST:
            raise damaged("a schema of too many fields")
        for pair in flat.tables(field, 6):
            if flat.text(pair, 0) == EXTENSION_KEY:
                name = flat.text(pair, 1)
                if name not in _KNOWN:
                    shown = name[:200].decode("utf-8", "replace")
                    raise unsafe(f"the Arrow extension type {shown!r}")
        pending += [(child, depth + 1) for child in flat.tables(field, 5)]
        if len(pending) > _MOST_FIELDS:
            raise damaged("a schema of too many fields")


# --- After: the values ---------------------------------------------------------------


def check_schema_texts(schema: pa.Schema) -> None:
    """Refuses names and zones that are no text, which pyarrow decodes only when asked."""
    for field in fields_of(schema):
        told = [field.name, field.type.tz if types.is_timestamp(field.type) else None]
        if not all(text is None or type(text) is str for text in told):
            raise damaged("a name that is no text")


def check_values(value: pa.Table | pa.RecordBatch) -> None:
    """Validates all that a table or batch holds.

    Raises:
        pa.ArrowException: It is not valid.
        CorruptValue: Views or list views refer to what is not there.
    """
    value.validate(full=True)
    check_schema_texts(value.schema)
    for column in value.columns:
        if _has_views(column.type):
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            for chunk in chunks:
                _check_views(chunk)


def _parts(type_: pa.DataType) -> list[pa.DataType]:
    if isinstance(type_, pa.BaseExtensionType):
        return [type_.storage_type]
    if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
        return [type_.value_type]
    return [type_.field(index).type for index in range(type_.num_fields)]


@lru_cache(maxsize=256)
def _has_views(type_: pa.DataType) -> bool:
    return _is_view(type_) or _is_list_view(type_) or any(map(_has_views, _parts(type_)))


def _is_view(type_: pa.DataType) -> bool:
    return bool(types.is_string_view(type_) or types.is_binary_view(type_))


def _is_list_view(type_: pa.DataType) -> bool:
    return bool(types.is_list_view(type_) or types.is_large_list_view(type_))


def _check_views(array: pa.Array) -> None:
    type_ = array.type
    if not _has_views(type_):
        return
    if isinstance(array, pa.ExtensionArray):
        _check_views(array.storage)
    elif types.is_dictionary(type_):
        _check_views(array.dictionary)
    elif types.is_run_end_encoded(type_):
        _check_views(array.values)
    elif _is_view(type_):
        _check_strings(array)
    elif _is_list_view(type_):
        _check_lists(array)
        _check_views(array.values)
    elif types.is_map(type_):
        _check_views(array.keys)
        _check_views(array.items)
    elif types.is_struct(type_) or types.is_union(type_):
        for index in range(type_.num_fields):
            _check_views(array.field(index))
    else:
        _check_views(array.values)


def _check_strings(array: pa.Array) -> None:
    """Every view, also of a null, holds its value or refers to bytes that are there."""
    if not len(array):
        return
    _, views, *data = array.buffers()
    words = np.frombuffer(views, "<i4").reshape(-1, 4)[array.offset : array.offset + len(array)]
    long = words[words[:, 0] > 12].astype(np.int64)
    sizes = np.array([0 if each is None else each.size for each in data], np.int64)
    if (words[:, 0] < 0).any() or (len(long) and not len(sizes)):
        raise damaged("a view of negative size, or of no data")
    if len(long):
        lengths, numbers, starts = long[:, 0], long[:, 2], long[:, 3]
        if ((numbers < 0) | (numbers >= len(sizes)) | (starts < 0)).any() or (
            starts + lengths > sizes[numbers]
        ).any():
            raise damaged("a view refers to bytes that are not there")


def _check_lists(array: pa.Array) -> None:
    """Every list view, also of a null, refers to elements that are there."""
    if not len(array):
        return
    dtype = np.int64 if types.is_large_list_view(array.type) else np.int32
    held = len(array.values)
    _, offsets, sizes = array.buffers()[:3]
    window = slice(array.offset, array.offset + len(array))
    starts = np.frombuffer(offsets, dtype)[window].astype(np.int64)
    lengths = np.frombuffer(sizes, dtype)[window].astype(np.int64)
    if ((starts < 0) | (lengths < 0) | (starts > held) | (lengths > held - starts)).any():
        raise damaged("a list view refers to elements that are not there")


def has_width_zero(type_: pa.DataType) -> bool:
    """Whether a list of the fixed size 0 occurs in a type, at any depth."""
    zero = types.is_fixed_size_list(type_) and type_.list_size == 0
    return bool(zero) or any(map(has_width_zero, _parts(type_)))
