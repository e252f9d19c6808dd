"""Runs the command.

A process that multiprocessing spawns imports this module anew; so it imports nothing
unless it is run.
"""

if __name__ == "__main__":
    import sys

    from benchmarks.command import main

    sys.exit(main())
