"""A report as one HTML page: self-contained, and readable without JavaScript. Pure.

Everything that comes from a store goes through ``_text``: it is escaped for HTML, after
what a reader could not see has been made visible.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources

from shmstore.entry import Entry
from shmstore.inspection.graph import Node
from shmstore.inspection.layers import layered
from shmstore.inspection.overview import DagOverview, Overview
from shmstore.inspection.treemap import squarified
from shmstore.report import Finding
from shmstore.shown import cut, safe, size, utc

_WIDTH, _HEIGHT = 1000, 360
_BOX, _GAP, _ROW, _TALL = 150, 22, 92, 44
_SHADES = 8


def page(found: Overview, findings: Sequence[Finding] | str, made: str) -> str:
    """The page.

    Args:
        found: What there is.
        findings: What ``check`` has found, or why it did not look.
        made: When, for its head.
    """
    taken = found.usage
    tiles = [
        ("shared memory", size(taken.shared)),
        ("values", f"{sum(one.totals.live for one in taken.dags):,}"),
        ("DAGs", f"{len(taken.dags):,}"),
        ("can be reclaimed", size(taken.reclaimable)),
        ("free", size(taken.free)),
    ]
    where = f"{found.root}/{found.namespace}"
    body = [
        f"<header><h1>shmstore</h1><p>{_text(where)}<br>{_text(made)}</p></header>",
        '<section class="tiles">',
        *(f"<div><b>{_text(value)}</b><span>{name}</span></div>" for name, value in tiles),
        "</section>",
        *_findings(found, findings),
        *_section("Memory by DAG", _treemap(found)),
        *_section("Live values by the time when they were stored", _timeline(found)),
        *_section("DAGs", _dags(found)),
        *_section("The largest values", _values(found.largest, with_dag=True)),
    ]
    source = resources.files("shmstore.inspection")
    style = (source / "page.css").read_text("utf-8")
    script = (source / "page.js").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>shmstore: {_text(where)}</title><style>\n{style}</style></head><body><main>\n"
        + "\n".join(body)
        + f"\n</main><script>\n{script}</script></body></html>\n"
    )


def _text(value: str) -> str:
    return html.escape(safe(value))


def _section(title: str, lines: Iterable[str]) -> Iterable[str]:
    return (f"<section><h2>{title}</h2>", *lines, "</section>")


def _findings(found: Overview, findings: Sequence[Finding] | str) -> Iterable[str]:
    told = list(found.faults)
    if isinstance(findings, str):
        note = f"Not checked: {findings}"
    else:
        told += [str(one) for one in findings]
        note = "" if told else "Checked: all is as it should be."
    lines = [f'<li class="bad">{_text(one)}</li>' for one in told]
    if note:
        lines.append(f"<li>{_text(note)}</li>")
    return _section("Findings", ['<ul class="findings">', *lines, "</ul>"])


def _treemap(found: Overview) -> Iterable[str]:
    parts = [(one.dag_id, one.shared, True) for one in found.usage.dags]
    parts += [("pool", found.usage.pool, False), ("trash", found.usage.trash, False)]
    parts = sorted([one for one in parts if one[1]], key=lambda one: -one[1])
    shown, rest = parts[:60], parts[60:]
    if rest:
        shown.append((f"{len(rest):,} more", sum(one[1] for one in rest), False))
        shown.sort(key=lambda one: -one[1])
    if not shown:
        yield "<p>Nothing is stored.</p>"
        return
    yield f'<svg class="treemap" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    places = squarified([one[1] for one in shown], _WIDTH, _HEIGHT)
    anchors = {one.dag_id: number for number, one in enumerate(found.dags)}
    for number, ((name, nbytes, is_dag), at) in enumerate(zip(shown, places, strict=True)):
        shade = f"s{number % _SHADES}" if is_dag else "other"
        link = is_dag and name in anchors
        if link:
            yield f'<a href="#dag{anchors[name]}">'
        title = f"{name}: {size(nbytes)}"
        yield (
            f'<g><title>{_text(title)}</title><rect class="{shade}" x="{at.x + 1:.1f}" '
            f'y="{at.y + 1:.1f}" width="{max(at.width - 2, 0.5):.1f}" '
            f'height="{max(at.height - 2, 0.5):.1f}" rx="3"/>'
        )
        room = int((at.width - 16) / 9.5)
        if room >= 3 and at.height >= 26:
            yield f'<text x="{at.x + 9:.1f}" y="{at.y + 22:.1f}">{_short(name, room)}</text>'
            if at.height >= 48:
                small = f'<text class="small" x="{at.x + 9:.1f}" y="{at.y + 42:.1f}">'
                yield f"{small}{_short(size(nbytes), room)}</text>"
        yield "</g>"
        if link:
            yield "</a>"
    yield "</svg>"


def _short(text: str, columns: int) -> str:
    return html.escape(cut(safe(text), columns))


def _timeline(found: Overview) -> Iterable[str]:
    if not found.counts:
        yield "<p>Nothing is stored.</p>"
        return
    wide = _WIDTH / len(found.counts)
    for kind, heights in (("count", found.counts), ("nbytes", found.nbytes)):
        most = max(heights) or 1
        told = f"values, at most {most:,}" if kind == "count" else f"bytes, at most {size(most)}"
        yield f'<p class="axis">{told} a bar</p>'
        yield f'<svg class="timeline" viewBox="0 0 {_WIDTH} 64" role="img">'
        for number, height in enumerate(heights):
            if height:
                tall = max(height / most * 62, 1.5)
                label = size(height) if kind == "nbytes" else f"{height:,} values"
                yield (
                    f'<rect class="{kind}" x="{number * wide + 1:.1f}" y="{64 - tall:.1f}" '
                    f'width="{wide - 2:.1f}" height="{tall:.1f}"><title>{label}</title></rect>'
                )
        yield "</svg>"
    ends = (f"<span>{_moment(at)}</span>" for at in (found.first_ns, found.last_ns))
    yield f'<p class="ends">{"".join(ends)}</p>'


def _moment(time_ns: int) -> str:
    return utc(time_ns)[:19].replace("T", " ")


def _values(entries: Sequence[Entry], with_dag: bool) -> Iterable[str]:
    if not entries:
        yield "<p>None.</p>"
        return
    heads = [("DAG", "")] if with_dag else []
    heads += [("id", ""), ("bytes", "number"), ("type", ""), ("stored", ""), ("by", "")]
    yield '<div class="scroll"><table class="sortable"><thead><tr>'
    yield "".join(f'<th class="{kind}" tabindex="0">{name}</th>' for name, kind in heads)
    yield "</tr></thead><tbody>"
    for entry in entries:
        by = entry.origin or f"{entry.producer.pid} on {entry.producer.host}"
        cells = [f"<td>{_short(entry.dag_id, 40)}</td>"] if with_dag else []
        cells += [
            f'<td title="{_text(entry.id)}">{_short(entry.id, 60)}</td>',
            f'<td class="number" data-value="{entry.nbytes}">{size(entry.nbytes)}</td>',
            f"<td>{_short(entry.type_name, 40)}</td>",
            f"<td>{_moment(entry.created_ns)}</td>",
            f"<td>{_short(by, 40)}</td>",
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _dags(found: Overview) -> Iterable[str]:
    for number, dag in enumerate(found.dags):
        yield f'<details id="dag{number}"><summary><b>{_text(dag.dag_id)}</b> '
        values = "1 value" if dag.values == 1 else f"{dag.values:,} values"
        yield f"<span>{values}, {size(dag.shared)}</span></summary>"
        yield f"<p>Created {_moment(dag.created_ns)} UTC.</p>"
        yield from _types(dag)
        if dag.graph:
            yield from _drawing(dag.graph)
        yield from _values(dag.largest[:20], with_dag=False)
        yield "</details>"
    if found.left_out:
        yield f"<p>{found.left_out:,} smaller DAGs are left out.</p>"


def _types(dag: DagOverview) -> Iterable[str]:
    told = (f"{_text(name)} {count:,} ({size(nbytes)})" for name, count, nbytes in dag.types[:8])
    yield f"<p>{', '.join(told)}</p>"


def _drawing(graph: dict[str, Node]) -> Iterable[str]:
    layers = layered(graph)
    widest = max(map(len, layers))
    width = widest * (_BOX + _GAP) + _GAP
    height = len(layers) * _ROW
    places: dict[str, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        start = (width - len(layer) * (_BOX + _GAP) + _GAP) / 2
        for column, id in enumerate(layer):
            places[id] = (start + column * (_BOX + _GAP), row * _ROW + 12)
    yield '<div class="scroll">'
    yield f'<svg class="graph" width="{width}" height="{height}" role="img">'
    for id, node in graph.items():
        x, y = places[id]
        for dep in node.deps:
            left, top = places[dep]
            ax, ay, bx, by = left + _BOX / 2, top + _TALL, x + _BOX / 2, y
            middle = (ay + by) / 2
            curve = f"C{ax:.0f} {middle:.0f} {bx:.0f} {middle:.0f} {bx:.0f} {by:.0f}"
            yield f'<path d="M{ax:.0f} {ay:.0f} {curve}"/>'
    for id, node in graph.items():
        x, y = places[id]
        told = "not here" if node.nbytes is None else size(node.nbytes)
        kind = "missing" if node.nbytes is None else "node"
        yield (
            f'<g class="{kind}"><title>{_text(id)}: {told}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX}" height="{_TALL}" rx="6"/>'
            f'<text x="{x + 9:.0f}" y="{y + 18:.0f}">{_short(id, 17)}</text>'
            f'<text class="small" x="{x + 9:.0f}" y="{y + 36:.0f}">{told}</text></g>'
        )
    yield "</svg></div>"
