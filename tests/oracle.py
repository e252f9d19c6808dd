"""Whether two values are identical: an oracle that knows nothing of the codecs.

``identical(a, b)`` compares types at every depth, floats by their bits, the order
of dicts, shared and recursive references, and of arrays dtype, shape, order,
memory and metadata. Other test modules add their types with ``oracle_for``.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import ipaddress
import pathlib
import struct
import types
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np

Compare = Callable[[Any, Any, "Seen"], bool]
Seen = dict[tuple[int, int], tuple[Any, Any]]

_COMPARE: dict[type, Compare] = {}


def oracle_for(*kinds: type) -> Callable[[Compare], Compare]:
    """Registers what compares two values of exactly these types."""

    def register(compare: Compare) -> Compare:
        for kind in kinds:
            _COMPARE[kind] = compare
        return compare

    return register


def identical(a: Any, b: Any, seen: Seen | None = None) -> bool:
    """True if nobody could tell one value from the other, but for their ids."""
    if type(a) is not type(b):
        return False
    seen = {} if seen is None else seen
    if (id(a), id(b)) in seen:
        return True
    seen[id(a), id(b)] = a, b
    compare = _COMPARE.get(type(a))
    if compare is None:
        if isinstance(a, np.dtype):
            return same_dtype(a, b, seen)
        if isinstance(a, np.generic):
            return _scalar(a, b, seen)
        if isinstance(a, np.ndarray):
            return _array(a, b, seen) and _attributes(a, b, seen)
        return _object(a, b, seen)
    return compare(a, b, seen)


def same_sharing(a: Any, b: Any) -> bool:
    """True if the elements of two sequences are the same objects in the same places."""
    first = [next(i for i, y in enumerate(a) if y is x) for x in a]
    return first == [next(i for i, y in enumerate(b) if y is x) for x in b]


@oracle_for(float)
def _float(a: float, b: float, seen: Seen) -> bool:
    return struct.pack("<d", a) == struct.pack("<d", b)


@oracle_for(complex)
def _complex(a: complex, b: complex, seen: Seen) -> bool:
    return _float(a.real, b.real, seen) and _float(a.imag, b.imag, seen)


@oracle_for(list, tuple)
def _sequence(a: Any, b: Any, seen: Seen) -> bool:
    return len(a) == len(b) and all(map(lambda x, y: identical(x, y, seen), a, b))


@oracle_for(collections.deque)
def _deque(a: Any, b: Any, seen: Seen) -> bool:
    return a.maxlen == b.maxlen and _sequence(a, b, seen)


@oracle_for(dict, collections.OrderedDict, collections.Counter)
def _mapping(a: Any, b: Any, seen: Seen) -> bool:
    return _sequence(list(a.items()), list(b.items()), seen)


@oracle_for(collections.defaultdict)
def _defaultdict(a: Any, b: Any, seen: Seen) -> bool:
    return a.default_factory is b.default_factory and _mapping(a, b, seen)


@oracle_for(collections.ChainMap)
def _chain_map(a: Any, b: Any, seen: Seen) -> bool:
    return identical(a.maps, b.maps, seen)


@oracle_for(set, frozenset)
def _set(a: Any, b: Any, seen: Seen) -> bool:
    # Sets have no order of their own; NaN differs from itself and is told by its bits.
    rest = list(b)
    for x in a:
        place = next((i for i, y in enumerate(rest) if identical(x, y, {})), None)
        if place is None:
            return False
        del rest[place]
    return not rest


@oracle_for(datetime.datetime, datetime.time)
def _moment(a: Any, b: Any, seen: Seen) -> bool:
    same = a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold
    return same and identical(a.tzinfo, b.tzinfo, seen)


@oracle_for(datetime.timezone)
def _fixed_zone(a: Any, b: Any, seen: Seen) -> bool:
    return a == b and a.tzname(None) == b.tzname(None)


@oracle_for(zoneinfo.ZoneInfo)
def _zone(a: Any, b: Any, seen: Seen) -> bool:
    return a.key == b.key and (a is zoneinfo.ZoneInfo(a.key)) == (b is zoneinfo.ZoneInfo(b.key))


@oracle_for(decimal.Decimal)
def _decimal(a: Any, b: Any, seen: Seen) -> bool:
    return a.as_tuple() == b.as_tuple()


@oracle_for(
    ipaddress.IPv4Network, ipaddress.IPv6Network, ipaddress.IPv4Interface, ipaddress.IPv6Interface
)
def _network(a: Any, b: Any, seen: Seen) -> bool:
    return bool(a == b)


@oracle_for(pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath)
def _path(a: Any, b: Any, seen: Seen) -> bool:
    return a == b and str(a) == str(b) and a.parts == b.parts


@oracle_for(types.SimpleNamespace)
def _namespace(a: Any, b: Any, seen: Seen) -> bool:
    return identical(vars(a), vars(b), seen)


@oracle_for(array.array)
def _typed_array(a: Any, b: Any, seen: Seen) -> bool:
    return a.typecode == b.typecode and a.tobytes() == b.tobytes()


@oracle_for(memoryview)
def _memoryview(a: Any, b: Any, seen: Seen) -> bool:
    return (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes())


@oracle_for(types.FunctionType, types.BuiltinFunctionType, np.ufunc, type(np.ma.masked))
def _same_object(a: Any, b: Any, seen: Seen) -> bool:
    return a is b


@oracle_for(slice)
def _slice(a: slice, b: slice, seen: Seen) -> bool:
    return _sequence((a.start, a.stop, a.step), (b.start, b.stop, b.step), seen)


def _object(a: Any, b: Any, seen: Seen) -> bool:
    if isinstance(a, type):
        return a is b
    if isinstance(a, (list, tuple)):
        return _sequence(a, b, seen) and _attributes(a, b, seen)
    if isinstance(a, dict):
        return _mapping(a, b, seen) and _attributes(a, b, seen)
    if type(a).__eq__ is not object.__eq__ and not hasattr(a, "__dict__"):
        return bool(a == b)
    return a is b or (hasattr(a, "__dict__") and _attributes(a, b, seen))


def _attributes(a: Any, b: Any, seen: Seen) -> bool:
    return identical(getattr(a, "__dict__", None), getattr(b, "__dict__", None), seen)


# numpy


def same_dtype(a: np.dtype[Any], b: np.dtype[Any], seen: Seen | None = None) -> bool:
    """True if two dtypes agree in everything, also in what ``==`` leaves out."""
    if type(a) is not type(b) or not identical(_dict(a.metadata), _dict(b.metadata)):
        return False
    if isinstance(a, np.dtypes.StringDType):
        return bool(
            a.coerce == b.coerce
            and identical(getattr(a, "na_object", ()), getattr(b, "na_object", ()))
        )
    facts = ("num", "char", "byteorder", "itemsize", "alignment", "isalignedstruct", "names", "str")
    if any(getattr(a, fact) != getattr(b, fact) for fact in facts) or a.type is not b.type:
        return False
    if a.subdtype is not None or b.subdtype is not None:
        return a.shape == b.shape and same_dtype(a.base, b.base)
    if a.fields is None or b.fields is None:
        return a.fields is b.fields
    return a.fields.keys() == b.fields.keys() and all(
        a.fields[name][1:] == b.fields[name][1:]
        and same_dtype(a.fields[name][0], b.fields[name][0])
        for name in a.fields
    )


def _dict(metadata: Any) -> dict[str, Any] | None:
    return None if metadata is None else dict(metadata)


def _scalar(a: np.generic, b: np.generic, seen: Seen) -> bool:
    if isinstance(a, (str, bytes)):
        return bool(type(a).__mro__[1].__eq__(a, b)) and len(a) == len(b)
    return same_dtype(a.dtype, b.dtype) and a.tobytes() == b.tobytes()


def _array(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], seen: Seen) -> bool:
    if not same_dtype(a.dtype, b.dtype) or a.shape != b.shape:
        return False
    if a.flags.fnc and not b.flags.fnc:
        return False
    if not a.flags.fnc and not b.flags.c_contiguous:
        return False
    if a.dtype.kind in "OT":
        return identical(a.ravel().tolist(), b.ravel().tolist(), seen)
    # Bytes between fields belong to no value, so fields are compared, not records.
    return _same_memory(np.asarray(a), np.asarray(b))


def _same_memory(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.dtype.names is None or a.dtype.kind != "V":
        if a.dtype.hasobject:
            return identical(a.tolist(), b.tolist())
        return a.tobytes() == b.tobytes()
    return all(_same_memory(a[name], b[name]) for name in a.dtype.names)


@oracle_for(np.ma.MaskedArray)
def _masked(a: Any, b: Any, seen: Seen) -> bool:
    return (
        _array(a.view(np.ndarray), b.view(np.ndarray), seen)
        and identical(a._mask, b._mask, seen)
        and identical(a._fill_value, b._fill_value, seen)
        and a._hardmask == b._hardmask
        and identical(a._optinfo, b._optinfo, seen)
    )


@oracle_for(np.memmap)
def _memmap(a: Any, b: Any, seen: Seen) -> bool:
    return _array(a, b, seen)


@oracle_for(np.random.Generator)
def _generator(a: Any, b: Any, seen: Seen) -> bool:
    return identical(a.bit_generator.state, b.bit_generator.state, seen)
