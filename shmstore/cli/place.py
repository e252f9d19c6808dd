"""Which store a command is about: its options, looking at it, and opening it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from shmstore import names
from shmstore.errors import UnusableRoot

if TYPE_CHECKING:
    from shmstore.inspection.snapshot import Snapshot
    from shmstore.store import Store

_MOST_COMPLETED = 200
_Command = TypeVar("_Command", bound=Callable[..., Any])

ROOT = click.option(
    "--root", metavar="DIR", help="Root of the store.  [default: $SHMSTORE_ROOT or /dev/shm/…]"
)
NAMESPACE = click.option(
    "--namespace", metavar="NAME", help="Namespace.  [default: $SHMSTORE_NAMESPACE or default]"
)
_AT = click.option(
    "--at",
    metavar="PATH",
    help="Look at this namespace's or DAG's directory instead, or at a copy of one.",
)


def completed_dags(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """For the shell: the DAGs whose names begin so."""
    try:
        found = [dag.dag_id for dag in _looked(context).dags()]
    except Exception:
        return []  # whatever is wrong with a store, the line stays as it is
    return [CompletionItem(name) for name in found if name.startswith(begun)][:_MOST_COMPLETED]


def completed_ids(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """For the shell: the ids, of the DAG that stands before, that begin so."""
    try:
        entries = _looked(context).dag(context.params["dag_id"]).entries()
        found = (CompletionItem(one.id) for one in entries if one.id.startswith(begun))
        return list(islice(found, _MOST_COMPLETED))
    except Exception:
        return []


def _looked(context: click.Context) -> Snapshot:
    given = context.params
    return snapshot(given.get("root"), given.get("namespace"), given.get("at"))


DAG = click.argument("dag_id", metavar="DAG", shell_complete=completed_dags)
ID = click.argument("id", metavar="ID", shell_complete=completed_ids)


def looked_at(command: _Command) -> _Command:
    """The options of a command that only looks: ``root``, ``namespace`` and ``at``."""
    return ROOT(NAMESPACE(_AT(command)))


def chosen(root: str | None, namespace: str | None) -> tuple[str, str]:
    """Root and namespace of the options, or the defaults, checked."""
    place = names.default_root() if root is None else names.check_path(root, "--root")
    name = names.default_namespace() if namespace is None else namespace
    return place, names.check_name(name, "--namespace")


def snapshot(root: str | None, namespace: str | None, at: str | None) -> Snapshot:
    """A look at the store, which changes nothing.

    Raises:
        NoStore: There is none.
        UnusableRoot: It cannot be read.
    """
    from shmstore.inspection.snapshot import Snapshot

    if at is not None:
        if root is not None:
            raise click.UsageError("give --root or --at, not both")
        name = None if namespace is None else names.check_name(namespace, "--namespace")
        return Snapshot.at(names.check_path(at, "--at"), name)
    return Snapshot(*chosen(root, namespace))


def opened(root: str | None, namespace: str | None, nats: str | None = None) -> Store:
    """The store, to change it or to ask its node. It must be there.

    Raises:
        NoStore: There is none: looking at one shall not make one.
        UnusableRoot: It is not fit.
    """
    from shmstore.store import Store

    place, name = chosen(root, namespace)
    settings = snapshot(place, name, None).settings
    if settings is not None and not settings.this_start:
        raise UnusableRoot(
            f"{place}/{name}",
            "it is from before the machine's last start, and whoever opens it clears it; "
            "commands that only look still read it",
        )
    return Store(place, name, nats=nats)
