"""Files of MEDS datasets: odd names, links, and data that cannot be used."""

import json
import os
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import InputError, OutputError, SchemaError
from ehrmamba_hf.events import ingest, read_subjects, validate
from ehrmamba_hf.events.meds import source as meds_source
from ehrmamba_hf.events.meds.shards import shard_files
from ehrmamba_hf.events.meds.source import ingest_meds
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.events.table import data_files

ORDINARY = datetime(2020, 1, 1)
LAST = datetime.max


def table(subjects: list[int], **columns: Any) -> pa.Table:
    """One row a subject."""
    given = {"time": [ORDINARY] * len(subjects), "code": ["A"] * len(subjects), **columns}
    return pa.table({"subject_id": subjects, **given})


@pytest.fixture
def write(tmp_path):
    """Writes shards, by their names under data/; gives the dataset."""

    def of(shards: dict[str, pa.Table], folder: Path = tmp_path / "meds", **options: Any) -> Path:
        for name, rows in shards.items():
            file = folder / "data" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, file, **options)
        return folder

    return of


def ingested(source: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    counted = ingest_meds(source, out, workers=1)
    validate(out)
    return counted


def subjects(out: Path) -> list[int]:
    return read_subjects(out)["subject_id"].to_pylist()


def rejects(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejects.ndjson").read_text().splitlines()]


def test_names_of_files_are_no_patterns(write, tmp_path):
    names = ("0.parquet", "01.parquet", "0[1].parquet", "0*.parquet", "0?/0.parquet")
    shards = {name: table([n, None]) for n, name in enumerate(names, 1)}
    source = write(shards, tmp_path / "[v1] m?ds")
    out = tmp_path / "events [v2]*"
    counted = ingested(source, out)
    assert counted["events"] == {"observation": 5}
    assert subjects(out) == [1, 2, 3, 4, 5]
    assert sorted(r["file"] for r in rejects(out)) == sorted(f"data/{name}" for name in names)


def test_linked_folders_are_read_once(write, tmp_path):
    source = write({"train/0.parquet": table([1]), ".hidden/0.parquet": table([9])})
    elsewhere = write({"[1].parquet": table([2])}, tmp_path / "other disk")
    (source / "data" / "held_out[1]").symlink_to(elsewhere / "data")
    (source / "data" / "more").symlink_to(elsewhere / "data")
    (source / "data" / "train" / "round").symlink_to(source / "data")
    ingested(source, tmp_path / "events")
    assert subjects(tmp_path / "events") == [1, 2]


def test_links_to_nothing_are_told(write, tmp_path):
    source = write({"0.parquet": table([1])})
    (source / "data" / "1.parquet").symlink_to("gone.parquet")
    with pytest.raises(SchemaError, match=r"1\.parquet: expected a Parquet file"):
        ingested(source, tmp_path / "events")


def test_folders_that_cannot_be_read_are_told(write, monkeypatch):
    source = write({"0.parquet": table([1]), "closed/0.parquet": table([2])})
    scandir = os.scandir

    def guarded(folder: str) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", guarded)
    message = "data/closed: expected a readable folder, found: Permission denied"
    with pytest.raises(InputError, match=message):
        shard_files(source)


def test_ids_that_are_no_numbers_are_none(write, tmp_path):
    ids = [20.0, float("nan"), float("inf"), None]
    ingested(write({"0.parquet": table([1] * 4, hadm_id=ids)}), tmp_path / "events")
    events = pq.read_table(data_files(tmp_path / "events")[0])
    assert sorted(events["encounter_id"].to_pylist(), key=str) == ["20", None, None, None]


FAR = [569_000_000_000, -65_000_000_000]  # seconds: years 20000 and -90
MILLION = 1_000_000


@pytest.mark.parametrize(
    "times",
    [
        pa.array([n * MILLION for n in FAR], pa.timestamp("us")),
        pa.array([n * 1000 for n in FAR], pa.timestamp("ms")),
        pa.array([n * MILLION for n in FAR], pa.timestamp("us", tz="Europe/Rome")),
        pa.array([2**63 - 1, 1 - 2**63], pa.timestamp("us")),  # infinite, to DuckDB
        pa.array([2**30, -(2**30)], pa.date32()),  # millions of years
    ],
)
@pytest.mark.parametrize("column", ["time", "end_time"])
def test_times_out_of_range_are_rejected(write, tmp_path, times, column):
    good = pa.array([LAST, None], pa.timestamp("us"))
    source = write({"0.parquet": table([1, 2], time=good), "1.parquet": table([3, 4])})
    write({"1.parquet": table([3, 4], **{column: times})})
    counted = ingested(source, tmp_path / "events")
    assert (counted["rows"]["event"], counted["rows"]["rejected"]) == (2, 2)
    reject = {"file": "data/1.parquet", "resource_type": "MEDS", "field": column}
    reject |= {"expected": "a time from year 1 to 9999", "found": "another one"}
    assert rejects(tmp_path / "events") == [reject | {"line": line} for line in (1, 2)]
    assert subjects(tmp_path / "events") == [1, 2]


def not_utf8(count: int) -> pa.Array:
    found = pa.array([b"Smith \xff"] * count, pa.binary())
    return pa.Array.from_buffers(pa.string(), count, found.buffers())


@pytest.mark.parametrize("column", ["code", "text_value", "unit"])
def test_texts_that_are_not_utf8(write, tmp_path, column):
    source = write({"0.parquet": table([1, 2], **{column: not_utf8(2)})})
    with pytest.raises(SchemaError, match=r"meds: expected readable Parquet .* UTF-8") as told:
        ingested(source, tmp_path / "events")
    assert "Smith" not in str(told.value)
    assert told.value.__suppress_context__


def test_code_metadata_that_are_not_utf8(write, tmp_path):
    source = write({"0.parquet": table([1])})
    (source / "metadata").mkdir()
    codes = pa.table({"code": ["A"], "description": not_utf8(1)})
    pq.write_table(codes, source / "metadata" / "codes.parquet")
    with pytest.raises(SchemaError, match="expected readable Parquet"):
        ingested(source, tmp_path / "events")


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_damaged_pages(write, tmp_path, compression):
    many = pa.array(range(5000))
    codes = pc.binary_join_element_wise("A", many.cast(pa.string()), "/")
    rows = table([1] * 5000, code=codes)
    source = write({"0.parquet": rows}, compression=compression, use_dictionary=False)
    file = source / "data" / "0.parquet"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    file.write_bytes(content)
    with pytest.raises(SchemaError, match="expected readable Parquet"):
        ingested(source, tmp_path / "events")


@pytest.mark.parametrize("error", [duckdb.OutOfMemoryException, duckdb.IOException])
def test_too_little_memory_or_room_keeps_what_is_finished(write, tmp_path, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error("no more")

    source = write({"0.parquet": table([1])})
    (source / "metadata").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(meds_source, "write_metadata", fail)
    with pytest.raises(error):
        ingest_meds(source, tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        ingest(source, tmp_path / "events", workers=1, progress=False)
    assert list(tmp_path.glob(".events.partial/data/*.parquet"))


def test_the_report_tells_of_unused_columns_and_endless_encounters(write, tmp_path):
    rows = table([1], code=["ADMISSION"], colour=["red"], mood=["good"])
    report = ingest(write({"0.parquet": rows}), tmp_path / "events", workers=1, progress=False)
    assert "Columns that nothing is read from: colour, mood." in report.warnings
    assert report.notes == {"encounters without an end": 1}


def test_all_columns_of_an_events_folder_are_read(write, tmp_path):
    ingested(write({"0.parquet": table([1])}), tmp_path / "events")
    again = ingested(tmp_path / "events", tmp_path / "again")
    assert pq.read_schema(data_files(tmp_path / "again")[0]).equals(EVENT_SCHEMA)
    assert not any("nothing is read" in warning for warning in again["warnings"])


def test_the_last_date_is_a_time(write, tmp_path):
    rows = table([1, 2], time=pa.array([date(9999, 12, 31), None], pa.date32()))
    counted = ingested(write({"0.parquet": rows}), tmp_path / "events")
    assert (counted["rows"]["rejected"], counted["rows"]["event"]) == (0, 2)
