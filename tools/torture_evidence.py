"""What a store looks like at the moment at which a value of it cannot be read.

Taken by the process that found it, at once and by the files alone: by the time that
somebody else looks, others have gone on.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import shmstore
from tests import reading_files


def told(error: BaseException, store: shmstore.Store) -> str:
    """The traceback of an error; with the state of the DAG, if that is said to be damaged."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, shmstore.CorruptValue) or error.dag_id is None:
        return text
    try:
        return text + "\n".join(_state(store, error.dag_id, error.id))
    except Exception:
        return f"{text}its state cannot be told: {traceback.format_exc()}"


def _state(store: shmstore.Store, dag_id: str, id: str | None) -> list[str]:
    path = Path(store.root) / "default" / "dags" / dag_id
    lines = [f"the files of {path}, which others may be changing:", *_files(path, id)]
    manifest = store._dags.manifests.get(dag_id)
    if manifest is None:
        return [*lines, "this process has it not open"]
    directory = manifest.directory
    place = path.stat().st_ino if path.exists() else None
    lines += [
        f"as this process has it open: generation {manifest.generation:032x}, "
        f"directory {directory.inode} with {os.fstat(directory.fd).st_nlink} links, "
        f"at its place is {place}",
        *_files(Path(f"/proc/self/fd/{directory.fd}"), id),
    ]
    spill = Path(store.root) / "default" / "spill"
    for name in ("", f"{manifest.generation:032x}"):
        listed = sorted(os.listdir(spill / name)) if (spill / name).exists() else "is not there"
        lines.append(f"    {spill / name}: {listed}")
    return lines


def _files(path: Path, id: str | None) -> list[str]:
    try:
        names = sorted(os.listdir(path))
        dag = reading_files.read_dag(path)
    except FileNotFoundError as error:
        return [f"    {error}"]
    lines = [
        f"    {names}",
        f"    state {dag.state!r}, generation {dag.generation.hex()}, log {dag.log_number}, "
        f"index {dag.index_number}, counter {dag.counter}, tail {dag.tail}, "
        f"indexed {dag.indexed}, faults {dag.faults}",
    ]
    lines += [
        f"    {one.offset}: op {one.op}, flags {one.flags}, {one.nbytes} bytes in {one.segment}"
        for one in dag.history
        if one.key == id
    ]
    return lines
