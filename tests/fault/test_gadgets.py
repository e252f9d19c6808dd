"""What a hostile host may send: each of these is refused, with nothing run and no crash."""

from __future__ import annotations

import codecs as text_codecs
import collections
import copyreg
import ctypes
import functools
import importlib
import io
import json
import operator
import os
import pickle
import pty
import random
import runpy
import struct
import subprocess
import sys
import timeit
import uuid
from collections.abc import Callable
from typing import Any

import dateutil.tz
import dill
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from shmstore import _wire, codecs
from shmstore.codecs import custom, trust
from shmstore.codecs.encoded import Encoded
from shmstore.codecs.runs import Runs
from shmstore.codecs.trust import NOBODY, parse_allow
from shmstore.errors import CorruptValue, StoreError, UnsafeValue, Unserializable
from tests.elsewhere import Calling, call_of, named, pickled
from tests.fault.killing import call

_RUN = ("os.", "subprocess.", "pickle.find_class", "ctypes.", "socket.", "pty.", "shutil.")
_LOOKING = ("os.listdir", "os.scandir")


def attempt(encoded: Encoded, allow: tuple[str, ...] = ()) -> tuple[str, str]:
    """Decodes in a child process; how that ended, and why. A crash fails the test."""

    def decode() -> tuple[str, str]:
        allowed = parse_allow(allow)
        payload = memoryview(b"".join(encoded.parts))
        ran: list[str] = []
        watching = [True]

        def audit(event: str, arguments: Any) -> None:
            if watching[0] and event.startswith(_RUN) and event not in _LOOKING:
                ran.append(f"{event} {arguments!r:.200}")

        sys.addaudithook(audit)
        try:
            value = codecs.decode(encoded.codec, encoded.meta, payload, allowed)
        except StoreError as error:
            outcome = type(error).__name__, str(error)
        except MemoryError as error:
            outcome = "MemoryError", str(error)
        else:
            outcome = "decoded", type(value).__name__
            del value
        watching[0] = False
        return ("ran", "; ".join(ran)) if ran else outcome

    result: tuple[str, str] = call(decode, timeout_s=60)
    return result


def refused(encoded: Encoded, *kinds: type, allow: tuple[str, ...] = ()) -> str:
    """Asserts that decoding is refused; says why."""
    kind, why = attempt(encoded, allow)
    assert kind in {each.__name__ for each in kinds or (UnsafeValue, CorruptValue)}, (kind, why)
    return why


EVIL = "echo never > /dev/null"
CALLS: dict[str, Callable[[], Encoded]] = {
    "os.system": lambda: call_of(os.system, EVIL),
    "subprocess": lambda: call_of(subprocess.Popen, ["true"]),
    "eval": lambda: call_of(eval, "1"),
    "exec": lambda: call_of(exec, "1"),
    "compile": lambda: call_of(compile, "1", "", "eval"),
    "import": lambda: call_of(__import__, "antigravity"),
    "getattr": lambda: call_of(getattr, 1, "real"),
    "setattr": lambda: call_of(setattr, Calling(list), "x", 1),
    "type": lambda: call_of(type, "X", (), {}),
    "list": lambda: call_of(list, (1,)),
    "bytes": lambda: call_of(bytes, 1 << 40),
    "bytearray": lambda: call_of(bytearray, 1 << 40),
    "open": lambda: call_of(open, "/etc/passwd"),
    "map": lambda: call_of(map, print, [1]),
    "print": lambda: call_of(print, "x"),
    "breakpoint": lambda: call_of(breakpoint),
    "partial": lambda: call_of(functools.partial, os.system, EVIL),
    "reduce": lambda: call_of(functools.reduce, print, [1, 2]),
    "attrgetter": lambda: call_of(operator.attrgetter, "system"),
    "methodcaller": lambda: call_of(operator.methodcaller, "system", EVIL),
    "itemgetter": lambda: call_of(operator.itemgetter, 0),
    "operator.call": lambda: call_of(operator.call, print),
    "import_module": lambda: call_of(importlib.import_module, "os"),
    "reconstructor": lambda: call_of(copyreg._reconstructor, object, object, None),
    "newobj": lambda: pickled(named("copyreg", "__newobj__", b")R")),
    "add_extension": lambda: call_of(copyreg.add_extension, "os", "system", 1),
    "pickle.loads": lambda: call_of(pickle.loads, b"N."),
    "dill.loads": lambda: call_of(dill.loads, b"N."),
    "ctypes": lambda: call_of(ctypes.string_at, 0),
    "pty": lambda: call_of(pty.spawn, "true"),
    "runpy": lambda: call_of(runpy.run_path, "/x"),
    "timeit": lambda: call_of(timeit.timeit, "1"),
    "codecs.decode": lambda: call_of(text_codecs.decode, b"x", "hex"),
    "CodeType": lambda: pickled(named("types", "CodeType", b")R")),
    "FunctionType": lambda: pickled(named("types", "FunctionType", b")R")),
    "StringIO": lambda: call_of(io.StringIO, "x"),
    "FileIO": lambda: call_of(io.FileIO, "/etc/passwd"),
    "uuid's os": lambda: pickled(named("uuid", "os.system", b"\x8c\x04true\x85R")),
    "uuid itself": lambda: call_of(uuid.UUID, "0" * 32),
    "numpy.load": lambda: call_of(np.load, "/x", None, True),
    "numpy.dtype": lambda: call_of(np.dtype, "O"),
    "numpy.memmap": lambda: call_of(np.memmap, "/etc/passwd"),
    "numpy.fromfile": lambda: call_of(np.fromfile, "/etc/passwd"),
    "numpy scalar": lambda: call_of(np.float64, 1),
    "numpy.ndarray": lambda: call_of(np.ndarray, (1 << 40,)),
    "numpy._core": lambda: pickled(
        named("numpy._core.multiarray", "_reconstruct", b"\x29R")
    ),
    "numpy.f2py": lambda: pickled(named("numpy.f2py", "run_main", b"\x29R")),
    "numpy runstring": lambda: pickled(
        named("numpy.testing._private.utils", "runstring", b"\x8c\x01x}\x86R")
    ),
    "pandas.read_pickle": lambda: call_of(pd.read_pickle, "/x"),
    "pandas.eval": lambda: call_of(pd.eval, "1"),
    "pandas.DataFrame": lambda: call_of(pd.DataFrame, {"a": [1]}),
    "pandas._unpickle_block": lambda: pickled(
        named("pandas._libs.internals", "_unpickle_block", b"\x29R")
    ),
    "polars.LazyFrame": lambda: call_of(pl.LazyFrame, {"a": [1]}),
    "polars.DataFrame": lambda: call_of(pl.DataFrame, {"a": [1]}),
    "polars.scan": lambda: call_of(pl.scan_ipc, "/x"),
    "pyarrow.restore": lambda: pickled(named("pyarrow.lib", "_restore_array", b"\x29R")),
    "pyarrow.memory_map": lambda: call_of(pa.memory_map, "/etc/passwd"),
    "pyarrow.foreign_buffer": lambda: call_of(pa.foreign_buffer, 0, 100),
    "store": lambda: pickled(named("shmstore.store", "Store", b"\x29R")),
    "stored module": lambda: pickled(named("shmstore.codecs.dilled", "decode", b"\x29R")),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_anything_else_is_refused(name: str) -> None:
    """A pickle that calls what is not in the fixed table is unsafe, and nothing is called."""
    refused(CALLS[name](), UnsafeValue)


@pytest.mark.parametrize("codec", [1, 4])
@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("builtins", "complex.__class__"),
        ("datetime", "datetime.__init__.__globals__"),
        ("shmstore._wire", "uuid.__globals__"),
        ("shmstore._wire", "__builtins__"),
        ("shmstore._wire", "collections"),
        ("shmstore._wire", "re"),
        ("shmstore._wire", "_refuse"),
        ("shmstore._wire", "_FACTORIES"),
        ("shmstore._wire", "factory_name"),
        ("shmstore._wire", "chararray"),
        ("shmstore._wire", ""),
        ("shmstore", "_wire.uuid"),
        ("shmstore._wire.uuid", "__call__"),
        ("", ""),
        ("decimal", "getcontext"),
        ("_decimal", "Decimal"),
        ("collections", "namedtuple"),
        ("os.path", "os.system"),
        ("builtins\0", "complex"),
    ],
    ids=".".join,
)
def test_a_name_is_looked_up_exactly(name: tuple[str, str], codec: int) -> None:
    """No dots, no attributes, no modules, no case, and no names at all in plain values."""
    encoded = pickled(named(*name))
    if codec == 1:
        encoded = Encoded(1, b"", encoded.parts, encoded.nbytes)
    assert name[0] in refused(encoded, UnsafeValue)


def test_all_of_the_table_is_what_the_design_lists() -> None:
    """A name more in the table is a decision, not an accident."""
    assert {".".join(name) for name in (*trust.TYPES, *trust.SINGLETONS)} == {
        "builtins.complex", "builtins.range", "builtins.slice", "builtins.Ellipsis",
        "builtins.NotImplemented", "datetime.date", "datetime.time", "datetime.datetime",
        "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "collections.OrderedDict",
    }  # fmt: skip
    assert all(getattr(_wire, name).__module__ == _wire.MODULE for name in trust.CONSTRUCTORS)


# --- Opcodes ---------------------------------------------------------------------------

COMPLEX = b"\x8c\x08builtins\x8c\x07complex\x93"
UUID = b"\x8c\x0eshmstore._wire\x8c\x04uuid\x93"
STREAMS: dict[str, bytes] = {
    "GLOBAL": b"\x80\x05cos\nsystem\n.",
    "INST": b"\x80\x05(\x8c\x04trueios\nsystem\n.",
    "OBJ": b"\x80\x05(" + COMPLEX + b"K\x01o.",
    "PERSID": b"\x80\x05Pabc\n.",
    "BINPERSID": b"\x80\x05\x8c\x03abcQ.",
    "EXT1": b"\x80\x05\x82\x01.",
    "EXT2": b"\x80\x05\x83\x01\x00.",
    "EXT4": b"\x80\x05\x84\x01\x00\x00\x00.",
    "PUT": b"\x80\x05Np999999999\n.",
    "BINPUT": b"\x80\x05Nq\x01.",
    "LONG_BINPUT": b"\x80\x05Nr\xff\xff\xff\x7f.",
    "GET": b"\x80\x05Ng0\n.",
    "BINGET of nothing": b"\x80\x05h\x00.",
    "LONG_BINGET of nothing": b"\x80\x05j\xff\xff\xff\xff.",
    "DUP": b"\x80\x05N2.",
    "DICT": b"\x80\x05(d.",
    "LIST": b"\x80\x05(l.",
    "INT": b"\x80\x05I1\n.",
    "LONG": b"\x80\x05L1L\n.",
    "FLOAT": b"\x80\x05F1\n.",
    "STRING": b"\x80\x05S'a'\n.",
    "UNICODE": b"\x80\x05Va\n.",
    "protocol 2": b"\x80\x02N.",
    "protocol 255": b"\x80\xffN.",
    "no end": b"\x80\x05N",
    "nothing": b"",
    "no value": b"\x80\x05.",
    "two values": b"\x80\x05NN.",
    "an open mark": b"\x80\x05(N.",
    "no mark": b"\x80\x05]Ne.",
    "pop of nothing": b"\x80\x050.",
    "tuple of nothing": b"\x80\x05\x87.",
    "append to nothing": b"\x80\x05Na.",
    "append to a tuple": b"\x80\x05)Na.",
    "append to an array.array": b"\x80\x05" + UUID + b"Na.",
    "items of a list": b"\x80\x05]NNs.",
    "an odd number of items": b"\x80\x05}(NNNu.",
    "an unhashable key": b"\x80\x05}]Ns.",
    "unhashable elements": b"\x80\x05\x8f(]\x90.",
    "an unhashable frozenset": b"\x80\x05(]\x91.",
    "long text": b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "long bytes": b"\x80\x05\x8e\x00\x00\x00\x00\x00\x01\x00\x00a.",
    "long bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xffa.",
    "LONG1 cut": b"\x80\x05\x8a\xffa.",
    "LONG4 cut": b"\x80\x05\x8b\xff\xff\xff\x7fa.",
    "a negative LONG4": b"\x80\x05\x8b\xff\xff\xff\xffa.",
    "no UTF-8": b"\x80\x05\x8c\x02\xff\xff.",
    "a buffer that is not there": b"\x80\x05\x97.",
    "a number made read-only": b"\x80\x05K\x01\x98.",
    "a call of a value": b"\x80\x05K\x01)R.",
    "a call of a text": b"\x80\x05\x8c\x02os)R.",
    "a call of a list": b"\x80\x05])R.",
    "a call without a tuple": b"\x80\x05" + COMPLEX + b"]R.",
    "a name that is no text": b"\x80\x05K\x01K\x02\x93.",
    "a name that is a list": b"\x80\x05]]\x93.",
    "an object of a type": b"\x80\x05" + COMPLEX + b")\x81.",
    "an object of a function": b"\x80\x05" + UUID + b")\x81.",
    "an object with options": b"\x80\x05" + COMPLEX + b")}\x92.",
    "an object of a value": b"\x80\x05K\x01)\x81.",
    "state of a type": b"\x80\x05" + COMPLEX + b"}\x8c\x01aK\x01sb.",
    "slots of a type": b"\x80\x05" + COMPLEX + b"N}\x8c\x01aK\x01s\x86b.",
    "state of a function": b"\x80\x05" + UUID + b"}\x8c\x01aK\x01sb.",
    "defaults of a function": b"\x80\x05" + UUID + b"N}\x8c\x0c__defaults__K\x01\x85s\x86b.",
    "code of a function": b"\x80\x05" + UUID + b"N}\x8c\x08__code__K\x01s\x86b.",
    "state of a list": b"\x80\x05]}b.",
    "state of a number": b"\x80\x05K\x01}b.",
    "state of a uuid": b"\x80\x05" + UUID + b"K\x01K\x00\x86R}\x8c\x03intK\x02sb.",
    "state of Ellipsis": b"\x80\x05\x8c\x08builtins\x8c\x08Ellipsis\x93}b.",
    "items of a zone": named("shmstore._wire", "zone", b"\x8c\x03UTC\x88\x86RNNs"),
    "state of a shared zone": named(
        "shmstore._wire", "zone", b"\x8c\x03UTC\x88\x86R}\x8c\x03keyNsb"
    ),
    "an OrderedDict of a range": named("collections", "OrderedDict", b"]\x85R"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_an_operation_that_no_pickler_of_ours_writes_is_refused(name: str) -> None:
    """Memo games, registered extensions, persistent ids, sizes that are not there, BUILD."""
    refused(pickled(STREAMS[name]))


def test_the_table_is_as_before_after_all_of_it() -> None:
    """Nothing that a stream does changes a function or a class of this process."""
    before = {name: dict(vars(function)) for name, function in _functions()}
    defaults = {name: function.__defaults__ for name, function in _functions()}
    for stream in STREAMS.values():
        encoded = pickled(stream)
        with pytest.raises((UnsafeValue, CorruptValue)):
            codecs.decode(encoded.codec, encoded.meta, memoryview(stream), NOBODY)
    assert {name: dict(vars(function)) for name, function in _functions()} == before
    assert {name: function.__defaults__ for name, function in _functions()} == defaults


def _functions() -> list[tuple[str, Any]]:
    return [(name, getattr(_wire, name)) for name in trust.CONSTRUCTORS]


# --- Bombs -----------------------------------------------------------------------------

N = 300_000
_NEXT = b"\x8c\x0eshmstore._wire"
#: Each leaves a function in the memo, at 0, and nothing on the stack.
SLICE = b"\x80\x05\x8c\x08builtins\x8c\x05slice\x93\x940"
DEFAULTDICT = b"\x80\x05" + _NEXT + b"\x8c\x0bdefaultdict\x93\x940"
#: Leaves ``cells``, ``fill_cells`` and the dtype of objects in the memo.
CELLS = (
    b"\x80\x05" + _NEXT + b"\x8c\x05cells\x93\x94" + _NEXT + b"\x8c\x0afill_cells\x93\x94"
    + _NEXT + b"\x8c\x0cobject_dtype\x93)R\x94000"
)  # fmt: skip
#: An object array of one cell, on the stack and in the memo.
ONE_CELL = b"h\x00h\x02K\x01\x85\x89\x87R\x94"


def memoized(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def filled(number: int, cell: bytes) -> bytes:
    """Puts a cell into the object array that is in the memo there."""
    return b"h\x01" + memoized(number) + b"]" + cell + b"a\x86R0"


ARRAYS = range(3, 20_003)
#: Memo: at 3 ``slice``; then each array, which holds a slice that holds the one before.
SLICES_AND_ARRAYS = (
    CELLS + b"\x8c\x08builtins\x8c\x05slice\x93\x940" + ONE_CELL + b"0" + b"".join(
        ONE_CELL + b"0" + filled(n, b"h\x03NN" + memoized(n - 1) + b"\x87R")
        for n in range(5, 20_000)
    ) + b"N."
)  # fmt: skip
DEQUE = b"\x80\x05" + _NEXT + b"\x8c\x05deque\x93\x940"
#: Memo: at 0 and 1 the constructors; then each defaultdict and the dtype that has it for missing,
#: which is put into the defaultdict before.
STRING_DTYPES = (
    DEFAULTDICT + _NEXT + b"\x8c\x0cstring_dtype\x93\x940" + b"".join(
        b"h\x00N\x85R\x94h\x01\x88" + memoized(n) + b"\x86R\x9400"
        + (memoized(n - 2) + b"K\x00" + memoized(n + 1) + b"s0" if n > 2 else b"")
        for n in range(2, 2 * N, 2)
    ) + memoized(3) + b"."
)  # fmt: skip
BOMBS: dict[str, bytes] = {
    "tuples": b"\x80\x05)" + b"\x85" * N + b".",
    "tuples as a key": b"\x80\x05})" + b"\x85" * N + b"Ns.",
    "tuples in a set": b"\x80\x05\x8f()" + b"\x85" * N + b"\x90.",
    "tuples and slices": SLICE + b"h\x00NN" * N + b"N" + b"\x87R\x85" * N + b".",
    "slices": SLICE + b"h\x00NN" * N + b"N" + b"\x87R" * N + b".",
    "defaultdicts": DEFAULTDICT + b"h\x00N\x85RN" * N + b"N" + b"s" * N + b".",
    "deques": DEQUE + b"h\x00N\x85R" * N + b"N" + b"a" * N + b".",
    "deques in slices": DEQUE + SLICE[2:-2] + b"\x940" + b"h\x00N\x85Rh\x01NN" * N + b"N"
    + b"\x87Ra" * N + b".",
    "dtypes in what is missing": STRING_DTYPES,
    "object arrays": CELLS + b"".join(
        ONE_CELL + b"0" + filled(n, memoized(n - 1) if n > 3 else b"N") for n in ARRAYS
    ) + memoized(ARRAYS[-1]) + b".",
    "object arrays filled late": CELLS + (ONE_CELL + b"0") * len(ARRAYS) + b"".join(
        filled(n, memoized(n + 1)) for n in ARRAYS[:-1]
    ) + memoized(ARRAYS[0]) + b".",
    "slices in object arrays in slices": SLICES_AND_ARRAYS,
    "marks": b"\x80\x05" + b"(" * N + b".",
    "a huge array of objects": CELLS + b"h\x00h\x02\x8a\x06\0\0\0\0\0\x01\x85\x89\x87R.",
    "many large arrays of objects": CELLS + b"h\x00h\x02M\xff\xff\x85\x89\x87R0" * 20_000 + b"N.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_nesting_and_sizes_have_an_end(name: str) -> None:
    """What would overflow the stack when it is hashed or freed is refused while it is built."""
    refused(pickled(BOMBS[name]), CorruptValue)


def test_lists_may_be_nested_as_deep_as_python_frees_them() -> None:
    """Lists and dicts end well however deep they are."""
    stream = b"\x80\x05" + b"]" * N + b"a" * (N - 1) + b"."
    assert attempt(pickled(stream))[0] in ("decoded", "CorruptValue")


# --- The constructors ------------------------------------------------------------------

_HUGE = 1 << 62
ARGUMENTS: list[Any] = [
    None, True, -1, 0, 1, _HUGE, -_HUGE, 1 << 200, 1.5, float("nan"), "", "x", "O", "\0", b"", b"x",
    b"|O", b"<f8", (), (1,), (-1,), (_HUGE,), (_HUGE, _HUGE), (2, "x"), [], [1], [[]], {}, {"a": 1},
    {1: 2}, "M8[ns]", "UTC", "../../../etc/passwd", b'{"names":["a"]}', b"|V0", b"|S0", b"<M8[0s]",
    "(" * 5000, "a" * 100_000, {"a": {"b": []}}, frozenset({1}), 1j, ...,
]  # fmt: skip
HOSTILE = [
    *ARGUMENTS,
    *(Calling(_wire.dtype, text) for text in (b"<f8", b"|V16", b"<U3")),
    Calling(_wire.object_dtype),
    Calling(_wire.string_dtype, True),
    Calling(_wire.cells, Calling(_wire.object_dtype), (2,), False),
    Calling(_wire.array, b"\x00\x01\x03\x00\x00\x00\x00\x00\x00\x00|u1", b"abc"),
    Calling(_wire.memory, "B", None, b"abcd"),
    Calling(_wire.missing, "NA"),
]


@pytest.mark.parametrize("name", sorted(trust.CONSTRUCTORS))
def test_a_constructor_stands_any_arguments(name: str) -> None:
    """Each function of the table, called with what no pickler writes: a value or an error."""
    function = getattr(_wire, name)
    chance = random.Random(name)
    cases = [tuple(chance.choice(HOSTILE) for _ in range(count)) for count in range(6)]
    cases += [(each,) for each in HOSTILE]
    for _ in range(400):
        cases.append(tuple(chance.choice(HOSTILE) for _ in range(chance.randrange(1, 6))))
    encoded = [call_of(function, *case) for case in cases]

    def decode_all() -> list[str]:
        ends = []
        for each in encoded:
            payload = memoryview(b"".join(each.parts))
            try:
                repr(codecs.decode(4, each.meta, payload, NOBODY))[:100]
                ends.append("decoded")
            except (UnsafeValue, CorruptValue, Unserializable) as error:
                ends.append(type(error).__name__)
        return ends

    ends = call(decode_all, timeout_s=100)
    assert len(ends) == len(cases)
    assert collections.Counter(ends)["decoded"] < len(ends)


# --- Values within values --------------------------------------------------------------


def test_an_embedded_value_is_decoded_with_distrust_too() -> None:
    """A run of a pickle that is another codec's value, which is a pickle that calls."""
    evil = call_of(os.system, EVIL)
    runs = Runs()
    runs._add(evil.parts, evil.nbytes, evil.codec, evil.meta)
    runs.add_stream((named(_wire.MODULE, "embedded", b"K\x00\x85R"),))
    assert "posix.system" in refused(runs.finish(4, b""), UnsafeValue)
    runs = Runs()
    runs._add((b"N.",), 2, 5, bytes(16))
    runs.add_stream((named(_wire.MODULE, "embedded", b"K\x00\x85R"),))
    assert "their code" in refused(runs.finish(4, b""), UnsafeValue)


def test_what_stands_for_an_inner_value_is_decoded_with_distrust_too() -> None:
    """A registered codec is not given what a pickle of another host made by a call."""

    class Remote:
        pass

    codecs.register_codec(Remote, lambda value: [], lambda stored: stored, name="r", remote=True)
    try:
        evil = call_of(os.system, EVIL)
        meta = struct.pack("<BH", evil.codec, 1) + b"r" + evil.meta
        assert "posix.system" in refused(Encoded(9, meta, evil.parts, evil.nbytes), UnsafeValue)
    finally:
        custom._by_type.pop(Remote)
        custom._by_name.pop("r")
        custom.REDUCERS.pop(Remote)
        codecs._direct.pop(Remote)


# --- Allowed classes -------------------------------------------------------------------


def test_an_allowed_class_cannot_be_changed() -> None:
    """A pickle may make instances of an allowed class, and set nothing of the class itself."""
    point = b"\x8c\x10tests.importable\x8c\x05Point\x93"
    for rest in (b"}\x8c\x01xK\x01sb", b"N}\x8c\x01xK\x01s\x86b", b"]Na", b"(NNu"):
        refused(pickled(b"\x80\x05" + point + rest + b"."), allow=("tests.importable.Point",))
    dud = b"\x8c\x10tests.importable\x8c\x03Dud\x93"
    changed = point + b")\x81N}\x8c\x09__class__" + dud + b"s\x86b"
    both = ("tests.importable.Point", "tests.importable.Dud")
    refused(pickled(b"\x80\x05" + changed + b"."), allow=both)


def test_a_zone_is_a_name_and_no_path() -> None:
    """A file that somebody names is not opened, though it be one of a time zone."""
    path = dateutil.tz.gettz("Europe/Paris")._filename
    assert os.path.isfile(path)
    for name in (path, "../../../.." + path, "Europe/../Europe/Paris"):
        refused(call_of(_wire.dateutil_zone, "name", name, 0), CorruptValue)
    refused(call_of(_wire.zone, path, True), CorruptValue, Unserializable)


def test_members_of_an_allowed_enum_cannot_be_changed() -> None:
    """They are shared by all values that hold them."""
    high = b"\x8c\x10tests.importable\x8c\x05Level\x93K\x02\x85R"
    for state in (b"}\x8c\x07_value_K\x63s", b"N}\x8c\x07_value_K\x63s\x86"):
        refused(pickled(b"\x80\x05" + high + state + b"b."), allow=("tests.importable.Level",))


@pytest.mark.parametrize(
    "rest",
    [
        b"K\x01\x85\x85\x81",
        b"K\x01\x85\x85R",
        b"(K\x01\x85\x8c\x01OC\x08AAAAAAAAt\x81",
        b"(K\x01\x85\x8c\x01OC\x08AAAAAAAAtR",
    ],
    ids=["new", "call", "new of objects", "call of objects"],
)
def test_an_allowed_class_of_arrays_is_not_called(rest: bytes) -> None:
    """Numpy's constructor would make an array of objects of any memory."""
    units = b"\x80\x05\x8c\x10tests.importable\x8c\x05Units\x93"
    refused(pickled(units + rest + b"."), CorruptValue, allow=("tests.importable.Units",))


def test_the_state_of_an_array_of_an_allowed_class_is_not_set() -> None:
    """Numpy's ``__setstate__`` reads what it is told, wherever that is."""
    array = b"\x8c\x0eshmstore._wire\x8c\x05array\x93C\x0c" + ARRAY_OF_3 + b"C\x03abc\x86R"
    seen = (
        b"\x8c\x0eshmstore._wire\x8c\x07seen_as\x93" + b"\x8c\x10tests.importable\x8c\x05Units\x93"
    )
    refused(
        pickled(b"\x80\x05" + seen + array + b"\x86R(K\x01K\x01\x85NNNtb."),
        UnsafeValue,
        allow=("tests.importable.Units",),
    )
    assert attempt(
        pickled(b"\x80\x05" + seen + array + b"\x86R."), ("tests.importable.Units",)
    ) == ("decoded", "Units")


ARRAY_OF_3 = b"\x00\x01\x03\x00\x00\x00\x00\x00\x00\x00|B"


def test_of_an_allowed_class_s_module_nothing_else_is_allowed() -> None:
    """Its functions, its other classes and what it imports stay out of reach."""
    for name in ("double", "Pair", "np", "np.load", "enum", "dataclasses", "Point.__init__"):
        refused(pickled(named("tests.importable", name)), allow=("tests.importable.Point",))


WRONG: list[tuple[Any, type[Exception], str]] = [
    ("tests.importable.Point", TypeError, "list of names"),
    (b"x", TypeError, "list of names"),
    (5, TypeError, "list of names"),
    ([5], TypeError, "as str"),
    ([int], TypeError, "as str"),
    (["Point"], ValueError, "no full name"),
    (["tests..Point"], ValueError, "no full name"),
    (["tests.importable.*"], ValueError, "no full name"),
    (["tests.importable"], ValueError, "class"),
    (["tests.importable.Nothing"], ValueError, "no class 'Nothing'"),
    (["tests.importable.double"], ValueError, "no class"),
    (["tests.importable.Any"], ValueError, "."),
    (["no_such_package.Point"], ValueError, "no module"),
    (["tests.importable.np.ndarray"], ValueError, "defined elsewhere|no class"),
    (["abc.ABCMeta"], ValueError, "metaclass"),
    (["os._wrap_close"], ValueError, "cannot be allowed"),
    (["builtins.list"], ValueError, "cannot be allowed"),
    (["numpy.ndarray"], ValueError, "cannot be allowed"),
    (["subprocess.Popen"], ValueError, "cannot be allowed"),
    (["functools.partial"], ValueError, "cannot be allowed"),
    (["tests.process.test_moved_values.Path"], ValueError, "defined elsewhere"),
]


@pytest.mark.parametrize(("allow", "error", "match"), WRONG, ids=[str(each[0]) for each in WRONG])
def test_what_must_not_be_allowed_is_said_at_once(
    allow: Any, error: type[Exception], match: str
) -> None:
    """``allow`` takes full names of classes, of the module that defines them."""
    with pytest.raises(error, match=match):
        parse_allow(allow)


def test_plain_json_is_no_pickle() -> None:
    """Data of another format is damaged, not misread."""
    refused(pickled(json.dumps({"a": 1}).encode()), CorruptValue)
