"""Arrays of Python objects, string arrays and Arrow-backed arrays of pandas values.

Objects are a list that the general codec stores (``part``) or, when they are few and
JSON keeps them exactly, ``cells`` in the meta. Strings of storage ``python`` are such
objects with null for missing; what Arrow holds is one Arrow IPC part (``chunks``).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd

from shmstore.codecs import pandas_internals as internals
from shmstore.codecs.pandas_payload import Array, Reader, Spec, Writer, damaged, is_inline

#: Up to so many cells cost less within the meta than as a part.
INLINE_CELLS = 256


def write_objects(out: Writer, values: Array) -> Spec:
    """Places an object array, 1-d or 2-d, as the cells lie in memory."""
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    cells = values.ravel(order).tolist()  # type: ignore[arg-type]
    spec: Spec = {"k": "object", "shape": list(values.shape)}
    if order == "F":
        spec["order"] = order
    if len(cells) <= INLINE_CELLS and all(map(is_inline, cells)):
        spec["cells"] = cells
    else:
        spec["part"] = out.part(cells)
    return spec


def read_objects(source: Reader, spec: Spec) -> Array:
    """The array that ``write_objects`` placed."""
    cells = spec["cells"] if "cells" in spec else source.part(spec["part"])
    if type(cells) is not list:
        raise damaged("the cells of an object array are no list")
    # fromiter keeps a cell that is itself a sequence; assignment would spread it.
    values = np.fromiter(cells, dtype=object, count=len(cells))
    return values.reshape(spec["shape"], order=spec.get("order", "C"))


def write_strings(out: Writer, values: Any) -> Spec | None:
    """Places an array of StringDtype."""
    dtype = values.dtype
    if type(dtype) is not pd.StringDtype:
        return None
    # pandas 2.2 names the Arrow storage with NaN for missing values "pyarrow_numpy".
    spec: Spec = {"k": "string", "storage": dtype.storage.removesuffix("_numpy")}
    if dtype.na_value is not pd.NA:
        spec["na"] = "nan"
    if dtype.storage == "python":
        cells = internals.memory_of(values).copy()
        cells[pd.isna(cells)] = None  # the dtype tells which missing value it was
        return write_objects(out, cells) | spec
    chunks = internals.arrow_data_of(values)
    if len(chunks) <= INLINE_CELLS:
        try:
            spec["cells"] = chunks.to_pylist()
        except UnicodeDecodeError:  # Arrow lets bytes that are no UTF-8 pass
            pass
        else:
            return spec
    spec["chunks"] = out.part(chunks)
    return spec


def read_strings(source: Reader, spec: Spec) -> Any:
    """The array that ``write_strings`` placed."""
    dtype = _string_dtype(spec["storage"], spec.get("na"))
    if dtype.storage == "python":
        cells = read_objects(source, spec)
        kind = pd.api.types.infer_dtype(cells, skipna=True)
        if cells.ndim != 1 or kind not in ("string", "empty"):
            raise damaged("a string array has cells that are no strings")
        cells[pd.isna(cells)] = dtype.na_value
        return internals.python_strings_of(cells, dtype)
    import pyarrow as pa

    if "cells" in spec:
        chunks = pa.chunked_array([pa.array(spec["cells"], pa.large_string())])
    else:
        chunks = source.part(spec["chunks"])
    if type(chunks) is not pa.ChunkedArray or chunks.type != pa.large_string():
        raise damaged("a string array is not made of Arrow strings")
    return internals.arrow_strings_of(chunks, dtype)


@functools.lru_cache(maxsize=16)
def _string_dtype(storage: str, na: str | None) -> Any:
    if na is None:
        return pd.StringDtype(storage)
    try:
        return pd.StringDtype(storage, na_value=np.nan)
    except TypeError:  # pandas 2.2
        return pd.StringDtype(f"{storage}_numpy")


def write_arrow(out: Writer, values: Any) -> Spec | None:
    """Places an ArrowExtensionArray."""
    if type(values.dtype) is not pd.ArrowDtype:
        return None
    return {"k": "arrow", "chunks": out.part(internals.arrow_data_of(values))}


def read_arrow(source: Reader, spec: Spec) -> Any:
    """The array that ``write_arrow`` placed."""
    import pyarrow as pa

    chunks = source.part(spec["chunks"])
    if type(chunks) is not pa.ChunkedArray:
        raise damaged("an Arrow-backed array is not made of Arrow data")
    return pd.arrays.ArrowExtensionArray(chunks)
