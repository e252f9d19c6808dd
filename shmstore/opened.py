"""The DAGs that a store has open, and trying again when one was cleared meanwhile."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any, TypeVar

from shmstore import creating, doorbell, expiry, lookup, names, upkeep
from shmstore.codecs.trust import NOBODY, Trust
from shmstore.errors import CorruptValue, StoreClosed, StoreFull
from shmstore.forked import here, refused
from shmstore.manifest import Manifest, Superseded
from shmstore.namespace import Namespace
from shmstore.record import WAIT_DEADLINE
from shmstore.relief import with_relief

R = TypeVar("R")

# More open DAGs than this, and the one opened first is closed again. Each holds about
# five descriptors; a quarter of what the process may have is ours at most.
_MOST_OPEN = 64
_DESCRIPTORS_EACH = 5
# How often one call tries again because others cleared the DAG meanwhile.
_MOST_SUPERSEDED = 1000


class OpenDags:
    """Open manifests by dag_id. Threads share it, and each manifest in it.

    Threads of a process exclude each other by the manifest's lock object, so two
    that open the same DAG at once must end up with the same one.

    Attributes:
        manifests: What is open; empty after ``close``.
        trust: How far values that came from other hosts are trusted.
    """

    __slots__ = ("_space", "manifests", "trust")

    def __init__(self, space: Namespace, trust: Trust = NOBODY) -> None:
        self.trust = trust
        self._space: Namespace | None = space
        self.manifests: dict[str, Manifest] = {}

    def read(
        self,
        dag_id: str,
        call: Callable[..., R],
        *args: Any,
    ) -> R | None:
        """Returns ``call(manifest, ...)``, or None if there is no such DAG.

        Makes room if there is too little to put right what is damaged.
        """
        try:
            return self._read(dag_id, call, *args)
        except StoreFull:
            return with_relief(self.space, lambda: self._read(dag_id, call, *args))

    def _read(self, dag_id: str, call: Callable[..., R], *args: Any) -> R | None:
        if type(dag_id) is not str:
            names.encode_id(dag_id, "dag_id")
        for _ in range(_MOST_SUPERSEDED):
            manifest = self.manifests.get(dag_id) or self._open(dag_id)
            if manifest is None:
                return None
            try:
                return call(manifest, *args)
            except Superseded:
                self._forget(dag_id, manifest)
        raise _never_settled(dag_id)

    def write(
        self,
        dag_id: str,
        call: Callable[..., R],
        *args: Any,
    ) -> R:
        """Returns ``call(manifest, ...)``; the DAG is created if need be.

        A child that is forked meanwhile leaves the change to its parent.
        """
        if type(dag_id) is not str:
            names.encode_id(dag_id, "dag_id")
        begun_after = here.forks
        for _ in range(_MOST_SUPERSEDED):
            manifest = self.manifests.get(dag_id) or self._create(dag_id)
            if here.forks != begun_after:
                raise refused()
            try:
                return call(manifest, *args)
            except Superseded:
                self._forget(dag_id, manifest)
        raise _never_settled(dag_id)

    def write_with_relief(self, dag_id: str, call: Callable[..., R], *args: Any) -> R:
        """As ``write``; makes room if there is too little."""
        return with_relief(self.space, lambda: self.write(dag_id, call, *args))

    @property
    def space(self) -> Namespace:
        """The namespace.

        Raises:
            StoreClosed: After ``close``.
        """
        if self._space is None:
            raise StoreClosed
        return self._space

    def check_open(self) -> None:
        """Raises StoreClosed after ``close``."""
        if self._space is None:
            raise StoreClosed

    def close(self) -> None:
        """Lets go of all DAGs and of the namespace.

        Their files are closed as soon as no thread is using them.
        """
        self._space = None
        closed, self.manifests = self.manifests, {}
        for manifest in list(closed.values()):
            if manifest.control[WAIT_DEADLINE]:
                doorbell.wake(manifest)  # so that our own waiters look and see it

    def forget(self, dag_id: str) -> None:
        """Lets go of a DAG; it is opened again when needed."""
        self.manifests.pop(dag_id, None)

    def _open(self, dag_id: str) -> Manifest | None:
        space = self.space
        names.encode_id(dag_id, "dag_id")
        manifest = self._with_room(lookup.find_dag, space, dag_id)
        return None if manifest is None else self._keep(dag_id, manifest)

    def _create(self, dag_id: str) -> Manifest:
        space = self.space
        names.encode_id(dag_id, "dag_id")
        return self._keep(dag_id, self._with_room(creating.find_or_create_dag, space, dag_id))

    def _with_room(self, call: Callable[[Namespace, str], R], space: Namespace, dag_id: str) -> R:
        """Opens a DAG; closes the others first if descriptors have run out."""
        try:
            return call(space, dag_id)
        except StoreFull:
            if not self.manifests:
                raise
            self.manifests.clear()
            return call(space, dag_id)

    def _keep(self, dag_id: str, manifest: Manifest) -> Manifest:
        kept = self.manifests.setdefault(dag_id, manifest)
        space = self._space
        if space is None:  # closed meanwhile
            self.manifests = {}
            raise StoreClosed
        expiry.keep_noting(kept)
        upkeep.on_opening(space, kept)
        for oldest in list(self.manifests)[: -_most_open()]:
            if oldest != dag_id:
                self.manifests.pop(oldest, None)
        return kept

    def _forget(self, dag_id: str, manifest: Manifest) -> None:
        if self.manifests.get(dag_id) is manifest:
            self.manifests.pop(dag_id, None)


def _never_settled(dag_id: str) -> CorruptValue:
    return CorruptValue("its files keep vanishing", "the DAG's directory", dag_id)


def _most_open() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(1, min(_MOST_OPEN, soft // 4 // _DESCRIPTORS_EACH))
