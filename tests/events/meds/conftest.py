"""MEDS datasets as other people write them, and their ingestion with all that can be checked."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import meds
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events import read_encounters, read_subjects, validate
from ehrmamba_hf.events.meds.source import ingest_meds
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.events.table import data_files


@pytest.fixture
def dataset() -> Callable[..., Path]:
    """Writes a dataset, a list of rows a shard."""
    return _dataset


def _dataset(
    folder: Path, *shards: list[dict], more: tuple = (), value_type: Any = None, **about: Any
) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    schema = pa.schema(
        [
            ("subject_id", pa.int64()),
            ("time", pa.timestamp("us")),
            ("code", pa.string()),
            ("numeric_value", value_type or pa.float32()),
            ("text_value", pa.large_string()),
            *more,
        ]
    )
    for number, rows in enumerate(shards):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, folder / "data" / f"{number}.parquet")
    text = json.dumps({"meds_version": "0.4.1", **about})
    (folder / "metadata" / "dataset.json").write_text(text)
    return folder


@pytest.fixture
def run(tmp_path):
    """Ingests a dataset and gives what was written, after the border's check, that of the `meds`
    package and the sum of the accounts."""

    def of(source: Path, name: str = "events", **options: Any) -> SimpleNamespace:
        out = tmp_path / name
        out.mkdir()
        report = ingest_meds(source, out, workers=1, **options)
        validate(out)
        for file in (out / "data").iterdir():
            meds.DataSchema.validate(pq.read_table(file))
        meds.CodeMetadataSchema.validate(pq.read_table(out / meds.code_metadata_filepath))
        about = json.loads((out / meds.dataset_metadata_filepath).read_text())
        meds.DatasetMetadataSchema.validate(about)
        events = pa.concat_tables(pq.read_table(f).cast(EVENT_SCHEMA) for f in data_files(out))
        rows = report["rows"]
        parts = [rows[k] for k in ("event", "subject_fact", "encounter_boundary", "rejected")]
        assert rows["read"] == sum(parts) + sum(rows["not_used"].values())
        assert rows["event"] == len(events) == sum(report["events"].values())
        rejects = (out / "rejects.ndjson").read_text().splitlines()
        assert rows["rejected"] == len(rejects)
        assert {p.name for p in out.iterdir()} == {
            *("data", "metadata", "encounters.parquet", "subjects.parquet", "rejects.ndjson"),
            "parts",
        }
        return SimpleNamespace(
            out=out,
            report=report,
            events=events.to_pylist(),
            encounters=read_encounters(out).to_pylist(),
            subjects=read_subjects(out).to_pylist(),
            rejects=[json.loads(line) for line in rejects],
        )

    return of
