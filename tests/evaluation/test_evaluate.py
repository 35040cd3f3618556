"""Judging and scoring by a folder: no validation patients, other bins, every patient scored."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, load_examples, prepare
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation.evaluate import evaluate
from ehrmamba_hf.evaluation.predict import predict
from ehrmamba_hf.evaluation.scoring import load_classifier, probabilities, score
from ehrmamba_hf.events import ingest
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForSequenceClassification
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.timelines import SplitRules

SETTINGS = PrepareSettings(
    min_patients=2,
    context_length=64,
    splits=SplitRules(pretrain=0.4, finetune=0.2, validation=0.0),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    simulate(folder / "fhir", patients=60, seed=8)
    ingest(folder / "fhir", folder / "events", workers=1, progress=False)
    prepare(folder / "events", folder / "data", SETTINGS, progress=False)
    save_classifier(folder / "data", folder / "mpf")
    return folder


def save_classifier(data: Path, out: Path, **fields: int) -> None:
    """A model that has learned nothing, with the data's tokenizer."""
    tokenizer = load_tokenizer(data)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 2, "time_embedding_size": 2}
    config = EHRMambaConfig(vocab_size=tokenizer.vocab_size, **(small | fields))
    EHRMambaForSequenceClassification(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def test_without_validation_patients_the_threshold_falls_back(place: Path, tmp_path: Path) -> None:
    assert not len(load_examples(place / "data", "finetune_validation"))
    evaluation = evaluate(
        place / "data", place / "mpf", tmp_path / "report", resamples=10, progress=False
    )
    assert len(evaluation.tasks) == 6
    assert {t.metrics.threshold for t in evaluation.tasks if t.metrics} <= {0.5}
    assert "NaN" not in (tmp_path / "report" / "metrics.json").read_text()


def test_batches_change_no_probability_and_no_order(place: Path) -> None:
    classifier, tokenizer = load_classifier(place / "mpf"), load_tokenizer(place / "mpf")
    examples = load_examples(place / "data", "test", tokenizer=tokenizer)
    table = score(classifier, tokenizer, examples, progress=False)
    assert table.column("boolean_value").to_pylist() == (examples.labels > 0).tolist()
    alone = probabilities(classifier, tokenizer, examples, batch_size=1, progress=False)
    assert table["probability"].to_pylist() == pytest.approx(alone.tolist(), abs=1e-6)


def test_data_with_other_bins_are_refused(place: Path, tmp_path: Path) -> None:
    # The same tokens of other values: the model would read every result as another one.
    save_classifier(place / "data", tmp_path / "mpf")
    file = tmp_path / "mpf" / "codebook.json"
    codebook = json.loads(file.read_text())
    units = next(iter(codebook["bins"].values()))
    unit = next(iter(units))
    units[unit] = [edge + 1 for edge in units[unit]]
    file.write_text(json.dumps(codebook))
    with pytest.raises(InputError, match="prepared with the tokenizer"):
        evaluate(place / "data", tmp_path / "mpf", tmp_path / "report", progress=False)


def test_a_model_of_other_labels_is_refused(place: Path, tmp_path: Path) -> None:
    save_classifier(place / "data", tmp_path / "three", num_labels=3)
    with pytest.raises(InputError, match="expected one logit, shared by all tasks, found 3 labels"):
        load_classifier(tmp_path / "three")


def test_every_task_is_scored_for_every_patient(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    table = predict(place / "mpf", place / "events", file, progress=False)
    assert pq.read_table(file).equals(table)
    subjects = read_subjects(place / "events")["subject_id"].to_pylist()
    tasks = load_tokenizer(place / "mpf").task_tokens
    keys = zip(table["subject_id"].to_pylist(), table["task"].to_pylist(), strict=True)
    assert sorted(keys) == sorted((s, t) for s in subjects for t in tasks)
    assert all(0 <= p <= 1 for p in table["probability"].to_pylist())
    assert set(table["asked_at"].to_pylist()) <= {"index time", "end of record"}
