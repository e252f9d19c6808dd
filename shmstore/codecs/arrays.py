"""Numpy arrays (codec 3): the array's own memory, dtype and shape in meta.

Only exactly ``np.ndarray``, and only dtypes that are raw memory and that
``dtypes`` can describe in full; the rest is left to ``pickled``, which gives the
memory of most of them its own buffer, too. Meta: order (1 for Fortran), number
of dimensions, shape, description of the dtype.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from struct import Struct
from typing import Any, Final

import numpy as np

from shmstore.codecs.dtypes import describe, from_description
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue

ARRAY: Final = 3

_C, _F = 0, 1
_MAX_DIMENSIONS = 64
_HEADS = [Struct(f"<BB{n}Q") for n in range(_MAX_DIMENSIONS + 1)]
_NOTHING = memoryview(b"")
#: Elements that an array of another host may claim without any memory.
_MOST_EMPTY = 1 << 24
_new = tuple.__new__


#: Numbers of the dtypes whose memory a plain memoryview shows as bytes.
_EXPORTED: Final = frozenset(np.dtype(char).num for char in "?bBhHiIlLqQfd")


def encode(value: Any) -> Encoded | None:
    """Encodes an array without copying it; one that is not contiguous is copied once."""
    if type(value) is not np.ndarray:
        return None
    described = describe(value.dtype)
    if described is None:
        return None
    meta, memory = split(value, described)
    nbytes = len(memory)
    return _new(Encoded, (ARRAY, meta, (memory,) if nbytes else (), nbytes))


def split(value: np.ndarray[Any, Any], described: bytes) -> tuple[bytes, memoryview]:
    """Splits an array into its meta and its memory, in the order in which it lies."""
    shape: tuple[int, ...] = value.shape
    ndim = len(shape)
    if value.flags.c_contiguous:
        meta = _HEADS[ndim].pack(_C, ndim, *shape) + described
        if value.size:
            dtype = value.dtype
            if dtype.num in _EXPORTED and dtype.isbuiltin == 1:
                return meta, memoryview(value).cast("B")  # type: ignore[arg-type]
    elif value.flags.f_contiguous:
        meta = _HEADS[ndim].pack(_F, ndim, *shape) + described
        value = value.T
    else:
        value = np.array(value, order="C", copy=True, subok=False)
        meta = _HEADS[ndim].pack(_C, ndim, *shape) + described
    if value.nbytes == 0:
        return meta, _NOTHING
    # Seen as bytes first: numpy exports no buffer of datetimes, for one.
    return meta, value.reshape(-1).view(np.uint8).data


@lru_cache(maxsize=1024)
def _simple_head(meta: bytes) -> tuple[int, tuple[int, ...], np.dtype[Any], int]:
    return parse_head(meta)


def parse_head(meta: bytes) -> tuple[int, tuple[int, ...], np.dtype[Any], int]:
    """Order, shape, dtype and size in bytes of an array, from its meta. Raises CorruptValue."""
    ndim = meta[1] if len(meta) > 1 else 255
    if ndim > _MAX_DIMENSIONS or len(meta) < _HEADS[ndim].size or meta[0] > _F:
        raise CorruptValue("malformed header", "meta of an array")
    head = _HEADS[ndim]
    shape = head.unpack_from(meta)[2:]
    dtype = from_description(meta[head.size :])
    return meta[0], shape, dtype, math.prod(shape) * dtype.itemsize


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> np.ndarray[Any, Any]:
    """Builds an array over the payload; it is writable if the payload is.

    Raises:
        CorruptValue: Meta is malformed, or the payload has not the array's size.
    """
    # A structured dtype ends in a brace and is never shared between arrays.
    order, shape, dtype, nbytes = parse_head(meta) if meta[-1:] == b"}" else _simple_head(meta)
    if nbytes != len(payload):
        raise CorruptValue(
            f"an array of {nbytes:,} bytes in a payload of {len(payload):,}", "meta of an array"
        )
    if not nbytes and trust is not None:
        check_empty(shape)
    try:
        if nbytes:
            array: np.ndarray[Any, Any] = np.ndarray(
                shape, dtype, payload, 0, None, "F" if order else "C"
            )
            if trust is not None:
                check_text(array)
            return array
        empty: np.ndarray[Any, Any] = np.ndarray(shape, dtype, order="F" if order else "C")
    except (ValueError, TypeError, OverflowError, MemoryError) as exc:
        raise CorruptValue(f"no such array: {exc}", "meta of an array") from exc
    empty.flags.writeable = not payload.readonly
    return empty


def check_empty(shape: tuple[int, ...]) -> None:
    """Refuses an array without memory that claims to be longer than any is."""
    if math.prod(length or 1 for length in shape) > _MOST_EMPTY:
        raise CorruptValue("more elements without memory than any array has", "meta of an array")


def check_text(array: np.ndarray[Any, Any]) -> None:
    """Refuses characters beyond Unicode, of which numpy makes none but reads any."""
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            check_text(array[name])
    elif dtype.kind == "U" and array.size and dtype.itemsize:
        codes = np.ascontiguousarray(array).view(f"{dtype.byteorder}u4")
        if int(codes.max()) > sys.maxunicode:
            raise CorruptValue("text with characters beyond Unicode", "payload of an array")


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says that an array views its payload."""
    return [BufferNote("array", nbytes, False, "the array views the stored memory")]
