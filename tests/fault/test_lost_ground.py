"""The ground is taken away: at every step of every operation, and from under all calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import crashpoints
from tests import reading_files
from tests.fault.enclosed import mount, mount_tmpfs, with_mounts
from tests.fault.killing import call
from tests.fault.scenarios import KILLS, SCENARIOS, WORK, begin, large

_NOBODY = 65534


def _at_step(name: str, step: int, action: Callable[[], None]) -> None:
    """Does ``action`` once, when the scenario's operation reaches a step."""
    point = SCENARIOS[name].steps[step]
    left = SCENARIOS[name].steps[: step + 1].count(point)

    def hook(reached: str) -> None:
        nonlocal left
        if reached == point:
            left -= 1
            if not left:
                crashpoints.hook = None
                action()

    crashpoints.hook = hook


def _remove(root: str) -> None:
    """As ``rm -rf`` does, which does not stop at what others remove or make."""
    shutil.rmtree(root, ignore_errors=True)


def _calls(store: shmstore.Store) -> dict[str, Callable[[], Any]]:
    """Every public call of a store and of a DAG that touches what is stored."""
    dag = store.dag(WORK)
    array = np.arange(9001)
    return {
        "put": lambda: store.put(WORK, "small-1", 2),
        "put large": lambda: store.put(WORK, "new", array),
        "put with deps": lambda: store.put(WORK, "new", 1, deps=["small-1"]),
        "put if absent": lambda: store.put(WORK, "newer", 1, overwrite=False),
        "put elsewhere": lambda: store.put("another", "small", 2),
        "put_many": lambda: store.put_many(WORK, {"a": 1, "b": array}),
        "get": lambda: store.get(WORK, "small-1"),
        "get large": lambda: store.get(WORK, "large-1"),
        "get cow": lambda: store.get(WORK, "large-1", mode="cow"),
        "get copy": lambda: store.get(WORK, "large-1", mode="copy"),
        "get default": lambda: store.get(WORK, "never", default=5),
        "get_buffer": lambda: store.get_buffer(WORK, "large-1").to_pybytes(),
        "get_many": lambda: store.get_many(WORK, ["small-1", "large-1"]),
        "has_value": lambda: store.has_value(WORK, "small-1"),
        "delete": lambda: store.delete(WORK, "small-2"),
        "delete_many": lambda: store.delete_many(WORK, ["small-3"]),
        "take": lambda: store.take(WORK, "large-2"),
        "entry": lambda: store.entry(WORK, "small-1"),
        "entries": lambda: list(store.entries(WORK)),
        "ids": lambda: list(store.ids(WORK)),
        "count": lambda: store.count(WORK),
        "dags": store.dags,
        "explain": lambda: store.explain(WORK, "large-1"),
        "stats": store.stats,
        "ref": lambda: store.ref(WORK, "small-1").get(),
        "wait": lambda: store.wait(WORK, "small-1", 0.2),
        "wait for what is not there": lambda: store.wait(WORK, "never", 0.2),
        "wait_many": lambda: store.wait_many(WORK, ["small-1", "large-1"], 0.2),
        "watch": lambda: _watched(store),
        "set_ttl": lambda: store.set_ttl(WORK, 100),
        "gc": store.gc,
        "gc dry": lambda: store.gc(dry_run=True),
        "check": store.check,
        "check and fix": lambda: store.check(fix=True),
        "get_with_fetch": lambda: store.get_with_fetch(WORK, "large-1", timeout=0.2),
        "get_with_timeout": lambda: store.get_with_timeout(WORK, "large-1", 0.2),
        "fetch_remote": lambda: store.fetch_remote(WORK, "large-1", timeout=0.2),
        "synchronize": lambda: store.synchronize(WORK, ["large-1", "never"], timeout=0.2),
        "prefetch": lambda: store.prefetch(WORK, ["never"]),
        "sync": lambda: store.sync(0.2),
        "nodes": store.nodes,
        "registry": lambda: store.registry.lookup(WORK, "large-1"),
        "put and publish": lambda: store.put(WORK, "new", 1, publish=True),
        "clear everywhere": lambda: store.clear(WORK, all_nodes=True),
        "async get_with_fetch": lambda: asyncio.run(
            store.get_with_fetch_async(WORK, "large-1", timeout=0.2)
        ),
        "async get_with_timeout": lambda: asyncio.run(
            store.get_with_timeout_async(WORK, "large-1", 0.2)
        ),
        "async fetch_remote": lambda: asyncio.run(
            store.fetch_remote_async(WORK, "large-1", timeout=0.2)
        ),
        "async synchronize": lambda: asyncio.run(
            store.synchronize_async(WORK, ["large-1"], timeout=0.2)
        ),
        "async prefetch": lambda: asyncio.run(store.prefetch_async(WORK, ["never"])),
        "async sync": lambda: asyncio.run(store.sync_async(0.2)),
        "async nodes": lambda: asyncio.run(store.nodes_async()),
        "async wait": lambda: asyncio.run(store.wait_async(WORK, "small-1", 0.2)),
        "async wait_many": lambda: asyncio.run(store.wait_many_async(WORK, ["small-1"], 0.2)),
        "async watch": lambda: asyncio.run(_watched_async(store)),
        "async put": lambda: asyncio.run(store.put_async(WORK, "new", array)),
        "async put_many": lambda: asyncio.run(store.put_many_async(WORK, {"a": 1})),
        "async get": lambda: asyncio.run(store.get_async(WORK, "large-1")),
        "async get_buffer": lambda: asyncio.run(store.get_buffer_async(WORK, "large-1")),
        "async get_many": lambda: asyncio.run(store.get_many_async(WORK, ["large-1"])),
        "async delete": lambda: asyncio.run(store.delete_async(WORK, "large-0")),
        "async delete_many": lambda: asyncio.run(store.delete_many_async(WORK, ["large-1"])),
        "async gc": lambda: asyncio.run(store.gc_async()),
        "async check": lambda: asyncio.run(store.check_async()),
        "dag[]": lambda: dag["small-1"],
        "dag[] =": lambda: dag.__setitem__("small-1", 3),
        "in dag": lambda: "small-1" in dag,
        "len(dag)": lambda: len(dag),
        "dict(dag)": lambda: dict(dag),
        "dag.items": lambda: list(dag.items()),
        "reversed": lambda: list(reversed(dag)),
        "dag.pop": lambda: dag.pop("small-1"),
        "dag.popitem": dag.popitem,
        "dag.setdefault": lambda: dag.setdefault("fresh", 1),
        "dag.update": lambda: dag.update({"u": 1}),
        "dag ==": lambda: dag == {"a": 1},
        "del dag[]": lambda: dag.__delitem__("small-0"),
        "dag.clear": dag.clear,
        "clear": lambda: store.clear(WORK),
        "clear elsewhere": lambda: store.clear("bystander"),
        "async clear": lambda: asyncio.run(store.clear_async(WORK)),
    }


class _Noting:
    """A store that notes which of its attributes are asked for."""

    def __init__(self, store: shmstore.Store) -> None:
        self.store = store
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self.store, name)


def test_every_public_call_is_tried(root: str) -> None:
    """What is tried below is all that a store has, but for what touches nothing stored."""
    begin(root)
    noting = _Noting(shmstore.Store(root))
    for action in _calls(noting).values():  # type: ignore[arg-type]
        with contextlib.suppress(shmstore.StoreError):
            action()
    public = {name for name in dir(shmstore.Store) if not name.startswith("_")}
    assert public - noting.asked == {"root", "namespace", "close"}


def _watched(store: shmstore.Store) -> shmstore.Entry:
    with store.watch(WORK, timeout=0.2) as entries:
        return next(entries)


async def _watched_async(store: shmstore.Store) -> shmstore.Entry:
    async with store.watch_async(WORK, timeout=0.2) as entries:
        return await anext(entries)


def _a_moment_later(store: shmstore.Store) -> None:
    """Makes the store look at once what it otherwise looks at once in a millisecond."""
    for manifest in store._dags.manifests.values():
        manifest.look_at = manifest.lock._look_at = 0.0


def _outcomes(store: shmstore.Store) -> dict[str, Any]:
    """What each call returns or raises; a wrong error is a failure."""
    outcomes: dict[str, Any] = {}
    _a_moment_later(store)
    for name, action in _calls(store).items():
        try:
            outcomes[name] = action()
        except shmstore.StoreError as error:
            assert len(str(error)) > 30, name
            assert str(error).count("\n") == 0, name
            outcomes[name] = error
        except Exception as error:
            raise AssertionError(f"{name} raised {error!r}") from error
    return outcomes


def _says_removed(outcomes: dict[str, Any], but: Collection[str] = ()) -> None:
    for name, outcome in outcomes.items():
        if name in but:
            continue
        assert isinstance(outcome, shmstore.UnusableRoot), f"{name}: {outcome!r}"
        assert "removed" in str(outcome), f"{name}: {outcome}"


def _opened(root: str, warm: bool) -> shmstore.Store:
    store = shmstore.Store(root)
    if warm:
        store.get(WORK, "small-1")
        store.put(WORK, "warm", 1)
    return store


GONE = ["", "default", "default/dags", "default/trash", "default/control", "default/lifecycle.lock"]


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("gone", ["", "default"])
def test_every_call_says_that_the_root_was_removed(root: str, gone: str, warm: bool) -> None:
    """After rm -rf, each public call says that the root was removed; views stay as they are."""
    inner = f"{root}/inner"
    begin(inner)
    store = _opened(inner, warm)
    view, cow = store.get("bystander", "segment"), store.get("bystander", "segment", mode="cow")
    _remove(f"{inner}/{gone}")
    _says_removed(_outcomes(store), but={"ref"})
    assert (view == large(99)).all()
    assert (cow == large(99)).all()
    # A store opened there now begins anew; the old one does not slip into it.
    with shmstore.Store(inner) as fresh:
        fresh.put(WORK, "small-1", "of the new one")
        _says_removed(_outcomes(store), but={"ref"})
        assert store.ref(WORK, "small-1").get() == "of the new one"
        assert dict(fresh.dag(WORK)) == {"small-1": "of the new one"}
    reading_files.check(inner)


#: What was mapped before stays readable; that is all that a reader of it asks for.
_FROM_OWN_MAPPINGS = {"get", "dag[]", "wait"}


@pytest.mark.parametrize("first", _calls(shmstore.Store.__new__(shmstore.Store)))
def test_the_first_call_notices_that_the_root_was_removed(root: str, first: str) -> None:
    """It need not be a put: each call by itself says so, but gets of what is mapped already."""
    inner = f"{root}/inner"
    begin(inner)
    store = _opened(inner, True)
    _remove(inner)
    _a_moment_later(store)
    try:
        outcome = _calls(store)[first]()
    except shmstore.UnusableRoot as error:
        assert "removed" in str(error)
    except shmstore.NotFound:
        assert first == "ref", "a reference finds its way to what stands there now"
    else:
        assert first in _FROM_OWN_MAPPINGS, f"{outcome!r}"


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("gone", GONE)
def test_no_call_fails_in_the_depths(root: str, gone: str, warm: bool) -> None:
    """Whatever part of a namespace is removed, every call answers rightly or says what is wrong."""
    begin(root)
    store = _opened(root, warm)
    if os.path.isdir(f"{root}/{gone}"):
        _remove(f"{root}/{gone}")
    else:
        os.unlink(f"{root}/{gone}")
    _outcomes(store)
    try:
        again = shmstore.Store(root)
    except shmstore.StoreError as error:
        assert len(str(error)) > 30
    else:
        _outcomes(again)


@pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(n, s, id=f"{n}-{s}-{SCENARIOS[n].steps[s]}") for n, s in KILLS],
)
def test_the_root_goes_in_the_middle(root: str, name: str, step: int) -> None:
    """Removed at any step of any operation: it ends, or says so; nothing comes of it later."""
    inner = f"{root}/inner"

    def child() -> str:
        scenario = SCENARIOS[name]
        values = begin(inner)
        if scenario.prepare is not None:
            scenario.prepare(inner, values)
        store = shmstore.Store(inner)
        view = store.get("bystander", "segment")
        if scenario.just_before is not None:
            scenario.just_before(inner)
        _at_step(name, step, lambda: _remove(inner))
        try:
            scenario.act(store)
            outcome = "done"
        except shmstore.StoreError as error:
            outcome = str(error)
        assert crashpoints.hook is None, "the step was not reached"
        assert (view == large(99)).all()
        with pytest.raises(shmstore.UnusableRoot, match="removed"):
            store.put("other", "a", large(1))
        return outcome

    outcome = call(child)
    assert outcome == "done" or "removed" in outcome, outcome
    left = [file for _, _, files in os.walk(inner) for file in files]
    assert not left, f"written where there was no root any more: {left}"
    # And anew, as if nothing had been.
    with shmstore.Store(inner) as fresh:
        assert fresh.dags() == []
        fresh.put(WORK, "a", 1)
    reading_files.check(inner)


@pytest.mark.parametrize("what", ["file", "link", "dangling link", "empty directory", "pipe"])
@pytest.mark.parametrize("level", ["", "default", "default/dags", f"default/dags/{WORK}"])
def test_something_else_stands_in_its_place(root: str, level: str, what: str) -> None:
    """Replaced by something else, whatever is asked is answered or said to be wrong."""
    inner = f"{root}/inner"
    elsewhere = f"{root}/elsewhere"
    begin(inner)
    begin(elsewhere)
    store, cold = _opened(inner, True), _opened(inner, False)
    view = store.get("bystander", "segment")
    place = os.path.join(inner, level).rstrip("/")
    _remove(place)
    if what == "file":
        Path(place).write_text("mine")
    elif what == "empty directory":
        os.mkdir(place, 0o700)
    elif what == "pipe":
        os.mkfifo(place)
    else:
        os.symlink(f"{elsewhere}/{level}" if what == "link" else f"{root}/nowhere", place)
    for one in (store, cold):
        outcomes = _outcomes(one)
        if level in ("", "default"):
            _says_removed(outcomes, but={"ref"})
    try:
        again = shmstore.Store(inner)
    except shmstore.StoreError as error:
        assert "\n" not in str(error)
        assert len(str(error)) > 30
    else:
        _outcomes(again)
    assert (view == large(99)).all()
    if what == "file" and os.path.isfile(place):
        assert Path(place).read_text() == "mine"
    if level != "":
        reading_files.check(elsewhere)


def _read_only(root: str) -> dict[str, str]:
    mount_tmpfs(root, 16 << 20)
    begin(root)
    store = _opened(root, True)
    view = store.get("bystander", "segment")
    remount, read_only, bind = 0x20, 0x1, 0x1000
    mount(root, root, None, bind)  # of this mount alone, as files are open for writing
    mount("none", root, None, remount | bind | read_only)
    told = {}
    for name, action in _calls(store).items():
        try:
            action()
        except shmstore.WaitTimeout:
            assert "wait" in name or "watch" in name
        except shmstore.NodeNotRunning:
            pass  # needs one, on whatever ground
        except shmstore.StoreError as error:
            told[name] = f"{type(error).__name__}: {error}"
        except Exception as error:
            raise AssertionError(f"{name} raised {error!r}") from error
    try:
        shmstore.Store(root)
    except shmstore.StoreError as error:
        told["open"] = str(error)
    assert (view == large(99)).all()
    return told


def test_a_root_that_has_become_read_only(root: str) -> None:
    """What cannot be written is said to be so; nothing fails in the depths."""
    told = with_mounts(_read_only, f"{root}/mounted")
    # Linux lets no mount become read-only while it has files open for writing: what was
    # opened before goes on, and only who comes later is told.
    assert "open" in told
    for what, sentence in told.items():
        assert "ead-only" in sentence or "removed" in sentence, f"{what}: {sentence}"
