"""Values of pyarrow that have no rows: schemas, fields, types, tensors, buffers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from shmstore.codecs import arrow_checks
from shmstore.codecs.arrow_layout import extension_names
from shmstore.codecs.arrow_meta import BUFFER, CODEC, FIELD, SCHEMA, TENSOR, TYPE, Meta, pack
from shmstore.codecs.encoded import Encoded, flat
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue, Unserializable

_COLUMN = "value"


def same_schema(back: pa.Schema, schema: pa.Schema) -> bool:
    """Whether a schema was read back with all its types, names and metadata."""
    return bool(back.equals(schema, check_metadata=True))


def encode_schema(schema: pa.Schema, kind: int = SCHEMA) -> Encoded | None:
    """Encodes a schema, or what it stands for; None if it would not come back."""
    payload = schema.serialize()
    if not same_schema(pa.ipc.read_schema(payload), schema):
        return None
    extensions = extension_names(schema)[0]
    view = memoryview(payload).cast("B")
    meta = pack(kind, 0, xxhash.xxh3_64_intdigest(view), extensions=extensions)
    return Encoded(CODEC, meta, [view], len(view))


def encode_field(field: pa.Field) -> Encoded | None:
    """Encodes a field as the only one of a schema."""
    return encode_schema(pa.schema([field]), FIELD)


def encode_type(type_: pa.DataType) -> Encoded | None:
    """Encodes a type as that of the only field of a schema."""
    encoded = encode_schema(pa.schema([pa.field(_COLUMN, type_)]), TYPE)
    if encoded is None:
        return None
    back = pa.ipc.read_schema(pa.py_buffer(encoded.parts[0])).field(0).type
    return encoded if type(back) is type(type_) else None


def encode_tensor(tensor: pa.Tensor) -> Encoded | None:
    """Encodes a tensor; one with gaps is compacted into C order."""
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
    meta = pack(TENSOR, 0, 0, bytes(schema.serialize()))
    return Encoded(CODEC, meta, [view], len(view))


def encode_buffer(buffer: pa.Buffer) -> Encoded | None:
    """Encodes a buffer of main memory as its bytes."""
    if not buffer.is_cpu:
        return None
    view = memoryview(buffer).cast("B")
    return Encoded(CODEC, pack(BUFFER, 0, 0), [view], len(view))


def require_types(schema: pa.Schema, wanted: int) -> None:
    """Refuses a value whose extension types this process does not know."""
    known, unknown = extension_names(schema)
    if min(known, 0xFFFF) != wanted:
        raise Unserializable(
            "pyarrow.ExtensionType",
            f"the extension types {', '.join(sorted(set(unknown)))} are not registered in this "
            "process; call pyarrow.register_extension_type first",
        )


def decode(facts: Meta, payload: memoryview, trust: Trust | None) -> Any:
    """Rebuilds what this module encoded; pyarrow's errors pass."""
    if facts.kind == BUFFER:
        return pa.py_buffer(payload)
    if facts.kind == TENSOR:
        return _decode_tensor(facts, payload, trust)
    if facts.kind not in (SCHEMA, FIELD, TYPE):
        raise CorruptValue(check=f"unknown kind {facts.kind}", where="meta of an Arrow value")
    if xxhash.xxh3_64_intdigest(payload) != facts.digest:
        raise CorruptValue(check="the digest differs", where="Arrow schema")
    if trust is not None:
        arrow_checks.check_schema(payload)
    # The schema copies nothing of the payload's, and must not keep it alive.
    schema = pa.ipc.read_schema(pa.py_buffer(bytes(payload)))
    if trust is not None:
        arrow_checks.check_schema_texts(schema)
    if facts.extensions:
        require_types(schema, facts.extensions)
    if facts.kind == SCHEMA:
        return schema
    return schema.field(0) if facts.kind == FIELD else schema.field(0).type


def _decode_tensor(facts: Meta, payload: memoryview, trust: Trust | None) -> pa.Tensor:
    if trust is not None:
        arrow_checks.check_schema(facts.schema)
    schema = pa.ipc.read_schema(pa.py_buffer(facts.schema))
    told = schema.metadata
    shape = tuple(map(int, told[b"shape"].split()))
    type_ = schema.field(0).type
    # Anything else might be read as an array of objects, that is of addresses.
    if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        raise CorruptValue(check=f"no tensor is made of {type_}", where="Arrow tensor")
    dtype = np.dtype(type_.to_pandas_dtype())
    if min(shape, default=0) < 0 or len(payload) != dtype.itemsize * math.prod(shape):
        raise CorruptValue(check="its size does not fit its shape", where="Arrow tensor")
    array = np.ndarray(shape, dtype, payload, order="F" if told[b"order"] == b"F" else "C")
    dim_names = [
        told[key].decode() for index in range(len(shape)) if (key := b"name%d" % index) in told
    ]
    return pa.Tensor.from_numpy(array, dim_names or None)
