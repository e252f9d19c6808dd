"""The commands about other hosts, run for real: nodes, where, fetch, clear, doctor."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from shmstore.demo.server import NatsServer
from tests.cluster.running import DEADLINE_S, command, environment, hosts, node, until


def call(root: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(*words), "--root", root],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def test_a_value_is_found_and_brought_and_cleared_everywhere(
    server: NatsServer, root: str, tmp_path: Path
) -> None:
    """Where says who has it, fetch brings it, nodes lists both, clear --all-nodes ends it."""
    with hosts(server.url, root, tmp_path, "a", "b") as (a, b):
        a.store.put("d", "v", np.arange(100_000), publish=True)
        told = json.loads(call(b.root, "where", "d", "v", "--json").stdout)
        assert (told["node"], told["here"]) == ("a", False)
        done = call(b.root, "fetch", "d", "v", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["origin"] == "a"
        assert call(b.root, "where", "d", "v").stdout == "a  (and on this host)\n"
        found = json.loads(call(b.root, "nodes", "--json").stdout)["nodes"]
        assert {one["node"] for one in found} == {"a", "b"}
        for words in (["where", "d", "none"], ["fetch", "d", "none"]):
            done = call(b.root, *words)
            assert done.returncode == 3, done.stderr
            assert "'none'" in done.stderr
        done = call(b.root, "clear", "d", "--all-nodes")
        assert done.returncode == 2
        assert a.store.has_value("d", "v")
        done = call(b.root, "clear", "d", "--all-nodes", "--force")
        assert done.returncode == 0, done.stderr
        assert not a.store.has_value("d", "v")
        assert call(b.root, "doctor", "--nats", server.url).returncode == 0
        server.stop()
        done = call(b.root, "where", "d", "v")
        assert done.returncode == 4, done.stderr
        done = call(b.root, "doctor", "--nats", server.url)
        assert done.returncode == 1
        assert "cannot be reached" in done.stdout


def test_without_a_node_the_commands_say_so(root: str) -> None:
    """Exit code 4, and how one is started."""
    import shmstore

    shmstore.Store(root).put("d", "v", 1)
    for words in (["nodes"], ["where", "d", "v"], ["fetch", "d", "none", "--from", "x"]):
        done = call(root, *words)
        assert done.returncode == 4, (words, done.stderr)
        assert "shmstore node --nats" in done.stderr


def test_a_node_writes_figures_for_prometheus(
    server: NatsServer, root: str, tmp_path: Path
) -> None:
    """The file appears whole while it serves; a place that cannot be written is no end of it."""
    import shmstore

    shmstore.Store(root).put("d", "v", 1)
    path = tmp_path / "figures" / "shmstore.prom"
    with node(root, tmp_path, server.url, "a", "--textfile", str(path)) as running:
        running.says("cannot be written")
        assert call(root, "node", "status").returncode == 0
    path.parent.mkdir()
    with node(root, tmp_path, server.url, "a", "--textfile", str(path)) as running:
        until(path.exists, "the file is written")
        assert 'shmstore_dag_values{namespace="default",dag="d"} 1' in path.read_text()
        assert "shmstore_node_beat_age_seconds" in path.read_text()
        assert [one.name for one in path.parent.iterdir()] == ["shmstore.prom"]
