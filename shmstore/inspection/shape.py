"""What a value is, told from its record's meta and, where it takes it, its payload.

A value's bytes are decoded as if they came from another host: so whatever they hold, no
code of theirs runs. What cannot be decoded like that, a pickle of somebody's class, is
told about by its record alone, unless the user says that it is trusted.
"""

from __future__ import annotations

import math
from typing import Any

from shmstore import codecs, provenance, stored
from shmstore.codecs.trust import NOBODY
from shmstore.inspection.dag_snapshot import DagSnapshot
from shmstore.record import UNTRUSTED, Record

_PIECE = 1 << 20


def value_of(dag: DagSnapshot, id: str, unsafe: bool = False) -> Any:
    """A value.

    Args:
        dag: The DAG.
        id: The value's id.
        unsafe: Also decode what may run code that whoever stored it chose.

    Raises:
        NotFound: There is none.
        UnsafeValue: It needs ``unsafe``, or came from another host and would need more.
        CorruptValue: It is damaged.
        Unserializable: This process lacks a library or a class.
    """
    found, payload = dag.payload(id)
    trust = None if unsafe and not found.flags & UNTRUSTED else NOBODY
    return stored.decoded(dag.dag_id, id, found.codec, found.meta, payload, trust)


def of_array(found: Record) -> tuple[str, tuple[int, ...]] | None:
    """Dtype and shape of a stored numpy array, from its meta alone; None for other values."""
    if codecs.NAMES.get(found.codec) != "array":
        return None
    from shmstore.codecs import arrays

    _, shape, dtype, _ = arrays.parse_head(provenance.codec_meta(found.meta))
    return str(dtype), shape


def described(value: Any) -> dict[str, Any]:
    """What can be said about a value: schema, or dtype and shape, rows, length."""
    kind = type(value)
    family = kind.__module__.partition(".")[0]
    if family == "numpy" and hasattr(value, "dtype"):
        return {"dtype": str(value.dtype), "shape": list(value.shape)}
    if family == "pyarrow":
        return _arrow(value)
    if family == "polars":
        return _polars(value)
    if family == "pandas":
        return _pandas(value)
    if isinstance(value, (str, bytes, bytearray, list, tuple, dict, set, frozenset)):
        return {"length": len(value)}
    return {}


def _arrow(value: Any) -> dict[str, Any]:
    if hasattr(value, "schema"):
        fields = [{"name": one.name, "type": str(one.type)} for one in value.schema]
        return {"rows": value.num_rows, "schema": fields}
    facts: dict[str, Any] = {"dtype": str(value.type)} if hasattr(value, "type") else {}
    if hasattr(value, "shape"):
        facts["shape"] = list(value.shape)
    elif hasattr(value, "__len__"):
        facts["length"] = len(value)
    return facts


def _polars(value: Any) -> dict[str, Any]:
    if hasattr(value, "schema"):
        fields = [{"name": name, "type": str(kind)} for name, kind in value.schema.items()]
        return {"rows": value.height, "schema": fields}
    return {"dtype": str(value.dtype), "length": len(value)}


def _pandas(value: Any) -> dict[str, Any]:
    if hasattr(value, "columns"):
        names = [str(name) for name in value.columns]
        kinds = [str(kind) for kind in value.dtypes]
        fields = [{"name": n, "type": k} for n, k in zip(names, kinds, strict=True)]
        return {"rows": len(value), "schema": fields}
    if hasattr(value, "dtype"):
        return {"dtype": str(value.dtype), "length": len(value)}
    return {}


def extremes(array: Any) -> dict[str, Any]:
    """The least and the greatest of a numpy array's numbers, and how many are not numbers.

    One pass over the memory, piece by piece, so that little more than it is taken.
    """
    if array.dtype.kind not in "biufmM" or not array.size:
        return {}
    import numpy as np

    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel(order="K")
    lows, highs, missing = [], [], 0
    for at in range(0, flat.size, _PIECE):
        piece = flat[at : at + _PIECE]
        if array.dtype.kind in "fmM":
            unknown = np.isnan(piece) if array.dtype.kind == "f" else np.isnat(piece)
            missing += int(unknown.sum())
            piece = piece[~unknown] if unknown.any() else piece
        if piece.size:
            lows.append(piece.min())
            highs.append(piece.max())
    facts = {"min": _plain(min(lows)), "max": _plain(max(highs))} if lows else {}
    return facts | ({"missing": missing} if array.dtype.kind in "fmM" else {})


def _plain(value: Any) -> Any:
    """A number as JSON has it; text for what it has not."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
