"""Two hosts on networks that fail: namespaces joined by veth, and the same on loopback."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmstore.errors import NodeUnreachable, NotFound, RemoteError
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


def _once(network: Network) -> None:
    """Skips what takes long on loopback if it is tested on real networks, too."""
    if isinstance(network, Loopback) and os.geteuid() == 0 and not LONG:
        pytest.skip("it is run on real networks; SHMSTORE_LONG_TESTS=1 runs both")


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
    if cut_s == 10.0:
        _once(network)
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
    _once(network)
    with network.hosts(root) as (a, b), ThreadPoolExecutor(64) as threads:
        for host in (a, b):
            for number in range(30):
                host.store.put("dag", f"{host.name}{number}", [host.name, number])
            host.store.sync()
        network.cut("a", lost)
        for host in (a, b):
            host.store.put("dag", f"{host.name}-meanwhile", host.name)
        heal_at = time.monotonic() + 3.0
        asked = _ask_all(threads, (a, b), 0, 0.5) + _ask_all(threads, (a, b), 1, 2.5)
        _wait_until(heal_at)
        network.heal("a")
        for one in asked:
            print(one.result())
        for host, other in ((a, "b"), (b, "a")):
            assert host.store.get_with_timeout("dag", f"{other}-meanwhile", 60.0) == other
            host.store.sync()
            assert len(host.store.registry.get_all("dag")) == 62
            assert host.store.check() == []


# --- Slow lines --------------------------------------------------------------------------------


def test_a_long_and_lossy_line_only_takes_longer(network: Network, root: str) -> None:
    """With 50 ms either way and 5 % of the packets lost, everything works, 16 MiB come right."""
    _once(network)
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
    _once(network)
    with network.hosts(root) as (a, b):
        big = np.random.default_rng(1).integers(0, 256, 2 * MIB, dtype=np.uint8)
        a.store.put("dag", "big", big)
        a.store.sync()
        network.narrow("a", 250e3)
        began = time.monotonic()
        assert (b.store.get_with_fetch("dag", "big", timeout=90) == big).all()
        print(f"2 MiB in {time.monotonic() - began:.1f} s, {network.sent('a'):,} bytes sent")
        assert network.sent("a") < 1.5 * big.nbytes


# --- Servers that move, hosts that are gone ---------------------------------------------------


def test_a_server_that_moves_is_found_at_its_other_address(
    namespaces: Namespaces, root: str
) -> None:
    """Nodes that were given two addresses go on by themselves when the server is at the other."""
    server, (here, there) = namespaces.server, Namespaces.ADDRESSES
    urls = f"nats://{here}:{server.port},nats://{there}:{server.port}"
    with _two(namespaces, root, urls) as (a, b):
        _still_works(a, b, "before")
        server.kill()
        a.store.put("dag", "meanwhile", 1)
        server.host = there
        server.start()
        assert b.store.get_with_timeout("dag", "meanwhile", 60.0) == 1
        _still_works(a, b, "after")


def test_a_name_that_means_another_address_is_followed(namespaces: Namespaces, root: str) -> None:
    """Nodes that were given a name look it up again when the server is gone from where it was."""
    server, (here, there) = namespaces.server, Namespaces.ADDRESSES
    for name in namespaces.names:
        namespaces.name_server(name, "nats.test", here)
    with _two(namespaces, root, f"nats://nats.test:{server.port}") as (a, b):
        _still_works(a, b, "before")
        server.kill()
        a.store.put("dag", "meanwhile", 1)
        server.host = there
        server.start()
        for name in namespaces.names:
            namespaces.name_server(name, "nats.test", there)
        assert b.store.get_with_timeout("dag", "meanwhile", 60.0) == 1
        _still_works(a, b, "after")


@contextmanager
def _two(network: Network, root: str, url: str) -> Iterator[tuple[Host, Host]]:
    with (
        network.host("a", os.path.join(root, "a"), url=url) as a,
        network.host("b", os.path.join(root, "b"), url=url) as b,
    ):
        yield a.serves(), b.serves()


def _still_works(a: Host, b: Host, id: str) -> None:
    a.store.put("dag", id, id)
    a.store.sync(60.0)
    assert b.store.get_with_fetch("dag", id) == id
    assert b.store.registry.lookup("dag", id) == "a"


def test_an_owner_that_is_cut_off_in_the_middle_leaves_nothing(network: Network, root: str) -> None:
    """A fetch whose owner is gone for good ends by that name, and nothing of the value is left."""
    _once(network)
    with network.hosts(root) as (a, b), ThreadPoolExecutor() as threads:
        big = np.arange(2 * MIB)
        a.store.put("dag", "big", big)
        b.store.put("dag", "own", 1)
        a.store.sync()
        before = _segments(b)
        network.narrow("a", 10e6)
        sent = network.sent("a")
        fetching = threads.submit(b.store.get_with_fetch, "dag", "big", timeout=30.0)
        until(lambda: network.sent("a") > sent + 4 * MIB, "the fetch is under way")
        assert not fetching.done()
        network.cut("a")
        cut_at = time.monotonic()
        with pytest.raises(NodeUnreachable, match="'a'"):
            fetching.result()
        assert time.monotonic() - cut_at < 10.0
        b.store.gc()
        assert _segments(b) == before
        assert b.store.check() == []
        assert list(b.store.ids("dag")) == ["own"]
        network.narrow("a", 1e8)
        network.heal("a")
        until(lambda: a.status()["connected"], "a is back")
        assert (b.store.get_with_fetch("dag", "big", timeout=60.0) == big).all()


def _segments(host: Host) -> dict[str, int]:
    """The files that take more room than some records do, by name."""
    sizes = {str(path): path.stat().st_blocks * 512 for path in Path(host.root).rglob("*")}
    return {path: size for path, size in sizes.items() if size >= MIB}


def test_a_name_is_kept_through_a_short_cut_and_lost_by_a_long_one(
    namespaces: Namespaces, root: str
) -> None:
    """Of two nodes of one name, the second is refused while the first's claim holds.

    Afterwards the second has it, and the first ends with a sentence when it is back.
    """
    with namespaces.hosts(root) as (a, b), ExitStack() as stack:
        _still_works(a, b, "before")
        namespaces.cut("a")
        number = 0

        def another() -> Host:
            nonlocal number
            number += 1
            place = os.path.join(root, f"twin{number}")
            return stack.enter_context(namespaces.host("a", place, at="b"))

        early = another()
        assert early.ends() == 1
        assert "The name 'a' belongs to another node" in early.said
        # NATS forgets a claim of its own accord.
        until(lambda: [one.node for one in b.store.nodes()] == ["b"], "the claim is forgotten")
        twin = another().serves()
        twin.store.put("dag", "before", "the twin's")
        twin.store.sync()
        namespaces.heal("a")
        assert a.ends() == 1
        assert "The name 'a' belongs to another node" in a.said
        assert b.store.fetch_remote("dag", "before", from_node="a") == "the twin's"
        assert a.store.get("dag", "before") == "before"
