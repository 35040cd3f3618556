"""Tables as cells: Spark carries rows in blocks that it need not look into.

A table of a block of lines, or a shard's slice of it, is one cell: an Arrow stream, packed. So the
rows of events are never turned into Spark's rows and back, and a shuffle moves few, large things.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.events.fhir.database import Parts
from ehrmamba_hf.events.fhir.parts import PART_SCHEMAS, part_file

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Batches = Iterator[pa.RecordBatch]
"""What Spark's mapInArrow takes and gives on a worker."""
CELL_SCHEMA: Final = "{key} long, name string, cell binary"
"""The columns of a table of cells, as Spark writes them; `key`: of a block, or a shard."""

_NAMED_SCHEMA: Final = pa.schema([("medication_id", pa.string()), ("has_code", pa.bool_())])
_BESIDE: Final = {
    "losers": ("losers.parquet", pa.schema([("row", pa.int64()), ("reason", pa.string())])),
    "named": ("named-00000.parquet", _NAMED_SCHEMA),
}
"""What `ehrmamba_hf.events.fhir` looks for beside the parts."""
_OPTIONS: Final[dict[str, Any]] = {"compression": "lz4", "write_statistics": ["subject_id"]}


def pack(table: pa.Table) -> bytes:
    """A table as one cell.

    >>> unpack(pack(pa.table({"row": [1, 2]})))["row"].to_pylist()
    [1, 2]
    """
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(cell: bytes) -> pa.Table:
    """The table of a cell."""
    return pa.ipc.open_stream(cell).read_all()


def batches_of(key: str, rows: Iterable[tuple[int, str, bytes]]) -> Batches:
    """A table of cells, a row at a time; `key`: the name of its first column."""
    for number, name, cell in rows:
        columns = [pa.array([number], pa.int64()), pa.array([name]), pa.array([cell], pa.binary())]
        yield pa.RecordBatch.from_arrays(columns, names=[key, "name", "cell"])


def rows_of(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The rows of batches, one at a time: cells are large."""
    for batch in batches:
        for index in range(len(batch)):
            yield {name: batch[name][index].as_py() for name in batch.schema.names}


def plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, so that a slice does not carry the texts of all other slices."""
    return table.cast(_plain_schema(table.schema))


def slices(table: pa.Table, keys: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each key.

    >>> found = slices(pa.table({"x": [1, 2, 3]}), np.array([5, 2, 5]))
    >>> [(key, rows["x"].to_pylist()) for key, rows in found]
    [(2, [2]), (5, [1, 3])]
    """
    order = np.argsort(keys, kind="stable")
    if (np.diff(order) != 1).any():
        table = table.take(pa.array(order))
    found, starts = np.unique(keys[order], return_index=True)
    sizes = np.diff(starts, append=len(keys))
    for key, start, size in zip(found.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        yield key, plain(table.slice(start, size))


@contextmanager
def kept_on_disk(frame: "DataFrame") -> Iterator["DataFrame"]:
    """A table that is worked out now, once, and lies on the workers' disks for the while."""
    from pyspark import StorageLevel

    frame = frame.persist(StorageLevel.DISK_ONLY)
    try:
        frame.count()
        yield frame
    finally:
        frame.unpersist()


def write_parts(cells: Iterable[tuple[str, bytes]], folder: Path) -> Parts:
    """Cells (name, cell) as the parts of a run on one machine, so that its functions can be used.

    Those with other names than PART_SCHEMAS', `losers` and `named` are left out.
    """
    files = {name: part_file(folder, name, 0) for name in PART_SCHEMAS}
    files |= {name: folder / file for name, (file, _) in _BESIDE.items()}
    schemas = PART_SCHEMAS | {name: schema for name, (_, schema) in _BESIDE.items()}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                pq.ParquetWriter(file, _plain_schema(schemas[name]), **_OPTIONS)
            )
            for name, file in files.items()
        }
        for name, cell in cells:
            if name in writers:
                writers[name].write_table(plain(unpack(cell)))
    return Parts(folder, (0,))


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    types = [t.value_type if pa.types.is_dictionary(t) else t for t in schema.types]
    return pa.schema(list(zip(schema.names, types, strict=True)))
