"""Cells by block to cells by shard, and a shard's cells to its file: the join and the sort."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.events.fhir.assemble import keep
from ehrmamba_hf.events.fhir.shards import Shard, write_shard
from ehrmamba_hf.events.schema import DATA_FOLDER
from ehrmamba_hf.spark.cells import (
    CELL_SCHEMA,
    Batches,
    batches_of,
    pack,
    rows_of,
    slices,
    unpack,
    write_parts,
)
from ehrmamba_hf.spark.files import MAGIC
from ehrmamba_hf.spark.versions import first_events

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NOBODY: Final = -1
"""The shard of records of no patient."""
FILE: Final = "file"
"""The cell that is a shard's file, less its last bytes; see `SparkFiles.write`."""
COUNTS: Final = "counts"
"""The cell that holds what was counted of a shard, as JSON."""
NAMED: Final = "named"
"""The cell with the medications that a shard's events refer to."""

_MEDICATION: Final = (
    "row long, medication_id string, place long, ingredient_id string, code string, "
    "codings array<string>"
)
_REFERRED: Final = """
WITH asked AS (SELECT DISTINCT * FROM {wanted}), needed AS (
    SELECT * FROM asked UNION SELECT shard, ingredient_id FROM asked
    JOIN {medications} USING (medication_id) WHERE ingredient_id IS NOT NULL
)
SELECT shard, medications.* FROM needed JOIN {medications} AS medications USING (medication_id)
"""
_EVERY_SHARD: Final = "SELECT id AS shard, '' AS name, X'' AS cell FROM {numbers}"
_SHARD_CELLS: Final = CELL_SCHEMA.format(key="shard")


def write_shards(
    session: "SparkSession", cells: "DataFrame", shards: list[Shard], memory: int
) -> "DataFrame":
    """The cells (shard, name, cell) that each shard gives: FILE, COUNTS, NAMED and its kept rows.

    Args:
        session: of the run.
        cells: of all blocks, with the rows that are not used (see `with_lost`).
        shards: all of them.
        memory: bytes that a task's database may use.
    """
    mine = _by_shard(cells.where("name NOT IN ('tally', 'rejects', 'medications')"), shards)
    every = session.sql(_EVERY_SHARD, numbers=session.range(len(shards)))
    whole = mine.where(f"shard <> {NOBODY}").union(every)
    highs = _highs(shards)
    wanted = cells.where("name = 'open_events'").mapInArrow(
        lambda batches: _wanted(batches, highs), "shard long, medication_id string"
    )
    medications = cells.where("name = 'medications'").mapInArrow(_medications, _MEDICATION)
    referred = session.sql(_REFERRED, wanted=wanted, medications=medications)

    def write(key: Any, rows: pa.Table, referred: pa.Table) -> pa.Table:
        return _write(shards[key[0].as_py()], rows, referred, memory)

    return (
        whole.groupBy("shard").cogroup(referred.groupBy("shard")).applyInArrow(write, _SHARD_CELLS)
    )


def of_nobody(cells: "DataFrame", shards: list[Shard]) -> "DataFrame":
    """The records of no patient, as cells, and which of them are not used: `losers`."""
    return _by_shard(cells.where("name = 'resources'"), shards).where(f"shard = {NOBODY}")


def _by_shard(cells: "DataFrame", shards: list[Shard]) -> "DataFrame":
    """Cells by the shard of their rows, and of each shard the rows that are not used: `losers`."""
    highs = _highs(shards)
    return cells.mapInArrow(lambda batches: _cut(batches, highs), _SHARD_CELLS)


def _highs(shards: list[Shard]) -> np.ndarray:
    return np.array([shard.high for shard in shards])


def _shards_of(table: pa.Table, highs: np.ndarray) -> np.ndarray:
    subjects = pc.fill_null(table["subject_id"], NOBODY).to_numpy()
    return np.where(subjects < 0, NOBODY, np.searchsorted(highs, subjects))


def _lost(row: dict[str, Any]) -> dict[int, str]:
    return {lost["row"]: lost["reason"] for lost in row["lost"] or ()}


def _is_among(table: pa.Table, rows: dict[int, str]) -> pa.ChunkedArray:
    return pc.is_in(table["row"], value_set=pa.array(rows, pa.int64()))


def _cut(batches: Batches, highs: np.ndarray) -> Batches:
    for row in rows_of(batches):
        table, lost = unpack(row["cell"]), _lost(row)
        tables = {row["name"]: (table, _shards_of(table, highs))}
        if lost and row["name"] in ("events", "open_events", "resources"):
            losers = first_events(row["name"], table)
            losers = losers.filter(_is_among(losers, lost))
            reasons = pa.array([lost[r] for r in losers["row"].to_pylist()], pa.string())
            told = pa.table({"row": losers["row"], "reason": reasons})
            tables["losers"] = (told, _shards_of(losers, highs))
        for name, (rows, keys) in tables.items():
            cells = ((shard, name, pack(part)) for shard, part in slices(rows, keys))
            yield from batches_of("shard", cells)


def _wanted(batches: Batches, highs: np.ndarray) -> Batches:
    """The medications that each shard's events refer to."""
    for row in rows_of(batches):
        table = unpack(row["cell"])
        table = table.filter(pc.is_valid(table["medication_id"]))
        ids = table["medication_id"].cast(pa.string())
        pairs = pa.table({"shard": _shards_of(table, highs), "medication_id": ids})
        yield from pairs.group_by(["shard", "medication_id"]).aggregate([]).to_batches()


def _medications(batches: Batches) -> Batches:
    for row in rows_of(batches):
        table = unpack(row["cell"])
        yield from table.filter(pc.invert(_is_among(table, _lost(row)))).to_batches()


def _write(shard: Shard, rows: pa.Table, referred: pa.Table, memory: int) -> pa.Table:
    """What a run on one machine does for a shard, in a folder that goes away."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        cells = zip(rows["name"].to_pylist(), rows["cell"], strict=True)
        parts = write_parts(((name, cell.as_py()) for name, cell in cells), folder)
        pq.write_table(referred, folder / "medications-000000000.parquet")
        keep(parts, 1, memory)
        counts = write_shard(parts, shard, folder, memory)
        stem = f"shard-{shard.number:05d}"
        found = {
            FILE: (folder / DATA_FOLDER / f"{stem}.parquet").read_bytes().removesuffix(MAGIC),
            COUNTS: msgspec.json.encode(counts),
            NAMED: pack(pq.read_table(folder / f"named-{shard.number:05d}.parquet")),
            "subjects": pack(pq.read_table(folder / "kept_subjects.parquet")),
            "encounters": pack(pq.read_table(folder / "kept_encounters.parquet")),
        }
    cells_found = ((shard.number, name, cell) for name, cell in found.items())
    return pa.Table.from_batches(batches_of("shard", cells_found))
