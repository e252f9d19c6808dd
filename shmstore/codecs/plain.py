"""Plain values (codec 1) and bytes (codec 2).

A plain value consists of None, bool, int, float, str, bytes, bytearray and of
lists, tuples, dicts, sets and frozensets of them: of exactly these types, since
a subclass would come back as something else. It is stored as pickle protocol 5
that names no class or function. Small flat values, the common case, are judged
here by their types alone; whatever these functions do not judge goes to
``pickled``, which finds out while it writes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pickle import dumps as _dumps
from pickle import loads as _loads
from typing import Any, Final, Never

from shmstore.codecs.encoded import BufferNote, Encoded
from shmstore.codecs.trust import Trust
from shmstore.errors import CorruptValue

PLAIN: Final = 1
BYTES: Final = 2

#: Payloads up to this size lie in the log, whose checksum was verified before
#: they are decoded; larger ones are read by an unpickler that knows no globals.
CHECKED_BYTES: Final = 32 * 1024

#: Containers with more elements are left to the pickler: it visits each element
#: in C, and by then its set-up no longer counts.
_FLAT_LIMIT: Final = 48

#: How deep nested containers are judged here. A cycle ends at this depth, too.
_DEPTH_LIMIT: Final = 3

#: Longer bytes are left to the pickler, which hands them on without a copy.
_SMALL_BYTES: Final = 4096

_ATOMS: Final = frozenset({type(None), bool, int, float, str})
_are_atoms = _ATOMS.issuperset
_new = tuple.__new__


def quick(value: object) -> bytes | None:
    """The payload of the commonest values, or None for any other value.

    These are None, bool, int, float, str and small dicts of them with str keys.
    """
    kind = type(value)
    if kind is dict:
        if len(value) > _FLAT_LIMIT:  # type: ignore[arg-type]
            return None
        for key, element in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or type(element) not in _ATOMS:
                return None
    elif kind not in _ATOMS:
        return None
    return _dumps(value, 5)


def _pickled(value: object) -> Encoded:
    data = _dumps(value, 5)
    # The named tuple's own constructor costs as much as pickling a small dict.
    return _new(Encoded, (PLAIN, b"", (data,), len(data)))


def _encode_dict(value: dict[Any, Any]) -> Encoded | None:
    return _pickled(value) if _is_small_and_plain(value, 0) else None


def _encode_sequence(
    value: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any],
) -> Encoded | None:
    if len(value) <= _FLAT_LIMIT and (
        _are_atoms(map(type, value)) or _is_small_and_plain(value, 0)
    ):
        return _pickled(value)
    return None


def _is_small_and_plain(value: Any, depth: int) -> bool:
    """True if a container and all it holds is plain, small and not deep."""
    if depth > _DEPTH_LIMIT or len(value) > _FLAT_LIMIT:
        return False
    elements: Iterable[Any] = (*value, *value.values()) if type(value) is dict else value
    for element in elements:
        kind = type(element)
        if kind in _ATOMS:
            continue
        if kind in _ENCODE_CONTAINER:
            if not _is_small_and_plain(element, depth + 1):
                return False
        elif kind is not bytes or len(element) > _SMALL_BYTES:
            return False
    return True


def _encode_bytes(value: bytes) -> Encoded:
    return _new(Encoded, (BYTES, b"", (value,), len(value)))


def _encode_bytearray(value: bytearray) -> Encoded:
    return _new(Encoded, (BYTES, b"a", (memoryview(value),), len(value)))


_ENCODE_CONTAINER: Final[dict[type, Callable[[Any], Encoded | None]]] = {
    dict: _encode_dict,
    list: _encode_sequence,
    tuple: _encode_sequence,
    set: _encode_sequence,
    frozenset: _encode_sequence,
}

#: For each exact type, what encodes it; None means that the pickler must look.
ENCODE: Final[dict[type, Callable[[Any], Encoded | None]]] = {
    **dict.fromkeys(_ATOMS, _pickled),
    **_ENCODE_CONTAINER,
    bytes: _encode_bytes,
    bytearray: _encode_bytearray,
}


class _NoGlobals(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Never:
        raise pickle.UnpicklingError(f"a plain value names {module}.{name}")


def decode(meta: bytes, payload: memoryview, trust: Trust | None = None) -> Any:
    """Builds a plain value.

    Raises:
        CorruptValue: The payload is not a pickle of a plain value.
        UnsafeValue: The value came from another host and names what it may not have.
    """
    if trust is not None:
        from shmstore.codecs import stranger

        return stranger.load_plain(payload)
    try:
        if len(payload) <= CHECKED_BYTES:
            return _loads(payload)
        from shmstore.codecs.reading import reader_of

        return _NoGlobals(reader_of(payload)).load()
    except MemoryError:
        raise
    except Exception as exc:
        raise damaged(exc) from exc


def damaged(exc: Exception) -> CorruptValue:
    """The error for a payload that does not decode as a plain value."""
    return CorruptValue(f"not a plain value: {exc}", "payload of a plain value")


def decode_bytes(meta: bytes, payload: memoryview) -> bytes | bytearray:
    """Copies stored bytes out, as ``bytes`` or ``bytearray``."""
    if meta == b"":
        return bytes(payload)
    if meta == b"a":
        return bytearray(payload)
    raise CorruptValue(f"unknown kind of bytes {meta[:16]!r}", "meta of bytes")


def explain(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says that plain values are rebuilt, each object anew."""
    return [BufferNote("value", nbytes, True, "Python objects are built anew from it")]


def explain_bytes(meta: bytes, nbytes: int) -> list[BufferNote]:
    """Says that bytes are copied."""
    kind = "bytearray" if meta == b"a" else "bytes"
    return [BufferNote("value", nbytes, True, f"a {kind} object owns its memory")]
