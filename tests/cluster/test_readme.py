"""The README's example of two hosts, run as it stands, on two roots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import shmstore
from shmstore.demo.server import NatsServer
from shmstore.node.client import NodeClient
from tests.cluster.nodes import DEADLINE_S

CHECKOUT = Path(__file__).parents[2]


def node_of(root: str) -> int:
    """The process of the node that the example has started."""
    with shmstore.Store(root) as store:
        return int(NodeClient(store._dags.space, None).call("status", DEADLINE_S)["pid"])


def test_the_example_of_two_hosts(root: str, server: NatsServer) -> None:
    """What one half puts on its host the other gets on its own; nodes are started by themselves."""
    (example,) = re.findall(r"```py\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    example = example.replace("nats://nats.example.com", server.url)
    half, other = example.split("\n\n")
    assert "later" in other
    begin = "import numpy, shmstore\nprices = numpy.arange(1e6)\n"
    halves = {
        "a": f"{begin}{half}\nstore.put('etl', 'later', 'now')",
        "b": f"{begin}assert not shmstore.Store().has_value('etl', 'prices')\n{other}\n"
        "print(store.get('etl', 'prices').sum(), store.get('etl', 'later'))\n"
        "print(store.entry('etl', 'prices').origin)",
    }
    nodes = []
    try:
        for name, code in halves.items():
            place = {"SHMSTORE_ROOT": str(Path(root) / name), "SHMSTORE_NODE": name}
            done = subprocess.run(
                [sys.executable, "-c", code],
                check=False,
                capture_output=True,
                text=True,
                timeout=2 * DEADLINE_S,
                cwd=CHECKOUT,
                env=os.environ | place | {"PYTHONPATH": str(CHECKOUT)},
            )
            assert (done.returncode, done.stderr) == (0, "")
            nodes.append(os.pidfd_open(node_of(place["SHMSTORE_ROOT"])))
        assert done.stdout == "499999500000.0 now\na\n"
    finally:
        for fd in nodes:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
