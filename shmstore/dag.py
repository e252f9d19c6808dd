"""One DAG as a mapping: the manners of a dict over what all processes share."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any

from shmstore.errors import EntryExists, NotFound, StoreError

if TYPE_CHECKING:
    from shmstore.store import Store


class Dag(MutableMapping[str, Any]):
    """A DAG's values by id.

    Reads and writes go to the store at once, so several processes see one mapping.
    Iteration goes over the ids as of its start, in the order in which they were
    last stored, whatever others do meanwhile; a value looked up then may be gone
    (``items`` and ``values`` leave such out). A missing key is a ``KeyError``.

    Args:
        store: The store.
        dag_id: The DAG, which exists once something is stored in it.
    """

    __slots__ = ("dag_id", "store")

    def __init__(self, store: Store, dag_id: str) -> None:
        self.store = store
        self.dag_id = dag_id

    def __getitem__(self, id: str) -> Any:
        return self.store.get(self.dag_id, id)

    def __setitem__(self, id: str, value: Any) -> None:
        self.store.put(self.dag_id, id, value)

    def __delitem__(self, id: str) -> None:
        self.store.delete(self.dag_id, id)

    def __contains__(self, id: object) -> bool:
        try:
            return isinstance(id, str) and self.store.has_value(self.dag_id, id)
        except StoreError:
            raise  # one of them is a ValueError, too
        except ValueError:  # no id: nothing can be stored under it
            return False

    def __len__(self) -> int:
        return self.store.count(self.dag_id)

    def __iter__(self) -> Iterator[str]:
        return self.store.ids(self.dag_id)

    def __reversed__(self) -> Iterator[str]:
        return self.store.ids(self.dag_id, newest_first=True)

    def keys(self) -> KeysView[str]:
        """The ids, as of each iteration's start."""
        return _Keys(self)

    def items(self) -> ItemsView[str, Any]:
        """Ids and values; a value that others delete meanwhile is left out."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """The values; one that others delete meanwhile is left out."""
        return _Values(self)

    def pop(self, id: str, *default: Any) -> Any:
        """Removes a value and returns it; of several who try, one gets it.

        Raises:
            KeyError: There is none, and no ``default`` is given.
            TypeError: More than one default.
        """
        if len(default) > 1:
            raise TypeError(f"pop takes at most 2 arguments, got {1 + len(default)}")
        try:
            return self.store.take(self.dag_id, id)
        except NotFound:
            if default:
                return default[0]
            raise

    def popitem(self) -> tuple[str, Any]:
        """Removes the value stored last and returns its id and it.

        Raises:
            KeyError: The DAG is empty.
        """
        while True:
            for id in reversed(self):
                try:
                    return id, self.pop(id)
                except NotFound:
                    continue  # somebody else took it
            if not len(self):
                raise KeyError("popitem(): the DAG is empty")

    def setdefault(self, id: str, default: Any = None) -> Any:
        """The value under ``id``; ``default`` is stored there first if there is none.

        Several processes may try at once: all get the value of the first.
        """
        while True:
            try:
                return self[id]
            except NotFound:
                pass
            try:
                self.store.put(self.dag_id, id, default, overwrite=False)
            except EntryExists:
                continue

    def update(self, other: Any = (), /, **values: Any) -> None:
        """Stores many values, all or none of them."""
        self.store.put_many(self.dag_id, dict(other, **values))

    def clear(self) -> None:
        """Removes all values, at once."""
        self.store.clear(self.dag_id)

    def copy(self) -> dict[str, Any]:
        """A plain dict of the values as they are now."""
        return dict(self.items())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self.copy() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Dag:  # type: ignore[misc]
        self.update(other)
        return self

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dag) and self._place() == other._place():
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        mine = self.copy()
        return mine.keys() == other.keys() and all(
            _equal(value, other[id]) for id, value in mine.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def _place(self) -> tuple[str, str, str]:
        return self.store.root, self.store.namespace, self.dag_id

    def __repr__(self) -> str:
        return f"<shmstore.Dag {self.dag_id!r} in {self.store!r}>"


class _Keys(KeysView[str]):
    _mapping: Dag

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)


class _Items(ItemsView[str, Any]):
    _mapping: Dag

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return _present(self._mapping, iter(self._mapping))

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return _present(self._mapping, reversed(self._mapping))


class _Values(ValuesView[Any]):
    _mapping: Dag

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in _present(self._mapping, iter(self._mapping)))

    def __reversed__(self) -> Iterator[Any]:
        return (value for _, value in _present(self._mapping, reversed(self._mapping)))


def _present(dag: Dag, ids: Iterator[str]) -> Iterator[tuple[str, Any]]:
    for id in ids:
        try:
            yield id, dag[id]
        except NotFound:
            continue


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, for those whose ``==`` answers element by element, too."""
    if type(one) is not type(other) and not isinstance(one, (int, float, complex)):
        return False
    equals = getattr(one, "equals", None)  # pandas, polars, pyarrow
    if callable(equals):
        return bool(equals(other))
    if getattr(one, "shape", None) != getattr(other, "shape", None):
        return False
    same = one == other
    return bool(same.all() if hasattr(same, "all") else same)
