"""Figures in a file, for the node exporter's textfile collector: written whole, again and again."""

from __future__ import annotations

import asyncio
import logging

from shmstore.errors import StoreError
from shmstore.inspection import metrics
from shmstore.inspection.snapshot import Snapshot
from shmstore.whole import write_whole

_EVERY_S = 15.0

_log = logging.getLogger("shmstore.node")


async def keep_written(root: str, namespace: str, path: str) -> None:
    """Writes the figures of a namespace until it is cancelled; a failure is logged, once in a row.

    In a thread, so that the node goes on meanwhile.
    """
    failed = False
    while True:
        try:
            await asyncio.to_thread(_write, root, namespace, path)
            failed = False
        except (OSError, StoreError) as error:
            if not failed:
                _log.warning("the figures cannot be written to %s: %s", path, error)
            failed = True
        await asyncio.sleep(_EVERY_S)


def _write(root: str, namespace: str, path: str) -> None:
    text = "\n".join(metrics.lines(Snapshot(root, namespace))) + "\n"
    write_whole(path, lambda out: out.write(text.encode()))
