from __future__ import annotations

import array
import collections
import decimal
import ipaddress
import math
import pathlib
import re
import types
import zoneinfo
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shmstore import codecs
from shmstore.codecs import pickled
from shmstore.codecs.reading import reader_of
from shmstore.codecs.rebuilding import handed_out
from shmstore.codecs.runs import parse_runs
from shmstore.errors import StoreError
from tests.importable import Level, Pair, Point
from tests.oracle import identical
from tests.property.test_plain_and_arrays import arrays, atoms, dtypes, hashable
from tests.round_trip import round_trip

PICKLE = 4

zones = st.sampled_from(
    [zoneinfo.ZoneInfo(key) for key in ("UTC", "Europe/Paris", "America/St_Johns", "Asia/Tokyo")]
    + [zoneinfo.ZoneInfo.no_cache("Europe/Paris")]
)
tz = st.none() | zones | st.timezones(no_cache=True)
decimals = st.decimals() | st.builds(
    lambda sign, digits, exponent: decimal.Decimal((sign, tuple(digits), exponent)),
    st.sampled_from([0, 1]),
    st.lists(st.integers(0, 9), max_size=40),
    st.integers(-500, 500) | st.sampled_from(["n", "N", "F"]),
)
addresses = st.ip_addresses() | st.ip_addresses().map(ipaddress.ip_network) | st.builds(
    lambda address, bits: ipaddress.ip_interface(f"{address}/{bits}"),
    st.ip_addresses(v=4),
    st.integers(0, 32),
)  # fmt: skip
paths = st.builds(
    lambda kind, parts: kind(*parts),
    st.sampled_from([pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath]),
    st.lists(st.text(max_size=5), max_size=4),
)
typed_arrays = st.sampled_from("bBhHiIlLqQfd").flatmap(
    lambda code: st.binary(max_size=600).map(
        lambda data: array.array(code, data[: len(data) // 8 * 8])
    )
)
ranges = st.builds(range, st.integers(), st.integers(), st.integers().filter(bool))
library_values = (
    st.dates() | st.times(timezones=tz) | st.datetimes(timezones=tz) | st.timedeltas()
    | decimals | st.fractions() | st.uuids() | zones | st.complex_numbers() | ranges
    | st.builds(slice, atoms, atoms, atoms) | st.just(...) | addresses | paths | typed_arrays
    | st.text(max_size=20).map(lambda text: re.compile(re.escape(text)))
    | st.binary(min_size=1, max_size=600).map(memoryview) | st.sampled_from(Level)
    | arrays() | dtypes
)  # fmt: skip
factories = st.sampled_from([None, int, list, dict, set, str, float])


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(st.tuples(hashable, inner), max_size=4)
    return (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=3).map(tuple)
        | items.map(dict)
        | items.map(collections.OrderedDict)
        | items.map(lambda pairs: collections.ChainMap(dict(pairs), {}))
        | st.builds(collections.defaultdict, factories, items)
        | st.builds(collections.deque, st.lists(inner, max_size=4), st.none() | st.integers(0, 9))
        | st.builds(collections.Counter, st.lists(hashable, max_size=6))
        | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(
            lambda facts: types.SimpleNamespace(**facts)
        )
        | st.builds(Point, inner, inner)
        | st.builds(Pair, inner, inner)
    )


values = st.recursive(atoms | library_values, _containers, max_leaves=8)


@given(values)
def test_nested_values_come_back_exactly(value: Any) -> None:
    assert identical(round_trip(value).value, value)


@given(library_values.filter(lambda value: type(value) is not Level))
def test_library_values_name_nothing_but_the_fixed_table(value: Any) -> None:
    """So that they can be read where no other name is allowed."""
    names = set()

    class Noting(pickled._Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.add(f"{module}.{name}")
            return super().find_class(module, name)

    encoded = codecs.encode([value])
    payload = memoryview(b"".join(encoded.parts))
    runs = parse_runs(encoded.meta, 0, len(payload))
    stream = runs[-1]
    unpickler = Noting(
        reader_of(payload[stream.offset : stream.offset + stream.nbytes]),
        buffers=handed_out(runs, payload),
    )
    unpickler.attach(payload, runs)
    assert identical(unpickler.load(), [value])
    assert {name for name in names if not name.startswith("shmstore._wire.")} <= {
        "builtins.complex", "builtins.range", "builtins.slice", "builtins.Ellipsis",
        "datetime.date", "datetime.time", "datetime.datetime", "datetime.timedelta",
        "datetime.timezone", "decimal.Decimal", "collections.OrderedDict",
    }  # fmt: skip


@given(values, st.data())
def test_mutated_meta_is_an_error_of_the_store_or_harmless(value: Any, data: st.DataObject) -> None:
    encoded = codecs.encode([value, 1j])
    meta = bytearray(encoded.meta)
    meta[data.draw(st.integers(0, len(meta) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = codecs.decode(PICKLE, bytes(meta), memoryview(b"".join(encoded.parts)))
    except StoreError:
        return
    assert type(back) is list
    assert math.isclose(abs(back[1]), 1)
