"""Rows and columns of MEDS datasets: what is cast, what is rejected and what is refused."""

from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import InputError, SchemaError


def row(subject: int | None, time: str | None, code: str | None, **fields: Any) -> dict:
    return {
        "subject_id": subject,
        "time": time and datetime.fromisoformat(time),
        "code": code,
        **fields,
    }


def test_rows_that_cannot_be_used_are_listed_by_file_and_row(run, dataset, tmp_path):
    good = row(1, "2020-01-01", "LOINC/1-1", numeric_value=1e38)
    shards = (
        [good, row(None, "2020-01-01", "LOINC/1-1"), row(1, "2020-01-01", None)],
        [row(2, "2020-01-01", " "), row(2, "2020-01-01", "LOINC/1-1", numeric_value=1e39)],
        [row(3, "1950-01-01", "MEDS_BIRTH"), row(3, "1949-01-01", "MEDS_DEATH")],
    )
    found = run(dataset(tmp_path / "meds", *shards, value_type=pa.float64()))
    assert [(r["file"], r["line"], r["field"]) for r in found.rejects] == [
        ("data/0.parquet", 2, "subject_id"),
        ("data/0.parquet", 3, "code"),
        ("data/1.parquet", 1, "code"),
        ("data/1.parquet", 2, "numeric_value"),
        ("data/2.parquet", 2, "time"),
    ]
    assert [s["subject_id"] for s in found.subjects] == [1, 3]
    assert (found.subjects[1]["death"], found.subjects[1]["deceased"]) == (None, True)


def test_columns_of_other_names_and_types_are_cast(run, dataset, tmp_path):
    expected = run(dataset(tmp_path / "plain", [row(1, "2020-01-01", "LOINC/1", numeric_value=2)]))
    table = pa.table(
        {
            "patient_id": pa.array([1], pa.int32()),
            "time": pa.array([date(2020, 1, 1)], pa.date32()),
            "code": pa.array(["LOINC/1"]).dictionary_encode(),
            "numeric_value": pa.array([2], pa.int16()),
            "datetime_value": pa.array([None], pa.timestamp("us")),
        }
    )
    other = dataset(tmp_path / "other")
    pq.write_table(table, other / "data" / "0.parquet")
    found = run(other, "cast")
    assert found.events == expected.events
    assert found.report["warnings"][-1] == "Columns that nothing is read from: datetime_value."
    zoned = pa.table(
        {
            "subject_id": [1],
            "time": pa.array([datetime(2020, 1, 1, 5)], pa.timestamp("ns", tz="America/New_York")),
            "code": ["LOINC/1"],
            "numeric_value": pa.array([2.0], pa.float64()),
        }
    )
    other = dataset(tmp_path / "zoned")
    pq.write_table(zoned, other / "data" / "0.parquet")
    assert run(other, "wall").events == expected.events


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"subject_id": ["1"]}, "column subject_id: expected int64, found string"),
        ({"time": ["2020-01-01"]}, r"column time: expected timestamp\[us\], found string"),
        ({"time": None}, "expected a column time, found"),
        ({"code": [7]}, "column code: expected string, found int64"),
        ({"numeric_value": ["1"]}, "column numeric_value: expected a number, found string"),
    ],
)
def test_columns_that_cannot_be_cast(run, dataset, tmp_path, column, message):
    columns = {"subject_id": [1], "time": [datetime(2020, 1, 1)], "code": ["A"], **column}
    source = dataset(tmp_path / "meds")
    table = pa.table({k: v for k, v in columns.items() if v is not None})
    pq.write_table(table, source / "data" / "7.parquet")
    with pytest.raises(SchemaError, match=f"7.parquet: {message}"):
        run(source)


def test_nothing_usable_and_broken_files(run, dataset, tmp_path):
    with pytest.raises(InputError, match="at least one subject, found 1 rows, 1 of them rejected"):
        run(dataset(tmp_path / "none", [row(None, None, "A")]))
    with pytest.raises(InputError, match="memory: expected such as 4GB, found lots"):
        run(dataset(tmp_path / "one", [row(1, None, "A")]), "lots", memory="lots")
    broken = dataset(tmp_path / "broken", [row(1, None, "A")])
    (broken / "data" / "1.parquet").write_text("no")
    with pytest.raises(SchemaError, match="expected a Parquet file"):
        run(broken, "other")
