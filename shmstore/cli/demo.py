"""``shmstore demo``: its options, its progress bar, and how its findings are printed."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from shmstore.cli import demo_hosts
from shmstore.cli.sizes import shown
from shmstore.demo.crew import START_METHODS
from shmstore.demo.facts import DemoError, InputError, Report, Step, Way
from shmstore.demo.run import MERGED, Choices, Tick, run
from shmstore.demo.run_hosts import run_hosts
from shmstore.demo.source import FLIGHTS_BY, FORMATS
from shmstore.demo.stop import Stopped
from shmstore.errors import StoreError, UnusableRoot
from shmstore.place import SlowRootWarning

_MOST_ROWS = 12  # of a step with more parts, the rest is summed up in one row
_STAGE_WIDTH = 20
_MOST_HOSTS = 8


@click.command()
@click.option("--input", "path", metavar="FILE", help=f"Your own table: a {FORMATS} file.")
@click.option("--by", metavar="COLUMN", help=f"Split by this column.  [flights: {FLIGHTS_BY}]")
@click.option("--rows", type=click.IntRange(1), help="Use the first so many rows only.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Worker processes of each host.  [default: 1 a CPU, at most 4]",
)
@click.option(
    "--hosts",
    type=click.IntRange(1, _MOST_HOSTS),
    default=1,
    show_default=True,
    help="Spread the work over so many hosts, each with a root and a node of its own.",
)
@click.option(
    "--start-method",
    type=click.Choice(START_METHODS),
    default="fork",
    show_default=True,
    help="How worker processes are started.",
)
@click.option(
    "--root",
    metavar="DIR",
    help="Root of the store.  [default: $SHMSTORE_ROOT or /dev/shm/shmstore-UID]",
)
@click.option("--keep", is_flag=True, help="Leave the DAG in the store, to look at it.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def demo(
    path: str | None,
    by: str | None,
    rows: int | None,
    workers: int | None,
    hosts: int,
    start_method: str,
    root: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Runs a small DAG over real data and shows that nothing is copied.

    A table (336,776 flights, or your own) is split by a column; worker processes
    get the parts from the store by id and put their statistics there; these are
    merged, and checked against the same worked out by one process. Then the same
    is done by sending the parts through the pool's pipes, for comparison.

    With --hosts 2 and more, all on this machine: a nats-server and a node for each host are
    started, parts and statistics go from host to host, and what crossed is shown.

    Afterwards nothing is left, unless you ask for it; Ctrl-C leaves nothing either.
    """
    choices = Choices(path, by, rows, workers, start_method, root, keep, hosts)
    console = Console(highlight=False, soft_wrap=False)
    try:
        with _warnings_as_notes(), _progress(console, shown=not as_json) as tick:
            report = run(choices, tick) if hosts == 1 else run_hosts(choices, tick)
    except Stopped as stopped:
        name = signal.Signals(stopped.signum).name
        click.echo(f"Stopped by {name}; nothing was left behind.", err=True)
        sys.exit(128 + stopped.signum)
    except (InputError, UnusableRoot) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (DemoError, StoreError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(report), "ok": report.ok}, indent=2))
    else:
        _print(console, report)
    sys.exit(0 if report.ok else 1)


@contextmanager
def _progress(console: Console, shown: bool) -> Iterator[Tick]:
    """A bar for each stage, gone at the end; nothing where no person looks on.

    It is drawn when something happens, not by a thread of its own: the process
    forks meanwhile.
    """
    bars: dict[str, TaskID] = {}
    with Progress(
        TextColumn(f"{{task.description:<{_STAGE_WIDTH}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not (shown and console.is_terminal),
    ) as progress:

        def tick(stage: str, done: int, of: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=of)
            progress.update(bars[stage], completed=done, total=of)
            progress.refresh()

        yield tick


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Says in one line on stderr what Python would wrap in a file name and source code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SlowRootWarning)
        yield
    for warning in caught:
        click.echo(f"Note: {warning.message}.", err=True)


def _print(console: Console, report: Report) -> None:
    console.print(f"[bold]{escape(report.source)}[/]")
    console.print(
        f"{report.rows:,} rows, {report.columns} columns, {shown(report.nbytes)}, "
        f"split by {escape(report.by)}\n"
    )
    console.print(_steps(report))
    console.print("  inline: values of up to 16 KiB lie in the log and are copied out.\n")
    console.print(_workers(report))
    if report.network:
        demo_hosts.show(console, report.network)
    for line in _verdict(report):
        console.print(line)
    if report.kept:
        click.echo(_how_to_look(report) if not report.network else demo_hosts.how_to_look(report))


def _steps(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step")
    table.add_column("process", no_wrap=True)
    table.add_column("value", overflow="ellipsis", no_wrap=True)
    for name in ("size", "seconds", "copied by get"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in dict.fromkeys(step.step for step in report.steps):
        steps = [step for step in report.steps if step.step == name]
        for step in steps[:_MOST_ROWS]:
            table.add_row(*_cells(step))
        if rest := steps[_MOST_ROWS:]:
            table.add_row(
                name,
                "",
                f"{len(rest)} more",
                shown(sum(step.nbytes for step in rest)),
                f"{sum(step.seconds for step in rest):.3f}",
                shown(sum(step.copied_bytes for step in rest)),
            )
    return table


def _cells(step: Step) -> tuple[str, ...]:
    copied = f"{shown(step.copied_bytes)} {step.note}".strip()
    process = f"{step.host or step.process} {step.pid}"
    return (
        step.step,
        process,
        escape(step.id),
        shown(step.nbytes),
        f"{step.seconds:.3f}",
        copied,
    )


def _workers(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"workers ({report.start_method})", no_wrap=True)
    for name in ("pid", "parts", "data read", "own memory", "shared memory"):
        table.add_column(name, justify="right", no_wrap=True)
    ways = [("through the store", report.store)]
    if report.pickled:
        ways.append(("by pickling", report.pickled))
    for name, way in ways:
        before = ""
        for worker in way.workers:
            of = worker.host or name
            table.add_row(
                "" if of == before else of,
                str(worker.pid),
                str(worker.parts),
                shown(worker.read_bytes),
                f"+{shown(worker.own_bytes)}",
                f"+{shown(worker.mapped_bytes)}",
            )
            before = of
    return table


def _verdict(report: Report) -> Iterator[str]:
    yield "  own memory: RssAnon of /proc/<pid>/status, grown since before the first read.\n"
    yield f"Through the store {_sentence(report.store, 'read')}"
    if report.pickled:
        yield f"By pickling       {_sentence(report.pickled, 'received')}"
    else:
        yield f"By pickling: left out, {report.pickled_skipped}."
    if report.ok:
        yield (
            f"[green]Checked[/]: the merged statistics of {report.checked_columns} columns equal "
            "those of one process,\nand the workers read the very bytes that were stored."
        )
    elif not report.same_bytes:
        yield "[red]Wrong[/]: a worker read other bytes than were stored."
    for difference in report.differences[:10]:
        yield f"[red]Wrong[/]: {escape(difference)}."


def _how_to_look(report: Report) -> str:
    """Where a kept DAG is, and lines to copy: they must not be wrapped, however long."""
    return f"""
Kept in namespace {report.namespace!r} of {report.root}. Look at it:

    import shmstore
    store = shmstore.Store({report.root!r}, {report.namespace!r})
    print(*store.entries({report.dag_id!r}), sep="\\n")
    print(store.get({report.dag_id!r}, {MERGED!r}))

Remove it: rm -r {shlex.quote(os.path.join(report.root, report.namespace))}"""


def _sentence(way: Way, verb: str) -> str:
    count = len(way.workers)
    return (
        f"{count} worker{'s' if count > 1 else ''} {verb} {shown(way.read_bytes)} and grew by "
        f"[bold]{shown(way.own_bytes)}[/], {way.seconds:.2f} s."
    )
