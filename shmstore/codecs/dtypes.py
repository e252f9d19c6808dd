"""Descriptions of numpy dtypes: as exact as the dtype, and safe to read.

A description is ASCII: byte order and type character for numbers (``<d``, and
``<q`` apart from ``<l``), numpy's type string where there are parameters
(``<M8[25us]``, ``|S3``), JSON for structured dtypes. ``describe`` returns None
for what such a text cannot say in full, for example metadata or object fields;
``from_description`` takes its texts apart itself, so that nothing reaches numpy
that ``describe`` would not have written.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np

from shmstore.errors import CorruptValue, Unserializable

_NUMBERS = "?bBhHiIlLqQefdgFDG"
_KNOWN = re.compile(
    rf"[<>|][{re.escape(_NUMBERS)}]"
    r"|[<>][gG]:\d{1,3}"
    # numpy takes a count of 0, and divides by it later.
    r"|[<>][mM]8(\[([1-9]\d{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
    r"|\|[SV]\d{1,10}"
    r"|[<>]U\d{1,9}"
)
_NATIVE = "<" if np.little_endian else ">"

#: Bits of a long double's fraction: its 16 bytes mean one thing on x86 and
#: another on ARM.
_LONG_DOUBLE_BITS = int(np.finfo(np.longdouble).nmant)

_numbers: dict[tuple[int, str], bytes] = {}


def _describe_numbers() -> None:
    for char in _NUMBERS:
        for order in "<>":
            dtype = np.dtype(order + char)
            sign = _NATIVE if dtype.byteorder == "=" else dtype.byteorder
            text = sign + char + (f":{_LONG_DOUBLE_BITS}" if char in "gG" else "")
            _numbers[dtype.num, dtype.byteorder] = text.encode()


_describe_numbers()


def describe(dtype: np.dtype[Any], *, ignore_metadata: bool = False) -> bytes | None:
    """Describes a dtype whose arrays are raw memory, or returns None.

    Args:
        dtype: Any dtype.
        ignore_metadata: Describe a dtype with metadata as if it had none.
    """
    if dtype.metadata is not None and not ignore_metadata:
        return None
    known = _numbers.get((dtype.num, dtype.byteorder))
    if known is not None and dtype.names is None:
        return known
    if dtype.hasobject or dtype.isbuiltin == 2:
        return None
    if dtype.names is None:
        text = dtype.str.encode() if dtype.kind in "mMSUV" and dtype.subdtype is None else b""
        if not _KNOWN.fullmatch(text.decode()):
            return None
    else:
        spec = _spec(dtype)
        if spec is None:
            return None
        text = json.dumps(spec, separators=(",", ":")).encode()
    rebuilt = from_description(text)
    return text if _same(rebuilt, dtype) else None


def _spec(dtype: np.dtype[Any]) -> dict[str, Any] | list[Any] | str | None:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        inner = None if dtype.metadata is not None else _spec(base)
        return None if inner is None else [inner, list(shape)]
    if dtype.names is None:
        text = describe(dtype)
        return None if text is None else text.decode()
    if dtype.num != np.dtype("V").num or dtype.type not in (np.void, np.record):
        return None
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    formats = [None if f[0].metadata is not None else _spec(f[0]) for f in fields]
    titles = [f[2] if len(f) > 2 else None for f in fields]
    if None in formats or not all(title is None or type(title) is str for title in titles):
        return None
    spec: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": formats,
        "offsets": [int(f[1]) for f in fields],
        "itemsize": dtype.itemsize,
    }
    if any(title is not None for title in titles):
        spec["titles"] = titles
    if dtype.isalignedstruct:
        spec["aligned"] = True
    if dtype.type is np.record:
        spec["record"] = True
    return spec


def _same(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """True if two dtypes agree in all that a description speaks of."""
    if (a.num, a.byteorder, a.itemsize, a.names, a.type, a.isalignedstruct, a.alignment) != (
        (b.num, b.byteorder, b.itemsize, b.names, b.type, b.isalignedstruct, b.alignment)
    ):
        return False
    if a.subdtype is not None or b.subdtype is not None:
        if a.subdtype is None or b.subdtype is None or a.shape != b.shape:
            return False
        return _same(a.base, b.base)
    if a.names is None:
        return a.str == b.str
    if a.fields is None or b.fields is None:
        return a.fields is b.fields
    return a.fields.keys() == b.fields.keys() and all(
        a.fields[name][1:] == b.fields[name][1:] and _same(a.fields[name][0], b.fields[name][0])
        for name in a.fields
    )


def from_description(text: bytes) -> np.dtype[Any]:
    """Builds the dtype that ``describe`` described.

    Raises:
        CorruptValue: The text is not such a description.
        Unserializable: This machine has no such dtype.
    """
    if text[:1] != b"{":
        return _simple(bytes(text))
    # Structured dtypes are built each time: their field names can be assigned
    # to, and one user's change must not show in another's array.
    try:
        return _build(json.loads(text))
    except CorruptValue:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as exc:
        raise CorruptValue(f"no dtype is described: {exc}", "dtype of an array") from exc


@lru_cache(maxsize=1024)
def _simple(text: bytes) -> np.dtype[Any]:
    name = text.decode("latin-1")
    if not _KNOWN.fullmatch(name):
        raise CorruptValue(f"unknown dtype {name[:40]!r}", "dtype of an array")
    name, _, bits = name.partition(":")
    if bits and int(bits) != _LONG_DOUBLE_BITS:
        raise Unserializable(
            "numpy.longdouble",
            f"it was written where long doubles have {bits} bits of fraction, "
            f"and here they have {_LONG_DOUBLE_BITS}",
        )
    try:
        return np.dtype(name)
    except (TypeError, ValueError, OverflowError) as exc:
        raise CorruptValue(f"unknown dtype {name!r}: {exc}", "dtype of an array") from exc


def _build(spec: Any) -> np.dtype[Any]:
    if type(spec) is str:
        return _simple(spec.encode("latin-1", "replace"))
    if type(spec) is list:
        inner, shape = spec
        if not shape or not all(type(n) is int and n >= 0 for n in shape):
            raise CorruptValue(f"subarray of shape {shape!r}", "dtype of an array")
        return np.dtype((_build(inner), tuple(shape)))
    names, offsets, itemsize = spec["names"], spec["offsets"], spec["itemsize"]
    formats = [_build(inner) for inner in spec["formats"]]
    if not (len(names) == len(formats) == len(offsets)) or not all(type(n) is str for n in names):
        raise CorruptValue("fields do not agree in number", "dtype of an array")
    for inner, offset in zip(formats, offsets, strict=True):
        if type(offset) is not int or offset < 0 or offset + inner.itemsize > itemsize:
            raise CorruptValue("a field lies outside its record", "dtype of an array")
    parts: Any = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "itemsize": itemsize,
    }
    if "titles" in spec:
        if not all(title is None or type(title) is str for title in spec["titles"]):
            raise CorruptValue("a title is no text", "dtype of an array")
        parts["titles"] = spec["titles"]
    dtype = np.dtype(parts, align=spec.get("aligned") is True)
    return np.dtype((np.record, dtype)) if spec.get("record") is True else dtype
