"""Which version of a record is used, where records of one type and id come from several blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.events.fhir.parts import ROWS_A_BLOCK
from ehrmamba_hf.events.fhir.versions import find_losers
from ehrmamba_hf.spark.cells import (
    CELL_SCHEMA,
    Batches,
    batches_of,
    kept_on_disk,
    pack,
    plain,
    rows_of,
    slices,
    unpack,
    write_parts,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BUCKET_IDS: Final = 500_000  # of repeated records, that one task decides about

_KEYS: Final = "SELECT row, xxhash64(resource_type, source_id) AS key FROM {resources}"
_REPEATED: Final = "SELECT key FROM {keys} GROUP BY key HAVING count(*) > 1"
_RIVALS: Final = """
SELECT block, collect_list(struct(row, bucket)) AS rivals FROM (
    SELECT row, div(row, {rows_a_block}) AS block, pmod(key, {buckets}) AS bucket,
        count(*) OVER (PARTITION BY key) AS versions
    FROM {keys}
) WHERE versions > 1 GROUP BY block
"""
_LOST: Final = """
SELECT block, collect_list(struct(row, reason)) AS lost
FROM (SELECT *, div(row, {rows_a_block}) AS block FROM {losers}) GROUP BY block
"""
_NONE_LOST: Final = "CAST(NULL AS array<struct<row: bigint, reason: string>>) AS lost"


@contextmanager
def with_lost(session: "SparkSession", cells: "DataFrame", memory: int) -> Iterator["DataFrame"]:
    """The cells, with a column `lost`: the rows of their block that are not used, and why.

    Only records whose type and id come more than once travel: all rivals for an id to one task,
    which decides as a run on one machine does.

    Args:
        session: of the run.
        cells: of all blocks.
        memory: bytes that a task's database may use.
    """
    resources = cells.where("name IN ('events', 'open_events', 'resources')").mapInArrow(
        _ids, "row long, resource_type string, source_id string"
    )
    keys = session.sql(_KEYS, resources=resources)
    repeated = session.sql(_REPEATED, keys=keys).count()
    if not repeated:
        yield cells.selectExpr("*", _NONE_LOST)
        return
    buckets = 1 + repeated // _BUCKET_IDS
    rivals = session.sql(_RIVALS, keys=keys, rows_a_block=ROWS_A_BLOCK, buckets=buckets)
    contents = (
        cells.where("name NOT IN ('tally', 'rejects')")
        .join(rivals, "block")
        .mapInArrow(_contents, CELL_SCHEMA.format(key="bucket"))
    )
    losers = contents.groupBy("bucket").applyInArrow(
        lambda bucket: _losers(bucket, memory), "row long, reason string"
    )
    lost = session.sql(_LOST, losers=losers, rows_a_block=ROWS_A_BLOCK)
    with kept_on_disk(cells.join(lost, "block", "left")) as decided:
        yield decided


def first_events(name: str, table: pa.Table) -> pa.Table:
    """One row a resource: of events, each resource's first."""
    return table.filter(pc.equal(table["place"], 0)) if name.endswith("events") else table


def _ids(batches: Batches) -> Batches:
    for row in rows_of(batches):
        table = first_events(row["name"], unpack(row["cell"]))
        yield from plain(table.select(["row", "resource_type", "source_id"])).to_batches()


def _contents(batches: Batches) -> Batches:
    """Whatever the rivals gave, by the bucket of their id."""
    for row in rows_of(batches):
        table = unpack(row["cell"])
        buckets = {rival["row"]: rival["bucket"] for rival in row["rivals"]}
        table = table.filter(pc.is_in(table["row"], value_set=pa.array(buckets, pa.int64())))
        keys = np.array([buckets[r] for r in table["row"].to_pylist()], np.int64)
        cells = ((key, row["name"], pack(part)) for key, part in slices(table, keys))
        yield from batches_of("bucket", cells)


def _losers(bucket: pa.Table, memory: int) -> pa.Table:
    with TemporaryDirectory() as folder:
        cells = zip(bucket["name"].to_pylist(), bucket["cell"], strict=True)
        parts = write_parts(((name, cell.as_py()) for name, cell in cells), Path(folder))
        find_losers(parts, 1, memory)
        return pq.read_table(Path(folder) / "losers.parquet")
