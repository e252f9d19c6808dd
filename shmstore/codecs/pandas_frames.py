"""pandas DataFrames, Series and Indexes: axes and blocks as buffers of the payload.

A frame's blocks are stored as they are and come back as they were, zero-copy and in
the same memory order; only Python objects are copied. From a read-only payload come
frames that pandas may write to all the same: its copy-on-write (pandas 3) copies a
block first. Arrays taken out of them are read-only. The meta is JSON::

    {"v": 1, "type": "DataFrame", "columns": AXIS, "index": AXIS,
     "blocks": [{"at": PLACEMENT, "values": ARRAY}, ...], "attrs": PART, "unique": true}
    {"v": 1, "type": "Series", "index": AXIS, "values": ARRAY, "name": LABEL, ...}
    {"v": 1, "type": "Index", "index": AXIS}

``attrs`` and ``unique`` (labels may not repeat) are there only if they say something.
A PLACEMENT tells which columns a block holds: [start, stop, step], or a list within
``{"list": [...]}``. An AXIS is described in ``pandas_axes``, an ARRAY in
``pandas_arrays``, buffers, a PART and a LABEL in ``pandas_payload``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from shmstore.codecs import pandas_internals as internals
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.pandas_arrays import read_array, write_array
from shmstore.codecs.pandas_axes import is_understood, read_index, write_index
from shmstore.codecs.pandas_notes import notes_of
from shmstore.codecs.pandas_payload import Reader, Spec, Writer, damaged
from shmstore.codecs.trust import Trust
from shmstore.errors import StoreError

CODEC = 8
_VERSION = 1
#: Columns that a frame of another host may claim.
_MOST_COLUMNS = 1 << 26
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encode(value: Any) -> Encoded | None:
    """A DataFrame, Series or Index; None for subclasses and everything else.

    Raises:
        Unserializable: A cell, name or attribute cannot be stored.
    """
    out = Writer()
    kind = type(value)
    spec: Spec = {"v": _VERSION}
    if kind is pd.DataFrame:
        columns, index = value.columns, value.index
        if not (is_understood(columns) and is_understood(index)):
            return None
        spec["type"] = "DataFrame"
        spec["columns"] = write_index(out, columns)
        spec["index"] = write_index(out, index)
        spec["blocks"] = [
            {"at": _write_placement(at), "values": write_array(out, values)}
            for values, at in internals.blocks_of(value)
        ]
        _write_extras(out, value, spec)
    elif kind is pd.Series:
        index = value.index
        if not is_understood(index):
            return None
        spec["type"] = "Series"
        spec["index"] = write_index(out, index)
        spec["values"] = write_array(out, internals.values_of(value))
        if value.name is not None:
            spec["name"] = out.label(value.name)
        _write_extras(out, value, spec)
    elif isinstance(value, pd.Index) and is_understood(value):
        spec["type"] = "Index"
        spec["index"] = write_index(out, value)
    else:
        return None
    return Encoded(CODEC, _to_json(spec).encode("ascii"), out.parts, out.nbytes)


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """The value, on views of the payload.

    Raises:
        CorruptValue: Meta and payload are no pandas value.
        UnsafeValue: The value came from another host and asks for what it may not have.
        Unserializable: A class or time zone that the value needs is missing here.
    """
    try:
        return _read(Reader(payload, trust), _parse(meta))
    except (StoreError, MemoryError):
        raise
    except Exception as error:
        raise damaged(f"it cannot be rebuilt ({type(error).__name__}: {error})") from error


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """For each buffer, named by column or axis, whether ``decode`` copies it.

    Raises:
        CorruptValue: The meta is not that of a pandas value.
    """
    try:
        return notes_of(_parse(meta))
    except (StoreError, MemoryError):
        raise
    except Exception as error:
        raise damaged(f"it cannot be explained ({type(error).__name__}: {error})") from error


def _parse(meta: bytes) -> Spec:
    spec = json.loads(meta)
    if type(spec) is not dict or spec.get("v") != _VERSION:
        raise damaged("its meta is not of version 1")
    return spec


def _read(source: Reader, spec: Spec) -> Any:
    kind = spec["type"]
    index = read_index(source, spec["index"])
    if source.readonly:
        internals.protect(index)
    if kind == "Index":
        return index
    if kind == "DataFrame":
        value = _read_frame(source, spec, index)
    elif kind == "Series":
        values = read_array(source, spec["values"])
        if values.ndim != 1 or len(values) != len(index):
            raise damaged("a Series has not as many values as its index")
        value = internals.series_of(values, index, source.label(spec.get("name")))
    else:
        raise damaged(f"there is no type {kind!r}")
    if source.readonly:
        internals.protect(value)
    if "attrs" in spec:
        value.attrs = source.part(spec["attrs"])
    if spec.get("unique"):
        internals.set_no_duplicates(value)
    return value


def _read_frame(source: Reader, spec: Spec, index: pd.Index) -> pd.DataFrame:
    columns = read_index(source, spec["columns"])
    blocks = []
    rows, total, count = len(index), len(columns), 0
    if source.trust is not None and total > _MOST_COLUMNS:
        raise damaged("a frame has more columns than any")
    taken = np.zeros(total, dtype=bool)
    for block in spec["blocks"]:
        at = _read_placement(block["at"], total)
        values = read_array(source, block["values"])
        # Only pandas' one-dimensional extension arrays stand for a column by themselves.
        width = values.shape[0] if values.ndim == 2 else 1
        if values.ndim == 1 and type(values) is np.ndarray:
            raise damaged("a block of a frame has one dimension")
        if values.shape[-1] != rows or width != len(at):
            raise damaged("a block does not fit its frame")
        taken[at] = True
        count += width
        blocks.append((values, at))
    if count != total or not taken.all():
        raise damaged("the blocks of a frame do not hold each column once")
    return internals.frame_of(blocks, index, columns)


def _write_placement(at: internals.Placement) -> Any:
    if isinstance(at, slice):
        return [at.start, at.stop, at.step]
    return {"list": at.tolist()}


def _read_placement(spec: Any, columns: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    numbers = spec["list"] if type(spec) is dict else spec
    if not all(type(number) is int for number in numbers):
        raise damaged("a block's columns are no numbers")
    held = numbers if type(spec) is dict else range(*numbers)
    if len(held) > columns or (held and not 0 <= min(held) <= max(held) < columns):
        raise damaged("a block has columns that its frame has not")
    if isinstance(held, range):
        return np.arange(held.start, held.stop, held.step, dtype=np.intp)
    return np.array(held, dtype=np.intp)


def _write_extras(out: Writer, value: pd.DataFrame | pd.Series, spec: Spec) -> None:
    if value.attrs:
        spec["attrs"] = out.part(value.attrs)
    if not value.flags.allows_duplicate_labels:
        spec["unique"] = True
