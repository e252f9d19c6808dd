"""What ``shmstore demo --hosts`` prints besides: what crossed the network, and how fast."""

from __future__ import annotations

import os
import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shmstore.cli.sizes import shown
from shmstore.demo.facts import Crossing, Network, Report
from shmstore.demo.run import MERGED

_MOST_ROWS = 12
_LARGE_BYTES = 65_536  # of less, the time is that of a question and its answer


def show(console: Console, network: Network) -> None:
    """Prints the table of what crossed."""
    console.print()
    console.print(_crossings(network))
    console.print(
        f"  The NATS server took in {shown(network.server_bytes)}, with all requests and the "
        "registry.\n  seconds: from asking for a value to having it, checked."
    )


def _crossings(network: Network) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("crossed the network", overflow="ellipsis", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    for name in ("size", "seconds", "a second"):
        table.add_column(name, justify="right", no_wrap=True)
    crossings = network.crossings
    for one in crossings[:_MOST_ROWS]:
        table.add_row(escape(one.id), one.source, one.target, *_figures([one]))
    if rest := crossings[_MOST_ROWS:]:
        table.add_row(f"{len(rest)} more", "", "", *_figures(rest))
    table.add_row(f"[bold]{len(crossings)} values[/]", "", "", *_figures(crossings))
    return table


def _figures(crossings: tuple[Crossing, ...] | list[Crossing]) -> tuple[str, str, str]:
    nbytes = sum(one.nbytes for one in crossings)
    seconds = sum(one.seconds for one in crossings)
    rate = shown(nbytes / seconds) if nbytes >= _LARGE_BYTES else ""
    return shown(nbytes), f"{seconds:.3f}", rate


def how_to_look(report: Report) -> str:
    """Where the hosts' kept DAGs are, and lines to copy: they must not be wrapped, however long."""
    assert report.network is not None
    roots = report.network.roots
    within = os.path.dirname(report.root)
    listed = "\n".join(f"    {name}: {root}" for name, root in roots.items())
    return f"""
Kept in namespace {report.namespace!r} of each host's root; no node runs there any more:

{listed}

Look at one:

    import shmstore
    store = shmstore.Store({report.root!r}, {report.namespace!r})
    print(*store.entries({report.dag_id!r}), sep="\\n")
    print(store.get({report.dag_id!r}, {MERGED!r}))

Remove all: rm -r {shlex.quote(within)}"""
