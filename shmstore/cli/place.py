"""Which store a command is about: its options, and opening it."""

from __future__ import annotations

import os

import click

from shmstore import names
from shmstore.errors import UnusableRoot
from shmstore.store import Store

ROOT = click.option(
    "--root", metavar="DIR", help="Root of the store.  [default: $SHMSTORE_ROOT or /dev/shm/…]"
)
NAMESPACE = click.option(
    "--namespace", metavar="NAME", help="Namespace.  [default: $SHMSTORE_NAMESPACE or default]"
)


def opened(root: str | None, namespace: str | None) -> Store:
    """The store, which must be there: looking at one shall not make one.

    Raises:
        UnusableRoot: There is none, or it is not fit.
    """
    place = names.default_root() if root is None else names.check_path(root, "--root")
    name = names.default_namespace() if namespace is None else namespace
    if not os.path.isdir(os.path.join(place, names.check_name(name, "--namespace"))):
        raise UnusableRoot(place, f"there is no namespace {name!r} in it")
    return Store(place, name)
