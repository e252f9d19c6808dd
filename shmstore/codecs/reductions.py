"""How values of the standard library are written in a pickle.

``REDUCERS`` maps an exact type to a function of the pickler and the value, which
returns what ``pickle.Pickler.reducer_override`` returns: a call of a constructor
in ``shmstore._wire``, or NotImplemented to leave the value to pickle. What pickle
writes by itself for the other types of ``AS_THEY_ARE`` is just as plain.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import ipaddress
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shmstore import _wire
from shmstore.codecs.encoded import flat
from shmstore.codecs.runs import COPIED, VIEWED, RunRef
from shmstore.errors import Unserializable

if TYPE_CHECKING:
    from shmstore.codecs.reducing import Reducing

Reducer = Callable[["Reducing", Any], Any]


def name_of(kind: type) -> str:
    """A type's name for a message, with its module unless it is a builtin."""
    module = getattr(kind, "__module__", None)
    if module in (None, "builtins"):
        return kind.__qualname__
    return f"{module}.{kind.__qualname__}"


def as_it_is(pickler: Reducing, value: Any) -> Any:
    """Leaves a value to pickle."""
    return NotImplemented


def _run(pickler: Reducing, value: RunRef) -> Any:
    return _wire.run, (value.index,)


def _uuid(pickler: Reducing, value: uuid.UUID) -> Any:
    return _wire.uuid, (value.int, value.is_safe.value)


def _zone(pickler: Reducing, value: zoneinfo.ZoneInfo) -> Any:
    if value.key is None:
        return NotImplemented
    reduced: Any = value.__reduce__()
    key, cached = reduced[1]
    return _wire.zone, (key, bool(cached))


def _deque(pickler: Reducing, value: collections.deque[Any]) -> Any:
    return _wire.deque, (value.maxlen,), None, iter(value)


def _counter(pickler: Reducing, value: collections.Counter[Any]) -> Any:
    if vars(value):
        return NotImplemented
    return _wire.counter, (), None, None, iter(value.items())


def _defaultdict(pickler: Reducing, value: collections.defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    name = _wire.factory_name(factory)
    if factory is not None and name is None:
        return NotImplemented
    return _wire.defaultdict, (name,), None, None, iter(value.items())


def _chain_map(pickler: Reducing, value: collections.ChainMap[Any, Any]) -> Any:
    return (_wire.chain_map, (value.maps,)) if vars(value).keys() == {"maps"} else NotImplemented


def _namespace(pickler: Reducing, value: types.SimpleNamespace) -> Any:
    return _wire.namespace, (), vars(value)


def _fraction(pickler: Reducing, value: fractions.Fraction) -> Any:
    numerator, denominator = value.numerator, value.denominator
    if type(numerator) is not int or type(denominator) is not int:
        return NotImplemented
    return _wire.fraction, (numerator, denominator)


def _path(pickler: Reducing, value: pathlib.PurePath) -> Any:
    return _wire.path, (type(value).__name__, str(value))


def _ip(pickler: Reducing, value: Any) -> Any:
    return _wire.ip, (type(value).__name__, str(value))


def _pattern(pickler: Reducing, value: re.Pattern[Any]) -> Any:
    if type(value.pattern) not in (str, bytes) or value.flags & re.DEBUG:
        return NotImplemented
    return _wire.pattern, (value.pattern, value.flags)


def _typed_array(pickler: Reducing, value: array.array[Any]) -> Any:
    if value.typecode not in "bBhHiIlLqQfd":
        return NotImplemented
    memory = pickler.runs.memory(value, flat(value), COPIED)
    return _wire.typed_array, (value.typecode, sys.byteorder == "big", value.itemsize, memory)


def _memoryview(pickler: Reducing, value: memoryview) -> Any:
    format, shape = value.format, value.shape or ()
    try:
        # Only what a cast makes of bytes again comes back as it was.
        memoryview(bytes(value.itemsize)).cast(format)  # type: ignore[call-overload]
        if 0 in shape:
            if shape != (0,):
                raise ValueError("no bytes can be cast to it")
            return _wire.memory, (format, None, b"")
        view = value if value.c_contiguous else memoryview(value.tobytes())
        memory = pickler.runs.memory(value, view.cast("B"), VIEWED)
    except (TypeError, ValueError) as exc:
        raise Unserializable(
            "memoryview", f"its format {format!r} with shape {shape} cannot be rebuilt"
        ) from exc
    return _wire.memory, (format, shape, memory)


#: Types whose own pickles name nothing but the type itself, and builtins.
AS_THEY_ARE: Final = frozenset(
    {
        type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset,
        complex, range, slice, type(...), type(NotImplemented),
        datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone,
        decimal.Decimal, collections.OrderedDict,
    }
)  # fmt: skip

REDUCERS: Final[dict[type, Reducer]] = {
    **dict.fromkeys(AS_THEY_ARE, as_it_is),
    RunRef: _run,
    uuid.UUID: _uuid,
    zoneinfo.ZoneInfo: _zone,
    collections.deque: _deque,
    collections.Counter: _counter,
    collections.defaultdict: _defaultdict,
    collections.ChainMap: _chain_map,
    types.SimpleNamespace: _namespace,
    fractions.Fraction: _fraction,
    pathlib.PurePosixPath: _path,
    pathlib.PosixPath: _path,
    pathlib.PureWindowsPath: _path,
    ipaddress.IPv4Address: _ip,
    ipaddress.IPv6Address: _ip,
    ipaddress.IPv4Network: _ip,
    ipaddress.IPv6Network: _ip,
    ipaddress.IPv4Interface: _ip,
    ipaddress.IPv6Interface: _ip,
    re.Pattern: _pattern,
    array.array: _typed_array,
    memoryview: _memoryview,
}
