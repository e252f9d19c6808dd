"""Registered codecs (codec 9): a value is stored as another that stands for it.

Meta: number of the codec of that other value, length of the name, name, its
meta; the payload is its payload. Within a pickle such a value is a call of
``_wire.custom`` with the name and the other value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple

from shmstore import _wire, codecs
from shmstore.codecs import plain
from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.reductions import AS_THEY_ARE, REDUCERS, name_of
from shmstore.codecs.trust import Trust, unsafe
from shmstore.errors import CorruptValue, StoreError, Unserializable

CUSTOM: Final = 9

_HEAD = Struct("<BH")
_MAX_NAME_BYTES = 1024


class Registered(NamedTuple):
    """A registered codec.

    Attributes:
        type: The exact type of its values.
        encode: Returns what stands for a value.
        decode: Makes the value again.
        name: Its name in what is stored.
        remote: True if it may decode data from other hosts.
    """

    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    name: str
    remote: bool


_by_type: dict[type, Registered] = {}
_by_name: dict[str, Registered] = {}
_registering = threading.Lock()


def register(
    kind: type,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    name: str,
    remote: bool,
) -> Callable[[Any], Encoded]:
    """Adds a codec to the tables or replaces the type's former one.

    Returns:
        The function that encodes values of the type.
    """
    if not isinstance(kind, type):
        raise TypeError(f"type must be a class, not {kind!r}")
    if not callable(encode) or not callable(decode):
        raise TypeError("encode and decode must be callable")
    if type(name) is not str:
        raise TypeError(f"name must be a str, not {name!r}")
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES:
        raise ValueError(f"name must have 1 to {_MAX_NAME_BYTES:,} bytes")
    if kind in AS_THEY_ARE or kind in plain.ENCODE or issubclass(kind, type):
        raise ValueError(f"values of type {name_of(kind)} are stored by pickle itself")
    with _registering:
        holder = _by_name.get(name)
        if holder is not None and holder.type is not kind:
            raise ValueError(f"the name {name!r} is taken by the codec of {name_of(holder.type)}")
        former = _by_type.get(kind)
        registered = Registered(kind, encode, decode, name, bool(remote))
        _by_name[name] = registered
        _by_type[kind] = registered
        if former is not None and former.name != name:
            del _by_name[former.name]
        REDUCERS[kind] = _reduce
    return encode_value


def _stand_in(value: Any) -> tuple[Registered, Any]:
    registered = _by_type[type(value)]
    try:
        stored = registered.encode(value)
    except (StoreError, MemoryError, RecursionError):
        raise
    except Exception as exc:
        raise Unserializable(
            name_of(type(value)),
            f"encode of its codec {registered.name!r} failed with {type(exc).__name__}: {exc}",
        ) from exc
    if type(stored) is type(value):
        raise Unserializable(
            name_of(type(value)),
            f"encode of its codec {registered.name!r} returned a value of the same type",
        )
    return registered, stored


def encode_value(value: Any) -> Encoded:
    """Encodes a value of a registered type."""
    try:
        registered, stored = _stand_in(value)
        inner = codecs.encode(stored)
    except RecursionError as exc:
        raise Unserializable(
            name_of(type(value)), "its codec's encode never comes to an end, or nests too deeply"
        ) from exc
    name = registered.name.encode("utf-8", "surrogatepass")
    meta = _HEAD.pack(inner.codec, len(name)) + name + inner.meta
    return Encoded(CUSTOM, meta, inner.parts, inner.nbytes)


def encode(value: Any) -> Encoded | None:
    """Encodes a value if its exact type is registered."""
    return encode_value(value) if type(value) in _by_type else None


def _reduce(pickler: Any, value: Any) -> Any:
    registered, stored = _stand_in(value)
    return _wire.custom, (registered.name, stored)


def rebuild(name: Any, stored: Any, trust: Trust | None = None) -> Any:
    """Makes a value from what stands for it."""
    if type(name) is not str:
        raise CorruptValue("the name of a codec is no text", "registered codec")
    registered = _by_name.get(name)
    if trust is not None and not (registered is not None and registered.remote):
        raise unsafe(f"the codec {name!r:.200} (which is not registered here with remote=True)")
    if registered is None:
        raise Unserializable(
            f"codec {name!r}",
            "no codec of this name is registered in this process; "
            "call shmstore.register_codec here as where the value was put",
        )
    try:
        return registered.decode(stored)
    except (StoreError, MemoryError):
        raise
    except Exception as exc:
        raise Unserializable(
            name_of(registered.type),
            f"decode of its codec {name!r} failed with {type(exc).__name__}: {exc}",
        ) from exc


def _parse(meta: bytes) -> tuple[int, str, bytes]:
    if len(meta) < _HEAD.size:
        raise CorruptValue("malformed header", "meta of a registered codec")
    number, length = _HEAD.unpack_from(meta)
    end = _HEAD.size + length
    if end > len(meta) or number not in codecs.NAMES:
        raise CorruptValue("malformed header", "meta of a registered codec")
    try:
        name = meta[_HEAD.size : end].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as exc:
        raise CorruptValue("malformed name", "meta of a registered codec") from exc
    return number, name, meta[end:]


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Decodes what stands for a value, and makes the value of it.

    Raises:
        UnsafeValue: The value came from another host, and its codec is not for such.
        Unserializable: No codec of this name is registered here, or it failed.
    """
    number, name, inner = _parse(meta)
    registered = _by_name.get(name)
    if registered is None or (trust is not None and not registered.remote):
        return rebuild(name, None, trust)
    return rebuild(name, codecs.decode(number, inner, payload, trust), trust)


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says of what stands for the value which buffers are copied."""
    number, _, inner = _parse(meta)
    return codecs.explain(number, inner, nbytes)
