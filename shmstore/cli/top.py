"""``shmstore top``: a live view of a store."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shmstore.cli.answer import JSON_LINES, line
from shmstore.cli.place import NAMESPACE, ROOT, chosen
from shmstore.inspection.keys import Keys
from shmstore.inspection.rates import Meter
from shmstore.shown import count, cut, safe, size

if TYPE_CHECKING:
    from shmstore.inspection.rates import DagRates, Rates

_ALIVE_S = 5.0
_HELP = "q quit   p pause   sort by: m memory  r rate  v values  n name   ? less help"
_SORTS = {
    "m": lambda one: -one.shared,
    "r": lambda one: -one.commits,
    "v": lambda one: -one.values,
    "n": lambda one: one.dag_id,
}


@click.command()
@ROOT
@NAMESPACE
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="One look, printed, and no rates.")
@JSON_LINES
def top(
    root: str | None, namespace: str | None, interval: float, once: bool, as_json: bool
) -> None:
    """Shows what happens: puts a second, memory by DAG, who waits, the node.

    Keys: q quits, p pauses, m, r, v and n sort by memory, rate, values and name, ? tells.
    """
    place = chosen(root, namespace)
    meter = Meter(*place)
    rates = meter.look()
    console = Console()
    where = "/".join(place)
    if as_json:
        while True:
            click.echo(line("rates", _facts(rates)))
            if once:
                return
            time.sleep(interval)  # what is wanted: a look every so often
            rates = meter.look()
    if once or not sys.stdout.isatty():
        console.print(_view(rates, where, "m", False, _Room(1000, console.width)))
        return
    _live(meter, rates, console, where, interval)


def _live(meter: Meter, rates: Rates, console: Console, where: str, interval: float) -> None:
    """The view until it is quit. Also SIGTERM leaves the terminal as it was."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    by, helping, paused = "m", False, False
    with (
        Keys(sys.stdin.fileno()) as keys,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        due = time.monotonic() + interval
        while True:
            room = _Room(console.height, console.width)
            live.update(_view(rates, where, by, helping, room, paused), refresh=True)
            # A change of the window's size is seen soon, whatever the interval.
            key = keys.next(max(min(due - time.monotonic(), 0.25), 0))
            if key == "q":
                return
            if key == "p":
                paused = not paused
            elif key == "?":
                helping = not helping
            elif key in _SORTS:
                by = key
            if time.monotonic() >= due:
                if not paused:
                    rates = meter.look()
                due = time.monotonic() + interval


class _Room(tuple[int, int]):
    """Lines and columns of a terminal."""

    def __new__(cls, lines: int, columns: int) -> _Room:
        return super().__new__(cls, (lines, columns))


def _view(
    rates: Rates, where: str, by: str, helping: bool, room: _Room, paused: bool = False
) -> Group:
    """Everything, in as many lines and columns as there are."""
    lines, columns = room
    used = rates.usage
    limit = used.capacity or used.file_system
    head = [
        Text.assemble((cut(f"shmstore {safe(where)}", columns - 10), "bold"),
                      ("  paused" if paused else "", "yellow")),
        Text(cut(f"{size(used.shared)} of {size(limit) if limit else 'no limit'}, pool "
                 f"{size(used.pool)}, reclaimable {size(used.reclaimable)}, "
                 f"{size(used.free)} free", columns)),
        Text(cut(f"{rates.commits:,.0f} puts and deletes a second, {_signed(rates.growth)}/s; "
                 f"{_node(rates)}; {_waited(rates)}", columns)),
    ]  # fmt: skip
    if used.unreadable:
        head.append(Text(f"{count(len(used.unreadable), 'DAG')} cannot be read", style="red"))
    foot = Text(cut(_HELP if helping else "q quit  p pause  ? help", columns), style="dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    table.add_column("DAG", no_wrap=True, ratio=1)
    for name in ("VALUES", "MEMORY", "/S", "GROWTH/S"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=7)
    rows = sorted(rates.dags, key=_SORTS[by])
    most = max(lines - len(head) - 4, 1)
    for one in rows[:most]:
        table.add_row(*_row(one))
    left = [Text(f"and {len(rows) - most:,} more")] if len(rows) > most else []
    return Group(*head, Text(""), table, *left, foot)


def _row(one: DagRates) -> tuple[Text | str, ...]:
    waits = Text("waited" if one.waited_for else "", style="yellow")
    return (
        Text(safe(one.dag_id)),
        f"{one.values:,}",
        size(one.shared),
        f"{one.commits:,.0f}",
        _signed(one.growth),
        waits,
    )


def _signed(nbytes: float) -> str:
    return f"-{size(-nbytes)}" if nbytes < 0 else size(nbytes)


def _node(rates: Rates) -> str:
    if rates.node_age_s is None:
        return "no node"
    return "node alive" if rates.node_age_s < _ALIVE_S else "node gone"


def _waited(rates: Rates) -> str:
    waited = sum(one.waited_for for one in rates.dags)
    return f"{count(waited, 'DAG')} waited for" if waited else "nobody waits"


def _facts(rates: Rates) -> dict[str, object]:
    used = rates.usage
    return {
        "commits_per_s": round(rates.commits, 3),
        "growth_bytes_per_s": round(rates.growth, 3),
        "shared": used.shared,
        "pool": used.pool,
        "reclaimable": used.reclaimable,
        "free": used.free,
        "node_age_s": rates.node_age_s,
        "unreadable": len(used.unreadable),
        "dags": [
            {
                "dag_id": one.dag_id,
                "values": one.values,
                "shared": one.shared,
                "commits_per_s": round(one.commits, 3),
                "growth_bytes_per_s": round(one.growth, 3),
                "waited_for": one.waited_for,
            }
            for one in rates.dags
        ],
    }
