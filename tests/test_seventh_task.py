"""A seventh task is one object: registered, it is prepared, finetuned, reported and predicted."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.config import load_config
from ehrmamba_hf.corpus import load_examples, prepare
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.evaluation import evaluate, predict
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.tasks import Case, Task, register, registered, unregister
from ehrmamba_hf.tasks.prospective import at_discharge
from ehrmamba_hf.timelines.record import DAY
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_ID
from ehrmamba_hf.training import finetune, pretrain


def back_within_a_year(case: Case, index: int) -> bool:
    return case.next_stay is not None and case.next_stay.start - index <= 365 * DAY


SEVENTH = Task(
    "readmission_1y",
    "[TASK_0]",
    "readmission within a year of discharge",
    at_discharge,
    back_within_a_year,
    follow_up_days=365,
)


@pytest.fixture
def seventh() -> Iterator[Task]:
    yield register(SEVENTH)
    unregister(SEVENTH.name)


def test_one_task_object_is_all_it_takes(seventh: Task, tmp_path: Path):
    fhir, events, data = (tmp_path / name for name in ("fhir", "events", "data"))
    model, mpf = tmp_path / "model", tmp_path / "mpf"
    config = load_config("tiny")
    two_steps = {"max_steps": 2, "report_to": "none"}
    simulate(fhir, patients=80, seed=5)
    ingest(fhir, events, workers=1, progress=False)
    prepare(events, data, config.prepare, progress=False)

    labels = pq.read_table(data / "labels.parquet")
    mine = labels.filter(pc.equal(labels["task"], seventh.name))
    assert set(labels["task"].to_pylist()) == {task.name for task in registered()}
    assert len(registered()) == 7
    assert set(mine["boolean_value"].to_pylist()) == {True, False}

    examples = load_examples(data, "test", tasks=[seventh.name])
    assert len(examples) == pc.sum(pc.equal(mine["split"], "test")).as_py() > 0
    for i in range(len(examples)):
        ids = examples[i]["input_ids"]
        assert ids[0] == ids[-1] == SPECIAL_ID["[TASK_0]"]

    pretrain(data, model, model=config.model, training=config.pretrain | two_steps)
    finetune(data, model, mpf, training=config.finetune | two_steps)
    assert load_tokenizer(mpf).task_tokens[seventh.name] == "[TASK_0]"

    report = evaluate(data, mpf, tmp_path / "report", resamples=10, progress=False)
    (row,) = [task for task in report.tasks if task.task == seventh.name]
    assert (row.title, row.counts.examples) == (seventh.title, len(examples))

    scores = predict(mpf, events, tmp_path / "predictions.parquet", progress=False).to_pylist()
    assert len(scores) == 80 * 7
    mine = [row for row in scores if row["task"] == seventh.name]
    assert len(mine) == 80
    assert all(0 < row["probability"] < 1 for row in mine)
