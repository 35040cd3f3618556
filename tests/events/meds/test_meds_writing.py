"""Shards of a MEDS dataset: whole subjects, kept when a run is killed."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events import validate
from ehrmamba_hf.events.meds.source import ingest_meds
from ehrmamba_hf.events.table import data_files
from ehrmamba_hf.folders import finish_part

SIZES = {subject: 50 if subject == 30 else subject % 5 + 1 for subject in range(1, 41)}
MODULE = "ehrmamba_hf.events.meds.writing"


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A dataset of 40 subjects, one of them large, for shards of about 20 rows."""
    monkeypatch.setattr(f"{MODULE}.SHARD_ROWS", 20)
    rows = [
        {"subject_id": subject, "time": datetime(2150, 3, 1, 8, minute), "code": "A//1"}
        for subject, size in SIZES.items()
        for minute in range(size)
    ]
    folder = tmp_path / "meds"
    for name in ("data", "metadata"):
        (folder / name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / "data" / "0.parquet")
    (folder / "metadata" / "dataset.json").write_text('{"meds_version": "0.4.1"}')
    return folder


def ingested(source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    ingest_meds(source, out)
    validate(out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in data_files(out)}


def written_at(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in data_files(out)}


def test_shards_hold_whole_subjects(source, tmp_path):
    out = ingested(source, tmp_path / "events")
    found = [pq.read_table(file)["subject_id"].to_pylist() for file in data_files(out)]
    assert all(max(one) < min(two) for one, two in pairwise(found))
    assert [subject for shard in found for subject in shard] == [
        subject for subject, size in SIZES.items() for _ in range(size)
    ]
    assert all(len(shard) < 25 for shard in found if 30 not in shard)


def test_a_run_goes_on_with_the_shards_that_are_missing(source, tmp_path, monkeypatch):
    expected = contents(ingested(source, tmp_path / "undisturbed"))
    assert len(expected) > 5
    out = tmp_path / "events"
    out.mkdir()

    def finish(done: Path, *given: Any) -> None:
        if done.stem == "shard-00003":
            raise KeyboardInterrupt
        finish_part(done, *given)

    with monkeypatch.context() as patch:
        patch.setattr(f"{MODULE}.finish_part", finish)
        with pytest.raises(KeyboardInterrupt):
            ingest_meds(source, out)
    (out / "data" / "shard-00001.parquet").unlink()
    (out / "data" / "shard-00099.parquet").write_text("of another dataset")
    before = written_at(out)
    assert contents(ingested(source, out)) == expected
    after = written_at(out)
    kept = [name for name in after if after[name] == before.get(name)]
    assert kept == ["shard-00000.parquet", "shard-00002.parquet"]


def test_shards_of_another_source_are_not_kept(source, tmp_path):
    out = ingested(source, tmp_path / "events")
    before = written_at(out)
    (source / "metadata" / "dataset.json").write_text('{"meds_version": "0.4.2"}')
    after = written_at(ingested(source, out))
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in after)
