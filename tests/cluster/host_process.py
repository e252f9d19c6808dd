"""A host in a process of its own: ``python -m tests.cluster.host_process WHAT URL ROOT NAME``.

``serve`` gives out what is in its store until it is killed; ``fetch-and-die`` fetches the value
"id" from node "a" and kills itself at the first piece that comes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import host

_CHECKOUT = Path(__file__).parents[2]


@contextmanager
def started(what: str, url: str, root: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """Starts one, and returns when it says that it is ready; kills it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.host_process", what, url, root, name],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


async def _run(what: str, url: str, root: str, name: str) -> None:
    async with host(url, root, name) as one:
        print("ready", flush=True)
        if what == "serve":
            await asyncio.Event().wait()
        assert what == "fetch-and-die"
        await one.fetch("a", "id", progress=_die)


def _die(done: int, total: int) -> None:
    if 0 < done < total:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
