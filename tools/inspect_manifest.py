"""Looks into a store, or into a copy of one: runs from a checkout, without installation.

``python tools/inspect_manifest.py PATH [COMMAND ...]``: PATH is a root, a namespace's
directory or one DAG's, where it is or copied anywhere. Without a command it gives an
overview; with one it is ``shmstore COMMAND --at PATH ...``, for the commands that only
look: ls, dags, stat, show, log, path, export, graph, du, readers, metrics. Changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(arguments: list[str]) -> None:
    """Runs the command, which ends the process with its exit code."""
    from shmstore.cli import main as shmstore

    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if arguments else 2)
    path, *command = arguments
    if not command:
        command = ["ls", "--long"] if (Path(path) / "manifest").is_file() else ["dags"]
    shmstore([command[0], "--at", path, *command[1:]], prog_name="shmstore")


if __name__ == "__main__":
    main(sys.argv[1:])
