"""The events of a MEDS dataset as sorted shards, whole subjects each, kept when they are done.

A run that was killed goes on with the shards that are missing, where the dataset and the rules are
the same.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import duckdb
import meds
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from tqdm import tqdm

from ehrmamba_hf.events.meds.rules import MedsRules
from ehrmamba_hf.events.meds.shards import shard_files
from ehrmamba_hf.events.ordering import row_order
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    EVENT_SCHEMA,
    PARTS_FOLDER,
    ROW_GROUP,
    SUBJECTS_FILE,
)
from ehrmamba_hf.folders import finish_part, finished_part

SHARD_ROWS: Final = 2_000_000
"""Rows of the source, about, that a shard is made of."""
_CHUNK: Final = 1 << 20

# `seen`: every subject and how many rows it has (see source.py).
_RANGES: Final = """
WITH counted AS (SELECT subject_id, rows, sum(rows) OVER (ORDER BY subject_id) AS upto FROM seen)
SELECT min(subject_id), max(subject_id), sum(rows)::BIGINT FROM counted
GROUP BY (upto - 1) // {rows} ORDER BY 1
"""


class Shard(NamedTuple):
    """The subjects of one data file: those with ids from `low` to `high`."""

    number: int
    low: int
    high: int
    rows: int  # of the source


def source_key(source: Path, rules: MedsRules) -> str:
    """A hash of all that the events of a dataset depend on: its files, the rules, this package."""
    made_by = msgspec.json.encode((version("ehrmamba-hf"), SHARD_ROWS, rules))
    digest = xxhash.xxh3_128(made_by)
    beside = (meds.code_metadata_filepath, meds.dataset_metadata_filepath)
    others = [source / name for name in (*beside, SUBJECTS_FILE, ENCOUNTERS_FILE)]
    for file in [*shard_files(source), *(file for file in others if file.is_file())]:
        digest.update(f"{file.relative_to(source).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def write_events(
    database: duckdb.DuckDBPyConnection, query: str, out: Path, key: str, *, progress: bool
) -> None:
    """Write the shards of the events folder `out` that an earlier run has not finished.

    Args:
        database: with the tables of source.py.
        query: SQL of the events (columns of EVENT_SCHEMA) of the subjects from `$low` to `$high`.
        out: an existing folder.
        key: the source's.
        progress: show a progress bar, in rows of the source.
    """
    for folder in (out / DATA_FOLDER, out / PARTS_FOLDER):
        folder.mkdir(exist_ok=True)
    shards = list(_shards(database))
    names = {f"shard-{shard.number:05d}" for shard in shards}
    for file in (out / DATA_FOLDER).iterdir():
        if file.suffix != ".parquet" or file.stem not in names:  # of a run on another source
            file.unlink()
    total = sum(shard.rows for shard in shards)
    with tqdm(desc="ingest", unit=" rows", total=total, leave=False, disable=not progress) as bar:
        for shard in shards:
            _use_shard(database, query, shard, out, key)
            bar.update(shard.rows)


def _shards(database: duckdb.DuckDBPyConnection) -> Iterator[Shard]:
    """There is always one, so that an empty table has its schema too."""
    ranges = database.execute(_RANGES.format(rows=SHARD_ROWS)).fetchall()
    for number, (low, high, rows) in enumerate(ranges or [(0, 0, 0)]):
        yield Shard(number, low, high, rows)


def _use_shard(
    database: duckdb.DuckDBPyConnection, query: str, shard: Shard, out: Path, key: str
) -> None:
    name = f"shard-{shard.number:05d}"
    file, done = out / DATA_FOLDER / f"{name}.parquet", out / PARTS_FOLDER / f"{name}.json"
    if finished_part(done, key) is not None:
        return
    mine = query.replace("$low", str(shard.low)).replace("$high", str(shard.high))
    events = database.sql(mine).to_arrow_table().cast(EVENT_SCHEMA)
    events = events.take(pa.array(row_order(events)))
    temporary = file.with_suffix(".partial")
    with pq.ParquetWriter(temporary, EVENT_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(events) or 1, ROW_GROUP):
            # One chunk each, since pages would follow those that DuckDB gave.
            writer.write_table(events.slice(start, ROW_GROUP).combine_chunks(), ROW_GROUP)
    temporary.replace(file)
    finish_part(done, key, len(events), [file])
