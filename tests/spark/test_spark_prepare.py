"""A cluster prepares what one machine prepares, byte for byte."""

from pathlib import Path

import pytest

from ehrmamba_hf import corpus, events, spark
from ehrmamba_hf.corpus import PrepareSettings
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.events.fhir import shards

SETTINGS = PrepareSettings(min_patients=2, context_length=200)


@pytest.mark.slow
def test_the_same_data(
    hospital: Path, master: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "SHARD_ROWS", 2000)  # several shards
    events.ingest(hospital, tmp_path / "events", workers=1, progress=False)
    for name, settings in (("fitted", {}), ("given", {"tokenizer": None})):
        if settings:
            settings["tokenizer"] = load_tokenizer(tmp_path / "fitted-local")
        local, other = tmp_path / f"{name}-local", tmp_path / f"{name}-spark"
        corpus.prepare(tmp_path / "events", local, SETTINGS, progress=False, **settings)
        place = f"viewfs://hospital{tmp_path}/events"
        spark.prepare(place, other, SETTINGS, master=master, progress=False, **settings)
        names = {path.relative_to(local) for path in local.rglob("*") if path.is_file()}
        assert {path.relative_to(other) for path in other.rglob("*") if path.is_file()} == names
        for file in names:
            assert (other / file).read_bytes() == (local / file).read_bytes(), file
