"""The constructors that stored pickles call to build library values.

The pickler writes numpy, Arrow, pandas and standard-library values as calls of
these functions, never as calls of the libraries' own: so a pickle can be read
with a fixed table of names, and what a damaged or forged one asks for is checked
before a library sees it. Each function takes plain values, checks them, and
raises ``CorruptValue`` for what the pickler would not have written. Their names
and arguments are a stored format: old ones stay.

``run``, ``array``, ``memory`` and ``embedded`` reach into the payload; the
unpickler puts methods of its own in their place.
"""

from __future__ import annotations

import collections
import datetime
import fractions
import ipaddress
import re
import types
from typing import TYPE_CHECKING, Any, NoReturn

from shmstore.errors import CorruptValue, Unserializable

if TYPE_CHECKING:
    import array as array_module
    import pathlib
    import uuid as uuid_module
    import zoneinfo

    import numpy as np

MODULE = __name__


def _refuse(what: str, got: object) -> NoReturn:
    raise CorruptValue(
        f"{what} cannot be built from {_shown(got)}", "a constructor of shmstore._wire"
    )


def _shown(got: object) -> str:
    """What was given, in short; never what containers hold, which may be without end."""
    if isinstance(got, tuple):
        return ", ".join(
            [_shown(each) if type(each) is not tuple else "a tuple" for each in got[:4]]
        )
    if type(got) in (str, bytes, float, bool, type(None)):
        return f"{got!r:.80}"
    if type(got) is int and got.bit_length() < 128:
        return str(got)
    return f"a {type(got).__name__}"


# Replaced by the unpickler.


def run(index: int) -> Any:
    """A stretch of the payload, as bytes."""
    _refuse("a run outside of a payload", index)


def array(meta: bytes, memory: Any) -> Any:
    """A numpy array of a plain dtype over a run or over bytes."""
    _refuse("an array outside of a payload", meta)


def memory(format: str, shape: tuple[int, ...] | None, memory: Any) -> Any:
    """A memoryview over a run or over bytes."""
    _refuse("a memoryview outside of a payload", format)


def embedded(index: int) -> Any:
    """A value that another codec stored in a run."""
    _refuse("an embedded value outside of a payload", index)


# The standard library.


def uuid(number: int, is_safe: int | None) -> uuid_module.UUID:
    """A UUID, and whether it was generated safely for several processes."""
    from uuid import UUID, SafeUUID

    if type(number) is not int or not 0 <= number < 1 << 128 or is_safe not in (0, -1, None):
        _refuse("a UUID", (number, is_safe))
    return UUID(int=number, is_safe=SafeUUID(is_safe))


def zone(key: str, cached: bool) -> zoneinfo.ZoneInfo:
    """A time zone by its name in the zone database of this host."""
    from zoneinfo import ZoneInfo

    if type(key) is not str:
        _refuse("a time zone", key)
    try:
        return ZoneInfo(key) if cached else ZoneInfo.no_cache(key)
    except (KeyError, ValueError, OSError) as exc:
        raise Unserializable(
            "zoneinfo.ZoneInfo", f"this host's zone database has no zone {key!r}"
        ) from exc


def deque(maxlen: int | None) -> collections.deque[Any]:
    """An empty deque; its elements follow."""
    if maxlen is not None and (type(maxlen) is not int or maxlen < 0):
        _refuse("a deque", maxlen)
    return collections.deque(maxlen=maxlen)


def counter() -> collections.Counter[Any]:
    """An empty counter; its items follow."""
    return collections.Counter()


_FACTORIES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}


def factory_name(factory: object) -> str | None:
    """The name under which ``defaultdict`` takes this factory, or None."""
    name = getattr(factory, "__name__", None)
    return name if type(name) is str and _FACTORIES.get(name) is factory else None


def defaultdict(factory: str | None) -> collections.defaultdict[Any, Any]:
    """An empty defaultdict with a factory of builtins; its items follow."""
    if factory is not None and (type(factory) is not str or factory not in _FACTORIES):
        _refuse("a defaultdict", factory)
    return collections.defaultdict(None if factory is None else _FACTORIES[factory])


def chain_map(maps: list[Any]) -> collections.ChainMap[Any, Any]:
    """A ChainMap over the very list of mappings."""
    if type(maps) is not list or not all(isinstance(m, collections.abc.Mapping) for m in maps):
        _refuse("a ChainMap", maps)
    chained: collections.ChainMap[Any, Any] = collections.ChainMap()
    chained.maps = maps
    return chained


def namespace() -> types.SimpleNamespace:
    """An empty namespace; its attributes follow."""
    return types.SimpleNamespace()


def fraction(numerator: int, denominator: int) -> fractions.Fraction:
    """A fraction in lowest terms."""
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        _refuse("a fraction", (numerator, denominator))
    return fractions.Fraction(numerator, denominator)


def path(kind: str, text: str) -> pathlib.PurePath:
    """A path of one of pathlib's classes."""
    import pathlib

    if kind not in ("PurePosixPath", "PosixPath", "PureWindowsPath") or type(text) is not str:
        _refuse("a path", (kind, text))
    built: pathlib.PurePath = getattr(pathlib, kind)(text)
    return built


_IP_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        ipaddress.IPv4Address,
        ipaddress.IPv6Address,
        ipaddress.IPv4Network,
        ipaddress.IPv6Network,
        ipaddress.IPv4Interface,
        ipaddress.IPv6Interface,
    )
}


def ip(kind: str, text: str) -> Any:
    """An address, network or interface of ``ipaddress``."""
    if kind not in _IP_KINDS or type(text) is not str:
        _refuse("an IP address", (kind, text))
    try:
        return _IP_KINDS[kind](text)
    except ValueError:
        _refuse("an IP address", (kind, text))


def pattern(text: str | bytes, flags: int) -> re.Pattern[Any]:
    """A compiled regular expression."""
    if type(text) not in (str, bytes) or type(flags) is not int or flags & re.DEBUG:
        _refuse("a regular expression", (text, flags))
    try:
        return re.compile(text, flags)
    except (re.error, ValueError, RecursionError, OverflowError):
        _refuse("a regular expression", (text, flags))


def typed_array(code: str, big_endian: bool, itemsize: int, memory: Any) -> array_module.array[Any]:
    """An ``array.array``, which owns its memory and so is a copy."""
    import array
    import sys

    if type(code) is not str or code not in "bBhHiIlLqQfd" or len(code) != 1:
        _refuse("an array.array", code)
    built: array_module.array[Any] = array.array(code)
    if built.itemsize != itemsize or len(memory) % itemsize:
        _refuse("an array.array", (code, itemsize, len(memory)))
    built.frombytes(memory)
    if big_endian is not (sys.byteorder == "big"):
        built.byteswap()
    return built


def custom(name: str, stored: Any) -> Any:
    """A value of a class with a registered codec."""
    from shmstore.codecs.custom import rebuild

    return rebuild(name, stored)


# numpy, whose own constructors for pickles trust their arguments.


def dtype(text: bytes) -> np.dtype[Any]:
    """A dtype, from its description."""
    from shmstore.codecs.dtypes import from_description

    if type(text) is not bytes:
        _refuse("a dtype", text)
    return from_description(text)


def dtype_with(text: bytes, metadata: dict[str, Any]) -> np.dtype[Any]:
    """A dtype with metadata."""
    import numpy as np

    if type(metadata) is not dict:
        _refuse("a dtype's metadata", metadata)
    return np.dtype(dtype(text), metadata=metadata)


def object_dtype() -> np.dtype[Any]:
    """The dtype of Python objects."""
    import numpy as np

    return np.dtype("O")


def string_dtype(coerce: bool, *na_object: Any) -> Any:
    """Numpy's variable-length string dtype."""
    import numpy as np

    if type(coerce) is not bool or len(na_object) > 1:
        _refuse("a StringDType", (coerce, na_object))
    if na_object and isinstance(na_object[0], (np.dtype, np.ndarray)):
        _refuse("a StringDType", na_object)
    if na_object:
        return np.dtypes.StringDType(coerce=coerce, na_object=na_object[0])
    return np.dtypes.StringDType(coerce=coerce)


def scalar(text: bytes, data: bytes) -> Any:
    """A numpy scalar, from the bytes that an array would hold for it."""
    import numpy as np

    kind = dtype(text)
    if type(data) is not bytes or len(data) != kind.itemsize:
        _refuse("a numpy scalar", (text, data))
    # A record scalar is a view that can be assigned to, so its memory is its own.
    return np.ndarray((), kind, bytearray(data) if kind.kind == "V" else data)[()]


def text_scalar(text: str) -> np.str_:
    """A ``numpy.str_``: through an array it would lose trailing zeros."""
    import numpy as np

    if type(text) is not str:
        _refuse("a numpy string", text)
    return np.str_(text)


def bytes_scalar(data: bytes) -> np.bytes_:
    """A ``numpy.bytes_``, with its trailing zeros."""
    import numpy as np

    if type(data) is not bytes:
        _refuse("a numpy string", data)
    return np.bytes_(data)


def array_as(raw: np.ndarray[Any, Any], kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array over another's memory, with a dtype of the same size."""
    import numpy as np

    if type(raw) is not np.ndarray or not isinstance(kind, np.dtype):
        _refuse("an array", type(raw))
    if (
        kind.hasobject
        or kind.kind == "T"
        or kind.itemsize != raw.dtype.itemsize
        or raw.dtype.kind != "V"
    ):
        _refuse("an array", kind)
    return raw.view(kind)


def cells(kind: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> np.ndarray[Any, Any]:
    """An array of objects or strings; ``fill_cells`` fills it."""
    import numpy as np

    if not isinstance(kind, np.dtype) or kind.kind not in "OT" or type(shape) is not tuple:
        _refuse("an array of objects", (kind, shape))
    try:
        return np.empty(shape, kind, order="F" if fortran else "C")
    except (ValueError, TypeError, MemoryError):
        _refuse("an array of objects", (kind, shape))


def fill_cells(target: np.ndarray[Any, Any], values: list[Any]) -> None:
    """Fills an array of objects, in the order in which its cells lie."""
    import numpy as np

    if type(target) is not np.ndarray or target.dtype.kind not in "OT":
        _refuse("an array of objects", type(target))
    if type(values) is not list or len(values) != target.size:
        _refuse("an array of objects", len(values))
    cells = np.fromiter(values, dtype=object, count=len(values))
    flat = target.reshape(-1, order="A")
    if target.dtype.kind == "O":
        flat[...] = cells
    else:
        flat[...] = cells.astype(target.dtype)


_VIEWS = {"matrix": "matrix", "recarray": "recarray", "memmap": "memmap", "chararray": "chararray"}


def chararray() -> type[np.ndarray[Any, Any]]:
    """Numpy's class of that name, whose mention newer versions of numpy warn of."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.char.chararray


def view_as(kind: str, base: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array seen as one of numpy's own subclasses."""
    import numpy as np

    if kind not in _VIEWS or type(base) is not np.ndarray:
        _refuse("a subclass of array", kind)
    cls: type[np.ndarray[Any, Any]]
    if kind == "chararray":
        cls = chararray()
    else:
        cls = {"matrix": np.matrix, "recarray": np.recarray, "memmap": np.memmap}[kind]
    if kind == "matrix" and base.ndim != 2:
        _refuse("a matrix", base.shape)
    return base.view(cls)


def seen_as(kind: type, base: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array seen as a user's subclass of it."""
    import numpy as np

    if not (isinstance(kind, type) and issubclass(kind, np.ndarray)):
        _refuse("a subclass of array", kind)
    if type(base) is not np.ndarray:
        _refuse("a subclass of array", type(base))
    return base.view(kind)


def set_attributes(target: Any, attributes: dict[str, Any]) -> None:
    """Gives an array of a user's subclass its attributes."""
    import numpy as np

    if not isinstance(target, np.ndarray) or type(attributes) is not dict:
        _refuse("attributes", type(target))
    target.__dict__.update(attributes)


def masked_array(
    data: np.ndarray[Any, Any], mask: Any, fill_value: Any, hard: bool, info: dict[str, Any]
) -> Any:
    """A ``numpy.ma.MaskedArray`` over its data and mask."""
    import numpy as np

    if type(data) is not np.ndarray or type(info) is not dict or type(hard) is not bool:
        _refuse("a masked array", type(data))
    if mask is not None and (type(mask) is not np.ndarray or mask.shape != data.shape):
        _refuse("a mask", type(mask))
    built: Any = data.view(np.ma.MaskedArray)
    if mask is not None:
        if mask.dtype != np.ma.make_mask_descr(data.dtype):
            _refuse("a mask", mask.dtype)
        built._mask = mask
    if fill_value is not None and (type(fill_value) is not np.ndarray or fill_value.ndim):
        _refuse("a fill value", fill_value)
    built.__dict__.update(_fill_value=fill_value, _hardmask=hard, _sharedmask=False)
    built.__dict__["_optinfo"] = info
    return built


# pandas' scalars.


def timestamp(value: int, unit: str, zone: Any) -> Any:
    """A ``pandas.Timestamp`` of a unit, in a time zone."""
    import numpy as np
    import pandas as pd

    if type(value) is not int or unit not in ("s", "ms", "us", "ns"):
        _refuse("a Timestamp", (value, unit))
    if zone is not None and not isinstance(zone, datetime.tzinfo):
        _refuse("a Timestamp", zone)
    built = pd.Timestamp(np.array(value, f"M8[{unit}]")[()])
    return built if zone is None else built.tz_localize("UTC").tz_convert(zone)


def timedelta(value: int, unit: str) -> Any:
    """A ``pandas.Timedelta`` of a unit."""
    import numpy as np
    import pandas as pd

    if type(value) is not int or unit not in ("s", "ms", "us", "ns"):
        _refuse("a Timedelta", (value, unit))
    return pd.Timedelta(np.array(value, f"m8[{unit}]")[()])


def missing(name: str) -> Any:
    """``pandas.NA``, ``pandas.NaT`` or ``numpy.ma.masked``."""
    if name not in ("NA", "NaT", "masked"):
        _refuse("a missing value", name)
    if name == "masked":
        import numpy as np

        return np.ma.masked
    import pandas as pd

    return pd.NA if name == "NA" else pd.NaT


def interval(left: Any, right: Any, closed: str) -> Any:
    """A ``pandas.Interval``."""
    import pandas as pd

    if closed not in ("left", "right", "both", "neither"):
        _refuse("an Interval", closed)
    return pd.Interval(left, right, closed=closed)


def period(ordinal: int, freq: str) -> Any:
    """A ``pandas.Period``, by its number among those of its freq."""
    import pandas as pd

    if type(ordinal) is not int or type(freq) is not str:
        _refuse("a Period", (ordinal, freq))
    return pd.Period(ordinal=ordinal, freq=freq)


#: What offsets are called, whose constructors check their arguments.
_OFFSETS = frozenset(
    {
        "BusinessDay", "BusinessHour", "BusinessMonthBegin", "BusinessMonthEnd", "BHalfYearBegin",
        "BHalfYearEnd", "BQuarterBegin", "BQuarterEnd", "BYearBegin", "BYearEnd",
        "CustomBusinessDay", "CustomBusinessHour", "CustomBusinessMonthBegin",
        "CustomBusinessMonthEnd", "DateOffset", "Day", "Easter", "FY5253", "FY5253Quarter",
        "HalfYearBegin", "HalfYearEnd", "Hour", "LastWeekOfMonth", "Micro", "Milli", "Minute",
        "MonthBegin", "MonthEnd", "Nano", "QuarterBegin", "QuarterEnd", "Second", "SemiMonthBegin",
        "SemiMonthEnd", "Week", "WeekOfMonth", "YearBegin", "YearEnd",
    }
)  # fmt: skip


def is_offset(name: str) -> bool:
    """Whether a class of pandas' offsets is one that ``offset`` makes."""
    return name in _OFFSETS


def offset(name: str, n: int, normalize: bool, options: dict[str, Any]) -> Any:
    """One of pandas' offsets, as that of a DatetimeIndex with a freq."""
    import numpy as np
    from pandas.tseries import offsets

    if type(name) is not str or name not in _OFFSETS or type(n) is not int:
        _refuse("an offset", (name, n))
    if type(normalize) is not bool or type(options) is not dict:
        _refuse("an offset", (normalize, options))
    plain = (int, float, str, datetime.timedelta, datetime.time, np.datetime64, type(None))
    for key, option in options.items():
        parts = option if type(option) is tuple else (option,)
        if type(key) is not str or not all(type(part) in plain for part in parts):
            _refuse("an offset", (key, option))
    return getattr(offsets, name)(n=n, normalize=normalize, **options)


# Time zones of other libraries.


def dateutil_zone(kind: str, name: str | None, seconds: int) -> Any:
    """A time zone of dateutil: its UTC, one of the zone database, or a fixed offset."""
    from dateutil import tz

    if kind == "UTC":
        return tz.tzutc()
    if kind == "offset" and type(name) in (str, type(None)) and type(seconds) is int:
        return tz.tzoffset(name, datetime.timedelta(seconds=seconds))
    # dateutil would take a path for a name, and open what is there.
    if kind != "name" or type(name) is not str or not _ZONE_NAME.fullmatch(name):
        _refuse("a time zone of dateutil", (kind, name))
    found = tz.gettz(name)
    if found is None:
        raise Unserializable("dateutil.tz.tzfile", f"this host has no zone {name!r}")
    return found


_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")


def pytz_zone(name: str | None, *state: Any) -> Any:
    """A time zone of pytz; as of a moment in it, if offset, daylight saving and name are given."""
    import pytz

    if name is None:
        if len(state) != 1 or type(state[0]) is not int:
            _refuse("a time zone of pytz", state)
        return pytz.FixedOffset(state[0])
    if type(name) is not str or len(state) not in (0, 3):
        _refuse("a time zone of pytz", (name, state))
    try:
        zone = pytz.timezone(name)
    except pytz.UnknownTimeZoneError as exc:
        raise Unserializable("pytz.tzfile", f"pytz has no zone {name!r} here") from exc
    if not state:
        return zone
    # pytz's own way would add what it does not know to the zone that all values share.
    offset_s, saving_s, short = state
    if type(offset_s) is not int or type(saving_s) is not int or type(short) is not str:
        _refuse("a time zone of pytz", state)
    offset = datetime.timedelta(seconds=offset_s)
    saving = datetime.timedelta(seconds=saving_s)
    found = zone._tzinfos.get((offset, saving, short))
    if found is None:
        raise Unserializable("pytz.tzfile", f"{name!r} has no {short!r} here")
    return found
