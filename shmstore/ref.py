"""References: a value's name, small enough to be sent in its place."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from shmstore.store import Store


class Ref(NamedTuple):
    """Names a value wherever it is unpickled: a few dozen bytes instead of the value.

    Attributes:
        root: The store's root if one was given, else None: the default root of the
            process that uses the reference.
        namespace: The store's namespace.
        dag_id: The DAG.
        id: The value's id.
    """

    root: str | None
    namespace: str
    dag_id: str
    id: str

    def get(self, *, mode: str = "read") -> Any:
        """Returns the value, as ``Store.get`` does.

        Raises:
            NotFound: There is no such value on this host.
        """
        return _store(self.root, self.namespace).get(self.dag_id, self.id, mode=mode)

    def wait(self, timeout: float | None = None, *, mode: str = "read") -> Any:
        """Returns the value as soon as it is stored, as ``Store.wait`` does.

        Raises:
            WaitTimeout: It was not stored in time.
        """
        store = _store(self.root, self.namespace)
        return store.wait(self.dag_id, self.id, timeout, mode=mode)

    def fetch(self, timeout: float = 30.0, *, mode: str = "read") -> Any:
        """Returns the value, brought here first if need be, as ``Store.get_with_fetch`` does.

        Raises:
            NotFound: It is nowhere.
            RemoteError: It could not be brought here.
        """
        store = _store(self.root, self.namespace)
        return store.get_with_fetch(self.dag_id, self.id, timeout=timeout, mode=mode)


@lru_cache(maxsize=16)
def _opened(root: str, namespace: str) -> Store:
    from shmstore.store import Store

    return Store(root, namespace)


def _store(root: str | None, namespace: str) -> Store:
    from shmstore import names

    place = root or names.default_root()
    store = _opened(place, namespace)
    if not store._in_place():
        # The root was removed, and may have been made anew.
        _opened.cache_clear()
        store = _opened(place, namespace)
    return store
