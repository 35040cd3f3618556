"""The events of whole patients, a shard at a time: what works on a partition is fed from here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import EVENT_SCHEMA

ROWS_A_BATCH = 262_144
DICTIONARIES = ("code", "unit", "category", "encounter_id")
"""Columns read as dictionaries: their work is done once a distinct value, not once an event."""


def iter_shard(file: Path, columns: Sequence[str], rows: int = ROWS_A_BATCH) -> Iterator[pa.Table]:
    """Tables of about `rows` events of a shard that hold whole patients only, in its order.

    A patient with more than `rows` events comes whole, in one larger table.

    Args:
        file: a shard of an events folder: one run of rows a patient.
        columns: what to read beside `subject_id`; those of DICTIONARIES come as dictionaries.
        rows: about how many rows a table has.

    Raises:
        SchemaError: the columns are not those of EVENT_SCHEMA.
    """
    names = ["subject_id", *columns]
    _expect_columns(file, names)
    dictionaries = [name for name in columns if name in DICTIONARIES]
    with pq.ParquetFile(file, read_dictionary=dictionaries) as shard:
        held: list[pa.RecordBatch] = []
        waiting = 0
        for batch in shard.iter_batches(batch_size=rows, columns=names, use_threads=False):
            if not len(batch):
                continue
            cut = _last_start(batch)
            if cut is None and held and _last_id(held[-1]) != _last_id(batch):
                cut = 0
            if cut is not None and waiting + cut >= rows:
                yield pa.Table.from_batches([*held, batch.slice(0, cut)])
                held, waiting, batch = [], 0, batch.slice(cut)
            held.append(batch)
            waiting += len(batch)
        if waiting:
            yield pa.Table.from_batches(held)


def _last_id(batch: pa.RecordBatch) -> int:
    return batch["subject_id"][-1].as_py()


def _last_start(batch: pa.RecordBatch) -> int | None:
    """The row at which a batch's last patient begins; None where there is but one."""
    ids = batch["subject_id"].to_numpy()
    others = np.flatnonzero(ids != ids[-1])
    return int(others[-1]) + 1 if len(others) else None


def _expect_columns(file: Path, names: Sequence[str]) -> None:
    found = pq.read_schema(file)
    for name in names:
        expected = EVENT_SCHEMA.field(name).type
        if name not in found.names:
            raise SchemaError(f"{file}: expected a column {name}, found {found.names}")
        if found.field(name).type != expected:
            raise SchemaError(
                f"{file}: column {name}: expected {expected}, found {found.field(name).type}"
            )


def plain_list(column: pa.ChunkedArray) -> list:
    """A column's values as a list, each distinct one a single object.

    >>> names = plain_list(pa.chunked_array([["a", None], ["b", "a"]]))
    >>> names, names[0] is names[3]
    (['a', None, 'b', 'a'], True)
    """
    codes, values = factorized(column)
    return np.array([*values, None], dtype=object)[codes].tolist()


def factorized(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """A column as positions in the list of its distinct values; -1 for null.

    >>> codes, values = factorized(pa.chunked_array([["a", None], ["b", "a"]]))
    >>> codes.tolist(), values
    ([0, -1, 1, 0], ['a', 'b'])
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, array.dictionary.to_pylist()
