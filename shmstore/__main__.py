"""``python -m shmstore``: the command line, where the script is not on the path."""

from shmstore.cli import main

if __name__ == "__main__":
    main(prog_name="shmstore")
