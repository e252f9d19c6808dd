"""What the pandas codec uses of pandas beyond its public interface, and nothing else.

The public constructors copy, consolidate, infer types or validate in time
proportional to the data; pandas' own unpickling and pyarrow's ``to_pandas``
avoid them in the same way as this module does. Written against pandas 2.2 to
3.1. Nothing here checks what it is given: ``pandas_arrays``, ``pandas_axes`` and
``pandas_frames`` check it before.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
from pandas._libs.sparse import BlockIndex, IntIndex
from pandas.core.internals.managers import SingleBlockManager

try:
    from pandas.api.internals import create_dataframe_from_blocks as _frame_from_blocks
except ImportError:  # before pandas 3
    from pandas.core.internals import BlockManager, make_block

    def _frame_from_blocks(
        blocks: list[tuple[Any, Any]], index: pd.Index, columns: pd.Index
    ) -> pd.DataFrame:
        made = [make_block(values, placement, ndim=2) for values, placement in blocks]
        manager = BlockManager(made, [columns, index])
        return pd.DataFrame._from_mgr(manager, manager.axes)


try:
    from pandas.core.arrays.string_ import StringArrayNumpySemantics
    from pandas.core.arrays.string_arrow import ArrowStringArrayNumpySemantics

    _NAN_STRING_ARRAYS: tuple[type, ...] = (
        StringArrayNumpySemantics,
        ArrowStringArrayNumpySemantics,
    )
except ImportError:  # since pandas 3.1 the dtype alone tells
    _NAN_STRING_ARRAYS = ()

#: Every class of string arrays.
STRING_ARRAYS = (pd.arrays.StringArray, pd.arrays.ArrowStringArray, *_NAN_STRING_ARRAYS)

#: A contiguous run of columns as (start, stop, step), or the columns one by one.
Placement = slice | np.ndarray[Any, np.dtype[np.intp]]


#: What ``protect`` names as another user of a block; it lives as long as the process.
_OTHER_USER = pd.RangeIndex(0)


def protect(value: pd.DataFrame | pd.Series | pd.Index) -> None:
    """Makes pandas copy a block (or what shares an index's memory) before it writes to it.

    To copy-on-write, the stored bytes are one more user of the block. Without it pandas
    (3 and later) takes the refusal of numpy to write to read-only memory for a wrong
    value, and asks to report a bug.
    """
    if isinstance(value, pd.Index):
        users = [value._references]
    else:
        users = [block.refs for block in value._mgr.blocks]
    for each in users:
        if each is not None:
            each.add_index_reference(_OTHER_USER)


def blocks_of(frame: pd.DataFrame) -> list[tuple[Any, Placement]]:
    """The blocks of a frame, in order: their values and the columns that they hold."""
    return [(block.values, block.mgr_locs.indexer) for block in frame._mgr.blocks]


def frame_of(
    blocks: list[tuple[Any, np.ndarray[Any, np.dtype[np.intp]]]], index: pd.Index, columns: pd.Index
) -> pd.DataFrame:
    """A frame of exactly these blocks, copying and consolidating nothing."""
    return _frame_from_blocks(blocks, index=index, columns=columns)


def values_of(container: pd.Series | pd.Index) -> Any:
    """The array inside: a numpy array or an extension array, never a copy."""
    return container._values


def series_of(values: Any, index: pd.Index, name: Any) -> pd.Series:
    """A series of exactly this array; the constructor would turn a memmap into an array."""
    series = pd.Series._from_mgr(SingleBlockManager.from_array(values, index), [index])
    series.name = name
    return series


def set_no_duplicates(value: pd.DataFrame | pd.Series) -> None:
    """Sets ``flags.allows_duplicate_labels`` to False without the search for duplicates."""
    object.__setattr__(value, "_flags", pd.Flags(value, allows_duplicate_labels=False))


def index_of(kind: type[pd.Index], values: Any, name: Any, freq: Any) -> pd.Index:
    """An index of class ``kind``; ``freq`` is for DatetimeIndex and TimedeltaIndex."""
    if freq is not None and not hasattr(kind, "_freq"):
        values._freq = freq  # before pandas 3.1 the array keeps it
    index = kind._simple_new(values, name=name)
    if freq is not None and hasattr(kind, "_freq"):
        index._freq = freq
    return index


def array_freq_of(values: Any) -> Any:
    """The freq that a DatetimeArray or TimedeltaArray carries itself (before pandas 3.1)."""
    return getattr(values, "_freq", None)


def set_array_freq(values: Any, freq: Any) -> None:
    """Gives the array its freq back, where arrays have one."""
    if hasattr(type(values), "_freq"):
        values._freq = freq


def memory_of(values: Any) -> Any:
    """The numpy array inside a datetime, timedelta, period or python-string array."""
    return values._ndarray


def datetimes_of(values: np.ndarray[Any, Any], dtype: Any) -> Any:
    """A DatetimeArray or TimedeltaArray over 1-d or 2-d values."""
    kind = pd.arrays.TimedeltaArray if values.dtype.kind == "m" else pd.arrays.DatetimeArray
    return kind._simple_new(values, dtype=dtype)


def categorical_of(codes: np.ndarray[Any, Any], categories: pd.Index, ordered: bool) -> Any:
    """A Categorical, without looking for duplicate categories or codes out of range."""
    dtype = pd.CategoricalDtype._from_fastpath(categories, ordered)
    return pd.Categorical._simple_new(codes, dtype)


def masked_parts_of(values: Any) -> tuple[Any, Any]:
    """The data and the mask of a nullable array."""
    return values._data, values._mask


def interval_sides_of(values: Any) -> tuple[Any, Any]:
    """The left and right bounds of an IntervalArray, as arrays."""
    return values._left, values._right


def intervals_of(left: Any, right: Any, dtype: Any) -> Any:
    """An IntervalArray, without comparing its bounds."""
    return pd.arrays.IntervalArray._simple_new(left, right, dtype)


@functools.lru_cache(maxsize=8)
def _string_array(dtype: Any) -> Any:
    return dtype.construct_array_type()


def python_strings_of(cells: np.ndarray[Any, Any], dtype: Any) -> Any:
    """A string array over an object array that holds str and ``dtype.na_value``."""
    return _string_array(dtype)._simple_new(cells, dtype)


def arrow_data_of(values: Any) -> Any:
    """The pyarrow.ChunkedArray inside an Arrow-backed array."""
    return values._pa_array


def arrow_strings_of(chunks: Any, dtype: Any) -> Any:
    """A string array over a ChunkedArray of large_string."""
    model = _arrow_strings_model(dtype)
    if hasattr(model, "_from_pyarrow_array"):  # what spares the constructor's conversions
        return model._from_pyarrow_array(chunks)
    return _arrow_strings(chunks, dtype)


@functools.lru_cache(maxsize=8)
def _arrow_strings_model(dtype: Any) -> Any:
    import pyarrow as pa

    return _arrow_strings(pa.chunked_array([], pa.large_string()), dtype)


def _arrow_strings(chunks: Any, dtype: Any) -> Any:
    kind = _string_array(dtype)
    try:
        return kind(chunks, dtype=dtype)
    except TypeError:  # before pandas 3.1 the class alone tells the dtype
        return kind(chunks)


def sparse_of(
    values: np.ndarray[Any, Any],
    length: int,
    positions: tuple[np.ndarray[Any, Any], ...],
    fill: Any,
) -> Any:
    """A SparseArray.

    Args:
        values: The values that are stored.
        length: How many there are with those that are not.
        positions: The indices of the values, or the starts and the lengths of blocks.
        fill: The value of the rest. SparseDtype's constructor would convert or refuse some.
    """
    dtype = pd.SparseDtype.__new__(pd.SparseDtype)
    dtype._dtype = values.dtype
    dtype._fill_value = fill
    if len(positions) == 1:
        where = IntIndex(length, positions[0], check_integrity=False)
    else:
        where = BlockIndex(length, *positions)
    return pd.arrays.SparseArray._simple_new(values, where, dtype)


def sparse_positions_of(values: Any) -> tuple[int, tuple[np.ndarray[Any, Any], ...]] | None:
    """Length and positions as ``sparse_of`` takes them, None for another kind of index."""
    where = values.sp_index
    if type(where) is IntIndex:
        return where.length, (where.indices,)
    if type(where) is BlockIndex:
        return where.length, (where.blocs, where.blengths)
    return None
