"""``shmstore node``: runs the node of this host in the foreground; ``node status`` asks it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from typing import NoReturn

import click

from shmstore import names
from shmstore.cli.place import NAMESPACE, ROOT, chosen
from shmstore.errors import NodeNotRunning, StoreError, UnusableRoot
from shmstore.namespace import Namespace
from shmstore.node import client, spawn
from shmstore.sizes import parse_seconds

_CANNOT, _USAGE, _UNREACHABLE = 1, 2, 4
_STATUS_S = 5.0
#: The environment variable with how long a node that was started goes on without stores, seconds.
LINGER = "SHMSTORE_NODE_LINGER"


class _Json(logging.Formatter):
    """A log line as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


@click.group(invoke_without_command=True)
@ROOT
@NAMESPACE
@click.option("--nats", metavar="URL", help="NATS server(s).  [default: $SHMSTORE_NATS]")
@click.option(
    "--name", metavar="NAME", help="Name of this node.  [default: $SHMSTORE_NODE or host]"
)
@click.option("--log-json", is_flag=True, help="Log JSON objects, one a line.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.option(
    "--textfile",
    metavar="FILE",
    help="Write figures to FILE, for the node exporter's textfile collector.",
)
@click.option("--started", is_flag=True, hidden=True)
@click.pass_context
def node(
    context: click.Context,
    root: str | None,
    namespace: str | None,
    nats: str | None,
    name: str | None,
    log_json: bool,
    verbose: bool,
    textfile: str | None,
    started: bool,
) -> None:
    """Runs the node of this host, through which its processes reach other hosts.

    In the foreground, until SIGTERM or Ctrl-C. A second one of the same namespace stands by
    and takes over when the first one has died. Credentials come from the URL or from
    SHMSTORE_NATS_USER, _PASSWORD, _TOKEN, _CREDS, _NKEY, _CA, _CERT and _KEY.
    """
    if context.invoked_subcommand is not None:
        context.obj = (root, namespace)
        return
    _log_to_stderr(log_json, verbose)
    end = _log_and_end if log_json else _end
    try:
        space = Namespace(*chosen(root, namespace))
        from shmstore.node.service import CannotServe, Choices, serve
        from shmstore.node.settings import Settings

        given = nats or os.environ.get(spawn.URL)
        if not given:
            raise ValueError(f"give the NATS server with --nats URL, or set ${spawn.URL}")
        own = names.default_node() if name is None else names.check_name(name, "--name")
        choices = Choices(Settings.parse(given), own, started, _linger_s(), textfile)
    except (ValueError, UnusableRoot) as error:
        end(str(error), _USAGE)
    except StoreError as error:
        end(str(error), _CANNOT)
    try:
        serve(space, choices, _ready)
    except CannotServe as error:
        end(str(error), _CANNOT)
    except StoreError as error:
        end(str(error), _UNREACHABLE)


@node.command()
@ROOT
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, root: str | None, namespace: str | None, as_json: bool) -> None:
    """Says whether the node of this host runs, and how it is.

    Ends with 0 if it serves, with 4 if it does not, or cannot register what is put here.
    """
    root, namespace = root or context.obj[0], namespace or context.obj[1]
    try:
        space = Namespace(*chosen(root, namespace))
        told = client.NodeClient(space, None).call("status", _STATUS_S)
    except (ValueError, UnusableRoot) as error:
        _end(str(error), _USAGE)
    except (NodeNotRunning, client.Overdue) as error:
        _end(str(error) or "The node does not answer.", _UNREACHABLE)
    except StoreError as error:
        _end(str(error), _UNREACHABLE)
    if as_json:
        click.echo(json.dumps(told))
    else:
        click.echo(
            f"Node {told['node']!r} runs as process {told['pid']} and serves "
            f"{told['clients']} connections; NATS at {told['server']} is "
            f"{'connected' if told['connected'] else 'not connected'}."
        )
        if told["fault"]:
            click.echo(f"What is put here is not registered: {told['fault']}.")
    sys.exit(_UNREACHABLE if told["fault"] else 0)


def _log_to_stderr(as_json: bool, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_Json() if as_json else plain)
    # What the libraries have to say, too, so that all lines are of one form.
    logging.getLogger().addHandler(handler)
    log = logging.getLogger("shmstore")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _ready(sentence: str) -> None:
    """Says that the node serves, to who reads it and to systemd."""
    logging.getLogger("shmstore.node").info("%s", sentence)
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        notice = f"READY=1\nSTATUS={sentence}\n".encode()
        at = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.sendto(notice, at)
            except OSError as error:
                logging.getLogger("shmstore.node").warning("systemd was not told: %s", error)


def _linger_s() -> float:
    from shmstore.node.service import LINGER_S

    given = os.environ.get(LINGER) or str(LINGER_S)
    try:
        return parse_seconds(float(given), LINGER)
    except ValueError:
        raise ValueError(f"${LINGER} must be a number of seconds, not {given!r:.80}") from None


def _log_and_end(sentence: str, code: int) -> NoReturn:
    logging.getLogger("shmstore.node").error("%s", sentence)
    sys.exit(code)


def _end(sentence: str, code: int) -> NoReturn:
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(code)
