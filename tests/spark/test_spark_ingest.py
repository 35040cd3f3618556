"""A cluster gives what one machine gives: the same files, rows and counts."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf import events, spark
from ehrmamba_hf.events import validate
from ehrmamba_hf.events.fhir import shards
from ehrmamba_hf.events.schema import CONTENTS
from ehrmamba_hf.spark import ingestion


def expect_equal(local: Path, other: Path) -> None:
    """Every file of an events folder: tables row for row and type for type, texts to the letter."""
    names = {path.relative_to(local) for path in local.rglob("*") if path.is_file()}
    assert {path.relative_to(other) for path in other.rglob("*") if path.is_file()} == names
    assert {name.parts[0] for name in names} == CONTENTS
    for name in names:
        if name.suffix != ".parquet":
            assert (other / name).read_bytes() == (local / name).read_bytes(), name
            continue
        table, expected = pq.read_table(other / name), pq.read_table(local / name)
        assert table.schema.types == expected.schema.types, name
        assert table.to_pydict() == expected.to_pydict(), name


@pytest.mark.slow
def test_the_same_dataset(
    hospital: Path, master: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "SHARD_ROWS", 2000)  # several shards
    monkeypatch.setattr(ingestion, "BLOCK", 1 << 20)  # several blocks
    settings = {"timezone": "America/New_York", "progress": False}
    expected = events.ingest(hospital, tmp_path / "local", workers=1, **settings)
    out = f"viewfs://hospital{tmp_path}/spark"
    found = spark.ingest(hospital, out, master=master, **settings)
    assert found == expected
    not_used = found.total.not_used
    assert {"duplicate", "another version is used", "no Patient resource"} <= set(not_used)
    assert found.total.rejected == 3
    assert len(list((tmp_path / "spark" / "data").iterdir())) > 2
    expect_equal(tmp_path / "local", tmp_path / "spark")
    validate(tmp_path / "spark")
