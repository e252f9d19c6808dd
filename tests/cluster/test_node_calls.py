"""Every remote call ends in time, whatever is wrong: in a value, NotFound, or a RemoteError."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore.demo.server import NatsServer
from shmstore.node.client import is_running
from tests.cluster.running import Host, hosts, until

_TIMEOUT_S = 4.0
#: What a call may take beyond its timeout on a machine that is busy.
_SLACK_S = 3.0
#: The longest of those that take no timeout.
_FIXED_S = 31.0

Call = Callable[[shmstore.Store], Any]


def _calls() -> dict[str, tuple[Call, float]]:
    """Every remote call, sync and async, with the longest that it may take."""
    timed: dict[str, tuple[Any, ...]] = {
        "get_with_fetch": ("dag", "id"),
        "fetch_remote": ("dag", "id"),
        "get_with_timeout": ("dag", "id"),
        "synchronize": ("dag", ["id", "other"]),
        "sync": (),
    }
    fixed: dict[str, tuple[Any, ...]] = {
        "prefetch": ("dag", ["id"]),
        "nodes": (),
        "registry.lookup": ("dag", "id"),
        "registry.get_all": ("dag",),
        "registry.register": ("dag", "made", "b"),
        "registry.clear": ("unknown",),
    }
    made: dict[str, tuple[Call, float]] = {}
    for name, args in timed.items():
        for twin in (name, f"{name}_async"):
            made[twin] = _call(twin, *args, timeout=_TIMEOUT_S), _TIMEOUT_S
    for name, args in fixed.items():
        for twin in (name, f"{name}_async"):
            made[twin] = _call(twin, *args), _FIXED_S
    for twin in ("clear", "clear_async"):
        made[twin] = _call(twin, "unknown", all_nodes=True), _FIXED_S
    made["get_with_fetch from a"] = (
        _call("get_with_fetch", "dag", "id", from_node="a", timeout=_TIMEOUT_S),
        _TIMEOUT_S,
    )
    made["get_with_fetch_async from a"] = (
        _call("get_with_fetch_async", "dag", "id", from_node="a", timeout=_TIMEOUT_S),
        _TIMEOUT_S,
    )
    made["ref.fetch"] = lambda store: store.ref("dag", "id").fetch(_TIMEOUT_S), _TIMEOUT_S
    made["put published"] = (
        lambda store: store.put("dag", "mine", 1, publish=True),
        _FIXED_S,
    )
    return made


def _call(name: str, *args: Any, **options: Any) -> Call:
    def call(store: shmstore.Store) -> Any:
        owner: Any = store
        for part in name.split("."):
            owner = getattr(owner, part)
        if not inspect.iscoroutinefunction(owner):
            return owner(*args, **options)

        async def twin() -> Any:
            return await owner(*args, **options)

        return asyncio.run(twin())

    return call


_ALL = _calls()


def _no_node(server: NatsServer, a: Host, b: Host) -> None:
    b.node.signal(signal.SIGTERM)
    assert b.node.ends() == 0


def _killed_node(server: NatsServer, a: Host, b: Host) -> None:
    b.node.kill()


def _stopped_node(server: NatsServer, a: Host, b: Host) -> None:
    b.node.signal(signal.SIGSTOP)
    until(lambda: not is_running(b.store._dags.space), "its heart has stopped")


def _just_stopped_node(server: NatsServer, a: Host, b: Host) -> None:
    b.node.signal(signal.SIGSTOP)


def _no_nats(server: NatsServer, a: Host, b: Host) -> None:
    server.kill()


def _silent_nats(server: NatsServer, a: Host, b: Host) -> None:
    server.pause()


def _dead_owner(server: NatsServer, a: Host, b: Host) -> None:
    a.node.kill()


def _stopped_owner(server: NatsServer, a: Host, b: Host) -> None:
    a.node.signal(signal.SIGSTOP)


def _nothing(server: NatsServer, a: Host, b: Host) -> None:
    pass


_STATES = {
    "all is well": _nothing,
    "no node": _no_node,
    "killed node": _killed_node,
    "stopped node": _stopped_node,
    "node just stopped": _just_stopped_node,
    "no NATS": _no_nats,
    "silent NATS": _silent_nats,
    "dead owner": _dead_owner,
    "stopped owner": _stopped_owner,
}

# What each call may end in, where that is known.
_ENDS: dict[str, dict[str, str]] = {
    "no node": {
        "get_with_fetch": "NotFound",
        "get_with_fetch from a": "NodeNotRunning",
        "get_with_timeout": "FetchTimeout",
        "sync": "NodeNotRunning",
        "prefetch": "NodeNotRunning",
        "nodes": "NodeNotRunning",
        "clear": "NodeNotRunning",
        "registry.lookup": "NodeNotRunning",
        "registry.get_all": "NodeNotRunning",
    },
    "stopped node": {
        "get_with_fetch": "NodeUnreachable",
        "get_with_fetch from a": "NodeUnreachable",
        "get_with_timeout": "FetchTimeout",
        "sync": "NodeUnreachable",
        "nodes": "NodeUnreachable",
        "clear": "NodeUnreachable",
        "registry.lookup": "NodeUnreachable",
    },
    "no NATS": {
        "get_with_fetch": "RegistryUnavailable",
        "get_with_timeout": "FetchTimeout",
        # All that was put before may have been registered by then.
        "sync": "RegistryUnavailable value",
        "nodes": "RegistryUnavailable",
        "clear": "RegistryUnavailable",
        "registry.lookup": "RegistryUnavailable",
        "registry.get_all": "RegistryUnavailable",
        "registry.register": "RegistryUnavailable",
        "registry.clear": "RegistryUnavailable",
    },
    "dead owner": {
        "get_with_fetch": "NodeUnreachable",
        "get_with_fetch from a": "NodeUnreachable",
        "get_with_timeout": "FetchTimeout",
        "sync": "value",
        "registry.lookup": "value",
        "registry.get_all": "value",
    },
    "stopped owner": {
        "get_with_fetch": "NodeUnreachable FetchTimeout",
        "get_with_fetch from a": "NodeUnreachable FetchTimeout",
        "get_with_timeout": "FetchTimeout",
        "sync": "value",
        "registry.lookup": "value",
    },
}


@contextmanager
def _ready(server: NatsServer, root: str, tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with ExitStack() as stack:
        a, b = stack.enter_context(hosts(server.url, root, tmp_path, "a", "b"))
        stack.callback(_going_on, server, a, b)
        a.store.put("dag", "id", "value", publish=True)
        b.store.put("own", "id", 1, publish=True)
        yield a, b


def _going_on(server: NatsServer, a: Host, b: Host) -> None:
    """Lets go on what was stopped, so that it can end."""
    for one in (a, b):
        if one.node.process.poll() is None:
            one.node.signal(signal.SIGCONT)
    try:
        server.resume()
    except AssertionError:
        pass  # it was killed


@pytest.mark.parametrize("state", _STATES)
def test_every_call_ends_in_time(server: NatsServer, root: str, tmp_path: Path, state: str) -> None:
    """In each state of things, each call and its async twin end as they must, and soon."""
    with _ready(server, root, tmp_path) as (a, b):
        _STATES[state](server, a, b)
        ended: dict[str, tuple[Any, float]] = {}

        def make(name: str) -> None:
            call, _ = _ALL[name]
            began = time.monotonic()
            with shmstore.Store(b.root) as store:
                try:
                    outcome: Any = call(store)
                except Exception as error:
                    outcome = error
                ended[name] = outcome, time.monotonic() - began

        # All at once, as most of them wait; those that bring the value after the others.
        threads = {name: threading.Thread(target=make, args=(name,)) for name in _ALL}
        for thread in threads.values():
            thread.start()
        for name, thread in threads.items():
            thread.join(120)
            assert not thread.is_alive(), f"{name} hangs"
        wrong = [
            f"{name}: {outcome!r} after {took_s:.1f} s"
            for name, (outcome, took_s) in ended.items()
            if not _is_right(state, name, outcome) or took_s > _ALL[name][1] + _SLACK_S
        ]
        assert not wrong, "\n".join(wrong)


def _is_right(state: str, name: str, outcome: Any) -> bool:
    if not isinstance(outcome, Exception):
        came = "value"
    elif not isinstance(outcome, (shmstore.NotFound, shmstore.RemoteError)):
        return False
    else:
        came = type(outcome).__name__
    if state == "all is well":
        return came == "value"
    must = _ENDS.get(state, {}).get(name.replace("_async", ""))
    return must is None or came in must.split()


@pytest.mark.parametrize("state", ["no NATS", "silent NATS"])
def test_a_timeout_names_what_was_missing(
    server: NatsServer, root: str, tmp_path: Path, state: str
) -> None:
    """Also where the time is over before NATS counts as gone for good, that is what is told."""
    with _ready(server, root, tmp_path) as (a, b):
        _STATES[state](server, a, b)
        until(lambda: not _connected(b), "the connection is lost")
        with pytest.raises(shmstore.FetchTimeout, match="no connection to NATS"):
            b.store.get_with_fetch("dag", "id", timeout=0.5)


def _connected(host: Host) -> bool:
    return bool(host.store._node.call("status", _TIMEOUT_S)["connected"])


@pytest.mark.parametrize("state", ["no node", "stopped node", "no NATS"])
def test_what_is_of_this_host_goes_on(
    server: NatsServer, root: str, tmp_path: Path, state: str
) -> None:
    """Remote calls for what is here do not need anybody, and neither does who waits for it."""
    with _ready(server, root, tmp_path) as (a, b):
        _STATES[state](server, a, b)
        assert b.store.get_with_fetch("own", "id") == 1
        assert b.store.get_with_timeout("own", "id") == 1
        assert dict(b.store.synchronize("own", ["id"])) == {"id": 1}
        assert asyncio.run(b.store.get_with_fetch_async("own", "id")) == 1
        got: list[Any] = []
        waiting = threading.Thread(
            target=lambda: got.append(b.store.get_with_timeout("own", "late", 60))
        )
        waiting.start()
        until(lambda: b.store._dags.manifests["own"].control[_deadline()], "it waits")
        b.store.put("own", "late", 2)
        waiting.join(60)
        assert got == [2]


def _deadline() -> int:
    from shmstore.record import WAIT_DEADLINE

    return WAIT_DEADLINE
