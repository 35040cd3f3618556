"""A small tokenizer, made patients, and an events folder written row by row."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, EVENT_SCHEMA, SUBJECT_SCHEMA
from ehrmamba_hf.tokenization import EHRMambaTokenizer

Patient = dict[str, Any]


@pytest.fixture
def tokenizer() -> EHRMambaTokenizer:
    return EHRMambaTokenizer(
        vocab={
            "LOINC/2345-7": 41,
            "LOINC/2345-7//Q1": 42,
            "LOINC/2345-7//Q2": 43,
            "LOINC/2345-7//Q3": 44,
            "RXNORM/5856": 45,
            "SNOMED/80146002": 46,
        },
        types={
            "LOINC/2345-7": "lab",
            "LOINC/2345-7//Q1": "lab",
            "LOINC/2345-7//Q2": "lab",
            "LOINC/2345-7//Q3": "lab",
            "RXNORM/5856": "medication",
            "SNOMED/80146002": "procedure",
        },
        bins={"LOINC/2345-7": {"mg/dL": [80.0, 120.0]}},
        names={"LOINC/2345-7": "Glucose", "RXNORM/5856": "insulin, human"},
        model_max_length=64,
    )


@pytest.fixture
def patient() -> Patient:
    """Two closed stays and an open one."""
    glucose = {"code": "LOINC/2345-7", "unit": "mg/dL", "category": "lab"}
    return {
        "birth": "1960-01-01",
        "visits": [
            {
                "start": "2019-03-04T10:00",
                "end": "2019-03-06T12:00",
                "events": [
                    {**glucose, "time": "2019-03-04T11:00", "value": 90.5},
                    {"code": "RXNORM/5856", "time": "2019-03-05T09:00", "category": "medication"},
                ],
            },
            {
                "start": "2019-03-20T12:00",
                "end": "2019-03-20T18:00",
                "events": [{**glucose, "time": "2019-03-20T13:00", "value": 300}],
            },
            {
                "start": "2020-03-19T18:00",
                "end": None,
                "events": [
                    {"code": "SNOMED/80146002", "time": "2020-03-19T20:00"},
                    {**glucose, "time": "2020-03-20T01:00", "value": "haemolysed"},
                ],
            },
        ],
    }


@pytest.fixture
def write_events(tmp_path: Path) -> Callable[..., Path]:
    """Writes an events folder of rows (subject, code, fields) and code names."""

    def write(
        name: str, events: Iterable[dict[str, Any]], names: dict[str, str] | None = None
    ) -> Path:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        rows = sorted(events, key=lambda row: (row["subject_id"], row["time"]))
        table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
        pq.write_table(table, folder / "data" / "0.parquet")
        ids = sorted({row["subject_id"] for row in rows})
        flags = {"death_is_date": False, "deceased": False}
        people = [{"subject_id": i, "source_id": f"p{i}", **flags} for i in ids]
        pq.write_table(
            pa.Table.from_pylist(people, schema=SUBJECT_SCHEMA), folder / "subjects.parquet"
        )
        pq.write_table(ENCOUNTER_SCHEMA.empty_table(), folder / "encounters.parquet")
        if names is not None:
            (folder / "metadata").mkdir()
            codes = pa.table({"code": list(names), "description": list(names.values())})
            pq.write_table(codes, folder / "metadata" / "codes.parquet")
        return folder

    return write
