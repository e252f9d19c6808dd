"""Credentials and certificates of the tests' own, made as an administrator would make them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

OPERATOR, ACCOUNT, USER = (
    nkeys.PREFIX_BYTE_OPERATOR,
    nkeys.PREFIX_BYTE_ACCOUNT,
    nkeys.PREFIX_BYTE_USER,
)
_LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
_KEEPING = ("mem_storage", "disk_storage", "streams", "consumer")


class Key:
    """An nkey: its public half, and its seed."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(self.seed.encode())
        self.public: str = self._pair.public_key.decode()

    def token(self, name: str, subject: Key, kind: str, facts: dict[str, Any]) -> str:
        """A JWT about a subject, signed with this key."""
        claims = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            "nats": facts | {"type": kind, "version": 2},
        }
        digest = hashlib.sha256(json.dumps(claims).encode()).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        parts = [_part({"typ": "JWT", "alg": "ed25519-nkey"}), _part(claims)]
        signature = self._pair.sign(".".join(parts).encode())
        return ".".join([*parts, _base64(signature)])


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Accounts:
    """An operator with one account, and credentials files of its users."""

    def __init__(self) -> None:
        operator, system = Key(OPERATOR), Key(ACCOUNT)
        self._account = Key(ACCOUNT)
        none = dict.fromkeys(_LIMITS, -1) | {"wildcards": True}
        keeping = none | dict.fromkeys(_KEEPING, -1)
        preloaded = {
            key.public: operator.token(name, key, "account", {"limits": limits})
            for name, key, limits in (("SYS", system, none), ("APP", self._account, keeping))
        }
        facts = {"system_account": system.public}
        lines = "\n".join(f"{public}: {token}" for public, token in preloaded.items())
        self.config = (
            f"operator: {operator.token('operator', operator, 'operator', facts)}\n"
            f"system_account: {system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{\n{lines}\n}}\n"
        )

    def credentials(self, path: Path) -> str:
        """Writes a credentials file of a new user; returns its path."""
        user = Key(USER)
        limits = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        token = self._account.token("node", user, "user", limits)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return str(path)


@dataclass(frozen=True)
class Certificates:
    """An authority of certificates and what it signed."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """An authority, with the certificate of a server at 127.0.0.1 and one of a node."""
        directory.mkdir()
        made = cls(directory)
        made._openssl("authority", "-subj", "/CN=authority")
        made.sign("server", "subjectAltName=IP:127.0.0.1")
        made.sign("node", "extendedKeyUsage=clientAuth")
        return made

    def sign(self, name: str, extension: str) -> None:
        """Makes a certificate."""
        signed = ("-CA", self.path("authority"), "-CAkey", self.path("authority", "key"))
        self._openssl(name, "-subj", f"/CN={name}", *signed, "-addext", extension)

    def path(self, name: str, kind: str = "pem") -> str:
        """Where one is, or its key."""
        return str(self.directory / f"{name}.{kind}")

    def config(self, *, mutual: bool = False) -> str:
        """The server's configuration."""
        asked = f", ca_file: {self.path('authority')!r}, verify: true" if mutual else ""
        return (
            f"tls {{ cert_file: {self.path('server')!r}, "
            f"key_file: {self.path('server', 'key')!r}{asked} }}\n"
        )

    def _openssl(self, name: str, *options: str) -> None:
        # openssl comes with what ssl of Python is linked to, or beside it.
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        command += ["-out", self.path(name), "-keyout", self.path(name, "key"), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
