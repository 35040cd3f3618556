"""The border: a sentence for each rule."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events import read_encounters, read_subjects, validate
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, EVENT_SCHEMA, SUBJECT_SCHEMA

DAY = datetime(2019, 3, 4)


def event(subject: int, time: datetime | None = DAY, **fields: object) -> dict:
    row = {"subject_id": subject, "time": time, "code": "LOINC/1", "category": "lab"}
    return {**row, "available_time": time, **fields}


def events_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def folder_of(folder: Path, *shards: list[dict], subjects: list[int]) -> Path:
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate(shards):
        pq.write_table(events_of(rows), folder / "data" / f"{number}.parquet")
    people = [
        {"subject_id": s, "source_id": str(s), "death_is_date": False, "deceased": False}
        for s in subjects
    ]
    pq.write_table(pa.Table.from_pylist(people, schema=SUBJECT_SCHEMA), folder / "subjects.parquet")
    pq.write_table(ENCOUNTER_SCHEMA.empty_table(), folder / "encounters.parquet")
    return folder


def test_an_empty_shard(tmp_path):
    folder = folder_of(tmp_path / "events", [], subjects=[1])
    validate(folder)


def test_a_sound_folder(tmp_path):
    rows = [event(1, None, category="birth"), event(1), event(2)]
    folder = folder_of(tmp_path / "events", rows, [event(3)], subjects=[1, 2, 3])
    validate(folder)
    assert read_subjects(folder).schema == SUBJECT_SCHEMA
    assert read_encounters(folder).schema == ENCOUNTER_SCHEMA


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([[event(1), event(1, datetime(2019, 3, 3))]], "times ascending"),
        ([[event(1), event(1, None)]], "times ascending"),
        ([[event(1), event(2), event(1)]], "one shard and one run"),
        ([[event(1)], [event(1)]], "one shard and one run"),
        ([[event(1, category="lunch")]], "column category"),
        ([[event(1, available_time=datetime(2019, 3, 3))]], "available_time"),
        ([[event(7)]], "rows of others"),
        ([], "no shard"),
    ],
)
def test_each_rule_has_its_sentence(tmp_path, shards, message):
    folder = folder_of(tmp_path / "events", *shards, subjects=[1, 2])
    with pytest.raises(SchemaError, match=message):
        validate(folder)


def test_repeated_subjects_missing_columns_and_missing_files(tmp_path):
    folder = folder_of(tmp_path / "events", [event(1)], subjects=[1, 1])
    with pytest.raises(SchemaError, match="unique"):
        validate(folder)
    folder = folder_of(tmp_path / "other", [event(1)], subjects=[1])
    pq.write_table(events_of([event(1)]).drop_columns("unit"), folder / "data" / "0.parquet")
    with pytest.raises(SchemaError, match="expected a column unit"):
        validate(folder)
    (folder / "subjects.parquet").unlink()
    with pytest.raises(SchemaError, match="found none"):
        read_subjects(folder)
