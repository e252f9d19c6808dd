"""What reading a pandas value copies and what it views, told from its meta alone."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Any

from shmstore import codecs
from shmstore.codecs.encoded import BufferNote
from shmstore.codecs.pandas_payload import Spec

_VIEWED = "a numpy array over the stored bytes"
#: So many columns of a block are named.
_NAMED_COLUMNS = 4
#: Kinds of arrays whose own spec is a buffer.
_BUFFERS = frozenset(("numpy", "datetime", "period"))


def notes_of(spec: Spec) -> list[BufferNote]:
    """One note for each buffer of a parsed meta that holds bytes."""
    notes: list[BufferNote] = []
    if "columns" in spec:
        notes += _axis("columns", spec["columns"])
    notes += _axis("index", spec["index"])
    if "values" in spec:
        notes += _array("values", spec["values"])
    notes += _label("name", spec.get("name"))
    labels = _labels(spec.get("columns"))
    for block in spec.get("blocks", ()):
        notes += _array(_block_name(block["at"], labels), block["values"])
    if "attrs" in spec:
        notes += _part("attrs", spec["attrs"])
    return [note for note in notes if note.nbytes]


def _labels(columns: Spec | None) -> list[Any] | range | None:
    """The labels of the columns, where the meta alone tells them."""
    if columns is None:
        return None
    if columns["k"] == "range":
        return range(columns["start"], columns["stop"], columns["step"])
    if columns["k"] == "index":
        cells = columns["values"].get("cells")
        return cells if type(cells) is list else None
    return None


def _block_name(at: Any, labels: list[Any] | range | None) -> str:
    positions = at["list"] if type(at) is dict else range(*at)
    names = [
        f"column {position}" if labels is None else str(labels[position])
        for position in positions[:_NAMED_COLUMNS]
    ]
    more = len(positions) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _buffer(name: str, spec: Spec) -> Iterator[BufferNote]:
    yield BufferNote(name, spec["nbytes"], False, _VIEWED)


def _part(name: str, spec: Spec) -> Iterator[BufferNote]:
    meta = binascii.a2b_base64(spec["meta"])
    for note in codecs.explain(spec["codec"], meta, spec["nbytes"]):
        yield note._replace(name=f"{name}.{note.name}" if note.name else name)


def _label(name: str, label: Any) -> Iterator[BufferNote]:
    if type(label) is dict:
        yield from _part(name, label)


def _axis(name: str, spec: Spec) -> Iterator[BufferNote]:
    if spec["k"] == "multi":
        for number, level in enumerate(spec["levels"]):
            yield from _axis(f"{name}.levels[{number}]", level)
        for number, codes in enumerate(spec["codes"]):
            yield from _buffer(f"{name}.codes[{number}]", codes)
        for number, label in enumerate(spec["names"]):
            yield from _label(f"{name}.names[{number}]", label)
        return
    if "values" in spec:
        yield from _array(name, spec["values"])
    yield from _label(f"{name}.freq", spec.get("freq"))
    yield from _label(f"{name}.name", spec.get("name"))


def _array(name: str, spec: Spec) -> Iterator[BufferNote]:
    kind = spec["k"]
    if kind in _BUFFERS:
        yield from _buffer(name, spec)
        yield from _label(f"{name}.tz", spec.get("tz"))
        yield from _label(f"{name}.freq", spec.get("freq"))
    elif kind == "opaque":
        yield from _part(name, spec)
    elif kind == "masked":
        yield from _buffer(name, spec["data"])
        yield from _buffer(f"{name}.mask", spec["mask"])
    elif kind == "categorical":
        yield from _buffer(f"{name}.codes", spec["codes"])
        yield from _axis(f"{name}.categories", spec["categories"])
    elif kind == "interval":
        yield from _array(f"{name}.left", spec["left"])
        yield from _array(f"{name}.right", spec["right"])
    elif kind == "sparse":
        yield from _array(name, spec["values"])
        for number, positions in enumerate(spec["positions"]):
            yield from _buffer(f"{name}.positions[{number}]", positions)
        yield from _label(f"{name}.fill", spec["fill"])
    else:
        for role in ("part", "chunks"):
            if role in spec:
                yield from _part(name, spec[role])
