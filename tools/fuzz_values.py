"""Gives decoders what no codec wrote: mutated values, as another host might send them.

Runs from a checkout, without installation:

    python tools/fuzz_values.py --seconds 600 --seed 7

Values of every codec are changed in meta and payload, at random places, with the digests
put right again where they have one, and decoded with distrust in child processes. What
decodes is used: read, copied, sorted, printed. A child that is killed by a signal or runs
too long has found something, and so has one in which anything was run that no value
needs: the interpreter's audit events tell. Exit status 0, or 1 with a report that names
the round; ``--only N`` with the same seed repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import xxhash

from shmstore import codecs
from shmstore.codecs import arrow_ipc, arrow_meta, polars_meta
from shmstore.codecs.encoded import Encoded
from shmstore.codecs.trust import NOBODY, Trust
from shmstore.errors import CorruptValue, StoreError, UnsafeValue, Unserializable
from tools.fuzz_corpus import every_value

_MEMORY_BYTES = 3 << 30
_ROUND_S = 20.0
_CHILD_ROUNDS = 4000
_DEPTH = 6
_MOST_USED = 1 << 16
_INTERESTING = (0, 1, -1, 7, 8, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_BANNED = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.remove", "os.rename",
    "os.mkdir", "subprocess.Popen", "socket.", "ctypes.dlopen", "pickle.find_class", "pty.",
    "builtins.input", "webbrowser.",
)  # fmt: skip
_TOLD = struct.Struct("<qdqqqq")


#: As ``codecs.decode``, which tests replace by worse ones.
Decode = Callable[[int, bytes, memoryview, Trust], Any]


class Executed(BaseException):
    """Decoding did what no value needs."""


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Bytes with one or a few changes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(9)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1 and changed:
            changed[min(at, len(changed) - 1)] = chance.randrange(256)
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8)))
        elif kind == 3:
            del changed[at : at + chance.choice((1, 2, 4, 8, 64))]
        elif kind in (4, 5):
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(_INTERESTING) + chance.choice((0, 0, 1, -1))
            at -= at % size
            changed[at : at + size] = (number % (1 << (8 * size))).to_bytes(size, "little")
        elif kind == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            piece = other[start : start + chance.choice((4, 16, 64, 256))]
            changed[at : at + chance.choice((0, len(piece)))] = piece
        elif kind == 7:
            start = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + chance.choice((1, 8, 64))]
        elif changed:
            # Within JSON and pickles a digit is often a size or an index.
            digits = [i for i, byte in enumerate(changed) if 48 <= byte <= 57]
            if digits:
                number = str(chance.choice(_INTERESTING)).encode()
                where = chance.choice(digits)
                changed[where : where + 1] = number
    return bytes(changed)


def with_digests(codec: int, meta: bytes, payload: bytes) -> bytes:
    """A meta whose digests are those of what it says and of the payload, as far as it has any."""
    try:
        if codec == 6:
            return _arrow_digests(meta, payload)
        if codec == 7 and len(meta) >= 48:
            head = list(polars_meta._HEAD.unpack_from(meta))
            at = polars_meta._HEAD.size + head[5] + head[6]
            inner = _arrow_digests(meta[at : at + head[7]], payload)
            apart = payload[len(payload) - head[3] :] if head[3] else b""
            head[4] = xxhash.xxh3_64_intdigest(apart)
            rest = polars_meta._HEAD.pack(*head)[8:] + meta[polars_meta._HEAD.size : at] + inner
            return struct.pack("<Q", xxhash.xxh3_64_intdigest(rest)) + rest
    except (struct.error, StoreError, ValueError, OverflowError):
        pass
    return meta


def _arrow_digests(meta: bytes, payload: bytes) -> bytes:
    size = arrow_meta._HEAD.size
    if len(meta) < size:
        return meta
    head = list(arrow_meta._HEAD.unpack_from(meta))
    spans = meta[size + head[5] : size + head[5] + head[6]]
    if head[1] <= arrow_meta.SCALAR:
        seen, at = xxhash.xxh3_64(), 0
        for one, body in arrow_ipc._SPAN.iter_unpack(spans[: len(spans) // 12 * 12]):
            seen.update(payload[at : at + one])
            at += one + body
        head[4] = seen.intdigest()
    elif head[1] not in (arrow_meta.TENSOR, arrow_meta.BUFFER):
        head[4] = xxhash.xxh3_64_intdigest(payload)
    rest = arrow_meta._HEAD.pack(*head)[8:] + meta[size:]
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(rest)) + rest


def make(
    seed: int, number: int, corpus: list[tuple[str, Encoded, bytes]]
) -> tuple[str, int, bytes, bytes]:
    """What one round decodes: a name, codec, meta and payload."""
    chance = random.Random(f"{seed} {number}")
    name, encoded, payload = chance.choice(corpus)
    metas = [each[1].meta for each in corpus]
    payloads = [each[2] for each in corpus]
    codec, meta = encoded.codec, encoded.meta
    where = chance.randrange(4)
    if where in (0, 2) and meta:
        meta = mutate(chance, meta, metas)
    if where in (1, 2) or not meta:
        payload = mutate(chance, payload, payloads)
    if where == 3:
        payload = mutate(chance, payload, [payload])
    if chance.randrange(50) == 0:
        codec = chance.randrange(0, 12)
    if chance.randrange(10):
        meta = with_digests(codec, meta, payload)
    return name, codec, meta, payload


def _steps() -> list[tuple[tuple[type, ...], list[Any]]]:
    """What is done with values, by their types."""
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    arrays = [
        repr, lambda v: v.copy(), lambda v: np.sort(v, axis=None), lambda v: v.tolist(),
        lambda v: v == v.copy(), lambda v: v.astype("U"), lambda v: pa.array(v.reshape(-1)),
    ]  # fmt: skip
    frames = [
        repr, lambda v: v.copy(deep=True), lambda v: v.take([0, -1]), lambda v: v.isna(),
        lambda v: v.sort_values(), lambda v: v.unique(), lambda v: v.to_numpy(),
        lambda v: v.astype(object), lambda v: v.memory_usage(), lambda v: v.sort_index(),
        lambda v: v.loc[v.index[0]], lambda v: v.get_indexer(v), lambda v: v.value_counts(),
        lambda v: v.reset_index(), pa.Table.from_pandas,
    ]  # fmt: skip
    tables = [
        str, lambda v: v.to_pylist(), lambda v: v.to_pandas(), lambda v: v.take([0]),
        lambda v: v.slice(1).to_pylist(), lambda v: v.cast(pa.string()),
        lambda v: v.cast(pa.large_string()), lambda v: v.combine_chunks(),
        lambda v: v.validate(full=True), lambda v: pa.concat_arrays([v, v]), lambda v: v.unique(),
        pl.from_arrow, lambda v: v.filter(v.is_valid()), lambda v: v.nbytes,
        lambda v: v.get_total_buffer_size(),
    ]  # fmt: skip
    columns = [
        str, lambda v: v.to_dict(as_series=False), lambda v: v.to_list(), lambda v: v.reverse(),
        lambda v: v.sort(), lambda v: v.unique(), lambda v: v.hash(), lambda v: v.hash_rows(),
        lambda v: v.to_arrow(), lambda v: v.rechunk(), lambda v: v.cast(pl.String),
        lambda v: v.drop_nulls(), lambda v: v.max(), lambda v: v.null_count(),
    ]  # fmt: skip
    return [
        ((np.ndarray,), arrays),
        ((pd.DataFrame, pd.Series, pd.Index), frames),
        ((pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray), tables),
        ((pl.DataFrame, pl.Series), columns),
        ((object,), [lambda v: repr(v)[:100], hash, str]),
    ]


def use(value: Any, steps: list[tuple[tuple[type, ...], list[Any]]], depth: int = 0) -> None:
    """Reads what was decoded, as a user would; exceptions are fine."""
    if isinstance(value, (list, tuple, set, frozenset, dict)) and depth < _DEPTH:
        parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        for each in parts[:100]:
            use(each, steps, depth + 1)
        return
    found = next(each for kinds, each in steps if isinstance(value, kinds))
    size = max(getattr(value, "size", 0) or 0, len(value) if hasattr(value, "__len__") else 0)
    if size > _MOST_USED:
        return
    for step in found:
        try:
            step(value)
        except BaseException as exc:
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise


def child(seed: int, first: int, rounds: int, until: float, told: mmap.mmap, decode: Decode) -> int:
    """Decodes what the rounds make; returns the exit status."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    corpus = []
    steps = _steps()
    for name, value in every_value().items():
        encoded = codecs.encode(value)
        corpus.append((name, encoded, b"".join(encoded.parts)))
        codecs.decode(encoded.codec, encoded.meta, memoryview(corpus[-1][2]))
        use(value, steps)
    watching = [False]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event.startswith(_BANNED):
            watching[0] = False
            raise Executed(f"{event}{arguments!r:.300}")

    sys.addaudithook(audit)
    ends: Counter[str] = Counter()
    for number in range(first, first + rounds):
        if time.monotonic() > until:
            break
        name, codec, meta, payload = make(seed, number, corpus)
        _tell(told, number, ends)
        watching[0] = True
        try:
            value = decode(codec, meta, memoryview(payload), NOBODY)
            ends["decoded"] += 1
            watching[0] = False  # using a value may well look for a module
            use(value, steps)
        except Executed as exc:
            os.write(2, f"{name}: executed {exc}".encode())
            return 3
        except UnsafeValue:
            ends["unsafe"] += 1
        except (CorruptValue, Unserializable, MemoryError):
            ends["corrupt"] += 1
        finally:
            watching[0] = False
        value = None
    _tell(told, first + rounds, ends)
    return 0


def _tell(told: mmap.mmap, number: int, ends: Counter[str]) -> None:
    counts = (ends["decoded"], ends["unsafe"], ends["corrupt"])
    told[: _TOLD.size] = _TOLD.pack(number, time.monotonic(), *counts, 0)


def run(
    seed: int,
    rounds: int,
    seconds: float,
    only: int | None = None,
    decode: Decode = codecs.decode,
) -> tuple[list[str], str]:
    """Runs children until rounds or seconds are over.

    Returns:
        What was found, and a line that sums up.
    """
    until = time.monotonic() + seconds
    number = 0 if only is None else only
    last = rounds if only is None else only + 1
    found: list[str] = []
    totals = [0, 0, 0]
    while number < last and time.monotonic() < until:
        told = mmap.mmap(-1, mmap.PAGESIZE)
        told[: _TOLD.size] = _TOLD.pack(number, time.monotonic(), 0, 0, 0, 0)
        sys.stdout.flush()
        # Rust reports each panic there, also those that are caught.
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        pid = os.fork()
        if not pid:
            status = 4
            try:
                os.dup2(complaints.fileno(), 2)
                status = child(seed, number, min(_CHILD_ROUNDS, last - number), until, told, decode)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        how = _watch(pid, told)
        if how:
            how += "\n" + _tail(complaints)
        complaints.close()
        at, _, *counts, _ = _TOLD.unpack_from(told)
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        number = at
        if how:
            found.append(f"round {at} (seed {seed}): {how}")
            number += 1
        elif time.monotonic() > until:
            break
    decoded, unsafe, corrupt = totals
    return found, (
        f"seed {seed}: {sum(totals):,} mutated values: {decoded:,} decoded and were used, "
        f"{unsafe:,} were unsafe, {corrupt:,} corrupt; {len(found)} crashed, hung or ran something"
    )


def _tail(complaints: BinaryIO) -> str:
    """The last lines of what a child complained of."""
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 3000))
    return complaints.read().decode("utf-8", "replace").replace("\0", "")


def _watch(pid: int, told: mmap.mmap) -> str:
    """Waits for a child; how it ended if not well."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else f"the child ended with {code}"
        _, since, *_ = _TOLD.unpack_from(told)
        if time.monotonic() - since > _ROUND_S + 20 * (not since):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"no end after {_ROUND_S:.0f} s"
        time.sleep(0.02)


def main(arguments: list[str] | None = None) -> int:
    """Runs as the options say; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1 << 40)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", type=int, default=None, help="repeat one round")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    found, line = run(seed, options.rounds, options.seconds, options.only)
    print(line)
    for each in found:
        print(each)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
