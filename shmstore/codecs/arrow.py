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
from typing import Any

import pyarrow as pa

from shmstore.codecs import arrow_checks, arrow_ipc, arrow_rowless
from shmstore.codecs.arrow_foreign import read_stream
from shmstore.codecs.arrow_layout import (
    EXTENSION_KEY,
    Place,
    extension_names,
    layout,
    read_schema,
    sizes,
)
from shmstore.codecs.arrow_meta import (
    ARRAY,
    BATCH,
    BUFFER,
    CHUNKED,
    CODEC,
    FIELD,
    SCALAR,
    SCHEMA,
    TABLE,
    TENSOR,
    TYPE,
    Meta,
    pack,
    unpack,
)
from shmstore.codecs.arrow_rowless import require_types, same_schema
from shmstore.codecs.arrow_shrink import shrink, trim
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue, Unserializable

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
            return arrow_rowless.encode_type(value)
    except MemoryError:
        raise
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
    if not same_schema(read, schema):
        return None
    totals = sizes(found, stream.bodies)
    meta = pack(
        kind,
        rows,
        stream.digest,
        stream.schema,
        stream.spans,
        totals=struct.pack(f"<{len(totals)}Q", *totals),
        extensions=extensions,
    )
    return Encoded(CODEC, meta, stream.parts, stream.nbytes)


_ENCODERS: dict[type, Callable[[Any], Encoded | None]] = {
    **dict.fromkeys(_ARRAYS, _array),
    **dict.fromkeys(_SCALARS, _scalar),
    **dict.fromkeys(_TYPES, arrow_rowless.encode_type),
    pa.Table: encode_table,
    pa.RecordBatch: _batch,
    pa.ChunkedArray: _chunked,
    pa.Schema: arrow_rowless.encode_schema,
    pa.Field: arrow_rowless.encode_field,
    pa.Tensor: arrow_rowless.encode_tensor,
    pa.Buffer: arrow_rowless.encode_buffer,
}


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Rebuilds a value that views the payload.

    Raises:
        CorruptValue: If the meta or the payload's metadata was changed.
        UnsafeValue: If it came from another host and has an extension type.
        Unserializable: If the value has an extension type that is not registered here.
    """
    facts = unpack(meta)
    try:
        if facts.kind <= SCALAR:
            return _decode_stream(facts, payload, trust)
        return arrow_rowless.decode(facts, payload, trust)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CorruptValue(check=f"Arrow refuses it: {error}", where="payload") from error


def decode_table(meta: bytes, payload: memoryview, trust: Trust | None = None) -> pa.Table:
    """Rebuilds a table; see ``decode``."""
    table = decode(meta, payload, trust)
    if type(table) is not pa.Table:
        raise CorruptValue(check="not a table", where="meta of an Arrow value")
    return table


def _decode_stream(facts: Meta, payload: memoryview, trust: Trust | None) -> Any:
    if trust is not None:
        arrow_checks.check_stream(payload)
    arrow_ipc.check(payload, facts.spans, facts.digest)
    table = arrow_ipc.read(payload).read_all()
    if table.num_rows != facts.rows:
        raise CorruptValue(
            check=f"{table.num_rows} rows instead of {facts.rows}", where="Arrow IPC stream"
        )
    if trust is not None:
        arrow_checks.check_values(table)
    if facts.extensions:
        require_types(table.schema, facts.extensions)
    if facts.kind == TABLE:
        return table
    if facts.kind == BATCH:
        return table.to_batches()[0] if table.num_rows else _first_batch(payload, trust)
    column = table.column(0)
    if facts.kind == CHUNKED:
        return column
    array = column.chunk(0)
    return array if facts.kind == ARRAY else array[0]


def _first_batch(payload: memoryview, trust: Trust | None) -> pa.RecordBatch:
    batch = arrow_ipc.read(payload).read_next_batch()
    if trust is not None:
        arrow_checks.check_values(batch)
    return batch


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
    totals = struct.unpack(f"<{len(facts.sizes) // 8}Q", facts.sizes)
    return list(zip(layout(facts.schema).places, totals, strict=True))


def encode_stream(value: Any) -> Encoded | None:
    """Encodes a foreign object that exports an Arrow stream, as a pyarrow Table.

    Only what can be read again is stored, since putting a value must not use it
    up; see ``arrow_foreign``.

    Returns:
        None for instances of classes derived from those of pandas, polars or pyarrow.

    Raises:
        Unserializable: If the object can be read only once.
    """
    if isinstance(value, pa.RecordBatchReader):
        return encode(value)
    whole = read_stream(value)
    return None if whole is None else encode(whole)
