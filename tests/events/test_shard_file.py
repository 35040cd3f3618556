"""A shard's file has the schema of the border, and its bytes depend on its rows alone."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events.fhir import shard_file
from ehrmamba_hf.events.fhir.columns import SEPARATOR
from ehrmamba_hf.events.fhir.shard_file import ShardFile
from ehrmamba_hf.events.fhir.shards import _SCHEMA, Shard, _cut, _one_batch, shards_of
from ehrmamba_hf.events.schema import EVENT_SCHEMA

SCHEMA = pa.schema([field for field in _SCHEMA if field.name in EVENT_SCHEMA.names])
CODINGS = [None, "", "A/1", f"A/1{SEPARATOR}B/2"]


def events(n: int, seed: int = 0) -> pa.RecordBatch:
    rng = random.Random(seed)
    rows = [
        {
            "subject_id": i,
            "time": rng.choice([None, i]),
            "code": rng.choice(["A/1", "C/3", f"D/{i}"]),
            "numeric_value": rng.choice([None, 1.5]),
            "text_value": rng.choice([None, "", "a text"]),
            "unit": rng.choice([None, "mg"]),
            "category": "lab",
            "codings": rng.choice(CODINGS),
            "encounter_id": rng.choice([None, f"e{i}"]),
            "resource_type": "Observation",
            "source_id": f"o{i}",
        }
        for i in range(n)
    ]
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def expected(rows: pa.RecordBatch) -> list[dict]:
    found = rows.to_pylist()
    for row in found:
        joined = row["codings"]
        row["codings"] = (
            [row["code"]] if joined is None else joined.split(SEPARATOR) if joined else []
        )
    return [{name: row[name] for name in EVENT_SCHEMA.names} for row in found]


@pytest.mark.parametrize("n", [0, 1, 49, 50, 120])
def test_rows_are_written_in_their_order_and_groups(n, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_file, "ROW_GROUP", 50)
    rows = events(n)
    order = np.arange(n)[::-1]
    file = tmp_path / "data" / "shard.parquet"
    with ShardFile(file) as writer:
        writer.write(rows, order)
        assert not file.exists()
    found = pq.read_table(file, partitioning=None)
    assert found.schema == EVENT_SCHEMA
    assert found.to_pylist() == expected(rows)[::-1]
    assert pq.ParquetFile(file).metadata.num_row_groups == -(-n // 50)
    assert [path.name for path in file.parent.iterdir()] == ["shard.parquet"]


def test_what_else_lies_in_the_dictionaries_leaves_no_trace(tmp_path):
    rows = events(40)
    alone = _one_batch([pa.Table.from_batches([rows])])
    among = _one_batch([pa.Table.from_batches([events(300, seed=1), rows])])
    for name, table, start in (("alone", alone, 0), ("among", among, 300)):
        with ShardFile(tmp_path / name) as writer:
            writer.write(table, np.arange(start, start + 40))
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "among").read_bytes()
    assert b"D/299" not in (tmp_path / "among").read_bytes()


def test_shards_are_equal_parts_of_all_ids():
    assert shards_of(0) == [Shard(0, 0, 2**63 - 1)]
    for rows, parts in ((10, 1), (11, 2), (41, 8)):
        found = _cut(Shard(5, 64, 127), rows, 10)
        assert len(found) == parts
        assert [shard.low for shard in found] == list(range(64, 128, 64 // parts))
        assert [shard.high + 1 for shard in found] == [*(s.low for s in found[1:]), 128]
    assert len(_cut(Shard(0, 64, 65), 1000, 1)) == 2  # one id each
