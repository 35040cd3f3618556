"""The reading side of an events folder: its tables and the border's rules."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import (
    CATEGORIES,
    DATA_FOLDER,
    ENCOUNTER_SCHEMA,
    ENCOUNTERS_FILE,
    EVENT_SCHEMA,
    SUBJECT_SCHEMA,
    SUBJECTS_FILE,
)


def data_files(folder: Path) -> list[Path]:
    """The shards of an events folder, sorted by name. Raises SchemaError where there is none."""
    files = sorted((folder / DATA_FOLDER).glob("**/*.parquet"))
    if not files:
        raise SchemaError(
            f"{folder}: expected an events folder with {DATA_FOLDER}/*.parquet, found no shard"
        )
    return files


def read_subjects(folder: Path) -> pa.Table:
    """`subjects.parquet` as a table of SUBJECT_SCHEMA. Raises SchemaError."""
    return _read(folder / SUBJECTS_FILE, SUBJECT_SCHEMA)


def read_encounters(folder: Path) -> pa.Table:
    """`encounters.parquet` as a table of ENCOUNTER_SCHEMA. Raises SchemaError."""
    return _read(folder / ENCOUNTERS_FILE, ENCOUNTER_SCHEMA)


def validate(folder: Path) -> None:
    """Check every rule of the border; raise SchemaError with what was expected, found, and where.

    Rules: the three schemas; a subject in one shard only, contiguous, its times ascending with
    nulls first; `category` in CATEGORIES; `available_time` null or not before `time`; every event
    and encounter of a known subject; subject and encounter ids unique.
    """
    subjects = read_subjects(folder)
    encounters = read_encounters(folder)
    _expect_unique(subjects["subject_id"], folder / SUBJECTS_FILE)
    _expect_unique(encounters["encounter_id"], folder / ENCOUNTERS_FILE)
    known = subjects["subject_id"]
    _expect_known(encounters["subject_id"], known, folder / ENCOUNTERS_FILE)
    seen: set[int] = set()
    for file in data_files(folder):
        with pq.ParquetFile(file) as shard:
            _expect_schema(shard.schema_arrow, EVENT_SCHEMA, file)
            last: tuple[int, int] | None = None
            for batch in shard.iter_batches(
                columns=["subject_id", "time", "available_time", "category"]
            ):
                _expect_rules(batch, file)
                _expect_known(batch["subject_id"], known, file)
                last = _expect_order(batch, last, seen, file)


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    if not file.is_file():
        raise SchemaError(f"{file}: expected a file of an events folder, found none")
    table = pq.read_table(file, partitioning=None)
    _expect_schema(table.schema, schema, file)
    return table.cast(schema)


def _expect_schema(found: pa.Schema, expected: pa.Schema, file: Path) -> None:
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise SchemaError(f"{file}: expected a column {field.name}, found {found.names}")
        if found.field(index).type != field.type:
            raise SchemaError(
                f"{file}: column {field.name}: expected {field.type}, "
                f"found {found.field(index).type}"
            )


def _expect_unique(column: pa.ChunkedArray, file: Path) -> None:
    repeated = len(column) - pc.count_distinct(column, mode="all").as_py()
    if repeated:
        raise SchemaError(f"{file}: expected unique ids, found {repeated} repeated")


def _expect_known(ids: pa.Array | pa.ChunkedArray, known: pa.ChunkedArray, file: Path) -> None:
    unknown = len(ids) - (pc.sum(pc.is_in(ids, value_set=known)).as_py() or 0)
    if unknown:
        raise SchemaError(
            f"{file}: expected subjects of {SUBJECTS_FILE}, found {unknown} rows of others"
        )


def _expect_rules(batch: pa.RecordBatch, file: Path) -> None:
    others = set(pc.unique(batch["category"]).to_pylist()) - set(CATEGORIES)
    if others:
        found = sorted(map(str, others))
        raise SchemaError(f"{file}: column category: expected one of {CATEGORIES}, found {found}")
    early = pc.sum(pc.less(batch["available_time"], batch["time"])).as_py()
    if early:
        raise SchemaError(
            f"{file}: column available_time: expected null or not before time, "
            f"found {early} earlier"
        )


def _expect_order(
    batch: pa.RecordBatch, last: tuple[int, int] | None, seen: set[int], file: Path
) -> tuple[int, int] | None:
    if not len(batch):
        return last
    ids = batch["subject_id"].to_numpy()
    first_instant = np.iinfo(np.int64).min
    times = batch["time"].cast(pa.int64()).fill_null(first_instant).to_numpy()
    continues = last is not None and last[0] == ids[0]
    starts = np.flatnonzero(np.append(not continues, ids[1:] != ids[:-1]))
    new = set(ids[starts].tolist())
    if len(new) < len(starts) or new & seen:
        raise SchemaError(f"{file}: expected each subject in one shard and one run of rows")
    seen |= new
    backwards = (ids[1:] == ids[:-1]) & (times[1:] < times[:-1])
    if backwards.any() or (continues and last is not None and times[0] < last[1]):
        row = int(np.argmax(backwards)) + 1 if backwards.any() else 0
        raise SchemaError(
            f"{file}: expected a subject's times ascending, nulls first, found an earlier one "
            f"at row {row} of a batch"
        )
    return int(ids[-1]), int(times[-1])
