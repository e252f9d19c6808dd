"""Where a value comes from: the part of a record's meta that no codec needs.

A record's meta is the codec's own meta, preceded by its size (u32), then the
provenance: pid (u32), host, origin, type name (each u16 size and UTF-8), the number
of deps (u32) and each dep like a name. Pure.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from shmstore.names import MAX_ID_BYTES

_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_NO_DEPS = bytes(4)
_NO_ORIGIN = bytes(2)


class Producer(NamedTuple):
    """Who stored a value.

    Attributes:
        host: Name of the host.
        pid: Process id there, in the producer's own pid namespace.
    """

    host: str
    pid: int


_process: tuple[int, bytes, Producer] = (0, b"", Producer("", 0))
# Whole metas of builtin values without codec meta and deps, by type, for this process.
bare_metas: dict[type, bytes] = {}
_type_names: dict[type, bytes] = {
    kind: _U16.pack(len(kind.__name__)) + kind.__name__.encode()
    for kind in (dict, list, tuple, set, str, bytes, int, float, bool, type(None))
}


class Provenance(NamedTuple):
    """A value's producer, origin, type and inputs."""

    producer: Producer
    origin: str | None
    type_name: str
    deps: tuple[str, ...]


def type_name(kind: type) -> str:
    """A type's full name; without its module for builtins."""
    if kind in bare_metas:
        return kind.__name__
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def this_process() -> Producer:
    """This process, as the producer of values."""
    global _process
    if not _process[0]:
        pid, host = os.getpid(), socket.gethostname()
        raw = _U32.pack(pid) + _sized(host.encode()[:255]) + _NO_ORIGIN
        _process = pid, raw, Producer(host, pid)
    return _process[2]


def _in_child() -> None:
    global _process
    _process = (0, b"", Producer("", 0))
    bare_metas.clear()


os.register_at_fork(after_in_child=_in_child)


def build_meta(
    codec_meta: bytes, kind: type, deps: Iterable[bytes] = (), origin: str | None = None
) -> bytes:
    """A record's meta for a value that this process stores.

    Args:
        codec_meta: What the codec needs.
        kind: The value's type.
        deps: UTF-8 of the ids that the value was computed from.
        origin: The node that the value was fetched from, if it was.
    """
    if not codec_meta and not deps and origin is None:
        bare = bare_metas.get(kind)
        if bare is not None:
            return bare
    this_process()
    name = _type_names.get(kind) or _sized(type_name(kind).encode("utf-8", "replace")[:1024])
    deps = [*deps] if deps else []
    tail = _U32.pack(len(deps)) + b"".join(map(_sized, deps)) if deps else _NO_DEPS
    by = _process[1]
    if origin is not None:
        by = by.removesuffix(_NO_ORIGIN) + _sized(origin.encode())
    meta = b"".join((_U32.pack(len(codec_meta)), codec_meta, by, name, tail))
    if kind in _type_names and not codec_meta and not deps and origin is None:
        bare_metas[kind] = meta
    return meta


def codec_meta(meta: bytes) -> bytes:
    """The codec's part of a record's meta."""
    return meta[4 : 4 + int.from_bytes(meta[:4], "little")]


def parse(meta: bytes) -> Provenance:
    """The provenance in a record's meta."""
    at = 4 + int.from_bytes(meta[:4], "little")
    (pid,) = _U32.unpack_from(meta, at)
    at += 4
    names = []
    for _ in range(3):
        name, at = _name(meta, at)
        names.append(name)
    (count,) = _U32.unpack_from(meta, at)
    at += 4
    deps = []
    for _ in range(count):
        dep, at = _name(meta, at)
        deps.append(dep)
    host, origin, kind = names
    return Provenance(Producer(host, pid), origin or None, kind, tuple(deps))


def received(meta: bytes, origin: str) -> bytes:
    """A record's meta as another host sent it, read field by field and built anew.

    Producer, type name and deps are kept; where it was fetched from is ours to say. The
    codec's own part is kept as it is: whoever decodes it, distrusts it.

    Args:
        meta: What came.
        origin: The node that it came from.

    Raises:
        ValueError: It is none; says why.
    """
    size, at = _read(_U32, meta, 0)
    at += size
    head = bytes(meta[:at])
    pid, at = _read(_U32, meta, at)
    host, at = _read_text(meta, at, 255)
    _, at = _read_text(meta, at, 255)  # where they had it from
    kind, at = _read_text(meta, at, 1024)
    count, at = _read(_U32, meta, at)
    if count > (len(meta) - at) // _U16.size:
        raise ValueError(f"it is too short for {count:,} deps")
    deps = []
    for _ in range(count):
        dep, at = _read_text(meta, at, MAX_ID_BYTES)
        if not dep:
            raise ValueError("a dep is empty")
        dep.decode()  # UnicodeDecodeError is a ValueError
        deps.append(dep)
    if at != len(meta):
        raise ValueError(f"{len(meta) - at:,} bytes are left over")
    names = (host, origin.encode(), kind)
    return b"".join(
        (head, _U32.pack(pid), *map(_sized, names), _U32.pack(count), *map(_sized, deps))
    )


def _read(field: struct.Struct, meta: bytes, at: int) -> tuple[int, int]:
    if at + field.size > len(meta):
        raise ValueError(f"it ends at {len(meta):,}, before a size at {at:,}")
    (value,) = field.unpack_from(meta, at)
    return value, at + field.size


def _read_text(meta: bytes, at: int, longest: int) -> tuple[bytes, int]:
    size, at = _read(_U16, meta, at)
    raw = bytes(meta[at : at + size])
    if size > longest or len(raw) != size:
        raise ValueError(f"a name of {size:,} bytes is too long")
    return raw, at + size


def _sized(raw: bytes) -> bytes:
    return _U16.pack(len(raw)) + raw


def _name(meta: bytes, at: int) -> tuple[str, int]:
    (size,) = _U16.unpack_from(meta, at)
    at += 2
    return meta[at : at + size].decode("utf-8", "replace"), at + size
