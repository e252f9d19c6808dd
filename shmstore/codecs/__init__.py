"""The table of codecs: picks one for a value, and finds it again by its number.

A value goes to the first codec that gives it back exactly: a registered one of
its type, plain, the family of its library, Arrow for what exports a stream, then
pickle and dill. All of this goes by ``type(value)``: a subclass is another type.
The libraries are imported when a value of theirs turns up, never before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pickle import loads as _loads
from typing import Any, Final, Protocol, TypeVar

from shmstore.codecs import plain
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.plain import CHECKED_BYTES, PLAIN
from shmstore.codecs.plain import quick as _quick
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue, StoreError, Unserializable

_Value = TypeVar("_Value")

__all__ = [
    "NAMES",
    "BufferNote",
    "Encoded",
    "decode",
    "encode",
    "explain",
    "register_codec",
]

NAMES: Final[dict[int, str]] = {
    1: "plain",
    2: "bytes",
    3: "array",
    4: "pickle",
    5: "dill",
    6: "arrow",
    7: "polars",
    8: "pandas",
    9: "custom",
}


class _Codec(Protocol):
    """A module that stores the values of one family."""

    def encode(self, value: Any) -> Encoded | None: ...
    def decode(self, meta: bytes, payload: memoryview, trust: Trust | None) -> Any: ...
    def explain(self, meta: bytes, nbytes: int) -> list[BufferNote]: ...


_MODULES: Final = {
    3: "shmstore.codecs.arrays",
    4: "shmstore.codecs.pickled",
    5: "shmstore.codecs.dilled",
    6: "shmstore.codecs.arrow",
    7: "shmstore.codecs.polars_frames",
    8: "shmstore.codecs.pandas_frames",
    9: "shmstore.codecs.custom",
}

#: The package that defines a value's type, and the codec for its values.
FAMILIES: Final = {"numpy": 3, "pyarrow": 6, "pandas": 8, "polars": 7}

#: Tells this process and what it forks from other ones; drawn here, since the
#: module that compares it may be imported only after a fork.
SESSION: Final = os.urandom(16)

#: How a codec's module is imported when it is first needed. The store sets a way in which
#: no fork falls: a child would wait for ever for what a thread of its parent was importing.
importing: Callable[[str], Any] = importlib.import_module

_new = tuple.__new__
_loaded: dict[int, _Codec] = {}

#: What encodes values of a type; it may return None to pass a value on. Holds
#: plain types, registered types, and types of families once they were seen.
_direct: dict[type, Callable[[Any], Encoded | None]] = dict(plain.ENCODE)


def _codec(number: int) -> Any:
    codec = _loaded.get(number)
    if codec is None:
        name = _MODULES.get(number)
        if name is None:
            raise CorruptValue(f"unknown codec {number}", "record")
        try:
            codec = importing(name)
        except (ImportError, OSError) as exc:
            raise Unserializable(
                f"codec {NAMES[number]!r}", f"this process lacks what it needs: {exc}"
            ) from exc
        _loaded[number] = codec
    return codec


def encode(value: Any) -> Encoded:
    """Encodes a value by the first codec that gives it back exactly.

    Raises:
        Unserializable: No codec can; names the type in the way.
    """
    data = _quick(value)
    if data is not None:
        return _new(Encoded, (PLAIN, b"", (data,), len(data)))
    direct = _direct.get(type(value))
    if direct is not None:
        encoded = direct(value)
        if encoded is not None:
            return encoded
    return _encode_slowly(value)


def _encode_slowly(value: Any) -> Encoded:
    encoded = encode_by_family(value) if type(value) not in plain.ENCODE else None
    if encoded is None:
        encoded = _codec(4).encode(value)
    return encoded


def encode_by_family(value: Any) -> Encoded | None:
    """Encodes a value by the codec of its library, or as an Arrow stream.

    Returns:
        None if its type belongs to no library with a codec, or that passes it on.
    """
    kind = type(value)
    number = FAMILIES.get(kind.__module__.partition(".")[0])
    if number is not None:
        encode = _codec(number).encode
        encoded: Encoded | None = encode(value)
        if encoded is not None:
            _direct.setdefault(kind, encode)
        return encoded
    if is_stream(kind):
        stream: Encoded | None = _codec(6).encode_stream(value)
        return stream
    return None


def is_stream(kind: type) -> bool:
    """True if values of a type export an Arrow stream and are nothing else.

    A subclass of a library's own class exports one, too, but must come back as
    what it is.
    """
    return hasattr(kind, "__arrow_c_stream__") and not any(
        base.__module__.partition(".")[0] in FAMILIES for base in kind.__mro__
    )


def decode(codec: int, meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Builds the value that ``encode`` encoded, viewing the payload where it can.

    Args:
        codec: Number of the codec.
        meta: As ``encode`` returned it.
        payload: The parts of the payload, joined: a view of bytes.
        trust: For a value that came from another host how far it is trusted; None
            for one that a process of this host has stored.

    Raises:
        CorruptValue: Meta or payload is damaged.
        UnsafeValue: The value came from another host and asks for what it may not have.
        Unserializable: This process lacks a class, codec or library.
    """
    if trust is not None:
        return _decode_strange(codec, meta, payload, trust)
    if codec == PLAIN and len(payload) <= CHECKED_BYTES:
        # What ``plain.decode`` does, without the two calls: the commonest get.
        try:
            return _loads(payload)
        except MemoryError:
            raise
        except Exception as exc:
            raise plain.damaged(exc) from exc
    if codec == PLAIN:
        return plain.decode(meta, payload)
    if codec == plain.BYTES:
        return plain.decode_bytes(meta, payload)
    return _codec(codec).decode(meta, payload, None)


def _decode_strange(codec: int, meta: bytes, payload: memoryview, trust: Trust) -> Any:
    """What ``decode`` does for a value of another host: whatever fails is its fault."""
    try:
        if codec == PLAIN:
            return plain.decode(meta, payload, trust)
        if codec == plain.BYTES:
            return plain.decode_bytes(meta, payload)
        return _codec(codec).decode(meta, payload, trust)
    except (StoreError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:
        # A library written in Rust reports a panic by an exception outside of Exception.
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        raise CorruptValue(
            f"it cannot be rebuilt ({type(exc).__name__}: {exc!s:.200})", NAMES[codec]
        ) from exc


def explain(codec: int, meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says of each buffer of a payload whether ``decode`` copies it, and why.

    Args:
        codec: Number of the codec.
        meta: As ``encode`` returned it.
        nbytes: Size of the payload.
    """
    if codec == PLAIN:
        return plain.explain(meta, nbytes)
    if codec == plain.BYTES:
        return plain.explain_bytes(meta, nbytes)
    notes: list[BufferNote] = _codec(codec).explain(meta, nbytes)
    return notes


def register_codec(
    type: type[_Value],
    encode: Callable[[_Value], Any],
    decode: Callable[[Any], _Value],
    *,
    name: str,
    remote: bool = False,
) -> None:
    """Stores values of a type as other values that stand for them.

    It holds for values of exactly this type, alone or anywhere within another
    value, in this process; processes that read such values register it, too.

    Args:
        type: The type. Not one of those that plain values consist of.
        encode: Returns a storable value that stands for the given one: a tuple,
            a dict, an array, a table, ... Its buffers are stored without a copy.
        decode: Makes the value again from the stored one.
        name: The codec's name in what is stored; non-empty, best with the name
            of your package in front.
        remote: True if ``decode`` may be given data from other hosts, which
            means: any data at all.

    Raises:
        ValueError: The name is taken by another type, or the type is plain.
        TypeError: An argument has the wrong type.
    """
    from shmstore.codecs import custom

    _direct[type] = custom.register(type, encode, decode, name, remote)
