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


def chosen(root: str | None, namespace: str | None) -> tuple[str, str]:
    """Root and namespace of the options, or the defaults, checked."""
    place = names.default_root() if root is None else names.check_path(root, "--root")
    name = names.default_namespace() if namespace is None else namespace
    return place, names.check_name(name, "--namespace")


def opened(root: str | None, namespace: str | None) -> Store:
    """The store, which must be there: looking at one shall not make one.

    Raises:
        UnusableRoot: There is none, or it is not fit.
    """
    place, name = chosen(root, namespace)
    if not os.path.isdir(os.path.join(place, name)):
        raise UnusableRoot(place, f"there is no namespace {name!r} in it")
    return Store(place, name)
