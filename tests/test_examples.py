"""Every example runs, as a new user would run it, on a model that was trained for a few steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(example: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_and_score(finetuned):
    out = run("1_load_and_score.py", str(finetuned.mpf))
    scores = [line.split() for line in out.splitlines()[:6]]
    assert {name for name, _ in scores} >= {"mortality", "length_of_stay", "readmission"}
    assert all(0 < float(score) < 1 for _, score in scores)
    assert "[VS]" in out.splitlines()[-1]


@pytest.mark.slow
def test_finetune_own_labels(finetuned, tmp_path):
    out = run("2_finetune_own_labels.py", str(finetuned.model), str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "model.safetensors").exists()
    accuracy = float(out.rsplit("'eval_accuracy': ", 1)[1].split(",")[0].strip("'"))
    assert accuracy > 0.8  # the label is a threshold on a value whose bin is a token


def test_forecast(finetuned):
    out = run("3_forecast.py", str(finetuned.mpf))
    assert out.count("patient") == 2
    assert len(out.splitlines()) == 2 + 2 * 24


def test_keep_a_history(finetuned):
    lines = run("4_keep_a_history.py", str(finetuned.mpf)).splitlines()
    first, second = lines[0], lines[len(lines) // 2]
    assert "after 3 tokens" in first and "after 7 tokens" in second
    assert first.split(", ")[-1] == second.split(", ")[-1]  # the bytes


def test_each_example_is_short_and_tested():
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) <= 80
        assert file.name in Path(__file__).read_text()
