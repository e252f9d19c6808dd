"""How NATS is reached: addresses, credentials, certificates. Pure but for a look at the files.

Secrets come from the URL or the environment and are kept here; ``shown`` is what may be
printed. Files are read again at each connect, so that they can be replaced while a node runs.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls")
_MOST_REPLICAS = 5


@dataclass(frozen=True)
class Settings:
    """Where NATS is, and as whom to go there."""

    servers: tuple[str, ...]
    """URLs without credentials, each "nats://host:port" or "tls://host:port"."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: str | None = None
    """Path of a credentials file: a JWT and its seed."""
    nkey: str | None = None
    """Path of a file with an nkey seed."""
    ca: str | None = None
    """Path of the certificates that the server's must descend from; None is the system's."""
    cert: str | None = None
    """Path of this node's own certificate."""
    key: str | None = None
    """Path of its key; None is that the certificate's file has it."""
    replicas: int = 1
    """On how many servers of a NATS cluster the registry is kept, when this node makes it."""

    @classmethod
    def parse(cls, url: str, env: Mapping[str, str] = os.environ) -> Settings:
        """Settings of a URL, or several with commas between, and the environment.

        Args:
            url: For example "nats://10.0.0.1:4222,nats://10.0.0.2", "tls://user:pass@host" or
                "nats://token@host"; special characters of secrets are percent-encoded.
            env: ``SHMSTORE_NATS_USER``, ``_PASSWORD``, ``_TOKEN``, ``_CREDS``, ``_NKEY``,
                ``_CA``, ``_CERT``, ``_KEY`` and ``_REPLICAS``. They precede the URL's.

        Raises:
            ValueError: A sentence that says what is wrong, without secrets.
        """
        given = {
            name: env.get(f"SHMSTORE_NATS_{name.upper()}") or None
            for name in ("user", "password", "token", "creds", "nkey", "ca", "cert", "key")
        }
        servers = []
        for one in (part.strip() for part in url.split(",")):
            address, secrets = _address(one)
            servers.append(address)
            for name, value in secrets.items():
                if given[name] is None:
                    given[name] = value
        _consistent(given)
        for name in ("creds", "nkey", "ca", "cert", "key"):
            _readable(f"SHMSTORE_NATS_{name.upper()}", given[name])
        replicas = env.get("SHMSTORE_NATS_REPLICAS") or "1"
        if not replicas.isdecimal() or not 1 <= int(replicas) <= _MOST_REPLICAS:
            raise ValueError(
                f"SHMSTORE_NATS_REPLICAS is a number from 1 to {_MOST_REPLICAS}, not {replicas!r}."
            )
        return cls(servers=tuple(servers), replicas=int(replicas), **given)

    @property
    def shown(self) -> str:
        """The addresses, without secrets."""
        return ", ".join(self.servers)

    @property
    def wants_tls(self) -> bool:
        """Whether a server that does not encrypt must be refused."""
        return bool(self.ca or self.cert) or any(one.startswith("tls:") for one in self.servers)

    def tls(self) -> ssl.SSLContext:
        """How to encrypt, if the server or we want that; the server's name is always checked.

        Raises:
            OSError: The files cannot be read, or are no certificates (``ssl.SSLError``).
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


def _address(url: str) -> tuple[str, dict[str, str | None]]:
    """A URL without its secrets, and them."""
    whole = url if "://" in url else f"nats://{url}"
    # What is printed of a URL that cannot be parsed must not have its secrets either.
    shown = re.sub(r"//.*@", "//", whole)
    try:
        parts = urlsplit(whole)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"{shown!r} is no address of a NATS server: {error}.") from None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(
            f"{shown!r} is no address of a NATS server; one looks like nats://host:{DEFAULT_PORT}."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    secrets: dict[str, str | None] = {}
    if parts.username and parts.password is None:
        secrets["token"] = unquote(parts.username)
    elif parts.username:
        secrets["user"] = unquote(parts.username)
        secrets["password"] = unquote(parts.password or "")
    return f"{parts.scheme}://{host}:{port}", secrets


def _consistent(given: Mapping[str, str | None]) -> None:
    if (given["user"] is None) != (given["password"] is None):
        raise ValueError("A user of NATS needs a password, and a password a user.")
    ways = [name for name in ("user", "token", "creds", "nkey") if given[name] is not None]
    if len(ways) > 1:
        raise ValueError(
            f"NATS takes one kind of credentials, and there are {len(ways)}: {', '.join(ways)}."
        )
    if given["key"] is not None and given["cert"] is None:
        raise ValueError("SHMSTORE_NATS_KEY needs SHMSTORE_NATS_CERT.")


def _readable(name: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}.") from None
