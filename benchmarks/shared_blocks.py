"""The contestant ``multiprocessing.shared_memory``: what one would write with it by hand."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import Peer, dumps


class SharedMemory(Peer):
    """``multiprocessing.shared_memory``, a block a value, named by the caller.

    Attributes:
        blocks: Blocks that are held open, by id.
    """

    name = "shared_memory"
    note = "shared_memory: a block a value; arrays and Arrow streams are viewed in place"

    @classmethod
    def start(cls, place: str) -> SharedMemory:
        """Makes up a name."""
        return cls(os.path.relpath(place, "/dev/shm").replace("/", "-"))

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.blocks: dict[str, Any] = {}
        self.made: set[str] = set()

    def put(self, id: str, value: Any) -> None:
        """Stores a pickle; a value of the same id goes first."""
        if id in self.made:
            self.delete((id,))
        data = dumps(value)
        block = self.block(id, len(data))
        block.buf[: len(data)] = data
        block.close()

    def get(self, id: str) -> Any:
        """Reads a pickle."""
        block = self.block(id)
        value = pickle.loads(block.buf)
        block.close()
        return value

    def block(self, id: str, size: int = 0) -> Any:
        """Makes a block of some size, or opens the one that is there."""
        from multiprocessing import shared_memory

        name = f"{self.address}-{id}"
        if size:
            self.made.add(id)
        return shared_memory.SharedMemory(name, create=bool(size), size=size)

    def held(self, id: str) -> Any:
        """The block of an id, opened once."""
        block = self.blocks.get(id)
        if block is None:
            block = self.blocks[id] = self.block(id)
        return block

    def delete(self, ids: Sequence[str]) -> None:
        """Removes blocks."""
        for id in ids:
            block = self.block(id)
            block.close()
            block.unlink()
            self.made.discard(id)

    def release(self) -> None:
        """Closes blocks."""
        for block in self.blocks.values():
            block.close()
        self.blocks.clear()

    def close(self) -> None:
        """Removes what is left."""
        self.release()
        with contextlib.suppress(FileNotFoundError):
            self.delete([*self.made])


class SharedArrays(SharedMemory):
    """The same for one-dimensional arrays of float64."""

    views = True

    def put(self, id: str, value: Any) -> None:
        """Copies an array into a new block."""
        import numpy as np

        block = self.block(id, value.nbytes)
        np.frombuffer(block.buf, dtype=value.dtype)[:] = value
        block.close()

    def get(self, id: str) -> Any:
        """Views an array."""
        import numpy as np

        return np.frombuffer(self.held(id).buf)


class SharedTables(SharedMemory):
    """The same for Arrow tables, as streams."""

    views = True

    def put(self, id: str, value: Any) -> None:
        """Writes a table's stream into a new block."""
        import pyarrow as pa

        counted = pa.MockOutputStream()
        with pa.ipc.new_stream(counted, value.schema) as writer:
            writer.write_table(value)
        block = self.block(id, counted.size())
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(block.buf))
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        del writer
        sink.close()
        del sink
        block.close()

    def get(self, id: str) -> Any:
        """Views a table."""
        import pyarrow as pa

        return pa.ipc.open_stream(pa.py_buffer(self.held(id).buf)).read_all()
