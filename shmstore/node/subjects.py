"""Every name in NATS: subjects, buckets and keys, built and parsed here, nowhere else.

No id reaches a subject as it is: it goes by its token, so that dots, stars, spaces and
4,000 bytes of emoji are all the same to NATS. What an entry says of its dag_id and id
stands in its value. Pure.

::

    shmstore.<namespace>.node.<node>.<call>    a request to one node
    _INBOX_shmstore.<namespace>.<node>.>       the replies to it
    shmstore_<namespace>                       the bucket of entries and epochs
      <dag token>.<id token>                   where a value is
      =epoch.<dag token>                       how often a DAG was cleared everywhere
    shmstore-nodes_<namespace>                 the bucket of claims, one a living node
      <node>

Names of namespaces and nodes have "_" and "-", so neither joins them: "a_b" and "c" must not
meet "a" and "b_c", nor the entries of one namespace the nodes of another.
"""

from __future__ import annotations

import base64
import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Not a letter of a plain token, and one that a key may have.
_HASHED = "="
_DIGEST_BYTES = 20
_EPOCH = "=epoch"

#: The keys of all entries, and of the epochs, as a pattern.
ALL_ENTRIES = "*.*"


def token(id: str) -> str:
    """The token of an id or dag_id: itself if it is plain, else "=" and a hash of it."""
    if _PLAIN.fullmatch(id):
        return id
    digest = hashlib.blake2b(id.encode(), digest_size=_DIGEST_BYTES).digest()
    return _HASHED + base64.b32encode(digest).decode()


def entry_key(dag_id: str, id: str) -> str:
    """The key of a value's entry."""
    return f"{token(dag_id)}.{token(id)}"


def epoch_key(dag_id: str) -> str:
    """The key of a DAG's epoch."""
    return f"{_EPOCH}.{token(dag_id)}"


def epochs_of_all() -> str:
    """The keys of all epochs, as a pattern."""
    return f"{_EPOCH}.*"


def entries_of(dag_id: str) -> str:
    """The keys of a DAG's entries, as a pattern."""
    return f"{token(dag_id)}.*"


def bucket(namespace: str) -> str:
    """The bucket of a namespace's entries and epochs."""
    return f"shmstore_{namespace}"


def nodes_bucket(namespace: str) -> str:
    """The bucket of a namespace's living nodes."""
    return f"shmstore-nodes_{namespace}"


def stream(bucket: str) -> str:
    """The stream that keeps a bucket."""
    return f"KV_{bucket}"


def key_subject(bucket: str, key: str) -> str:
    """The subject on which a key's values are published; ``key`` may be a pattern."""
    return f"$KV.{bucket}.{key}"


def subject_key(bucket: str, subject: str) -> str | None:
    """The key of such a subject, or None."""
    start = f"$KV.{bucket}."
    return subject[len(start) :] if subject.startswith(start) else None


def call_subject(namespace: str, node: str, call: str) -> str:
    """Where a node takes requests of one kind; ``call`` may be "*" for all."""
    return f"shmstore.{namespace}.node.{node}.{call}"


def inbox_prefix(namespace: str, node: str) -> str:
    """How the subjects begin on which a node takes replies."""
    return f"_INBOX_shmstore.{namespace}.{node}"


def is_inbox(namespace: str, subject: str) -> bool:
    """Whether a reply may be sent there: to a node of the namespace, and nowhere else."""
    return (
        re.fullmatch(rf"_INBOX_shmstore\.{namespace}\.[A-Za-z0-9_-]{{1,32}}\.[!-~]+", subject)
        is not None
    )
