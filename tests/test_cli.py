"""The commands, as they are typed, on a small hospital that has been through the whole line."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ehrmamba_hf.cli import _training_flags, app

COMMANDS = (
    *("simulate", "ingest", "prepare", "pretrain", "finetune"),
    *("evaluate", "predict", "forecast", "demo"),
)
WITHOUT_CONFIG = ("convert",)


def run(*arguments: object):
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS + WITHOUT_CONFIG)
def test_help_fits_a_screen(command):
    lines = run(command, "--help").splitlines()
    assert len(lines) <= 26 and max(map(len, lines)) <= 80
    assert any("--config" in line for line in lines) == (command in COMMANDS)


def test_training_arguments_are_flags_and_only_the_given_ones_count():
    given = ["--learning_rate", "1e-4", "--num_train_epochs=3", "--gradient_checkpointing", "True"]
    expected = {"learning_rate": 1e-4, "num_train_epochs": 3, "gradient_checkpointing": True}
    assert _training_flags(given) == expected
    result = CliRunner().invoke(app, ["pretrain", "data", "--out", "m", "--learning_rat", "1"])
    assert result.exit_code == 2 and "--learning_rat" in result.output


def test_evaluate_predict_and_forecast(finetuned, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("evaluate: {resamples: 10}\nforecast: {tokens: 5}\n")
    arguments = ("--model", finetuned.mpf, "--out", tmp_path / "report", "--config", config)
    assert "mortality" in run("evaluate", finetuned.data, *arguments)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["resamples"] == 10 and len(metrics["tasks"]) == 6

    file = tmp_path / "predictions.parquet"
    run("predict", finetuned.mpf, "--events", finetuned.events, "--out", file)
    table = pq.read_table(file)
    subjects = pq.read_table(finetuned.events / "subjects.parquet")["subject_id"]
    assert table.num_rows == 6 * len(subjects)
    scores = table["probability"].to_pylist()
    assert all(0 < score < 1 for score in scores)

    arguments = ("--events", finetuned.events, "--subject", subjects[0], "--config", config)
    ahead = run("forecast", finetuned.mpf, *arguments)
    assert len(ahead.splitlines()) == 5
    assert len(run("forecast", finetuned.mpf, *arguments, "--tokens", 3).splitlines()) == 3
    near = run("forecast", finetuned.mpf, *arguments, "--tokens", 300, "--weeks", 0.1)
    assert len(near.splitlines()) < 300


def test_a_model_is_judged_on_a_hospital_that_it_has_never_seen(finetuned, tmp_path):
    run("simulate", "--patients", 30, "--seed", 9, "--out", tmp_path / "fhir")
    run("ingest", tmp_path / "fhir", "--out", tmp_path / "events")
    own = ("--tokenizer", finetuned.mpf, "--test-only")
    run("prepare", tmp_path / "events", "--out", tmp_path / "data", *own)
    labels = pq.read_table(tmp_path / "data" / "labels.parquet")
    assert set(labels["split"].to_pylist()) == {"test"}
    arguments = ("--model", finetuned.mpf, "--out", tmp_path / "report")
    risks = ("--true-risks", tmp_path / "fhir.true_risks.parquet")
    assert "Best" in run("evaluate", tmp_path / "data", *arguments, *risks)


@pytest.mark.slow
def test_demo(tmp_path):
    config = tmp_path / "quick.yaml"
    config.write_text(
        "prepare: {context_length: 128, min_patients: 2}\n"
        "model: {hidden_size: 16, num_hidden_layers: 1, state_size: 4, time_embedding_size: 4}\n"
        "pretrain: {max_steps: 5}\nfinetune: {max_steps: 5}\n"
    )
    out = tmp_path / "demo"
    for _ in range(2):  # a second run takes the place of the first
        printed = run("demo", "--out", out, "--patients", 200, "--config", config)
    assert "AutoModelForSequenceClassification" in printed and "weeks" in printed
    assert "NaN" not in printed and "nan" not in (out / "report" / "metrics.json").read_text()
    assert {p.name for p in out.iterdir()} == {
        *("fhir", "fhir.true_risks.parquet", "events", "data", "model", "mpf", "report"),
    }
