"""The payload of a pandas value: a writer that places buffers and a reader that checks them.

The meta of a pandas value is JSON, and this is its lowest layer:

- a *buffer* is ``{"at": offset, "nbytes": size}`` within the payload;
- a *numpy array* is a buffer with ``dtype`` (numpy's notation, as ``<f8`` or ``<M8[us]``),
  ``shape`` and, only if it is ``"F"``, ``order``;
- a *part* is a buffer with ``codec`` and ``meta`` (base64): a value that another codec of
  ``shmstore.codecs`` stored there;
- a *label* (a name, a fill value) is a JSON string, integer, float, boolean or null
  where that is exact, else a part.
"""

from __future__ import annotations

import binascii
import functools
import math
import re
from typing import Any, TypeAlias

import numpy as np

from shmstore import codecs
from shmstore.codecs.arrays import check_empty, check_text
from shmstore.codecs.encoded import ALIGNMENT
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue

Spec: TypeAlias = dict[str, Any]
Array: TypeAlias = np.ndarray[Any, Any]

_PADDING = memoryview(bytes(ALIGNMENT))
_NOTHING = memoryview(b"")
#: Beyond these, other readers of JSON (and Python's limit on digits) give up.
_INT_MIN, _INT_MAX = -(2**63), 2**64
_PLAIN_KINDS = frozenset("biufcmMSU")


def damaged(check: str) -> CorruptValue:
    """The error for stored bytes that cannot be a pandas value."""
    return CorruptValue(check=check, where="pandas value")


def is_plain_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype_name`` tells everything about this dtype."""
    return dtype.kind in _PLAIN_KINDS and dtype.itemsize > 0 and dtype.metadata is None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """A name from which ``numpy.dtype`` makes this plain dtype again."""
    if dtype.char in "qQ":  # long long, which numpy would write as it writes long
        return dtype.byteorder + dtype.char
    return dtype.str


#: What ``dtype_name`` gives.
_NAME = re.compile(r"[<>|=]?([biufcSU]\d{1,10}|[qQ]|[mM]8(\[([1-9]\d{0,8})?[a-zA-Z]{1,2}\])?)")


@functools.lru_cache(maxsize=256)
def _dtype(name: str) -> np.dtype[Any]:
    if type(name) is not str or not _NAME.fullmatch(name):
        raise damaged("a dtype has no name that is known")
    dtype = np.dtype(name)
    if not is_plain_dtype(dtype):
        raise damaged(f"dtype {name!r} is not one of plain memory")
    return dtype


def is_inline(label: Any) -> bool:
    """Whether JSON keeps this label exactly."""
    kind = type(label)
    if kind is str:
        if label.isascii():
            return True
        try:
            label.encode()
        except UnicodeEncodeError:  # JSON would join two lone surrogates into one character
            return False
        return True
    if kind is int:
        return bool(_INT_MIN <= label < _INT_MAX)
    if kind is float:
        return math.isfinite(label)
    return label is None or kind is bool


class Writer:
    """Collects the buffers of one value; the payload is the parts one after another."""

    __slots__ = ("nbytes", "parts")

    def __init__(self) -> None:
        self.parts: list[memoryview | bytes] = []
        self.nbytes = 0

    def _start(self) -> int:
        gap = -self.nbytes % ALIGNMENT
        if gap:
            self.parts.append(_PADDING[:gap])
            self.nbytes += gap
        return self.nbytes

    def array(self, values: Array) -> Spec:
        """Places the memory of an array of a plain dtype, copying it only if it has gaps."""
        flags = values.flags
        if not (flags.c_contiguous or flags.f_contiguous):
            values = values.copy(order="K")
            flags = values.flags
        spec: Spec = {
            "dtype": dtype_name(values.dtype),
            "shape": list(values.shape),
            "at": self._start(),
            "nbytes": values.nbytes,
        }
        if not flags.c_contiguous:
            spec["order"] = "F"
            values = values.T
        if values.nbytes:
            self.parts.append(values.reshape(-1).view(np.uint8).data)
            self.nbytes += values.nbytes
        return spec

    def part(self, value: Any) -> Spec:
        """Places any storable value; raises Unserializable for others."""
        encoded = codecs.encode(value)
        spec = {
            "at": self._start(),
            "nbytes": encoded.nbytes,
            "codec": encoded.codec,
            "meta": binascii.b2a_base64(encoded.meta, newline=False).decode("ascii"),
        }
        self.parts.extend(encoded.parts)
        self.nbytes += encoded.nbytes
        return spec

    def label(self, label: Any) -> Any:
        """A label in JSON, placed as a part if JSON would not keep it."""
        return label if is_inline(label) else self.part(label)


class Reader:
    """Finds values in a payload; what lies outside it is CorruptValue.

    Attributes:
        trust: How far the value is trusted; None if this host stored it.
    """

    __slots__ = ("_payload", "trust")

    def __init__(self, payload: memoryview, trust: Trust | None = None) -> None:
        self._payload = payload
        self.trust = trust

    @property
    def readonly(self) -> bool:
        """Whether arrays over the payload cannot be written to."""
        return self._payload.readonly

    def _bounds(self, spec: Spec) -> tuple[int, int]:
        at, nbytes = spec["at"], spec["nbytes"]
        if type(at) is not int or type(nbytes) is not int or at < 0 or nbytes < 0:
            raise damaged("a buffer's bounds are not sizes")
        if at % ALIGNMENT or at + nbytes > self._payload.nbytes:
            raise damaged("a buffer lies outside the payload or off its boundary")
        return at, nbytes

    def array(self, spec: Spec) -> Array:
        """A numpy array over the payload's memory."""
        at, nbytes = self._bounds(spec)
        dtype = _dtype(spec["dtype"])
        shape = spec["shape"]
        if not all(type(length) is int and length >= 0 for length in shape):
            raise damaged("an array's shape is not made of sizes")
        if math.prod(shape) * dtype.itemsize != nbytes:
            raise damaged("an array's shape does not fit its buffer")
        order = spec.get("order", "C")
        if nbytes:
            # Unlike numpy.ndarray(buffer=...), frombuffer keeps the memoryview itself, so
            # that the mapping cannot be closed under the array.
            count = nbytes // dtype.itemsize
            array = np.frombuffer(self._payload, dtype, count, at).reshape(shape, order=order)
            if self.trust is not None:
                check_text(array)
            return array
        if self.trust is not None:
            check_empty(tuple(shape))
        empty = np.empty(shape, dtype, order=order)
        empty.flags.writeable = not self._payload.readonly
        return empty

    def part(self, spec: Spec) -> Any:
        """A value that another codec placed."""
        at, nbytes = self._bounds(spec)
        codec = spec["codec"]
        if type(codec) is not int:
            raise damaged("a part's codec is not a number")
        meta = binascii.a2b_base64(spec["meta"], strict_mode=True)
        piece = self._payload[at : at + nbytes] if nbytes else _NOTHING
        return codecs.decode(codec, meta, piece, self.trust)

    def label(self, label: Any) -> Any:
        """A label as ``Writer.label`` left it."""
        return self.part(label) if type(label) is dict else label
