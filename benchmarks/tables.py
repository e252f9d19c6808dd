"""What does it cost to store and to read a table?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks import contest
from benchmarks.contest import Bench
from benchmarks.floors import NewFile, WarmCopy
from benchmarks.large_values import AGAIN, COLD, FIRST, LATER, PUT, READ, measure
from benchmarks.measuring import Answer
from benchmarks.peers import OTHERS, Peer, Shmstore
from benchmarks.shared_blocks import SharedTables

NAME = "tables"
TITLE = "put and get of an Arrow table of mixed columns"

_CONTESTANTS: tuple[type[Peer], ...] = (NewFile, WarmCopy, Shmstore, *OTHERS, SharedTables)


def run(bench: Bench) -> Answer:
    """Measures a table of a million rows: numbers, times, strings, categories, nulls."""
    answer = Answer(NAME, TITLE)
    rows, rounds = (10_000, 2) if bench.quick else (1_000_000, 7)
    table = mixed(rows)
    label = f"{rows:,} rows"
    with contest.held(bench.place, _CONTESTANTS) as held:
        raw = np.zeros(table.nbytes, dtype=np.uint8)
        raw[:] = 1
        measure(answer, held, table, table.slice(0, 10_000), label, rounds, 1, _checksum, raw)
        answer.reference[f"{PUT}, {label}"] = NewFile.name
        for operation in (FIRST, COLD, AGAIN, LATER, READ):
            answer.reference[f"{operation}, {label}"] = Shmstore.name
        answer.notes.append(f"{table.nbytes:,} bytes in {table.num_columns} columns")
        answer.notes += held.notes
    speed = 1 / answer.ratio(f"{PUT}, {label}", Shmstore.name, NewFile.name)
    answer.notes.append(f"{PUT}, {label}: {speed:.2f} of os.write of as many bytes to a new file")
    return answer


def mixed(rows: int) -> pa.Table:
    """A table whose columns are of the kinds that people use."""
    random = np.random.default_rng(rows)
    numbers = random.random(rows)
    day = np.datetime64("2013-01-01", "us") + random.integers(0, 365 * 86400, rows) * 1_000_000
    carriers = ["UA", "AA", "B6", "DL", "EV", "MQ"]
    return pa.table(
        {
            "id": pa.array(np.arange(rows)),
            "delay": pa.array(numbers, mask=numbers < 0.02),
            "distance": pa.array(random.integers(0, 5000, rows).astype(np.int32)),
            "day": pa.array(day),
            "cancelled": pa.array(numbers < 0.02),
            "tail": pa.array(np.char.add("N", random.integers(10000, 99999, rows).astype(str))),
            "carrier": pa.DictionaryArray.from_arrays(
                pa.array(random.integers(0, len(carriers), rows).astype(np.int8)),
                pa.array(carriers),
            ),
        }
    )


def _checksum(table: pa.Table) -> float:
    """A number that needs every buffer of the table."""
    total = 0
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                if buffer is not None:
                    total += int(np.frombuffer(buffer, dtype=np.uint8)[: 1 << 40].sum())
    return float(total)
