"""The command line: its frame. Each command is a module of its own, loaded when asked for.

Parsing and printing live here; what a command does lives below, in packages that
know nothing of the command line.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

import shmstore
from shmstore.cli.answer import told_in_a_sentence

__all__ = ["main"]


class Command(NamedTuple):
    """Where a command lives and what the list of commands says about it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "check": Command(
        "shmstore.cli.check",
        "check",
        "Hold everything against everything else; mend what can be mended.",
    ),
    "clear": Command("shmstore.cli.clear", "clear", "Remove a whole DAG, here or on all nodes."),
    "completion": Command(
        "shmstore.cli.completion", "completion", "Print what makes a shell complete the rest."
    ),
    "dags": Command(
        "shmstore.cli.dags", "dags", "List the DAGs: what they hold and what they take."
    ),
    "demo": Command(
        "shmstore.cli.demo", "demo", "Run a small DAG over real data; show that nothing is copied."
    ),
    "doctor": Command(
        "shmstore.cli.doctor", "doctor", "Look at what of this machine is in a store's way."
    ),
    "du": Command("shmstore.cli.du", "du", "Show what the store takes, and for what."),
    "export": Command(
        "shmstore.cli.export", "export", "Write a value to a Parquet, CSV, Arrow or npy file."
    ),
    "fetch": Command("shmstore.cli.nodes", "fetch", "Bring a value here from another host."),
    "gc": Command("shmstore.cli.gc", "gc", "Free what nobody needs, or say what that would be."),
    "graph": Command("shmstore.cli.graph", "graph", "Draw which values were computed from which."),
    "head": Command("shmstore.cli.show", "show", "Show the beginning of a value, as show does."),
    "log": Command("shmstore.cli.log", "log", "Show what was stored in a DAG and deleted from it."),
    "ls": Command("shmstore.cli.ls", "ls", "List DAGs, or the values of one."),
    "metrics": Command("shmstore.cli.metrics", "metrics", "Print figures for Prometheus."),
    "node": Command(
        "shmstore.cli.node", "node", "Run this host's node, through which others are reached."
    ),
    "nodes": Command("shmstore.cli.nodes", "nodes", "List the nodes of all hosts."),
    "path": Command(
        "shmstore.cli.path", "path", "Print where a value's bytes are, for other programs."
    ),
    "readers": Command(
        "shmstore.cli.readers", "readers", "Show which processes view which values."
    ),
    "report": Command(
        "shmstore.cli.report", "report", "Write a page about a store, for a browser."
    ),
    "rm": Command("shmstore.cli.rm", "rm", "Delete values."),
    "show": Command("shmstore.cli.show", "show", "Show the beginning of a value."),
    "stat": Command("shmstore.cli.stat", "stat", "Show what is known about a value."),
    "top": Command("shmstore.cli.top", "top", "Show what happens, live."),
    "watch": Command("shmstore.cli.watch", "watch", "Follow what is stored and deleted."),
    "where": Command("shmstore.cli.nodes", "where", "Say which node has a value."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is run, not to list it."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command; what goes wrong in it is told in a sentence."""
        with told_in_a_sentence():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        command = getattr(importlib.import_module(found.module), found.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in sorted(COMMANDS)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shmstore.__version__, prog_name="shmstore")
def main() -> None:
    """Results of a pipeline, shared by all processes of a host through shared memory."""
