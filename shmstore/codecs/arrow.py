"""Values of pyarrow, stored as Arrow IPC and viewed in place.

Whatever has columns becomes one plain IPC stream: a Table or RecordBatch as
itself, an Array, ChunkedArray or Scalar as the only column of a table. A
Schema, Field or DataType becomes a schema message; a Tensor and a Buffer are
their bytes. The meta says which of these it was.

This module never gives back another type than was put: what Arrow IPC does not
keep is passed on to pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from shmstore.codecs import arrow_ipc
from shmstore.codecs.arrow_layout import (
    EXTENSION_KEY,
    Place,
    extension_names,
    layout,
    read_schema,
    shrink,
    sizes,
    trim,
)
from shmstore.codecs.encoded import BufferNote, Encoded, flat
from shmstore.errors import CorruptValue, Unserializable

CODEC = 6

TABLE, BATCH, ARRAY, CHUNKED, SCALAR, SCHEMA, FIELD, TYPE, TENSOR, BUFFER = range(1, 11)

#: Digest of the rest, kind, number of extension types, rows, digest of the
#: payload's metadata, sizes of: the schema, the spans, the buffers' sizes.
_HEAD = struct.Struct("<QBxHQQIII")
_DIGEST = struct.Struct("<Q")

#: Instances of classes derived from theirs are more than a table.
_FAMILIES = frozenset({"pandas", "polars", "pyarrow"})
#: Methods that make an object an iterator or a reader of a stream.
_ONE_SHOT_METHODS = ("__next__", "read_next_batch", "get_next")

_COLUMN = "value"
_VIEWED = "Arrow IPC is read in place"


def _concrete(base: type) -> frozenset[type]:
    return frozenset(
        found
        for found in vars(pa.lib).values()
        if isinstance(found, type) and issubclass(found, base)
    )


_ARRAYS = _concrete(pa.Array)
_SCALARS = _concrete(pa.Scalar)
_TYPES = _concrete(pa.DataType)


def encode(value: Any) -> Encoded | None:
    """Encodes a value of pyarrow.

    Returns:
        None for what Arrow IPC would not give back exactly.

    Raises:
        Unserializable: For a stream that can be read only once.
    """
    if isinstance(value, pa.RecordBatchReader):
        raise Unserializable(
            "pyarrow.RecordBatchReader",
            "it can be read only once, and storing it would consume it; "
            "put reader.read_all() instead",
        )
    cls = type(value)
    try:
        encoder = _ENCODERS.get(cls)
        if encoder is not None:
            return encoder(value)
        if isinstance(value, pa.ExtensionArray):
            # A class of the user's, which the type names and so brings back.
            return _array(value) if cls is value.type.__arrow_ext_class__() else None
        if isinstance(value, pa.ExtensionScalar):
            return _scalar(value) if cls is value.type.__arrow_ext_scalar_class__() else None
        if isinstance(value, pa.DataType):
            return _type(value)
    except (pa.ArrowException, OSError):
        # A type that IPC cannot write, or nested too deeply for it.
        return None
    return None


def encode_table(table: pa.Table) -> Encoded | None:
    """Encodes a table; see ``encode``."""
    rows = table.num_rows
    if rows:
        batches = table.to_batches()
    else:
        # to_batches leaves out empty chunks, and with them their dictionaries.
        chunks = [
            column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
            for column in table.columns
        ]
        batches = [pa.RecordBatch.from_arrays(chunks, schema=table.schema)]
    return _stream(TABLE, table.schema, batches, rows, table.get_total_buffer_size())


def _batch(batch: pa.RecordBatch) -> Encoded | None:
    return _stream(BATCH, batch.schema, [batch], batch.num_rows, batch.get_total_buffer_size())


def _array(array: pa.Array, kind: int = ARRAY) -> Encoded | None:
    batch = pa.RecordBatch.from_arrays([array], [_COLUMN])
    return _stream(kind, batch.schema, [batch], len(array), array.get_total_buffer_size())


def _chunked(array: pa.ChunkedArray) -> Encoded | None:
    schema = pa.schema([pa.field(_COLUMN, array.type)])
    batches = [pa.RecordBatch.from_arrays([chunk], schema=schema) for chunk in array.chunks]
    return _stream(CHUNKED, schema, batches, len(array), array.get_total_buffer_size())


def _scalar(scalar: pa.Scalar) -> Encoded | None:
    return _array(pa.repeat(scalar, 1), SCALAR)


def _stream(
    kind: int, schema: pa.Schema, batches: list[pa.RecordBatch], rows: int, nbytes: int
) -> Encoded | None:
    stream = arrow_ipc.write(schema, batches, nbytes, shrink)
    found = layout(stream.schema)
    if found.scattered:
        trimmed = [trim(batch) for batch in batches]
        stream = arrow_ipc.write(schema, trimmed, nbytes, shrink)
    extensions = 0
    read = found.schema
    if EXTENSION_KEY in stream.schema:
        # Which of these are known may have changed since this schema was last read.
        read = read_schema(stream.schema)
        extensions = extension_names(schema)[0]
    if not _same_schema(read, schema):
        return None
    totals = sizes(found, stream.bodies)
    meta = _pack(
        kind,
        rows,
        stream.digest,
        stream.schema,
        stream.spans,
        totals=struct.pack(f"<{len(totals)}Q", *totals),
        extensions=extensions,
    )
    return Encoded(CODEC, meta, stream.parts, stream.nbytes)


def _same_schema(back: pa.Schema, schema: pa.Schema) -> bool:
    return bool(back.equals(schema, check_metadata=True))


def _schema(schema: pa.Schema, kind: int = SCHEMA) -> Encoded | None:
    payload = schema.serialize()
    if not _same_schema(pa.ipc.read_schema(payload), schema):
        return None
    extensions = extension_names(schema)[0]
    view = memoryview(payload).cast("B")
    meta = _pack(kind, 0, xxhash.xxh3_64_intdigest(view), extensions=extensions)
    return Encoded(CODEC, meta, [view], len(view))


def _field(field: pa.Field) -> Encoded | None:
    return _schema(pa.schema([field]), FIELD)


def _type(type_: pa.DataType) -> Encoded | None:
    encoded = _schema(pa.schema([pa.field(_COLUMN, type_)]), TYPE)
    if encoded is None:
        return None
    back = pa.ipc.read_schema(pa.py_buffer(encoded.parts[0])).field(0).type
    return encoded if type(back) is type(type_) else None


def _tensor(tensor: pa.Tensor) -> Encoded | None:
    array = tensor.to_numpy()
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    # A schema that is never read by others: it names dtype, shape, order and dimensions.
    schema = pa.schema(
        [pa.field(_COLUMN, tensor.type)],
        metadata={
            "shape": " ".join(map(str, tensor.shape)),
            "order": order,
            **{f"name{index}": name for index, name in enumerate(tensor.dim_names)},
        },
    )
    view = flat(array)
    meta = _pack(TENSOR, 0, 0, bytes(schema.serialize()))
    return Encoded(CODEC, meta, [view], len(view))


def _buffer(buffer: pa.Buffer) -> Encoded | None:
    if not buffer.is_cpu:
        return None
    view = memoryview(buffer).cast("B")
    return Encoded(CODEC, _pack(BUFFER, 0, 0), [view], len(view))


_ENCODERS: dict[type, Callable[[Any], Encoded | None]] = {
    **dict.fromkeys(_ARRAYS, _array),
    **dict.fromkeys(_SCALARS, _scalar),
    **dict.fromkeys(_TYPES, _type),
    pa.Table: encode_table,
    pa.RecordBatch: _batch,
    pa.ChunkedArray: _chunked,
    pa.Schema: _schema,
    pa.Field: _field,
    pa.Tensor: _tensor,
    pa.Buffer: _buffer,
}


class Meta(NamedTuple):
    """What the meta of a value of pyarrow says.

    Attributes:
        kind: What the value is, one of the numbers above.
        rows: How many rows it has.
        digest: Of the payload's metadata.
        schema: Metadata of the schema message.
        spans: Where the payload's messages lie.
        sizes: Bytes in each buffer.
        extensions: How many columns, at any depth, have an extension type.
    """

    kind: int
    rows: int
    digest: int
    schema: bytes
    spans: bytes
    sizes: tuple[int, ...]
    extensions: int


def _pack(
    kind: int,
    rows: int,
    digest: int,
    schema: bytes = b"",
    spans: bytes = b"",
    *,
    totals: bytes = b"",
    extensions: int = 0,
) -> bytes:
    head = _HEAD.pack(
        0, kind, min(extensions, 0xFFFF), rows, digest, len(schema), len(spans), len(totals)
    )
    rest = b"".join((head[_DIGEST.size :], schema, spans, totals))
    return _DIGEST.pack(xxhash.xxh3_64_intdigest(rest)) + rest


def unpack(meta: bytes) -> Meta:
    """Takes a meta apart; raises CorruptValue if it was changed."""
    if len(meta) < _HEAD.size:
        raise CorruptValue(check="too short", where="meta of an Arrow value")
    wanted, kind, extensions, rows, digest, schema, spans, totals = _HEAD.unpack_from(meta)
    if xxhash.xxh3_64_intdigest(memoryview(meta)[_DIGEST.size :]) != wanted:
        raise CorruptValue(check="the digest differs", where="meta of an Arrow value")
    at = _HEAD.size
    return Meta(
        kind,
        rows,
        digest,
        meta[at : at + schema],
        meta[at + schema : at + schema + spans],
        struct.unpack_from(f"<{totals // 8}Q", meta, at + schema + spans),
        extensions,
    )


def decode(meta: bytes, payload: memoryview) -> Any:
    """Rebuilds a value that views the payload.

    Raises:
        CorruptValue: If the meta or the payload's metadata was changed.
        Unserializable: If the value has an extension type that is not registered here.
    """
    facts = unpack(meta)
    try:
        if facts.kind <= SCALAR:
            return _decode_stream(facts, payload)
        return _decode_other(facts, payload)
    except (pa.ArrowException, OSError) as error:
        raise CorruptValue(check=f"Arrow refuses it: {error}", where="payload") from error


def decode_table(meta: bytes, payload: memoryview) -> pa.Table:
    """Rebuilds a table; see ``decode``."""
    table = decode(meta, payload)
    if type(table) is not pa.Table:
        raise CorruptValue(check="not a table", where="meta of an Arrow value")
    return table


def _decode_stream(facts: Meta, payload: memoryview) -> Any:
    arrow_ipc.check(payload, facts.spans, facts.digest)
    table = arrow_ipc.read(payload).read_all()
    if table.num_rows != facts.rows:
        raise CorruptValue(
            check=f"{table.num_rows} rows instead of {facts.rows}", where="Arrow IPC stream"
        )
    if facts.extensions:
        _require_types(table.schema, facts.extensions)
    if facts.kind == TABLE:
        return table
    if facts.kind == BATCH:
        return table.to_batches()[0] if table.num_rows else _first_batch(payload)
    column = table.column(0)
    if facts.kind == CHUNKED:
        return column
    array = column.chunk(0)
    return array if facts.kind == ARRAY else array[0]


def _first_batch(payload: memoryview) -> pa.RecordBatch:
    return arrow_ipc.read(payload).read_next_batch()


def _require_types(schema: pa.Schema, wanted: int) -> None:
    """Refuses a value whose extension types this process does not know."""
    known, unknown = extension_names(schema)
    if min(known, 0xFFFF) != wanted:
        raise Unserializable(
            "pyarrow.ExtensionType",
            f"the extension types {', '.join(sorted(set(unknown)))} are not registered in this "
            "process; call pyarrow.register_extension_type first",
        )


def _decode_other(facts: Meta, payload: memoryview) -> Any:
    if facts.kind == BUFFER:
        return pa.py_buffer(payload)
    if facts.kind == TENSOR:
        return _decode_tensor(facts, payload)
    if facts.kind not in (SCHEMA, FIELD, TYPE):
        raise CorruptValue(check=f"unknown kind {facts.kind}", where="meta of an Arrow value")
    if xxhash.xxh3_64_intdigest(payload) != facts.digest:
        raise CorruptValue(check="the digest differs", where="Arrow schema")
    # The schema copies nothing of the payload's, and must not keep it alive.
    schema = pa.ipc.read_schema(pa.py_buffer(bytes(payload)))
    if facts.extensions:
        _require_types(schema, facts.extensions)
    if facts.kind == SCHEMA:
        return schema
    return schema.field(0) if facts.kind == FIELD else schema.field(0).type


def _decode_tensor(facts: Meta, payload: memoryview) -> pa.Tensor:
    schema = pa.ipc.read_schema(pa.py_buffer(facts.schema))
    told = schema.metadata
    shape = tuple(map(int, told[b"shape"].split()))
    dtype = np.dtype(schema.field(0).type.to_pandas_dtype())
    if len(payload) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise CorruptValue(check="its size does not fit its shape", where="Arrow tensor")
    array = np.ndarray(shape, dtype, payload, order="F" if told[b"order"] == b"F" else "C")
    dim_names = [
        told[key].decode() for index in range(len(shape)) if (key := b"name%d" % index) in told
    ]
    return pa.Tensor.from_numpy(array, dim_names or None)


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says for each buffer whether ``decode`` copies it, and why."""
    facts = unpack(meta)
    if facts.kind in (SCHEMA, FIELD, TYPE):
        return [BufferNote("schema", nbytes, True, "a schema is parsed, not viewed")]
    if facts.kind in (TENSOR, BUFFER):
        return [BufferNote("data", nbytes, False, "the bytes are used in place")]
    return [BufferNote(place.name, size, False, _VIEWED) for place, size in buffers(meta) if size]


def buffers(meta: bytes) -> list[tuple[Place, int]]:
    """Each buffer of a stream, with its size, 0 if it is absent."""
    facts = unpack(meta)
    return list(zip(layout(facts.schema).places, facts.sizes, strict=True))


def encode_stream(value: Any) -> Encoded | None:
    """Encodes a foreign object that exports an Arrow stream, as a pyarrow Table.

    Only what can be read again is stored, since putting a value must not use it
    up. An object that says by its methods that it is an iterator or a reader is
    refused untouched. Any other is read once, then asked for a second stream:
    if that fails, or is empty where the first was not, the object was good for
    one reading, which is then gone.

    Returns:
        None for instances of classes derived from those of pandas, polars or
        pyarrow: a Table would not be what was put.

    Raises:
        Unserializable: If the object can be read only once.
    """
    cls = type(value)
    if any(base.__module__.partition(".")[0] in _FAMILIES for base in cls.__mro__):
        if isinstance(value, pa.RecordBatchReader):
            return encode(value)
        return None
    if any(hasattr(cls, name) for name in _ONE_SHOT_METHODS):
        raise _read_once(cls)
    try:
        whole = _read_all(value)
    except Exception as error:
        raise Unserializable(_name(cls), f"its Arrow stream cannot be read: {error}") from error
    if len(whole) and not _starts_again(value, whole):
        raise _read_once(cls)
    return encode(whole)


def _read_all(value: Any) -> pa.Table | pa.ChunkedArray:
    """Reads a stream to its end."""
    try:
        reader = pa.RecordBatchReader.from_stream(value)
    except pa.ArrowInvalid:
        # A stream of plain columns, not of records; none of it is read yet.
        return pa.chunked_array(value)
    return reader.read_all()


def _starts_again(value: Any, whole: pa.Table | pa.ChunkedArray) -> bool:
    """Whether the object gives rows of the same kind once more."""
    try:
        if isinstance(whole, pa.ChunkedArray):
            again = pa.chunked_array(value)
            return bool(again.type == whole.type and len(again) == len(whole))
        reader = pa.RecordBatchReader.from_stream(value)
        return reader.schema == whole.schema and any(batch.num_rows for batch in reader)
    except Exception:
        return False


def _read_once(cls: type) -> Unserializable:
    return Unserializable(
        _name(cls),
        "its Arrow stream can be read only once, and storing it would consume it; "
        "put pyarrow.table(value) instead",
    )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
