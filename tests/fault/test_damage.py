"""Damaged files: the right value or an error that says so, never anything else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from tests import reading_files
from tests.fault.killing import Child, Parent, call

DAG = "dag"
_SEEDS, _BATCH = 360, 45
_ANSWER_S = 3


def _template(root: str) -> tuple[dict[str, Any], list[str]]:
    """A DAG with a past: what is stale or deleted in it must not come back."""
    with shmstore.Store(root) as store:
        for age in ("old", "older", "new"):
            for n in range(40):
                store.put(DAG, f"id-{n}", {"age": age, "n": n, "pad": "p" * (n * 7)})
            for n in range(3):
                store.put(DAG, f"large-{n}", np.full(4096, n + len(age), dtype=np.int64))
        gone = [f"id-{n}" for n in range(0, 40, 4)]
        store.delete_many(DAG, gone)
        values = {id: store.get(DAG, id, mode="copy") for id in store.ids(DAG)}
    return values, [*gone, "never", "never-2"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and np.array_equal(one, other)
    return bool(one == other)


class _Hang(Exception):
    """A call did not come back."""


def _hangs(*_: object) -> None:
    raise _Hang(f"no answer after {_ANSWER_S} s")


class _Case:
    """One seed: a copy of the template, one damage, and what came of it."""

    def __init__(self, root: str, template: str, values: dict[str, Any], absent: list[str]) -> None:
        self.root, self.values, self.absent = root, values, absent
        self.wrong: list[str] = []
        self.told: Counter[str] = Counter()
        self.hung: _Hang | None = None
        shutil.copytree(template, root)
        self.files = reading_files.read(root, DAG)

    def attempt(self, what: str, action: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether it worked, and what it returned or raised; nothing but StoreErrors may be."""
        if self.hung:
            return False, self.hung
        try:
            signal.setitimer(signal.ITIMER_REAL, _ANSWER_S, 0.2)
            return True, action()
        except shmstore.StoreError as error:
            self.told[type(error).__name__] += 1
            if not str(error).endswith(".") or len(str(error)) < 20:
                self.wrong.append(f"{what}: {error!r} says too little")
            return False, error
        except Exception as error:
            self.hung = error if isinstance(error, _Hang) else None
            frames = traceback.extract_tb(error.__traceback__)
            last = [frame for frame in frames if frame.name != "_hangs"][-1]
            self.wrong.append(f"{what}: {error!r} from {last.filename}:{last.lineno}")
            return False, error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def look(self, store: shmstore.Store) -> None:
        """Asks for everything in every way."""
        for id, value in self.values.items():
            worked, got = self.attempt(f"get {id}", partial(store.get, DAG, id))
            if worked and not _same(got, value):
                self.wrong.append(f"get {id}: a wrong value, {str(got)[:60]}")
            elif isinstance(got, shmstore.NotFound):
                self.wrong.append(f"get {id}: {got}")
            self.told["right" if worked else "refused"] += 1
            worked, got = self.attempt(f"has {id}", partial(store.has_value, DAG, id))
            if worked and not got:
                self.wrong.append(f"has_value {id} is False")
        for id in self.absent:
            worked, got = self.attempt(f"get {id}", partial(store.get, DAG, id))
            if worked:
                self.wrong.append(f"get {id}: {str(got)[:60]} came back")
        worked, got = self.attempt("ids", lambda: set(store.ids(DAG)))
        if worked and got != set(self.values):
            self.wrong.append(f"ids: {got ^ set(self.values)}")
        self.attempt("count", lambda: store.count(DAG))
        self.attempt("stats", store.stats)
        self.attempt("dags", store.dags)

    def write(self, store: shmstore.Store) -> None:
        """Puts over what may be damaged: it counts afterwards, or is refused."""
        for id in ["after", *self.values]:
            for value in ("put after", np.full(4096, 77, dtype=np.int64)):
                worked, _ = self.attempt(f"put {id}", partial(store.put, DAG, id, value))
                if not worked:
                    continue
                self.values = {**self.values, id: value}
                worked, got = self.attempt(f"get {id}", partial(store.get, DAG, id))
                if not worked or not _same(got, value):
                    self.wrong.append(f"get {id} after its put: {str(got)[:200]}")
        id = next(iter(self.values))
        worked, _ = self.attempt(f"delete {id}", lambda: store.delete(DAG, id))
        if worked:
            self.values = {key: value for key, value in self.values.items() if key != id}
            self.absent = [*self.absent, id]

    def clear(self, store: shmstore.Store) -> None:
        """Whatever was damaged: after a clear the DAG is as good as new."""
        worked, got = self.attempt("clear", lambda: store.clear(DAG))
        if not worked:
            self.wrong.append(f"clear: {got}")
            return
        worked, got = self.attempt("put after clear", lambda: store.put(DAG, "a", 1))
        if not worked or store.get(DAG, "a") != 1 or list(store.ids(DAG)) != ["a"]:
            self.wrong.append(f"after clear: {got}")
        reading_files.check(self.root)


def _damage(case: _Case, rng: random.Random, live: bool) -> str:
    """Damages one file; returns what was done."""
    files = case.files
    file, end = rng.choice(
        [(files.manifest, 128), (files.log, files.tail), (files.index, files.index.stat().st_size)]
    )
    kinds = ["flip", "flip", "flip", "zero", "zero-line", "word"]
    kind = rng.choice(kinds if live else [*kinds, "cut", "empty", "gone"])
    header = rng.random() < 0.35
    at = rng.randrange(24, 128) if header else rng.randrange(end)
    fd = os.open(file, os.O_RDWR)
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            old = os.pread(fd, 1, at)
            os.pwrite(fd, bytes([old[0] ^ (1 << rng.randrange(8))]), at)
            at = min(at + rng.randrange(1, 64), end - 1)
    elif kind == "zero":
        os.pwrite(fd, bytes(min(rng.choice((1, 8, 64, 4096)), file.stat().st_size - at)), at)
    elif kind == "zero-line":
        at &= ~63
        os.pwrite(fd, bytes(min(64, file.stat().st_size - at)), at)
    elif kind == "word":
        at &= ~7
        os.pwrite(fd, rng.randbytes(8), at)
    elif kind == "cut":
        os.ftruncate(fd, at)
    elif kind == "empty":
        os.ftruncate(fd, 0)
    else:
        os.unlink(file)
    os.close(fd)
    return f"{kind} at {at} of {file.name}, {'open' if live else 'closed'} store"


def _fuzz(
    parent: Parent, root: str, seeds: range, values: dict[str, Any], absent: list[str]
) -> Any:
    signal.signal(signal.SIGALRM, _hangs)
    told: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    for seed in seeds:
        parent.send(seed)
        rng = random.Random(seed)
        case = _Case(f"{root}/case-{seed}", f"{root}/template", values, absent)
        live = rng.random() < 0.5
        if live:
            store = shmstore.Store(case.root)
            store.get(DAG, "id-1")
            done = _damage(case, rng, live)
        else:
            done = _damage(case, rng, live)
            store = shmstore.Store(case.root)
        case.look(store)
        case.write(store)
        case.look(store)
        case.look(shmstore.Store(case.root))
        case.clear(store)
        told += case.told
        if case.wrong:
            wrong[f"seed {seed}, {done}"] = case.wrong[:12]
        store.close()
        shutil.rmtree(case.root)
    return told, wrong


@pytest.mark.parametrize("first", range(0, _SEEDS, _BATCH))
def test_damage_never_gives_a_wrong_value(root: str, first: int) -> None:
    """Flipped, zeroed, cut and missing bytes give right values or errors, and clear heals."""
    values, absent = call(_template, f"{root}/template")
    seeds = range(first, first + _BATCH)
    with Child(_fuzz, Parent, root, seeds, values, absent) as child:
        for seed in seeds:
            try:
                assert child.receive(timeout_s=30) == seed
            except AssertionError as error:
                raise AssertionError(f"seed {seed - 1}: {error}") from None
        told, wrong = child.receive(timeout_s=30)
        assert child.join() == 0
    assert not wrong, "\n".join(f"{case}: {'; '.join(what)}" for case, what in wrong.items())
    # Damage that nobody meets would prove nothing.
    assert told["CorruptValue"] and told["right"] > told["refused"]


def _both_ends(root: str) -> None:
    values, absent = _template(f"{root}/template")
    for words in (bytes(16), b"\x08\x00" + bytes(6) + b"\x08" + bytes(7), b"\xf0" * 16):
        case = _Case(f"{root}/case", f"{root}/template", values, absent)
        with open(case.files.log, "r+b") as file:
            file.seek(64)
            file.write(words)
        store = shmstore.Store(case.root)
        case.look(store)
        case.write(store)
        case.look(shmstore.Store(case.root))
        case.clear(store)
        assert not case.wrong, f"{words.hex()}: {case.wrong[:5]}"
        shutil.rmtree(case.root)


def test_both_words_of_the_log_wrong_in_the_same_way(root: str) -> None:
    """A ``tail`` and ``indexed`` that agree on nonsense let no put destroy anything."""
    call(_both_ends, root)


def test_a_namespace_page_that_is_damaged_is_refused(root: str) -> None:
    """A control page cut, zeroed or flipped is a CorruptValue on opening, whichever byte."""
    shmstore.Store(root).put(DAG, "a", 1)
    control = Path(root) / "default" / "control"
    whole = control.read_bytes()
    for at in [*range(0, 64, 3), 128, 4095]:
        control.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(shmstore.CorruptValue, match="control"):
            shmstore.Store(root)
    for cut in (0, 1, 63, 64, 200, 4095):
        control.write_bytes(whole[:cut])
        with pytest.raises(shmstore.CorruptValue, match="control"):
            shmstore.Store(root)
    control.write_bytes(bytes(4096))
    with pytest.raises(shmstore.CorruptValue, match="control"):
        shmstore.Store(root)
    control.write_bytes(whole)
    assert shmstore.Store(root).get(DAG, "a") == 1


def test_a_segment_that_is_cut_or_missing_is_said_to_be(root: str) -> None:
    """A value whose segment is short or gone is a CorruptValue, and others stay."""
    store = shmstore.Store(root)
    store.put(DAG, "cut", np.arange(9000))
    store.put(DAG, "gone", np.arange(9001))
    store.put(DAG, "whole", np.arange(9002))
    files = reading_files.read(root, DAG)
    os.truncate(files.path / str(files.records["cut"].segment), 4096)
    os.unlink(files.path / str(files.records["gone"].segment))
    for mode in ("read", "cow", "copy"):
        with pytest.raises(shmstore.CorruptValue, match="4,096 of the value's"):
            store.get(DAG, "cut", mode=mode)
        with pytest.raises(shmstore.CorruptValue, match="segment is missing"):
            store.get(DAG, "gone", mode=mode)
        assert np.array_equal(store.get(DAG, "whole", mode=mode), np.arange(9002))
    store.put(DAG, "cut", 1)
    store.delete(DAG, "gone")
    assert store.get(DAG, "cut") == 1
    reading_files.check(root)


def _each_word(root: str) -> None:
    values, absent = _template(f"{root}/template")
    last = list(values)[-1]  # its record holds the totals
    wrong: list[str] = []
    for id in ("id-3", last):
        record = reading_files.read(f"{root}/template", DAG).records[id]
        for at in range(record.offset, record.offset + record.length, 8):
            for mask in (b"\x01", bytes(6) + b"\x40", b"\xff" * 8):
                case = _Case(f"{root}/case", f"{root}/template", values, absent)
                with open(case.files.log, "r+b") as file:
                    file.seek(at)
                    old = file.read(len(mask))
                    file.seek(at)
                    file.write(bytes(one ^ other for one, other in zip(old, mask, strict=True)))
                store = shmstore.Store(case.root)
                case.look(store)
                case.write(store)
                case.look(shmstore.Store(case.root))
                wrong += [f"{id}, byte {at - record.offset}: {one}" for one in case.wrong[:2]]
                store.close()
                shutil.rmtree(case.root)
    assert not wrong, "\n".join(wrong)


def test_a_record_damaged_in_any_word(root: str) -> None:
    """No word of a record, of the last one too, can be wrong and mislead a get, put or count."""
    call(_each_word, root, timeout_s=60)
