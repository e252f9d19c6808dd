"""Names: built and parsed, without loss, and never a danger as a file name."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore import names

DAG_IDS = [
    "plain",
    "a/b",
    "/",
    "..",
    ".",
    ".hidden",
    "...",
    "*",
    ">",
    "%",
    "%%",
    "%2E",
    "with spaces ",
    "tab\tand\nnewline",
    "\0",
    "naïve café",
    "🙂🙃",
    "-rf",
    "CON",
    "x" * 255,
    "x" * 256,
    "/" * 85,
    "/" * 86,
    "🙂" * 256,
    "y" * 1024,
]
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda text: len(text.encode()) <= names.MAX_ID_BYTES
)


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_token_is_a_safe_file_name(dag_id: str) -> None:
    """A token is one path component, at most 255 bytes of ASCII, neither hidden nor ".."."""
    token = names.dag_token(dag_id)
    assert 0 < len(token.encode("ascii")) <= 255
    assert not set(token) & set("/\0*>\n\t ")
    assert token[0] != "."
    assert os.path.normpath(token) == os.path.basename(token) == token


@given(anything)
def test_tokens_are_reversible_unless_cut(dag_id: str) -> None:
    """A token gives its dag_id back; one that had to be cut says that it cannot."""
    token = names.dag_token(dag_id)
    assert len(token) <= 255
    assert "/" not in token
    assert token not in (".", "..")
    parsed = names.parse_dag_token(token)
    assert parsed == dag_id if "%%" not in token else parsed is None


@given(st.sets(anything, min_size=2, max_size=2))
def test_different_dags_have_different_tokens(dag_ids: set[str]) -> None:
    """No two dag_ids share a directory."""
    one, other = map(names.dag_token, dag_ids)
    assert one != other


def test_long_dag_ids_with_the_same_prefix_differ() -> None:
    """What distinguishes two long dag_ids may lie beyond what fits into a file name."""
    long = "x" * 1000
    tokens = {names.dag_token(long + end) for end in ("", "a", "b")}
    assert len(tokens) == 3
    assert all(len(token) <= 255 and token.startswith("x" * 100) for token in tokens)
    assert all(names.parse_dag_token(token) is None for token in tokens)


def test_a_cut_token_is_never_that_of_a_short_dag() -> None:
    """A dag_id that spells out a cut token gets another one."""
    cut = names.dag_token("x" * 1000)
    assert names.dag_token(cut) != cut


def test_the_longest_token_that_is_not_cut() -> None:
    """255 bytes fit, 256 do not."""
    assert names.dag_token("x" * 255) == "x" * 255
    assert names.dag_token("x" * 256) != "x" * 256
    assert names.parse_dag_token(names.dag_token("/" * 85)) == "/" * 85


@pytest.mark.parametrize("token", ["", ".", "..", ".x", "%", "%2", "%zz", "%2e", "%FF", "a%%b"])
def test_what_is_no_token(token: str) -> None:
    """A file of another name in the directory of DAGs is told from a token."""
    assert names.parse_dag_token(token) is None


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["a"], ("a",), 1.5])
def test_ids_that_are_no_str(value: Any) -> None:
    """Anything but a str is a TypeError that says what it was for."""
    with pytest.raises(TypeError, match=r"^dag_id must be a str, not \w+"):
        names.encode_id(value, "dag_id")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must not be empty"),
        ("x" * 1025, "1,025 bytes"),
        ("ü" * 513, "1,026 bytes"),
        ("\ud800", "lone surrogate"),
        ("a\udfffb", "lone surrogate"),
    ],
)
def test_ids_that_cannot_be(value: str, message: str) -> None:
    """Empty, too long by UTF-8 bytes, or no Unicode text: ValueError, in words."""
    with pytest.raises(ValueError, match=f"^id .*{message}") as caught:
        names.encode_id(value, "id")
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 300


@given(anything)
def test_every_other_str_is_an_id(id: str) -> None:
    """Any other text is one, as its UTF-8 bytes."""
    assert names.encode_id(id, "id").decode() == id


def test_ids_of_1024_bytes() -> None:
    """The limit itself is allowed."""
    assert names.encode_id("x" * 1024, "id") == b"x" * 1024
    assert len(names.encode_id("🙂" * 256, "id")) == 1024


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 32])
def test_names_of_namespaces(name: str) -> None:
    """Letters, digits, "_" and "-", up to 32."""
    assert names.check_name(name, "namespace") == name


@pytest.mark.parametrize("name", ["", "x" * 33, "a/b", "..", "a b", "ü", "a\n", "a.b"])
def test_names_that_are_refused(name: str) -> None:
    """Anything else is a ValueError that says what is allowed."""
    with pytest.raises(ValueError, match="1 to 32 letters, digits"):
        names.check_name(name, "namespace")


def test_a_name_of_another_type() -> None:
    """A name must be a str."""
    with pytest.raises(TypeError, match="namespace must be a str"):
        names.check_name(b"a", "namespace")


@given(st.integers(1, 2**64 - 1))
def test_segment_names_are_reversible(number: int) -> None:
    """A segment's file name gives its number back, and fits the layout."""
    name = names.segment_name(number)
    assert names.parse_segment_name(name) == number
    assert len(name) == len("seg-") + 16


def test_what_is_no_segment() -> None:
    """Other files of a DAG are not taken for segments, nor for logs and indexes."""
    for name in ("seg-", "seg-12", "seg-" + "g" * 16, "xseg-" + "0" * 16, "manifest", "log.1"):
        assert names.parse_segment_name(name) is None
    assert names.parse_numbered(names.log_name(7)) == ("log", 7)
    assert names.parse_numbered(names.index_name(8)) == ("index", 8)
    for name in ("log.", "log.x", "index.-1", "lock", "log.1.2"):
        assert names.parse_numbered(name) is None


def test_segment_numbers_are_never_used_twice() -> None:
    """Fresh numbers differ and are never 0, which means: no segment."""
    numbers = {names.new_segment_number() for _ in range(1000)}
    assert len(numbers) == 1000
    assert 0 not in numbers


def test_defaults_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root and namespace come from the environment, or are this user's own."""
    monkeypatch.setenv("SHMSTORE_ROOT", "/dev/shm/elsewhere")
    monkeypatch.setenv("SHMSTORE_NAMESPACE", "mine")
    assert (names.default_root(), names.default_namespace()) == ("/dev/shm/elsewhere", "mine")
    for unset in (lambda key: monkeypatch.setenv(key, ""), monkeypatch.delenv):
        unset("SHMSTORE_ROOT")
        unset("SHMSTORE_NAMESPACE")
        assert names.default_root() == f"/dev/shm/shmstore-{os.geteuid()}"
        assert names.default_namespace() == "default"
