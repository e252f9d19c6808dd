"""``shmstore completion``: what makes a shell complete commands, options, DAGs and ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Prints the script for a shell: for bash, eval "$(shmstore completion bash)"."""
    from shmstore.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "shmstore", "_SHMSTORE_COMPLETE").source())
