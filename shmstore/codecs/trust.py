"""What a value that came from another host may name: the fixed table, and what a user allows.

Decoding without trust is one explicit argument of every codec's ``decode``: a
``Trust``, or None for what a process of this host has stored. Nothing here imports
what data names: a lookup is that of an exact pair of strings in a dict.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import importlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from shmstore.errors import UnsafeValue

Name = tuple[str, str]


class Trust(NamedTuple):
    """How far a value that came from another host is trusted.

    Attributes:
        classes: The classes beside the fixed table, by module and qualified name.
        makes: Those of them of which a pickle may make instances. The others derive from
            classes of libraries written in C, whose constructors believe what they are
            told; arrays of such classes are made by ``_wire.seen_as``.
    """

    classes: Mapping[Name, type]
    makes: frozenset[type]


#: Nothing but the fixed table.
NOBODY: Final = Trust(MappingProxyType({}), frozenset())

#: Functions of ``shmstore._wire`` that check what they are given, whatever it is.
CONSTRUCTORS: Final = frozenset(
    {
        "run", "array", "memory", "embedded", "custom",
        "uuid", "zone", "deque", "counter", "defaultdict", "chain_map", "namespace",
        "fraction", "path", "ip", "pattern", "typed_array",
        "dtype", "dtype_with", "object_dtype", "string_dtype", "scalar", "text_scalar",
        "bytes_scalar", "array_as", "cells", "fill_cells", "view_as", "seen_as",
        "set_attributes", "masked_array",
        "timestamp", "timedelta", "missing", "interval", "period", "offset",
        "dateutil_zone", "pytz_zone",
    }
)  # fmt: skip

#: Values that are written by their name.
SINGLETONS: Final[dict[Name, Any]] = {
    ("builtins", "Ellipsis"): ...,
    ("builtins", "NotImplemented"): NotImplemented,
}

#: Types whose constructors check what they are given.
TYPES: Final[dict[Name, type]] = {
    ("builtins", "complex"): complex,
    ("builtins", "range"): range,
    ("builtins", "slice"): slice,
    ("datetime", "date"): datetime.date,
    ("datetime", "time"): datetime.time,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("collections", "OrderedDict"): collections.OrderedDict,
}

#: Packages whose classes are never allowed: their constructors trust their arguments,
#: and their values come across without.
_NEVER: Final = frozenset(
    {
        "builtins", "numpy", "pandas", "pyarrow", "polars", "dill", "pickle", "copyreg",
        "functools", "operator", "importlib", "types", "ctypes", "os", "posix", "subprocess",
        "multiprocessing", "multiprocess", "shmstore", "__main__", "__mp_main__",
    }
)  # fmt: skip


_LIBRARIES: Final = frozenset({"numpy", "pandas", "pyarrow", "polars", "_ctypes", "ctypes"})


def parse_allow(allow: Iterable[str]) -> Trust:
    """Finds the classes that a user allows; imports the modules that define them.

    Args:
        allow: Full names, "package.module.Class" each.

    Raises:
        TypeError: Not an iterable of str.
        ValueError: One of them names no class that its module defines, or one whose
            constructors cannot be trusted.
    """
    if isinstance(allow, (str, bytes)):
        raise TypeError("allow must be a list of names of classes, not a single one")
    try:
        names = [*allow]
    except TypeError:
        raise TypeError(
            f"allow must be a list of names of classes, not {type(allow).__name__}"
        ) from None
    if not names:
        return NOBODY
    classes: dict[Name, type] = {}
    for name in names:
        if type(name) is not str:
            raise TypeError(f"allow must hold names of classes as str, not {name!r:.80}")
        cls = _class(name)
        classes[cls.__module__, cls.__qualname__] = cls
    makes = frozenset(cls for cls in classes.values() if not _is_of_library(cls))
    return Trust(MappingProxyType(classes), makes)


def _is_of_library(cls: type) -> bool:
    """Whether a class is one of a library's, at bottom."""
    return any(base.__module__.partition(".")[0] in _LIBRARIES for base in cls.__mro__)


def _class(name: str) -> type:
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"allow: {name!r} is no full name of a class, as 'package.module.Class'")
    if parts[0] in _NEVER and not _is_builtin_error(parts):
        raise ValueError(
            f"allow: {name!r} cannot be allowed: what {parts[0]} offers would let other hosts "
            "run code here"
        )
    module, qualname, found = _find(name, parts)
    if not isinstance(found, type):
        raise ValueError(f"allow: {name!r} is no class")
    if issubclass(found, type):
        raise ValueError(f"allow: {name!r} is a metaclass, which can make any class")
    if (found.__module__, found.__qualname__) != (module, qualname):
        raise ValueError(
            f"allow: {name!r} is defined elsewhere, as {found.__module__}.{found.__qualname__}"
        )
    return found


def _is_builtin_error(parts: list[str]) -> bool:
    """Whether a name is that of one of Python's own exceptions, which only carry values."""
    found = vars(builtins).get(parts[-1])
    return (
        len(parts) == 2
        and parts[0] == "builtins"
        and isinstance(found, type)
        and issubclass(found, BaseException)
    )


def _find(name: str, parts: list[str]) -> tuple[str, str, Any]:
    """Module, qualified name and object of a full name; the longest module that exists."""
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # One that is missing in the module itself is another matter.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ValueError(f"allow: {module} cannot be imported: {error}") from error
            continue
        except Exception as error:
            raise ValueError(f"allow: {module} cannot be imported: {error}") from error
        for part in parts[end:]:
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if found is None:
            raise ValueError(f"allow: {module} has no class {'.'.join(parts[end:])!r}")
        return module, ".".join(parts[end:]), found
    raise ValueError(f"allow: there is no module for {name!r}")


def unsafe(what: str) -> UnsafeValue:
    """The error for what is asked for and is not allowed; ``stored`` adds whose it is."""
    return UnsafeValue(what)
