"""Sorted events in a stream to data shards that cut between subjects."""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.events.schema import EVENT_SCHEMA

ROW_GROUP: Final = 65_536
SHARD_ROWS: Final = 4_000_000
"""A shard is closed at the first new subject after this many rows."""


def write_shards(
    batches: pa.RecordBatchReader,
    folder: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    row_group: int = ROW_GROUP,
) -> None:
    """Write sorted events as shards that cut between subjects only, in row groups of one size.

    The files depend on the rows alone, not on how they are batched (the chunks are combined, since
    pages would follow them). There is always one shard, so that an empty table has its schema too.
    """
    shard, written, held = 0, 0, EVENT_SCHEMA.empty_table()
    writer = _open_shard(folder, shard)
    try:
        for batch in batches:
            held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(EVENT_SCHEMA)])
            while (cut := _next_cut(held, shard_rows - written)) is not None:
                writer.write_table(held.slice(0, cut).combine_chunks(), row_group)
                writer.close()
                shard, written, held = shard + 1, 0, held.slice(cut)
                writer = _open_shard(folder, shard)
            whole = min(len(held), shard_rows - 1 - written) // row_group * row_group
            if whole > 0:
                writer.write_table(held.slice(0, whole).combine_chunks(), row_group)
                written, held = written + whole, held.slice(whole)
        if len(held):
            writer.write_table(held.combine_chunks(), row_group)
    finally:
        writer.close()


def _next_cut(held: pa.Table, room: int) -> int | None:
    """The first row at or after `room` that begins a subject, if any of `held` does."""
    if len(held) <= room:
        return None
    ids = held["subject_id"].slice(max(room - 1, 0)).to_numpy()
    starts = np.flatnonzero(np.diff(ids))
    return max(room - 1, 0) + int(starts[0]) + 1 if len(starts) else None


def _open_shard(folder: Path, number: int) -> pq.ParquetWriter:
    file = folder / f"shard-{number:05d}.parquet"
    return pq.ParquetWriter(file, EVENT_SCHEMA, compression="zstd")
