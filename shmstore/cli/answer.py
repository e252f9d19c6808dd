"""How commands answer: data on stdout, words on stderr, JSON for machines, exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from shmstore.shown import colours_wanted, safe, utc

#: Exit codes.
DONE, FAILED, USAGE, ABSENT, UNREACHABLE, CORRUPT = range(6)
#: The version of the JSON's schema: a field is never removed or given another meaning
#: within one.
SCHEMA = 1

_EVERY_S = 0.1

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")


def document(kind: str, facts: dict[str, Any]) -> None:
    """Prints one JSON object.

    Args:
        kind: What it tells about; its ``schema`` is "shmstore.<kind>/<version>".
        facts: Sizes as integers, bytes; times as text, UTC.
    """
    click.echo(_told(kind, facts, 2))


def line(kind: str, facts: dict[str, Any]) -> str:
    """A JSON object as one line of many; see ``document``."""
    return _told(kind, facts, None)


def _told(kind: str, facts: dict[str, Any], indent: int | None) -> str:
    told = {"schema": f"shmstore.{kind}/{SCHEMA}", **facts}
    return json.dumps(told, indent=indent, default=_plain)


def stream(lines: Iterable[str]) -> None:
    """Prints lines as they come: the first at once, then what has come every tenth second."""
    due = 0.0
    pending = []
    for one in lines:
        pending.append(one)
        now = time.monotonic()
        if now > due:
            click.echo("\n".join(pending))
            pending.clear()
            due = now + _EVERY_S
    if pending:
        click.echo("\n".join(pending))


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def entry_facts(entry: Any) -> dict[str, Any]:
    """An ``Entry`` for JSON."""
    return {
        "dag_id": entry.dag_id,
        "id": entry.id,
        "codec": entry.codec,
        "type": entry.type_name,
        "nbytes": entry.nbytes,
        "location": entry.location,
        "created_at": utc(entry.created_ns),
        "producer": {"host": entry.producer.host, "pid": entry.producer.pid},
        "origin": entry.origin,
        "deps": list(entry.deps),
    }


def say(sentence: str) -> None:
    """Prints words for a person, to stderr."""
    click.echo(sentence, err=True)


def fault(sentence: str) -> None:
    """Prints what is wrong, to stderr."""
    click.echo(f"Error: {sentence}", err=True)


def head(line: str) -> str:
    """A table's head, bold on a terminal."""
    return click.style(line, bold=True) if colours_wanted() else line


def confirmed(question: str, force: bool) -> None:
    """Asks before something is destroyed, on a terminal; elsewhere ``--force`` must say so.

    Raises:
        click.UsageError: It was not forced, and there is nobody to ask.
        click.Abort: The answer was no.
    """
    if force:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} Nobody can be asked here: say so with --force.")
    click.confirm(question, abort=True, err=True)


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Turns what goes wrong in a command into a sentence on stderr and an exit code.

    A pipe that nobody reads any more is silence; Ctrl-C ends with 130.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be flushed at the end of Python goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except (KeyboardInterrupt, EOFError):
        sys.exit(128 + signal.SIGINT)
    except click.exceptions.Exit:
        raise
    except click.ClickException:
        raise
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        fault(safe(str(error)))
        sys.exit(code)


def _code(error: Exception) -> int | None:
    """The exit code that an error means; None for one that nobody expected."""
    from shmstore import errors
    from shmstore.inspection.snapshot import NoStore, Refused

    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
        ((errors.NotFound, NoStore), ABSENT),
        ((errors.RemoteError, errors.WaitTimeout, errors.StoreBusy), UNREACHABLE),
        (errors.CorruptValue, CORRUPT),
        (Refused, FAILED),
        (errors.StoreError, FAILED),
        (ValueError, USAGE),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), None)
