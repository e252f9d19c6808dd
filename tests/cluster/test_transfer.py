"""What is fetched from another host is what is stored there."""

from __future__ import annotations

import asyncio
import datetime
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from shmstore import errors
from shmstore.demo.server import NatsServer
from shmstore.node import leases
from shmstore.node.landing import Original
from shmstore.record import UNTRUSTED
from tests import reading_files
from tests.cluster.credentials import Certificates
from tests.cluster.hosts import Host, host, hosts

_MIB = 1 << 20
_LARGE = np.random.default_rng(7).random(5 * _MIB // 8 + 3)


def _table(rows: int) -> pa.Table:
    return pa.table({"n": range(rows), "text": [f"row {n}" for n in range(rows)]})


#: Small and large values of every codec.
VALUES: dict[str, Any] = {
    "none": None,
    "dict": {"a": [1, 2.5, "x"]},
    "empty": b"",
    "bytes": bytes(range(256)) * 4,
    "large bytes": _LARGE.tobytes(),
    "text": "äöü" * 500_000,
    "small array": np.arange(10),
    "array": _LARGE,
    "fortran": np.asfortranarray(np.arange(300_000.0).reshape(300, 1000)),
    "no rows": np.empty((0, 3)),
    "pickle": {"when": datetime.datetime(2020, 1, 2), "data": [_LARGE, _LARGE[:100]]},
    "dill": lambda x: x + 1,
    "arrow": _table(200_000),
    "small arrow": _table(3),
    "wide arrow": pa.table({f"column {n}": [n] for n in range(3000)}),
    "polars": pl.DataFrame({"n": range(100_000)}),
    "pandas": pd.DataFrame({"n": range(100_000), "t": ["x"] * 100_000}),
    "small pandas": pd.Series([1, 2, 3]),
}


def _same(one: Host, other: Host, id: str) -> None:
    """The value, read from the files of both hosts, is the same but for where it came from."""
    stored = reading_files.read(one.root, "dag").records[id]
    copy = reading_files.read(other.root, "dag").records[id]
    assert (copy.codec, copy.nbytes) == (stored.codec, stored.nbytes)
    assert copy.flags == UNTRUSTED
    assert copy.payload == stored.payload
    assert (copy.segment is None) == (stored.segment is None)
    assert bytes(other.store.get_buffer("dag", id)) == bytes(one.store.get_buffer("dag", id))
    expected, entry = one.store.entry("dag", id), other.store.entry("dag", id)
    assert entry == expected._replace(origin=one.name, location=entry.location)


@pytest.mark.parametrize("max_payload", [64 << 10, _MIB, 8 * _MIB])
def test_every_codec_comes_across(root: str, tmp_path: Path, max_payload: int) -> None:
    """Small and large values of every codec arrive with the same bytes and entry."""

    async def run(url: str) -> None:
        async with hosts(url, root, "a", "b") as (a, b):
            for id, value in VALUES.items():
                a.store.put("dag", id, value, deps=["x", "y" * 1000])
                fetched = await b.fetch("a", id)
                sent = len(fetched.record.meta) - len(a.name)  # where it comes from is added here
                assert fetched.nbytes == fetched.record.nbytes + sent
                _same(a, b, id)
                assert not b.store.check()

    with NatsServer(tmp_path, config=f"max_payload: {max_payload}") as server:
        asyncio.run(run(server.url))
    reading_files.check(f"{root}/b")


def test_a_large_value_goes_out_once_and_without_copies(
    server: NatsServer, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's socket gets the mapped pages, and its checksum sees them as they go."""
    direct, summed = 0, []
    write, total = asyncio.StreamWriter.write, leases.Lease.sum

    def written(self: asyncio.StreamWriter, data: bytes | memoryview) -> None:
        nonlocal direct
        if isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap):
            direct += len(data)
        write(self, data)

    def whole(self: leases.Lease) -> str:
        summed.append((self._summed, self.total))
        return total(self)

    async def scenario() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            a.store.put("dag", "large", _LARGE)
            await b.fetch("a", "large")
            assert direct == _LARGE.nbytes
            ((so_far, whole_size),) = summed
            assert so_far == whole_size > _LARGE.nbytes

    monkeypatch.setattr(asyncio.StreamWriter, "write", written)
    monkeypatch.setattr(leases.Lease, "sum", whole)
    asyncio.run(scenario())


def test_what_the_node_does_not_have_is_not_found(server: NatsServer, root: str) -> None:
    """A value, or a DAG, that the node does not have is NotFound, and makes no DAG here."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            with pytest.raises(errors.NotFound):
                await b.fetch("a", "missing")
            a.store.put("dag", "there", 1)
            with pytest.raises(errors.NotFound):
                await b.fetch("a", "missing")
            assert not b.store.dags()

    asyncio.run(run())


def test_a_value_of_this_host_stays(server: NatsServer, root: str) -> None:
    """What is fetched never replaces a value that was stored on this host."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            for value in (1, _LARGE):
                a.store.put("dag", "id", value)
                b.store.put("dag", "id", "mine")
                with pytest.raises(Original):
                    await b.fetch("a", "id")
                assert b.store.get("dag", "id") == "mine"

    asyncio.run(run())


def test_a_copy_is_refreshed(server: NatsServer, root: str) -> None:
    """A copy is replaced by what its origin has now, whatever the sizes."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            for value in (1, _LARGE, _LARGE[:100_000], "two"):
                a.store.put("dag", "id", value)
                await b.fetch("a", "id")
                _same(a, b, "id")

    asyncio.run(run())
    reading_files.check(f"{root}/b")


def test_hostile_ids_come_across(server: NatsServer, root: str) -> None:
    """Ids and dag_ids of any characters and lengths do."""

    async def run() -> None:
        async with hosts(server.url, root, "a", "b") as (a, b):
            for id in ("a.b", "*", ">", " ", "\n\r\n", "..", "/etc", "\0", "😀" * 256, "=x"):
                a.store.put(id, id, id)
                await b.fetch("a", id, dag_id=id)
                assert bytes(b.store.get_buffer(id, id)) == bytes(a.store.get_buffer(id, id))

    asyncio.run(run())


def test_large_values_come_by_tls_straight_into_their_buffers(root: str, tmp_path: Path) -> None:
    """Also encrypted, large pieces are received into memory that is lent, and used again."""
    certificates = Certificates.make(tmp_path / "certificates")
    env = {"SHMSTORE_NATS_CA": certificates.path("authority")}

    async def run(url: str) -> None:
        async with (
            host(url, root, "a", env=env) as a,
            host(url, root, "b", env=env) as b,
        ):
            a.store.put("dag", "id", _LARGE)
            await b.fetch("a", "id")
            _same(a, b, "id")
            assert 1 <= len(b.connection._large._kept) < 5

    with NatsServer(tmp_path / "nats", config=certificates.config()) as server:
        asyncio.run(run(f"tls://{server.address}"))
