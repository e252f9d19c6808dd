from __future__ import annotations

import itertools

import pytest

from shmstore.node import subjects

IDS = [
    "a",
    "A",
    "a.b",
    "*",
    ">",
    "=epoch",
    " ",
    "\n",
    "a\r\nb",
    "é",
    "n" * 64,
    "n" * 65,
    "😀" * 256,
]
NAMES = ["a", "b", "a_b", "b_c", "a-b", "nodes", "a_nodes", "nodes_a", "x" * 32]


def test_every_id_has_a_token_of_its_own_that_a_subject_may_have() -> None:
    """Tokens are told apart, are short, and have nothing that NATS reads as more than a name."""
    tokens = [subjects.token(id) for id in IDS]
    assert len(set(tokens)) == len(IDS)
    assert all(len(one) <= 64 and not set(one) & set(".*> \r\n\t~%") for one in tokens)
    assert all(one.isascii() and one.isprintable() for one in tokens)


def test_no_entry_has_the_key_of_an_epoch() -> None:
    """Whatever the dag_id, its entries' keys are none of an epoch's."""
    epochs = {subjects.epoch_key(dag_id) for dag_id in IDS}
    entries = {subjects.entry_key(*pair) for pair in itertools.product(IDS, IDS)}
    assert not epochs & entries
    assert len(epochs) + len(entries) == len(IDS) + len(IDS) ** 2


def test_namespaces_and_nodes_do_not_meet() -> None:
    """Names with "_" and "-" in them give each namespace, and each node, subjects of its own."""
    buckets = [make(name) for make in (subjects.bucket, subjects.nodes_bucket) for name in NAMES]
    assert len(set(buckets)) == 2 * len(NAMES)
    pairs = list(itertools.product(NAMES, NAMES))
    assert len({subjects.inbox_prefix(*pair) for pair in pairs}) == len(pairs)
    assert len({subjects.call_subject(*pair, "get") for pair in pairs}) == len(pairs)
    for (namespace, node), other in itertools.product(pairs, NAMES):
        inbox = f"{subjects.inbox_prefix(namespace, node)}.xyz.1"
        assert subjects.is_inbox(other, inbox) == (other == namespace)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "_INBOX.x",
        "_INBOX_shmstore.a.b",
        "_INBOX_shmstore.a.b.",
        "_INBOX_shmstore.a..x",
        "_INBOX_shmstore.a.*.x",
        "_INBOX_shmstore.a.b.x y",
        "_INBOX_shmstore.a.b.x\r\n",
        "x_INBOX_shmstore.a.b.x",
        "$JS.API.STREAM.DELETE.x",
    ],
)
def test_what_is_no_inbox_gets_no_reply(subject: str) -> None:
    """A reply goes to inboxes of the namespace's nodes only."""
    assert not subjects.is_inbox("a", subject)


def test_keys_come_back_from_their_subjects() -> None:
    """The key of a subject is the one that it was made of."""
    subject = subjects.key_subject("shmstore_a", "x.y")
    assert subjects.subject_key("shmstore_a", subject) == "x.y"
    assert subjects.subject_key("shmstore_b", subject) is None
