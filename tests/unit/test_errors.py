"""The errors: their tree, their facts, their sentences, and what pickling leaves of them."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import shmstore
from shmstore import errors

FACTS: dict[str, dict[str, Any]] = {
    "NotFound": {"dag_id": "a dag", "id": "an id", "where": "on this host"},
    "EntryExists": {"dag_id": "a dag", "id": "an id"},
    "StoreFull": {"what": "shared memory", "asked": 12345, "free": 99, "limit": 100_000, "kept": 5},
    "StoreClosed": {"why": "it was closed"},
    "StoreBusy": {"what": "DAG 'd'", "waited_s": 1.5, "holder": "process 7"},
    "WaitTimeout": {"dag_id": "a dag", "ids": ("left", "right"), "waited_s": 2.5},
    "FetchTimeout": {"dag_id": "a dag", "ids": ("left", "right"), "waited_s": 2.5}
    | {"stage": "3 of 7 bytes came"},
    "UnsafeValue": {"what": "os.system", "dag_id": "d", "id": "i", "origin": "far"},
    "NodeNotRunning": {"root": "/r", "namespace": "n", "why": "it ended"},
    "NodeUnreachable": {"node": "far", "why": "no answer", "dag_id": "d", "id": "i"},
    "RegistryUnavailable": {"why": "refused", "server": "nats://127.0.0.1:4222"},
    "CorruptValue": {"check": "its checksum is wrong", "where": "log.1 at 4096", "dag_id": "d"}
    | {"id": "i"},
    "Unserializable": {"type_name": "builtins.generator", "why": "it can be read only once"},
    "UnusableRoot": {"path": "/somewhere", "why": "it is no directory"},
}
CASES = sorted(FACTS.items())


def make(name: str) -> errors.StoreError:
    made: errors.StoreError = getattr(errors, name)(**FACTS[name])
    return made


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    """Every class stands in the drawing under its parent, with its builtin parent, and no other."""
    drawn: dict[str, set[str]] = {}
    above = {0: "StoreError"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([ │]+)[├└]─ (\w+)(?: \((\w+)\))?  ", line)
        if found:
            above[len(found[1])] = found[2]
            drawn[found[2]] = {above[max(d for d in above if d < len(found[1]))], found[3]} - {None}
    drawn["FetchTimeout"].add("RemoteError")  # as its line says
    defined = {
        name: {base.__name__ for base in kind.__bases__}
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and kind.__module__ == errors.__name__ and name != "StoreError"
    }
    assert drawn == defined
    assert set(errors.__all__) == set(defined) | {"StoreError"}
    assert errors.StoreError.__bases__ == (Exception,)


def test_every_error_is_exported_and_has_a_case_here() -> None:
    """``shmstore`` exports every error, and each is tested below."""
    assert set(FACTS) == set(errors.__all__) - {"StoreError", "RemoteError"}
    for name in errors.__all__:
        assert getattr(shmstore, name) is getattr(errors, name)
        assert name in shmstore.__all__


@pytest.mark.parametrize(("name", "facts"), CASES)
def test_facts_are_fields_and_parameters(name: str, facts: dict[str, Any]) -> None:
    """An error's parameters are its facts, each an attribute of that name."""
    error = make(name)
    parameters = [p for p in inspect.signature(type(error).__init__).parameters if p != "self"]
    assert parameters == list(facts)
    assert {fact: getattr(error, fact) for fact in facts} == facts


@pytest.mark.parametrize(("name", "facts"), CASES)
def test_str_is_a_sentence_that_tells_the_facts(name: str, facts: dict[str, Any]) -> None:
    """``str`` is one or more whole sentences in which every fact occurs, on one line."""
    sentence = str(make(name))
    assert re.match(r"[A-Z/].*\.$", sentence)
    assert "\n" not in sentence
    for fact, value in facts.items():
        for one in value if isinstance(value, tuple) else (value,):
            shown = f"{one:,}" if isinstance(one, int) else str(one)
            assert shown in sentence, fact


def test_a_wait_for_many_names_some_of_them() -> None:
    """A sentence stays readable, however many values are missing; the facts are all there."""
    ids = tuple(f"part {number}" for number in range(2500))
    error = errors.WaitTimeout("d", ids, 1.0)
    assert "'part 0', " in str(error)
    assert "2,490 more" in str(error)
    assert len(str(error)) < 300
    assert error.ids == ids
    assert "anything new" in str(errors.WaitTimeout("d", (), 1.0))


def test_sentences_without_the_optional_facts() -> None:
    """What is not known is left out, not shown as None."""
    for error in (
        errors.StoreFull("disk quota"),
        errors.StoreBusy("DAG 'd'", 0.0),
        errors.CorruptValue("its magic is wrong", "manifest"),
        errors.CorruptValue("its magic is wrong", "manifest", "d"),
        errors.StoreClosed(),
    ):
        assert "None" not in str(error)
        assert str(error).endswith(".")


@pytest.mark.parametrize(("name", "facts"), CASES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(name: str, facts: dict[str, Any], protocol: int) -> None:
    """Type, facts, args and sentence come through any protocol, and through ``copy``."""
    error = make(name)
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is type(error)
        assert {fact: getattr(again, fact) for fact in facts} == facts
        assert str(again) == str(error)
        assert again.args == error.args


def test_errors_can_be_caught_as_what_builtin_code_expects() -> None:
    """Code that knows nothing of shmstore catches KeyError, TimeoutError, TypeError, ValueError."""
    for name, builtin in (
        ("NotFound", KeyError),
        ("StoreBusy", TimeoutError),
        ("WaitTimeout", TimeoutError),
        ("Unserializable", TypeError),
        ("UnusableRoot", ValueError),
    ):
        assert isinstance(make(name), builtin)
        assert isinstance(make(name), shmstore.StoreError)


def test_a_note_and_a_cause_can_be_added() -> None:
    """They are ordinary exceptions: raised from others, with notes."""
    error = make("NotFound")
    error.add_note("while merging")
    with pytest.raises(shmstore.NotFound) as caught:
        raise error from OSError("x")
    assert isinstance(caught.value.__cause__, OSError)
