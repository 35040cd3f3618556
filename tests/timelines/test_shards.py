"""Shards, read in tables of whole patients."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.timelines.load import read_records
from ehrmamba_hf.timelines.shards import factorized, iter_shard


def write(file: Path, runs: list[tuple[int, int]], row_group: int = 7) -> pa.Table:
    """A shard of runs (subject, rows), in small row groups."""
    ids = np.repeat([s for s, _ in runs], [n for _, n in runs]).astype(np.int64)
    rows = [
        {"subject_id": s, "code": f"C/{i % 5}", "unit": f"u{i % 3}" if i % 4 else None}
        for i, s in enumerate(ids.tolist())
    ]
    common = {"category": "lab", "encounter_id": None}
    table = pa.Table.from_pylist([common | row for row in rows], schema=EVENT_SCHEMA)
    pq.write_table(table, file, row_group_size=row_group)
    return table


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 40), st.integers(1, 20))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tables_hold_whole_patients_and_all_of_them(
    tmp_path: Path, sizes: list[int], rows: int, row_group: int
) -> None:
    runs = [(100 - i, n) for i, n in enumerate(sizes)]  # in no order but together
    whole = write(tmp_path / "shard.parquet", runs, row_group)
    tables = list(iter_shard(tmp_path / "shard.parquet", ("code", "unit"), rows))
    found = [set(table["subject_id"].to_pylist()) for table in tables]
    assert sum(map(len, found)) == len(sizes) == len(set().union(*found))
    joined = [row for table in tables for row in table.to_pylist()]
    assert joined == whole.select(["subject_id", "code", "unit"]).to_pylist()
    for table in tables[:-1]:
        assert len(table) >= rows
    for table in tables:
        codes, values = factorized(table["unit"])
        assert [[*values, None][c] for c in codes] == table["unit"].to_pylist()


def test_columns_that_are_not_those_of_events(tmp_path: Path) -> None:
    file = tmp_path / "shard.parquet"
    table = write(file, [(1, 3)])
    pq.write_table(table.drop_columns("unit"), file)
    with pytest.raises(SchemaError, match=r"shard.parquet: expected a column unit, found"):
        next(iter_shard(file, ("code", "unit")))
    pq.write_table(table.set_column(2, "code", pa.array([1, 2, 3])), file)
    with pytest.raises(SchemaError, match="column code: expected string, found int64"):
        next(iter_shard(file, ("code", "unit")))


def test_a_patient_in_two_runs_and_events_of_nobody(tmp_path: Path) -> None:
    from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, SUBJECT_SCHEMA

    people = pa.Table.from_pylist(
        [{"subject_id": i, "death_is_date": False, "deceased": False} for i in (1, 2)],
        schema=SUBJECT_SCHEMA,
    )
    none = ENCOUNTER_SCHEMA.empty_table()
    moment = pa.array([0] * 3, pa.timestamp("us"))
    rows = write(tmp_path / "a.parquet", [(1, 1), (2, 1), (1, 1)]).set_column(1, "time", moment)
    with pytest.raises(SchemaError, match="expected one run of rows a patient"):
        read_records(rows, none, people, ("lab",))
    with pytest.raises(SchemaError, match="expected those of the patients given, found 1 others"):
        read_records(rows.slice(0, 2), none, people.slice(0, 1), ("lab",))
