"""Datetime, timedelta and period arrays, time zones and freqs of pandas values.

Datetimes and timedeltas are numpy arrays of ``datetime64`` (in UTC where there is a
zone) and ``timedelta64``, periods of ``int64`` ordinals. A zone is an IANA name,
true for ``datetime.timezone.utc``, or a part. A freq is pandas' alias or a part.
"""

from __future__ import annotations

import functools
import warnings
from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from shmstore.codecs import pandas_internals as internals
from shmstore.codecs.pandas_payload import Reader, Spec, Writer, damaged, is_plain_dtype
from shmstore.errors import Unserializable

_UNITS = frozenset(f"={kind}8[{unit}]" for kind in "Mm" for unit in ("s", "ms", "us", "ns"))


def write_datetimes(out: Writer, values: Any) -> Spec | None:
    """Places a DatetimeArray or TimedeltaArray, 1-d or 2-d."""
    memory, dtype = internals.memory_of(values), values.dtype
    if type(memory) is not np.ndarray or not is_plain_dtype(memory.dtype):
        return None
    spec: Spec = {"k": "datetime", **out.array(memory)}
    if type(dtype) is pd.DatetimeTZDtype:
        spec["tz"] = _write_zone(out, dtype.tz)
    freq = internals.array_freq_of(values)
    if freq is not None:
        spec["freq"] = write_freq(out, freq)
    return spec


def read_datetimes(source: Reader, spec: Spec) -> Any:
    """The array that ``write_datetimes`` placed."""
    memory = source.array(spec)
    dtype: Any = memory.dtype
    if f"{dtype.byteorder}{dtype.str[1:]}" not in _UNITS:
        raise damaged("a datetime array has another dtype")
    if "tz" in spec:
        if dtype.kind != "M":
            raise damaged("a timedelta array has a zone")
        zone = _read_zone(source, spec["tz"])
        dtype = pd.DatetimeTZDtype(np.datetime_data(dtype)[0], zone)
    values = internals.datetimes_of(memory, dtype)
    if "freq" in spec:
        internals.set_array_freq(values, read_freq(source, spec["freq"]))
    return values


def _write_zone(out: Writer, zone: Any) -> Any:
    if zone is UTC:
        return True
    if type(zone) is ZoneInfo and zone.key is not None and _is_system_zone(zone):
        return zone.key
    return out.part(zone)


def _is_system_zone(zone: ZoneInfo) -> bool:
    try:
        return ZoneInfo(zone.key) is zone
    except (ZoneInfoNotFoundError, ValueError):  # made by from_file, under a name of its own
        return False


def _read_zone(source: Reader, spec: Any) -> Any:
    if spec is True:
        return UTC
    if type(spec) is not str:
        zone = source.part(spec)
        if not isinstance(zone, tzinfo):
            raise damaged("a time zone is none")
        return zone
    try:
        return ZoneInfo(spec)
    except ZoneInfoNotFoundError as error:
        raise Unserializable("zoneinfo.ZoneInfo", f"there is no time zone {spec!r} here") from error


def write_freq(out: Writer, freq: Any) -> Any:
    """The freq of a DatetimeIndex or TimedeltaIndex: pandas' alias, or a part."""
    if hasattr(freq, "calendar") or freq.normalize:  # the alias does not tell these
        return out.part(freq)
    return _alias(freq, type(freq).__name__) or out.part(freq)


def read_freq(source: Reader, spec: Any) -> Any:
    """The offset that ``write_freq`` placed."""
    freq = _offset(spec) if type(spec) is str else source.part(spec)
    if not isinstance(freq, pd.tseries.offsets.BaseOffset):
        raise damaged("a freq is not an offset")
    return freq


@functools.lru_cache(maxsize=128)
def _alias(freq: Any, kind: str) -> str | None:  # 24 hours may equal one day
    try:
        again = to_offset(freq.freqstr)
    except ValueError:
        return None
    return freq.freqstr if type(again).__name__ == kind and again == freq else None


@functools.lru_cache(maxsize=128)
def _offset(alias: str) -> Any:
    return to_offset(alias)


def write_periods(out: Writer, values: Any) -> Spec | None:
    """Places a PeriodArray, 1-d or 2-d."""
    memory, name = internals.memory_of(values), values.dtype.name
    if type(memory) is not np.ndarray or not _is_period_name(name, values.dtype):
        return None
    return {"k": "period", "freq": name, **out.array(memory)}


def read_periods(source: Reader, spec: Spec) -> Any:
    """The array that ``write_periods`` placed."""
    memory = source.array(spec)
    if memory.dtype != np.int64:
        raise damaged("a period array has another dtype")
    return pd.arrays.PeriodArray(memory, dtype=_period_dtype(spec["freq"]))


@functools.lru_cache(maxsize=128)
def _is_period_name(name: str, dtype: Any) -> bool:
    again = _period_dtype(name)
    return type(again.freq) is type(dtype.freq) and again.freq == dtype.freq


@functools.lru_cache(maxsize=128)
def _period_dtype(name: str) -> Any:
    with warnings.catch_warnings():  # pandas deprecates period[B], but such values exist
        warnings.simplefilter("ignore", FutureWarning)
        return pd.PeriodDtype(name)
