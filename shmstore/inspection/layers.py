"""Where the nodes of a graph are drawn: in layers, each below all that it was computed from.

Pure. Within a layer the nodes are ordered by the middle of what they hang on, which keeps
most lines from crossing. A circle is cut where it is first met.
"""

from __future__ import annotations

from shmstore.inspection.graph import Node

_SWEEPS = 4


def layered(graph: dict[str, Node]) -> list[list[str]]:
    """The ids of the nodes, layer by layer, each in its order from left to right."""
    depth = _depths(graph)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for id in graph:
        layers[depth[id]].append(id)
    children: dict[str, list[str]] = {id: [] for id in graph}
    for id, node in graph.items():
        for dep in node.deps:
            children[dep].append(id)
    for _ in range(_SWEEPS):
        _order(layers, {id: list(node.deps) for id, node in graph.items()})
        _order(layers, children)
    return layers


def _depths(graph: dict[str, Node]) -> dict[str, int]:
    """How many layers lie above each node."""
    depth: dict[str, int] = {}
    for start, first in graph.items():
        path = [(start, iter(first.deps))]
        open_: set[str] = {start}
        while path and start not in depth:
            id, deps = path[-1]
            below = next((dep for dep in deps if dep not in depth and dep not in open_), None)
            if below is not None:
                open_.add(below)
                path.append((below, iter(graph[below].deps)))
                continue
            known = [depth[dep] for dep in graph[id].deps if dep in depth]
            depth[id] = max(known, default=-1) + 1
            open_.discard(id)
            path.pop()
    return depth


def _order(layers: list[list[str]], hangs_on: dict[str, list[str]]) -> None:
    place = {id: number / len(layer) for layer in layers for number, id in enumerate(layer)}

    def middle(id: str) -> float:
        others = hangs_on[id]
        return sum(place[one] for one in others) / len(others) if others else place[id]

    for layer in layers:
        layer.sort(key=middle)
        place.update({id: number / len(layer) for number, id in enumerate(layer)})
