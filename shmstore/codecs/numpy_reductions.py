"""How numpy's values are written in a pickle: exactly, their memory in runs.

numpy's own pickles copy datetimes, subclasses and arrays that are not
contiguous, lose a masked array's flags and a scalar string's trailing zeros, and
call constructors that trust their arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from shmstore import _wire
from shmstore.codecs.arrays import split
from shmstore.codecs.dtypes import describe
from shmstore.codecs.reductions import REDUCERS, as_it_is
from shmstore.codecs.runs import VIEWED

if TYPE_CHECKING:
    from shmstore.codecs.reducing import Reducing

_STRING = np.dtypes.StringDType


def decide(kind: type) -> Callable[[Any, Any], Any]:
    """Finds the reducer for a type of numpy's, or a subclass of its array."""
    known = _KNOWN.get(kind)
    if known is not None:
        return known
    if issubclass(kind, np.dtype):
        return _dtype
    if issubclass(kind, np.generic):
        return _scalar if kind.__module__ == "numpy" else as_it_is
    if kind in _SUBCLASSES:
        return _numpy_subclass
    if kind is type(np.ma.masked):
        return _the_masked
    if issubclass(kind, np.ndarray) and _pickles_as_array(kind):
        return _foreign_subclass
    return as_it_is


def _array(pickler: Reducing, value: np.ndarray[Any, Any]) -> Any:
    dtype = value.dtype
    described = describe(dtype)
    if described is not None:
        meta, memory = split(value, described)
        return _wire.array, (meta, pickler.runs.memory(value, memory, VIEWED))
    if dtype.kind in "OT":
        fortran = bool(value.flags.fnc)
        cells = (value.T if fortran else value).reshape(-1).tolist()
        head = (dtype, value.shape, fortran)
        return _wire.cells, head, cells, None, None, _wire.fill_cells
    if dtype.hasobject or dtype.itemsize == 0 or value.ndim == 0:
        return NotImplemented
    # Metadata, or fields of a kind that has no description: its dtype is
    # pickled as an object of its own, beside memory that is just bytes.
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        value = np.array(value, order="C", copy=True, subok=False)
    return _wire.array_as, (value.view(np.dtype(f"V{dtype.itemsize}")), dtype)


def _dtype(pickler: Reducing, value: np.dtype[Any]) -> Any:
    if isinstance(value, _STRING):
        na_object = (value.na_object,) if hasattr(value, "na_object") else ()
        return _wire.string_dtype, (bool(value.coerce), *na_object)
    text = describe(value, ignore_metadata=True)
    if text is None:
        if value == np.dtype("O") and value.metadata is None:
            return _wire.object_dtype, ()
        return NotImplemented
    if value.metadata is None:
        return _wire.dtype, (text,)
    return _wire.dtype_with, (text, dict(value.metadata))


def _scalar(pickler: Reducing, value: np.generic) -> Any:
    if type(value) is np.str_:
        return _wire.text_scalar, (str.__str__(value),)
    if type(value) is np.bytes_:
        return _wire.bytes_scalar, (bytes(value),)
    text = describe(value.dtype)
    return NotImplemented if text is None else (_wire.scalar, (text, value.tobytes()))


_SUBCLASSES: dict[type, str] = {
    np.matrix: "matrix",
    np.recarray: "recarray",
    np.memmap: "memmap",
    _wire.chararray(): "chararray",
}


def _numpy_subclass(pickler: Reducing, value: np.ndarray[Any, Any]) -> Any:
    kind = type(value)
    # A memmap comes back without its file: its content is what was stored. A
    # matrix notes there that it is being indexed.
    if kind is not np.memmap and not vars(value).keys() <= {"_getitem"}:
        return NotImplemented
    return _wire.view_as, (_SUBCLASSES[kind], value.view(np.ndarray))


_HOOKS = ("__reduce__", "__reduce_ex__", "__setstate__", "__getstate__")


def _pickles_as_array(kind: type) -> bool:
    return all(getattr(kind, hook, None) is getattr(np.ndarray, hook, None) for hook in _HOOKS)


def _foreign_subclass(pickler: Reducing, value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.hasobject:
        return NotImplemented
    state = vars(value) if hasattr(value, "__dict__") else None
    base = value.view(np.ndarray)
    return _wire.seen_as, (type(value), base), state or None, None, None, _wire.set_attributes


def _the_masked(pickler: Reducing, value: Any) -> Any:
    return _wire.missing, ("masked",)


def _masked(pickler: Reducing, value: np.ma.MaskedArray[Any, Any]) -> Any:
    facts = vars(value)
    if facts.keys() != _MASKED_FACTS or facts["_baseclass"] is not np.ndarray:
        return NotImplemented
    if facts["_basedict"] or facts["_isfield"] or value.dtype.hasobject:
        return NotImplemented
    mask = facts["_mask"]
    return _wire.masked_array, (
        value.view(np.ndarray),
        None if mask is np.ma.nomask else mask,
        facts["_fill_value"],
        bool(facts["_hardmask"]),
        facts["_optinfo"],
    )


_MASKED_FACTS = vars(np.ma.MaskedArray([1], mask=[True])).keys()

_KNOWN: dict[type, Callable[[Any, Any], Any]] = {np.ndarray: _array, np.ma.MaskedArray: _masked}
for _kind, _reducer in _KNOWN.items():
    # A codec may have been registered for it before.
    REDUCERS.setdefault(_kind, _reducer)
