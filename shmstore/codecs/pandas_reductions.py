"""How pandas' scalars are written in a pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from shmstore import _wire

if TYPE_CHECKING:
    from shmstore.codecs.reducing import Reducing


def _timestamp(pickler: Reducing, value: pd.Timestamp) -> Any:
    return _wire.timestamp, (value._value, value.unit, value.tzinfo)


def _timedelta(pickler: Reducing, value: pd.Timedelta) -> Any:
    return _wire.timedelta, (value._value, value.unit)


def _missing(pickler: Reducing, value: Any) -> Any:
    return _wire.missing, ("NA" if value is pd.NA else "NaT",)


def _period(pickler: Reducing, value: pd.Period) -> Any:
    told = value.ordinal, value.freqstr
    try:
        again = _wire.period(*told)
    except Exception:
        return NotImplemented
    return (_wire.period, told) if again == value and again.freq == value.freq else NotImplemented


def _offset(pickler: Reducing, value: Any) -> Any:
    # The calendar is made of the week mask and the holidays.
    options = {name: each for name, each in value.kwds.items() if name != "calendar"}
    if type(value) is pd.DateOffset:
        # Those given are attributes, in the order in which they were given.
        options = {name: options[name] for name in vars(value) if name in options}
    told = type(value).__name__, value.n, bool(value.normalize), options
    try:
        again = _wire.offset(*told)
    except Exception:
        return NotImplemented
    same = type(again) is type(value) and again == value and _calendar(again) == _calendar(value)
    return (_wire.offset, told) if same else NotImplemented


def _calendar(offset: Any) -> Any:
    found = getattr(offset, "calendar", None)
    return found and (found.weekmask.tolist(), found.holidays.tolist())


def _interval(pickler: Reducing, value: pd.Interval) -> Any:
    return _wire.interval, (value.left, value.right, value.closed)


REDUCERS: dict[type, Callable[[Any, Any], Any]] = {
    pd.Timestamp: _timestamp,
    pd.Timedelta: _timedelta,
    pd.Interval: _interval,
    type(pd.NA): _missing,
    type(pd.NaT): _missing,
    pd.Period: _period,
    **{
        kind: _offset
        for name, kind in vars(pd.offsets).items()
        if isinstance(kind, type) and _wire.is_offset(name)
    },
}
