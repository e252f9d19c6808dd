"""The graph of a DAG's values by their deps, as text. Pure.

A dep need not be there (it was deleted, or lies in another DAG), and nothing keeps deps
from forming a circle: both are shown as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Node(NamedTuple):
    """A value in the graph.

    Attributes:
        id: Its id.
        nbytes: Its size; None for a dep that is not there.
        deps: What it was computed from.
    """

    id: str
    nbytes: int | None
    deps: tuple[str, ...]


def nodes(values: Iterable[tuple[str, int, tuple[str, ...]]], most: int) -> dict[str, Node]:
    """The graph's nodes by id: the first ``most`` values and the deps that are not there."""
    found: dict[str, Node] = {}
    for id, nbytes, deps in values:
        if len(found) == most:
            break
        found[id] = Node(id, nbytes, deps)
    for node in list(found.values()):
        for dep in node.deps:
            found.setdefault(dep, Node(dep, None, ()))
    return found


def mermaid(graph: dict[str, Node], size: dict[str, str]) -> Iterator[str]:
    """Lines of a mermaid flow chart.

    Args:
        graph: The nodes.
        size: What to show of each one's size.
    """
    names = {id: f"n{number}" for number, id in enumerate(graph)}
    yield "flowchart TD"
    for id, node in graph.items():
        told = _entities(f"{id}") + (f"<br>{size[id]}" if id in size else "")
        shape = f'["{told}"]' if node.nbytes is not None else f'(["{told}<br>not here"])'
        yield f"    {names[id]}{shape}"
    for id, node in graph.items():
        for dep in node.deps:
            yield f"    {names[dep]} --> {names[id]}"


def _entities(text: str) -> str:
    plain = " -_.,:/()"
    return "".join(c if c.isalnum() or c in plain else f"#{ord(c)};" for c in text)


def dot(graph: dict[str, Node], size: dict[str, str]) -> Iterator[str]:
    """Lines of a graph for Graphviz."""
    names = {id: f"n{number}" for number, id in enumerate(graph)}
    yield "digraph {"
    yield "    node [shape=box];"
    for id, node in graph.items():
        lines = [id, size.get(id, "")] if node.nbytes is not None else [id, "not here"]
        label = "\\n".join(_quoted(line) for line in lines if line)
        style = "" if node.nbytes is not None else ", style=dashed"
        yield f'    {names[id]} [label="{label}"{style}];'
    for id, node in graph.items():
        for dep in node.deps:
            yield f"    {names[dep]} -> {names[id]};"
    yield "}"


def _quoted(text: str) -> str:
    shown = (c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return "".join(shown).replace("\\", "\\\\").replace('"', '\\"')


def tree(graph: dict[str, Node]) -> Iterator[tuple[str, str, bool]]:
    """The graph as lines of a tree, from what nothing was computed from downwards.

    Yields:
        What is drawn before the id, the id, and whether what follows from it was drawn
        before and is left out.
    """
    children: dict[str, list[str]] = {id: [] for id in graph}
    for id, node in graph.items():
        for dep in dict.fromkeys(node.deps):
            children[dep].append(id)
    drawn: set[str] = set()
    roots = [id for id, node in graph.items() if not node.deps]
    # What is left over then lies on circles, or follows from one.
    for start in (*roots, *graph):
        if start in drawn:
            continue
        pending = [("", "", start)]
        while pending:
            lead, branch, id = pending.pop()
            again = id in drawn
            yield lead + branch, id, again and bool(children[id])
            if again:
                continue
            drawn.add(id)
            below = lead + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
            several = children[id]
            for number, child in reversed(list(enumerate(several))):
                last = number == len(several) - 1
                pending.append((below, "└─ " if last else "├─ ", child))
