"""Two hosts on networks that fail: namespaces joined by veth, and the same on loopback."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmstore.errors import NotFound, RemoteError
from tests.cluster.networks import (
    INWARD,
    OUTWARD,
    Host,
    Loopback,
    Namespaces,
    Network,
    Unavailable,
    until,
)

MIB = 1 << 20
LONG = bool(os.environ.get("SHMSTORE_LONG_TESTS"))
#: What a call may take beyond the time that it was given, seconds.
OVERDUE_S = 1.0
#: What a local put and get may take on a busy machine, seconds.
LOCAL_S = 2.0


@pytest.fixture(params=[Loopback, Namespaces], ids=["loopback", "namespaces"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    """A network of each kind."""
    yield from _built(request.param(tmp_path))


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Namespaces]:
    """A real one."""
    yield from _built(Namespaces(tmp_path))


def _built(network: Any) -> Iterator[Any]:
    entering = network.built()
    try:
        made = entering.__enter__()
    except Unavailable as why:
        pytest.skip(str(why))
    try:
        yield made
    finally:
        entering.__exit__(None, None, None)


def test_what_is_put_on_one_host_is_had_on_the_other(network: Network, root: str) -> None:
    """Fetching, waiting, refreshing and clearing everywhere work between two hosts."""
    with network.hosts(root) as (a, b):
        table = np.arange(1_000_000)
        a.store.put("etl", "table", table)
        a.store.sync()
        assert (b.store.get_with_fetch("etl", "table") == table).all()
        assert b.store.entry("etl", "table").origin == "a"
        sent = network.sent("a")
        assert (b.store.get_with_fetch("etl", "table") == table).all()
        assert network.sent("a") - sent < MIB

        with ThreadPoolExecutor() as threads:
            late = threads.submit(b.store.get_with_timeout, "etl", "late", 30.0)
            a.store.put("etl", "late", "now")
            assert late.result() == "now"
        b.store.put("etl", "of-b", 1)
        b.store.sync()
        assert a.store.registry.get_all("etl") == {"table": "a", "late": "a", "of-b": "b"}
        assert sorted(one.node for one in a.store.nodes()) == ["a", "b"]

        report = b.store.clear("etl", all_nodes=True)
        assert (report.cleared, report.unreachable) == (True, ())
        assert not list(a.store.ids("etl")) and not list(b.store.ids("etl"))
        with pytest.raises(NotFound):
            b.store.get_with_fetch("etl", "table")


# --- Cuts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut_s",
    [
        2.0,
        10.0,
        pytest.param(60.0, marks=pytest.mark.skipif(not LONG, reason="set SHMSTORE_LONG_TESTS")),
    ],
)
def test_a_host_that_was_cut_off_misses_nothing(network: Network, root: str, cut_s: float) -> None:
    """Every call ends in time; local ones go on; afterwards all is whole and obeyed by itself."""
    if cut_s == 10.0 and isinstance(network, Loopback) and not LONG:
        pytest.skip("the same on real networks is enough; SHMSTORE_LONG_TESTS runs both")
    with network.hosts(root) as (a, b), ThreadPoolExecutor(64) as threads:
        both = (a, b)
        whole = {}
        for host in both:
            for number in range(50):
                host.store.put("dag", f"{host.name}{number}", [host.name, number])
                whole[f"{host.name}{number}"] = host.name
            host.store.put("doomed", f"of-{host.name}", 1)
            host.store.sync()
        big = np.arange(4 * MIB)
        a.store.put("dag", "big", big)
        a.store.sync()
        network.narrow("a", 20e6)
        fetching = threads.submit(b.store.get_with_fetch, "dag", "big", timeout=cut_s + 60)
        sent = network.sent("a")
        until(lambda: network.sent("a") > sent + MIB, "the fetch is under way")

        network.cut("a")
        heal_at = time.monotonic() + cut_s
        locally = [threads.submit(_use_locally, host, heal_at) for host in both]
        clearing = threads.submit(b.store.clear, "doomed", all_nodes=True)
        patient = [
            threads.submit(host.store.get_with_timeout, "dag", f"{other}-meanwhile", cut_s + 60)
            for host, other in ((a, "b"), (b, "a"))
        ]
        asked = []
        for number, timeout_s in enumerate((0.5, 1.5, cut_s)):
            asked += _ask_all(threads, both, number, timeout_s)
        for host in both:
            host.store.put("dag", f"{host.name}-meanwhile", host.name)
        _wait_until(heal_at)
        network.heal("a")
        healed = time.monotonic()

        whole |= {"big": "a", "a-meanwhile": "a", "b-meanwhile": "b"}
        whole |= {f"local-{host.name}-{n}": host.name for host, n in _counts(locally, both)}
        for host in both:
            until(lambda host=host: _registered(host) == whole, f"{host.name} knows of all")
        until(lambda: not list(a.store.ids("doomed")), "the clearing is obeyed")
        print(f"cut for {cut_s:g} s: whole {time.monotonic() - healed:.1f} s after")
        assert [one.result() for one in patient] == ["b", "a"]
        report = clearing.result()
        assert report.cleared and report.unreachable in ((), ("a",))
        assert not list(b.store.ids("doomed"))
        for host, other in ((a, "b"), (b, "a")):
            assert host.store.get_with_fetch("dag", f"{other}49") == [other, 49]
        try:
            assert (fetching.result() == big).all()
        except RemoteError:
            assert (b.store.get_with_fetch("dag", "big") == big).all()
        for one in asked:
            print(one.result())
        for host in both:
            host.store.gc()
            assert host.store.check() == []


def _use_locally(host: Host, until_at: float) -> int:
    """Puts and gets as a worker of the host; returns how many. None of them takes long."""
    number = 0
    while time.monotonic() < until_at:
        began = time.monotonic()
        host.store.put("dag", f"local-{host.name}-{number}", number)
        assert host.store.get("dag", f"local-{host.name}-{number}") == number
        assert time.monotonic() - began < LOCAL_S
        number += 1
        _wait_until(began + 0.01)
    return number


def _counts(locally: list[Future[int]], hosts: tuple[Host, Host]) -> Iterator[tuple[Host, int]]:
    for host, done in zip(hosts, locally, strict=True):
        yield from ((host, number) for number in range(done.result()))


def _registered(host: Host) -> dict[str, str] | None:
    try:
        return host.store.registry.get_all("dag")
    except RemoteError:
        return None


def _wait_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _ask_all(
    threads: ThreadPoolExecutor, hosts: tuple[Host, ...], round: int, timeout_s: float
) -> list[Future[str]]:
    """Makes every remote call on both hosts; each must end well, and in its time."""
    asked = []
    for host in hosts:
        (other,) = {one.name for one in hosts} - {host.name}
        ids = iter([f"{other}{round * 10 + number}" for number in range(10)])
        store = host.store

        def ask(call: Callable[..., Any], *args: Any, at: Host = host, **more: Any) -> None:
            asked.append(threads.submit(_in_time, at, call, args, more, timeout_s))

        ask(store.get_with_fetch, next(ids))
        ask(store.get_with_fetch, "none")
        ask(store.get_with_fetch, next(ids), from_node=other)
        ask(store.fetch_remote, next(ids))
        ask(store.get_with_timeout, next(ids))
        ask(store.get_with_timeout, "none")
        ask(store.synchronize, [next(ids), "none"])
        ask(store.sync)
        ask(store.registry.lookup, "none")
        ask(store.registry.register, "kept", "elsewhere")
        ask(store.registry.get_all)
        ask(store.nodes)
    return asked


#: How long the calls may take that are not given a time, seconds.
OWN_TIMES_S = {"lookup": 10.0, "register": 10.0, "nodes": 10.0, "get_all": 30.0}


def _in_time(
    host: Host, call: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any], given: float
) -> str:
    name = call.__name__
    if name not in ("sync", "nodes"):
        args = ("files" if name == "register" else "dag", *args)
    if name not in OWN_TIMES_S:
        more = {**more, "timeout": given}
    limit_s = OWN_TIMES_S.get(name, given) + OVERDUE_S
    began = time.monotonic()
    try:
        found = call(*args, **more)
    except (NotFound, RemoteError) as error:
        outcome = f"{type(error).__name__}: {error}"
    else:
        outcome = "a value"
        if name in ("get_with_fetch", "fetch_remote", "get_with_timeout"):
            assert found[0] == args[1][0]
        if name == "synchronize":
            assert set(found) | set(found.errors) == set(args[1])
            assert all(isinstance(one, (NotFound, RemoteError)) for one in found.errors.values())
            outcome = f"{dict(found)}, {found.errors}"
    took_s = time.monotonic() - began
    told = f"{host.name}: {name}{args} of {given:g} s took {took_s:.2f} s: {outcome}"
    assert took_s < limit_s, told
    return told


@pytest.mark.parametrize("lost", [INWARD, OUTWARD])
def test_a_line_that_is_cut_one_way_ends_no_call_late(
    network: Network, root: str, lost: str
) -> None:
    """Where only the packets of one direction are lost, every call ends in time, and mends."""
    with network.hosts(root) as (a, b), ThreadPoolExecutor(64) as threads:
        for host in (a, b):
            for number in range(30):
                host.store.put("dag", f"{host.name}{number}", [host.name, number])
            host.store.sync()
        network.cut("a", lost)
        for host in (a, b):
            host.store.put("dag", f"{host.name}-meanwhile", host.name)
        asked = _ask_all(threads, (a, b), 0, 0.5) + _ask_all(threads, (a, b), 1, 2.5)
        for one in asked:
            print(one.result())
        network.heal("a")
        for host, other in ((a, "b"), (b, "a")):
            assert host.store.get_with_timeout("dag", f"{other}-meanwhile", 60.0) == other
            host.store.sync()
            assert len(host.store.registry.get_all("dag")) == 62
            assert host.store.check() == []


# --- Slow lines --------------------------------------------------------------------------------


def test_a_long_and_lossy_line_only_takes_longer(network: Network, root: str) -> None:
    """With 50 ms either way and 5 % of the packets lost, everything works, 16 MiB come right."""
    try:
        network.lengthen("a", 0.05, 0.05)
    except Unavailable as why:
        pytest.skip(str(why))
    big = np.random.default_rng(1).integers(0, 256, 16 * MIB, dtype=np.uint8)
    with network.hosts(root) as (a, b):
        a.store.put("dag", "small", "of a")
        a.store.put("dag", "big", big)
        b.store.put("dag", "of-b", "of b")
        for host in (a, b):
            host.store.sync()
        assert a.store.get_with_fetch("dag", "of-b") == "of b"
        assert b.store.get_with_fetch("dag", "small") == "of a"
        began = time.monotonic()
        assert (b.store.get_with_fetch("dag", "big", timeout=90) == big).all()
        print(f"16 MiB in {time.monotonic() - began:.1f} s, {network.sent('a'):,} bytes sent")
        assert network.sent("a") < 1.5 * big.nbytes
        report = a.store.clear("dag", all_nodes=True)
        assert (report.cleared, report.unreachable) == (True, ())
        assert not list(b.store.ids("dag"))


def test_a_narrow_line_is_enough(network: Network, root: str) -> None:
    """A value that takes many seconds at 250 kB/s comes, and most of it only once."""
    with network.hosts(root) as (a, b):
        big = np.random.default_rng(1).integers(0, 256, 3 * MIB, dtype=np.uint8)
        a.store.put("dag", "big", big)
        a.store.sync()
        network.narrow("a", 250e3)
        began = time.monotonic()
        assert (b.store.get_with_fetch("dag", "big", timeout=90) == big).all()
        print(f"3 MiB in {time.monotonic() - began:.1f} s, {network.sent('a'):,} bytes sent")
        assert network.sent("a") < 1.5 * big.nbytes
