"""The package's own labels of a synthetic hospital stand exactly where its true risks do."""

import pyarrow.parquet as pq

from ehrmamba_hf.corpus.prepare import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate, true_risks_path

KEYS = ["subject_id", "task", "prediction_time"]


def test_labels_and_true_risks_have_the_same_rows(tmp_path):
    fhir = simulate(tmp_path / "fhir", patients=60, seed=2)
    report = ingest(fhir, tmp_path / "events", workers=1, progress=False)
    assert report.total.read == report.total.used
    settings = PrepareSettings(min_patients=2)
    data = prepare(tmp_path / "events", tmp_path / "data", settings, progress=False)
    labels = pq.read_table(data / "labels.parquet").select(KEYS).to_pylist()
    risks = pq.read_table(true_risks_path(fhir)).select(KEYS).to_pylist()
    assert len(labels) == len(risks) > 500
    assert {tuple(row.values()) for row in labels} == {tuple(row.values()) for row in risks}
