"""Every name the store gives: built here, parsed here, nowhere else.

An id never reaches the file system: it is a key in the manifest. A dag_id does,
as its *token*: an escaping that is readable, reversible and safe as a file name.
Pure: no I/O beyond reading the environment for defaults.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

MAX_ID_BYTES = 1024
MAX_FILE_NAME = 255

CONTROL = "control"
CONTROL_ASIDE = f".{CONTROL}-"
DAGS = "dags"
TRASH = "trash"
VIEWED = "viewed"  # what a segment's name in the trash begins with
POOL = "pool"
SPILL = "spill"
RESERVATIONS = "reservations"
LIFECYCLE_LOCK = "lifecycle.lock"
LEDGER_LOCK = "ledger.lock"
NODE_LOCK = "node.lock"
NODE_SOCKET = "node.sock"
NODE_CLIENTS = "node.clients"
NODE_LOG = "node.log"
MANIFEST = "manifest"
LOCK = "lock"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_DIGEST_BYTES = 16
# "%%" cannot come out of escaping, so a shortened token is told from a whole one.
_SHORTENED = "%%"
_SEGMENT = re.compile(r"seg-([0-9a-f]{16})")
_SPILLED = re.compile(r"spill-([0-9a-f]{16})")
_GENERATION = re.compile(r"[0-9a-f]{32}")
_POOLED = re.compile(r"([0-9]{1,20})-([0-9]{1,20})-[0-9a-f]{16}")
_NUMBERED = re.compile(r"(log|index)\.([0-9]{1,10})")


def encode_id(value: object, what: str) -> bytes:
    """Checks an id or dag_id and returns its UTF-8 bytes.

    Args:
        value: What the caller gave.
        what: "id" or "dag_id", for the error's sentence.

    Raises:
        TypeError: It is no ``str``.
        ValueError: It is empty, longer than 1,024 bytes, or no valid Unicode.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}: {value!r:.80}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} holds a lone surrogate, which UTF-8 cannot keep: {value!r:.80}"
        ) from None
    if 0 < len(encoded) <= MAX_ID_BYTES:
        return encoded
    if not encoded:
        raise ValueError(f"{what} must not be empty")
    raise ValueError(
        f"{what} is {len(encoded):,} bytes of UTF-8, more than the {MAX_ID_BYTES:,} allowed: "
        f"{value[:40]!r}..."
    )


def several(values: object, what: str) -> Iterable[str]:
    """``values``, unless that is one ``str``, whose characters would be taken for ids."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(
            f"{what} must be several ids, not the single {type(values).__name__} {values!r:.80}"
        )
    return values


def check_name(value: object, what: str) -> str:
    """Checks the name of a namespace or a node: ``[A-Za-z0-9_-]{1,32}``."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}: {value!r:.80}")
    if not _NAME.fullmatch(value):
        raise ValueError(f"{what} must be 1 to 32 letters, digits, '_' or '-', not {value!r:.80}")
    return value


def check_path(path: object, what: str) -> str:
    """The absolute path of a directory that the caller gave."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what} must be a path as str, not {type(path).__name__}: {path!r:.80}")
    if not os.fspath(path):
        raise ValueError(f"{what} must not be empty; leave it out for the default")
    return os.path.abspath(os.fspath(path))


def default_root() -> str:
    """``$SHMSTORE_ROOT``, or a directory of this user's in /dev/shm."""
    return os.environ.get("SHMSTORE_ROOT") or f"/dev/shm/shmstore-{os.geteuid()}"


def default_node() -> str:
    """``$SHMSTORE_NODE``, or the host's name with what a node's name may not have left out."""
    given = os.environ.get("SHMSTORE_NODE")
    if given:
        return check_name(given, "SHMSTORE_NODE")
    return re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename)[:32] or "node"


def default_namespace() -> str:
    """``$SHMSTORE_NAMESPACE``, or "default"."""
    return os.environ.get("SHMSTORE_NAMESPACE") or "default"


def dag_token(dag_id: str) -> str:
    """The directory name of a DAG: readable, and never "." or "..".

    Bytes other than letters, digits, "_", "-" and "." are written as ``%XX``, as
    is a leading dot. A token that would be too long for a file name is cut, and
    ends in a hash of the whole dag_id; the manifest holds the true dag_id.
    """
    raw = dag_id.encode()
    pieces = [chr(b) if b in _PLAIN else f"%{b:02X}" for b in raw]
    if pieces[0] == ".":
        pieces[0] = "%2E"
    token = "".join(pieces)
    if len(token) <= MAX_FILE_NAME:
        return token
    suffix = _SHORTENED + hashlib.blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()
    kept, room = [], MAX_FILE_NAME - len(suffix)
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + suffix


def parse_dag_token(token: str) -> str | None:
    """The dag_id of a token, or None if it was cut (or is no token)."""
    if _SHORTENED in token or not token or token.startswith("."):
        return None
    raw = bytearray()
    at = 0
    while at < len(token):
        if token[at] == "%":
            digits = token[at + 1 : at + 3]
            if not re.fullmatch("[0-9A-F]{2}", digits):
                return None
            raw.append(int(digits, 16))
            at += 3
        else:
            raw += token[at].encode()
            at += 1
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def log_name(number: int) -> str:
    """The file of log ``number``."""
    return f"log.{number}"


def index_name(number: int) -> str:
    """The file of index ``number``."""
    return f"index.{number}"


def parse_numbered(name: str) -> tuple[str, int] | None:
    """("log" or "index", number) of a file name, or None."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def new_segment_number() -> int:
    """A number for a segment, random, never 0 (which means: no segment)."""
    while not (number := int.from_bytes(os.urandom(8), "little")):
        pass
    return number


def segment_name(number: int, spilled: bool = False) -> str:
    """The file of a segment, in shared memory or, spilled, on disk."""
    return f"spill-{number:016x}" if spilled else f"seg-{number:016x}"


def parse_segment_name(name: str) -> int | None:
    """The number of a segment's file name in shared memory, or None."""
    match = _SEGMENT.fullmatch(name)
    return int(match[1], 16) if match else None


def parse_spilled_name(name: str) -> int | None:
    """The number of a spilled segment's file name, or None."""
    match = _SPILLED.fullmatch(name)
    return int(match[1], 16) if match else None


def pooled_name(nbytes: int, emptied_s: int) -> str:
    """A fresh name in ``pool`` for an emptied segment.

    Args:
        nbytes: Its size; a hint, since whoever claimed it may have died.
        emptied_s: When it was emptied, seconds of CLOCK_BOOTTIME.
    """
    return f"{nbytes}-{emptied_s}-{os.urandom(8).hex()}"


def parse_pooled_name(name: str) -> tuple[int, int] | None:
    """Size and time of an emptied segment, or None."""
    match = _POOLED.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def generation_name(generation: int) -> str:
    """The directory of a DAG's spilled segments, in the spill directory."""
    return f"{generation:032x}"


def is_generation(name: str) -> bool:
    """Whether a name is one of a DAG's directory of spilled segments."""
    return bool(_GENERATION.fullmatch(name))


def control_aside() -> str:
    """A fresh name for a control page that is to replace the namespace's."""
    return f"{CONTROL_ASIDE}{os.urandom(8).hex()}"


def scratch_name(purpose: str) -> str:
    """A fresh name in ``trash``.

    For a DAG being built ("new") or cleared ("old"), or a dead segment (``VIEWED``).
    """
    return f"{purpose}-{os.urandom(8).hex()}"
