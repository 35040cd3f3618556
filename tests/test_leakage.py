"""Nothing after an index time reaches an input or a prediction; nor does the order of files, or
the dates themselves."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ehrmamba_hf.config import load_config
from ehrmamba_hf.corpus import PrepareSettings, load_examples, prepare
from ehrmamba_hf.corpus.encode import RecordEncoder
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.evaluation import predict
from ehrmamba_hf.evaluation.scoring import load_classifier, probabilities
from ehrmamba_hf.events import ingest, validate
from ehrmamba_hf.modeling import EHRMambaForSequenceClassification
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.tasks import label_stays, registered
from ehrmamba_hf.timelines import SplitRules, VisitRules, iter_records, stays_of
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, fit, microseconds
from ehrmamba_hf.training.pretrain import new_model

SETTINGS = PrepareSettings(
    min_patients=2, context_length=400, splits=SplitRules(pretrain=0.5, finetune=0.2)
)
TASK = "mortality"
INSTANT = timedelta(microseconds=1)
SHARD = Path("data") / "shard-00000.parquet"
ORDER = ("subject_id", "time", "category", "code", "numeric_value", "text_value", "source_id")
Rows = list[dict]
Change = Callable[[Rows, Rows, Rows], tuple[Rows, Rows, Rows]]


@dataclass(frozen=True)
class Hospital:
    """A small hospital, a tokenizer fitted on it, and a model that has learned nothing."""

    fhir: Path
    events: Path
    data: Path
    model: Path
    tokenizer: EHRMambaTokenizer
    moments: dict[int, datetime]  # an index time of each patient who has one


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Hospital:
    root = tmp_path_factory.mktemp("leakage")
    fhir, events, data, model = (root / name for name in ("fhir", "events", "data", "model"))
    simulate(fhir, patients=60, seed=11)
    ingest(fhir, events, workers=1, progress=False)
    prepare(events, data, SETTINGS, progress=False)
    tokenizer = load_tokenizer(data)
    torch.manual_seed(0)
    config = new_model(tokenizer, load_config("tiny").model | {"context_length": 400}).config
    config.num_labels = 1
    untrained = EHRMambaForSequenceClassification(config)
    torch.nn.init.normal_(
        untrained.classifier.out_proj.weight
    )  # so that scores tell patients apart
    untrained.save_pretrained(str(model))
    tokenizer.save_pretrained(str(model))
    rng = random.Random(0)
    times: dict[int, list[datetime]] = {}
    for row in pq.read_table(data / "labels.parquet").to_pylist():
        times.setdefault(row["subject_id"], []).append(row["prediction_time"])
    moments = {i: rng.choice(sorted(set(t))) for i, t in sorted(times.items())}
    return Hospital(fhir, events, data, model, tokenizer, moments)


def rewrite(hospital: Hospital, out: Path, change: Change) -> Path:
    """A copy of the events folder with its events, encounters and subjects changed."""
    shutil.copytree(hospital.events, out)
    files = (SHARD, Path("encounters.parquet"), Path("subjects.parquet"))
    tables = [pq.read_table(out / file) for file in files]
    changed = change(*(table.to_pylist() for table in tables))
    orders = (ORDER, ("subject_id", "start", "encounter_id"), ("subject_id",))
    for file, table, rows, order in zip(files, tables, changed, orders, strict=True):
        new = pa.Table.from_pylist(rows, schema=table.schema)
        pq.write_table(new.sort_by([(name, "ascending") for name in order]), out / file)
    validate(out)
    return out


def inputs(events: Path, hospital: Hospital, moments: dict[int, datetime]) -> dict[int, dict]:
    """The prompted input of each patient at the given index time."""
    tokenizer = hospital.tokenizer
    found = {}
    for record in iter_records(events, tokenizer.categories, list(moments)):
        at = microseconds(moments[record.subject_id])
        columns = RecordEncoder(record, tokenizer, VisitRules()).columns(at)
        task_id = tokenizer.task_token_id(TASK)
        found[record.subject_id] = fit(columns, tokenizer.model_max_length, task_id)
    return dict(sorted(found.items()))


def scores(hospital: Hospital, rows: dict[int, dict]) -> np.ndarray:
    model = load_classifier(hospital.model)
    return probabilities(model, hospital.tokenizer, list(rows.values()), progress=False)


# What came after an index time


def remove(moments: dict[int, datetime]) -> Change:
    """Drop events, encounters, ends and deaths after each patient's index time."""

    def change(events: Rows, encounters: Rows, subjects: Rows) -> tuple[Rows, Rows, Rows]:
        def past(row: dict, *times: str) -> bool:
            at = moments[row["subject_id"]]
            return all(row[name] is not None and row[name] <= at for name in times)

        events = [row for row in events if past(row, "time", "available_time")]
        encounters = [
            row if past(row, "end") else row | {"end": None, "disposition": None}
            for row in encounters
            if past(row, "start")
        ]
        alive = {"death": None, "death_is_date": False, "deceased": False}
        return events, encounters, [row if past(row, "death") else row | alive for row in subjects]

    return change


def alter(moments: dict[int, datetime]) -> Change:
    """Change codes, values and times of what came after each patient's index time."""
    later = timedelta(hours=3)

    def change(events: Rows, encounters: Rows, subjects: Rows) -> tuple[Rows, Rows, Rows]:
        codes = sorted({row["code"] for row in events if row["category"] == "lab"})
        for row in events:
            at = moments[row["subject_id"]]
            if max(row["time"], row["available_time"] or datetime.max) <= at:
                continue
            number = len(row["source_id"] or "") + int(row["time"].hour)
            row |= {"code": codes[number % len(codes)], "numeric_value": 1.0, "category": "lab"}
            row["time"] += later if row["time"] > at else timedelta()
            row["available_time"] = max(row["time"], at) + later
        for row in encounters:
            at = moments[row["subject_id"]]
            if row["start"] > at:
                row |= {"start": row["start"] + later, "class": "EMER"}
            if row["end"] is not None and row["end"] > at:
                row |= {"end": row["end"] + timedelta(days=9), "disposition": "exp"}
        for row in subjects:
            if row["death"] is not None and row["death"] > moments[row["subject_id"]]:
                row["death"] += later
        return events, encounters, subjects

    return change


def add(moments: dict[int, datetime]) -> Change:
    """Add events, a stay and a death after each patient's index time."""

    def change(events: Rows, encounters: Rows, subjects: Rows) -> tuple[Rows, Rows, Rows]:
        for subject in list(moments):
            at = moments[subject]
            first = next(row for row in events if row["category"] == "lab")
            own = [row["encounter_id"] for row in encounters if row["subject_id"] == subject]
            for time, known, within in (
                (at + INSTANT, at + INSTANT, own[-1]),
                (at - timedelta(hours=1), at + INSTANT, own[0]),  # a result that came later
                (at - timedelta(hours=2), None, None),  # one that never came
                (at + timedelta(hours=30), at + timedelta(hours=30), None),
            ):
                new = {"subject_id": subject, "encounter_id": within}
                events.append(first | new | {"time": time, "available_time": known})
            new = {"subject_id": subject, "encounter_id": f"new {subject}", "class": "IMP"}
            span = {"start": at + INSTANT, "end": at + timedelta(days=2)}
            encounters.append(encounters[0] | new | span)
        for row in subjects:
            death = moments[row["subject_id"]] + timedelta(hours=40)
            row |= {"death": death, "deceased": True, "death_is_date": False}
        return events, encounters, subjects

    return change


@pytest.mark.parametrize("change", [remove, alter, add])
def test_what_came_later_changes_neither_input_nor_prediction(hospital, tmp_path, change):
    moments = hospital.moments
    everybody = {i: moments.get(i, datetime.max - timedelta(days=9)) for i in _subjects(hospital)}
    changed = rewrite(hospital, tmp_path / "changed", change(everybody))
    before = inputs(hospital.events, hospital, moments)
    after = inputs(changed, hospital, moments)
    assert len(before) > 50
    assert after == before
    expected = scores(hospital, before)
    assert np.array_equal(scores(hospital, after), expected)
    assert len(set(expected.tolist())) == len(before)  # equal for no trivial reason
    whole = dict.fromkeys(moments, datetime(2200, 1, 1))
    assert inputs(changed, hospital, whole) != inputs(hospital.events, hospital, whole)


def test_what_came_before_does_change_the_input(hospital, tmp_path):
    earlier = {i: at - timedelta(hours=20) for i, at in hospital.moments.items()}
    everybody = dict.fromkeys(_subjects(hospital), datetime(1900, 1, 1)) | earlier
    changed = rewrite(hospital, tmp_path / "changed", remove(everybody))
    before = inputs(hospital.events, hospital, hospital.moments)
    after = inputs(changed, hospital, hospital.moments)
    assert sum(before[i] != after[i] for i in after) > 0.9 * len(before)


def test_the_prepared_examples_are_these_inputs(hospital):
    examples = load_examples(hospital.data, "test", tasks=[TASK])
    assert len(examples) > 10
    for i, row in enumerate(examples.table.to_pylist()):
        moment = {row["subject_id"]: row["prediction_time"]}
        (columns,) = inputs(hospital.events, hospital, moment).values()
        stored = examples[i]
        assert all(np.allclose(stored[name], columns[name]) for name in COLUMNS)


@pytest.mark.parametrize("change", [remove, alter, add])
def test_predictions_at_a_moment_know_nothing_later(hospital, tmp_path, change):
    """A death later on the day of a discharge once decided where the question was asked."""
    at = sorted(hospital.moments.values())[len(hospital.moments) // 2]
    changed = rewrite(
        hospital, tmp_path / "changed", change(dict.fromkeys(_subjects(hospital), at))
    )
    tables = [
        predict(
            hospital.model,
            events,
            tmp_path / f"{i}.parquet",
            at=at.isoformat(),
            rules=SETTINGS.visits,
            progress=False,
        )
        for i, events in enumerate((hospital.events, changed))
    ]
    rows = [sorted(t.to_pylist(), key=lambda r: (r["subject_id"], r["task"])) for t in tables]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 60 * 6
    assert {row["asked_at"] for row in rows[0]} == {"index time", "end of record"}


def _subjects(hospital: Hospital) -> list[int]:
    return pq.read_table(hospital.events / "subjects.parquet")["subject_id"].to_pylist()


# The order of files and lines


def test_shuffled_files_and_lines_change_nothing_downstream(hospital, tmp_path):
    rng = random.Random(0)
    lines = [line for file in hospital.fhir.iterdir() for line in file.read_text().splitlines()]
    rng.shuffle(lines)
    for part in range(5):
        folder = tmp_path / "fhir" / f"ward {rng.random()}"
        folder.mkdir(parents=True)
        (folder / f"{part}.ndjson").write_text("\n".join(lines[part::5]) + "\n")
    events, data = tmp_path / "events", tmp_path / "data"
    ingest(tmp_path / "fhir", events, workers=1, progress=False)
    prepare(events, data, SETTINGS, progress=False)
    for name in (SHARD, "encounters.parquet", "subjects.parquet", "metadata/codes.parquet"):
        assert pq.read_table(events / name).equals(pq.read_table(hospital.events / name)), name
    assert pq.read_table(data / "labels.parquet").equals(
        pq.read_table(hospital.data / "labels.parquet")
    )
    for name in ("tokenizer/vocab.json", "tokenizer/codebook.json", "prepare.json"):
        assert (data / name).read_bytes() == (hospital.data / name).read_bytes(), name
    arrows = sorted(file.relative_to(data) for file in data.glob("*/*/*.arrow"))
    assert len(arrows) >= 5
    for name in arrows:
        assert _rows(data / name) == _rows(hospital.data / name)


def _rows(file: Path) -> list[dict]:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


# The dates themselves


def test_a_shift_by_whole_days_changes_nothing(hospital, tmp_path):
    rng = random.Random(0)
    by = {i: timedelta(days=rng.randint(-20_000, 20_000)) for i in _subjects(hospital)}

    def shift(*tables: Rows) -> tuple[Rows, ...]:
        return tuple(
            [
                {
                    name: value + by[row["subject_id"]] if isinstance(value, datetime) else value
                    for name, value in row.items()
                }
                for row in rows
            ]
            for rows in tables
        )

    shifted = rewrite(hospital, tmp_path / "shifted", shift)
    before = inputs(hospital.events, hospital, hospital.moments)
    moments = {i: at + by[i] for i, at in hospital.moments.items()}
    after = inputs(shifted, hospital, moments)
    assert after == before
    assert np.array_equal(scores(hospital, after), scores(hospital, before))
    days = {i: span.days for i, span in by.items()}
    assert labels(shifted, days) == labels(hospital.events, dict.fromkeys(days, 0))


def labels(events: Path, days: dict[int, int]) -> set[tuple]:
    """(subject, task, index time less a shift, label) where follow-up is complete."""
    found = set()
    for record in iter_records(events, ()):
        shift = days[record.subject_id] * 86_400_000_000
        stays = stays_of(record)
        for task in registered():
            for e in label_stays(record, stays, task, None, Counter()):
                found.add((record.subject_id, e.task, e.prediction_time - shift, e.label))
    assert len(found) > 500
    return found
