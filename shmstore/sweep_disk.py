"""What a sweep frees outside the DAGs' directories: on disk, and notes of the dead.

The generations that have a directory on disk are listed before the DAGs are looked at:
one that has, and no living DAG, belongs to a DAG that is gone, as no generation comes
twice. The files of a living DAG are judged as its segments in shared memory are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from shmstore import files, lookup, names, spill, survey
from shmstore.descriptor import Descriptor
from shmstore.errors import StoreBusy, StoreError, UnusableRoot
from shmstore.index import IndexDamagedError
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.report import GcAction
from shmstore.sweep import Order, guarded


def spilled(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Frees spilled segments of no live value, and what was spilled of DAGs that are gone."""
    yield from guarded(None, names.SPILL, lambda: [*_spilled(space, order)])


def _spilled(space: Namespace, order: Order) -> Iterator[GcAction]:
    at = spill.place(space)
    listed = spill.generations(space)
    if at is None or not listed:
        return
    living: dict[int, Manifest] = {}
    for _, opened in lookup.every_dag(space):
        if order.over or isinstance(opened, StoreError):
            return  # whose files are on disk cannot be told
        living[opened.generation] = opened
    for generation in listed:
        if order.over:
            return
        name = f"{names.SPILL}/{names.generation_name(generation)}"
        manifest = living.get(generation)
        if manifest is not None:
            yield from guarded(manifest.dag_id, name, partial(_of_living, manifest, name, order))
            continue
        nbytes = _size(os.path.join(at, names.generation_name(generation)))
        failed = None if order.dry_run else spill.remove_generation(space, generation)
        if failed is None:
            yield GcAction("spilled", None, name, nbytes, "its DAG was cleared")
        else:
            yield GcAction("failed", None, name, 0, str(failed))


def _of_living(manifest: Manifest, path: str, order: Order) -> list[GcAction]:
    try:
        directory = spill.dag_directory(manifest)
    except UnusableRoot:
        if manifest.generation in spill.generations(manifest.space):
            raise
        return []  # another directory was chosen meanwhile
    found = {names.parse_spilled_name(name): name for name in files.listed(directory)}
    found.pop(None, None)
    if not found:
        return []
    seen = manifest.guarded(survey.moment, manifest, not order.dry_run)
    try:
        try:
            _, live = survey.live_segments(seen)
        except IndexDamagedError:
            seen = seen.by_log()
            _, live = survey.live_segments(seen)
    except FileNotFoundError:
        raise Superseded from None  # its files were replaced meanwhile: the next sweep looks
    needed = set(live.tolist())
    dead = sorted(name for number, name in found.items() if number not in needed)
    if dead and not survey.records_sound(seen):
        return []  # which are needed cannot be told; check says why
    why = "no value needs it; the writer that moved or replaced its value died"
    return [
        GcAction(
            "orphan",
            manifest.dag_id,
            f"{path}/{name}",
            _free(directory, name, order.dry_run),
            why,
        )
        for name in dead
    ]


def _free(directory: Descriptor, name: str, dry_run: bool) -> int:
    nbytes = files.allocated(directory, name)
    return nbytes if dry_run or files.unlink(directory, name) else 0


def _size(path: str) -> int:
    try:
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(path))
    except FileNotFoundError:
        return 0


def notes(space: Namespace, order: Order) -> Iterator[GcAction]:
    """Removes what dead processes had noted as reserved."""
    try:
        dead = space.ledger.notes_of_the_dead(order.dry_run)
    except StoreBusy:
        if order.patience_s is None:
            raise
        return  # whoever is at it will be done before the next sweep
    for name, nbytes in dead:
        yield GcAction("note", None, f"{names.RESERVATIONS}/{name}", nbytes, "its process died")
