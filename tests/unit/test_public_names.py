"""What ``import shmstore`` gives, and what it costs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys

import pytest

import shmstore

# The signatures that other code is written against.
SIGNATURES = {
    "put": "(dag_id, id, value, *, deps=(), overwrite=True, publish=False)",
    "put_many": "(dag_id, values, *, overwrite=True)",
    "get": "(dag_id, id, *, mode='read', default=...)",
    "get_buffer": "(dag_id, id)",
    "get_many": "(dag_id, ids, *, mode='read', default=...)",
    "has_value": "(dag_id, id)",
    "delete": "(dag_id, id)",
    "delete_many": "(dag_id, ids)",
    "take": "(dag_id, id)",
    "clear": "(dag_id, *, all_nodes=False)",
    "wait": "(dag_id, id, timeout=None, *, mode='read')",
    "wait_many": "(dag_id, ids, timeout=None, *, mode='read')",
    "watch": "(dag_id, *, since=None, timeout=None)",
    "get_with_timeout": "(dag_id, id, timeout=5.0, *, mode='read')",
    "get_with_fetch": "(dag_id, id, *, from_node=None, timeout=30.0, mode='read')",
    "fetch_remote": "(dag_id, id, *, from_node=None, timeout=30.0, mode='read')",
    "synchronize": "(dag_id, ids, *, timeout=30.0)",
    "prefetch": "(dag_id, ids)",
    "sync": "(timeout=30.0)",
    "nodes": "()",
    "registry": "property",
    "entry": "(dag_id, id)",
    "entries": "(dag_id)",
    "ids": "(dag_id, prefix='', *, newest_first=False)",
    "count": "(dag_id)",
    "dags": "()",
    "dag": "(dag_id)",
    "ref": "(dag_id, id)",
    "explain": "(dag_id, id)",
    "stats": "()",
    "set_ttl": "(dag_id, seconds)",
    "gc": "(dry_run=False, *, older_than=None)",
    "check": "(fix=False)",
    "close": "()",
    "put_async": "(dag_id, id, value, *, deps=(), overwrite=True, publish=False)",
    "put_many_async": "(dag_id, values, *, overwrite=True)",
    "get_async": "(dag_id, id, **options)",
    "get_buffer_async": "(dag_id, id)",
    "get_many_async": "(dag_id, ids, **options)",
    "delete_async": "(dag_id, id)",
    "delete_many_async": "(dag_id, ids)",
    "clear_async": "(dag_id, *, all_nodes=False)",
    "wait_async": "(dag_id, id, timeout=None, *, mode='read')",
    "wait_many_async": "(dag_id, ids, timeout=None, *, mode='read')",
    "watch_async": "(dag_id, *, since=None, timeout=None)",
    "get_with_timeout_async": "(dag_id, id, timeout=5.0, *, mode='read')",
    "get_with_fetch_async": "(dag_id, id, *, from_node=None, timeout=30.0, mode='read')",
    "fetch_remote_async": "(dag_id, id, *, from_node=None, timeout=30.0, mode='read')",
    "synchronize_async": "(dag_id, ids, *, timeout=30.0)",
    "prefetch_async": "(dag_id, ids)",
    "sync_async": "(timeout=30.0)",
    "nodes_async": "()",
    "gc_async": "(dry_run=False, *, older_than=None)",
    "check_async": "(fix=False)",
    "root": "property",
    "namespace": "property",
}


def shown(function: object) -> str:
    if isinstance(function, property):
        return "property"
    parameters = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        known = isinstance(parameter.default, (str, int, float, tuple, type(None), type))
        default = parameter.default if known else ...
        parameters.append(parameter.replace(default=default, annotation=inspect.Parameter.empty))
    return str(inspect.Signature(parameters)).replace("Ellipsis", "...")


def test_the_public_calls_of_a_store() -> None:
    """Names, parameters and defaults are those that are promised, and there are no others."""
    public = {
        name: shown(getattr(shmstore.Store, name))
        for name in dir(shmstore.Store)
        if not name.startswith("_")
    }
    assert public == SIGNATURES


def test_all_names_what_is_there() -> None:
    """``__all__`` is sorted, is what type checkers see, and each name can be had."""
    assert shmstore.__all__ == sorted(shmstore.__all__)
    tree = ast.parse(inspect.getsource(shmstore))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == shmstore._MODULES
    assert sorted(seen) == shmstore.__all__
    for name in shmstore.__all__:
        assert getattr(shmstore, name) is getattr(sys.modules[str(seen[name])], name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = shmstore.nothing


@pytest.mark.parametrize("name", shmstore.__all__)
def test_everything_public_is_documented(name: str) -> None:
    """Classes, their public methods and functions have docstrings."""
    thing = getattr(shmstore, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and callable(value):
                assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize(
    "kind",
    [
        shmstore.DagInfo,
        shmstore.ClearReport,
        shmstore.Explanation,
        shmstore.StoreStats,
        shmstore.NodeInfo,
        shmstore.GcReport,
        shmstore.GcAction,
        shmstore.Finding,
    ],
)
def test_reports_are_frozen(kind: type) -> None:
    """What the store tells about itself cannot be changed by accident."""
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


HEAVY = "nats click rich pandas polars pyarrow asyncio multiprocess dill filelock numba scipy"
PROGRAM = f"""
import sys
import shmstore
print(*[name for name in {HEAVY!r}.split() if name in sys.modules])
"""
USE = """
import os, sys, shmstore
store = shmstore.Store(sys.argv[1])
store.put("d", "a", {"x": [1, "two", b"three"]})
store.put("d", "b", b"x" * 100_000)
import numpy
store.put("d", "c", numpy.arange(10_000))
store.get_many("d", ["a", "b", "c"])
list(store.ids("d")), store.dags(), store.stats(), store.clear("d")
"""


def loaded_by(program: str, *args: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program + PROGRAM, *args],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.split()


def test_importing_loads_nothing_heavy() -> None:
    """The libraries that only some values or calls need are not loaded by the import."""
    assert loaded_by("") == []


def test_plain_values_and_arrays_load_nothing_heavy(root: str) -> None:
    """Nor does storing and reading plain values, bytes and arrays."""
    assert loaded_by(USE, root) == []
