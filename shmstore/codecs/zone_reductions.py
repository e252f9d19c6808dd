"""How time zones of dateutil and pytz are written in a pickle: by their names.

Both libraries' own pickles call functions that trust their arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmstore import _wire
from shmstore.codecs.reductions import as_it_is

if TYPE_CHECKING:
    from shmstore.codecs.reducing import Reducing


def decide(kind: type) -> Callable[[Any, Any], Any]:
    """Finds the reducer for a type of one of the two."""
    if kind.__module__.partition(".")[0] == "pytz":
        return _pytz
    return {"tzutc": _utc, "tzoffset": _fixed, "tzfile": _file}.get(kind.__name__, as_it_is)


def _utc(pickler: Reducing, value: Any) -> Any:
    return _wire.dateutil_zone, ("UTC", None, 0)


def _fixed(pickler: Reducing, value: Any) -> Any:
    offset = value.utcoffset(None)
    if offset.microseconds or type(value._name) not in (str, type(None)):
        return NotImplemented
    return _wire.dateutil_zone, ("offset", value._name, offset.days * 86400 + offset.seconds)


def _file(pickler: Reducing, value: Any) -> Any:
    name = value._filename.partition("zoneinfo/")[2] or value._filename
    try:
        again = _wire.dateutil_zone("name", name, 0)
    except Exception:
        return NotImplemented
    same = type(again) is type(value) and again == value and again._filename == value._filename
    return (_wire.dateutil_zone, ("name", name, 0)) if same else NotImplemented


def _pytz(pickler: Reducing, value: Any) -> Any:
    function, args = value.__reduce__()
    if function.__name__ == "_UTC":
        return _wire.pytz_zone, ("UTC",)
    if function.__name__ == "FixedOffset":
        return _wire.pytz_zone, (None, *args)
    try:
        again = _wire.pytz_zone(*args)
    except Exception:
        return NotImplemented
    return (_wire.pytz_zone, args) if again is value else NotImplemented
