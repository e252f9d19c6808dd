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


def _interval(pickler: Reducing, value: pd.Interval) -> Any:
    return _wire.interval, (value.left, value.right, value.closed)


REDUCERS: dict[type, Callable[[Any, Any], Any]] = {
    pd.Timestamp: _timestamp,
    pd.Timedelta: _timedelta,
    pd.Interval: _interval,
    type(pd.NA): _missing,
    type(pd.NaT): _missing,
}
