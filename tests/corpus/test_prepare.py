"""A data folder: its labels, splits and Arrow columns, its counts, and what it refuses."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, load_sequences, prepare
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.corpus.labels import LABEL_SCHEMA
from ehrmamba_hf.errors import InputError, OutputError, SchemaError
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.tasks import Task, register, registered, unregister
from ehrmamba_hf.timelines import SPLITS, SplitRules, VisitRules, iter_records, split_of, stays_of
from ehrmamba_hf.timelines.record import DAY
from ehrmamba_hf.tokenization.grammar_ehrmamba import CLS, COLUMNS, TASK_TOKENS

ALL_TEST = SplitRules(pretrain=0.0, finetune=0.0)
ALL_PRETRAIN = SplitRules(pretrain=1.0, finetune=0.0, validation=0.0)
DAY_ONE = datetime(2020, 1, 1)


def labels_of(folder: Path) -> list[dict[str, Any]]:
    table = pq.read_table(folder / "labels.parquet")
    times = table["prediction_time"].cast(pa.int64())
    return table.set_column(1, "prediction_time", times).to_pylist()


def rows_of(folder: Path, dataset: str) -> dict[str, list[dict[str, Any]]]:
    found = datasets.load_from_disk(str(folder / dataset))
    return {split: rows.to_list() for split, rows in found.items()}


def test_the_label_table(data: Path) -> None:
    table = pq.read_table(data / "labels.parquet")
    fields = {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "boolean_value": pa.bool_(),
        "task": pa.string(),
        "split": pa.string(),
    }
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == fields
    assert table.schema.equals(LABEL_SCHEMA)
    assert sum(column.null_count for column in table.columns) == 0
    assert set(table["task"].to_pylist()) == {task.name for task in registered()}
    assert set(table["split"].to_pylist()) == set(SPLITS)
    rows = table.select(["task", "subject_id", "prediction_time"]).to_pylist()
    keys = [tuple(row.values()) for row in rows]
    assert keys == sorted(set(keys))  # in order, each once


def test_each_patient_is_in_one_split_of_everything(data: Path, events: Path) -> None:
    subjects = read_subjects(events)["subject_id"].to_pylist()
    for row in labels_of(data):
        assert row["split"] == split_of(row["subject_id"])
    whole, cut = rows_of(data, "pretrain"), rows_of(data, "finetune")
    assert set(whole) == {"pretrain", "pretrain_validation"}
    assert set(cut) == {"finetune", "finetune_validation", "test"}
    for split, rows in [*whole.items(), *cut.items()]:
        assert {split_of(row["subject_id"]) for row in rows} == {split}
    for split, rows in whole.items():
        expected = sorted(s for s in subjects if split_of(s) == split)
        assert sorted(row["subject_id"] for row in rows) == expected
        assert {row["prediction_time"] for row in rows} == {None}


def test_sequences_are_arrow_columns_of_the_model(data: Path) -> None:
    for name in ("pretrain", "finetune"):
        for rows in datasets.load_from_disk(str(data / name)).values():
            assert list(rows.column_names) == ["subject_id", "prediction_time", "length", *COLUMNS]
            for column, kind in COLUMNS.items():
                assert rows.data.schema.field(column).type == pa.list_(pa.type_for_alias(kind))
                assert rows.features[column].feature == datasets.Value(kind)
            for row in rows:
                assert {len(row[column]) for column in COLUMNS} == {row["length"]}
                assert 1 <= row["length"] <= 200
                assert row["input_ids"][0] == CLS  # the prompt is put in as an example is read
                assert set(row["attention_mask"]) == {1}


def test_at_most_four_stays_are_trained_on_and_all_are_judged(data: Path, events: Path) -> None:
    asked: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in labels_of(data):
        asked[row["split"]][row["subject_id"]].add(row["prediction_time"])
    kept: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for split, rows in rows_of(data, "finetune").items():
        for row in rows:
            kept[split][row["subject_id"]].add(row["prediction_time"])
    assert kept["test"] == asked["test"]
    capped = 0
    for record in iter_records(events, ["lab"]):
        for split in ("finetune", "finetune_validation"):
            moments = asked[split][record.subject_id]
            chosen = kept[split][record.subject_id]
            stays = [{t for t in moments if s.start <= t <= s.end} for s in stays_of(record)]
            stays = [stay for stay in stays if stay]
            # A stay comes with all its index times or with none.
            assert all(stay <= chosen or not stay & chosen for stay in stays)
            assert sum(stay <= chosen for stay in stays) == min(4, len(stays))
            assert chosen <= moments
            capped += len(stays) > 4
    assert capped > 1


def test_the_report_counts_what_was_written(data: Path, events: Path) -> None:
    report = json.loads((data / "prepare.json").read_text())
    found = Counter((r["task"], r["split"], r["boolean_value"]) for r in labels_of(data))
    stays = Counter({split: report["stays"].get(split, 0) for split in SPLITS})
    for task, by_split in report["tasks"].items():
        for split, counts in by_split.items():
            examples = counts["examples"]
            assert examples.get("positive", 0) == found[task, split, True]
            assert examples.get("negative", 0) == found[task, split, False]
            # Every stay is an example or is excluded for a reason.
            assert sum(examples.values()) + sum(counts["excluded"].values()) == stays[split]
    sequences = {**rows_of(data, "pretrain"), **rows_of(data, "finetune")}
    tokens = {split: sum(row["length"] for row in rows) for split, rows in sequences.items()}
    assert report["tokens"] == tokens
    assert sum(report["patients"].values()) == 80
    ways = ("inside_a_visit", "before_the_encounter_it_references", "before_the_next_stay")
    events_read = sum(len(r.time) for r in iter_records(events, load_tokenizer(data).categories))
    systems = report["unknown_by_system"].values()
    assert sum(s["events"] for split in systems for s in split.values()) == events_read
    placed = sum(report["records"].get(way, 0) for way in (*ways, "implicit_visit"))
    assert placed == events_read
    assert report["vocabulary"] == load_tokenizer(data).vocab_size


def test_what_is_cut_out_is_counted_once_a_patient(write_events: Callable[..., Path]) -> None:
    """Stays were cut out twice in the report: once for the labels and once for the sequence."""
    day = timedelta(days=1)
    people = [{"subject_id": i, "source_id": f"p{i}"} for i in range(1, 11)]
    backwards = [
        {
            "subject_id": i,
            "encounter_id": f"e{i}",
            "class": "IMP",
            "start": DAY_ONE,
            "end": DAY_ONE - day,
        }
        for i in range(1, 11)
    ]
    tests = [{"subject_id": i, "time": DAY_ONE + day, "code": "LOINC/1"} for i in range(1, 10)]
    folder = write_events(people, backwards, tests)
    for rules in (ALL_PRETRAIN, ALL_TEST):
        settings = PrepareSettings(min_patients=1, splits=rules)
        tokenizer = load_tokenizer(folder.parent / "data") if rules is ALL_TEST else None
        out = prepare(folder, folder.parent / "data", settings, tokenizer=tokenizer, progress=False)
        records = json.loads((out / "prepare.json").read_text())["records"]
        assert records["encounter_ends_before_start"] == 10
        assert records["implicit_visit"] == 9
        assert records["without_any_event"] == 1
        assert records["without_birth_date"] == 10


def contents(folder: Path) -> dict[str, bytes]:
    """All that a data folder holds, byte by byte."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_same_again(
    data: Path,
    events: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    again = prepare(events, tmp_path / "again", settings, progress=False)
    assert capfd.readouterr() == ("", "")  # no bar of the libraries' either
    assert contents(again) == contents(data)
    other = msgspec.structs.replace(settings, splits=SplitRules(seed=1))
    changed = prepare(events, tmp_path / "again", other, progress=False)
    assert labels_of(changed) != labels_of(data)


def test_events_that_a_model_has_never_seen(
    data: Path, events: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(data)
    unseen = msgspec.structs.replace(settings, splits=ALL_TEST, min_patients=50)
    out = prepare(events, tmp_path / "unseen", unseen, tokenizer=tokenizer, progress=False)
    for name in ("vocab.json", "codebook.json"):
        assert (out / "tokenizer" / name).read_bytes() == (data / "tokenizer" / name).read_bytes()
    assert len(load_sequences(out, "pretrain")) == 0
    assert set(datasets.load_from_disk(str(out / "finetune"))) == {"test"}
    told, fitted = (json.loads((folder / "prepare.json").read_text()) for folder in (out, data))
    assert (told["tokenizer"], fitted["tokenizer"]) == ("given", "fitted")
    assert fitted["min_patients"] == fitted["settings"]["min_patients"] == 2
    assert "min_patients" not in told and "min_patients" not in told["settings"]
    assert [{**row, "split": "test"} for row in labels_of(data)] == labels_of(out)
    mine = {(r["subject_id"], r["prediction_time"]): r for r in rows_of(out, "finetune")["test"]}
    for row in rows_of(data, "finetune")["test"]:
        assert mine[row["subject_id"], row["prediction_time"]] == row


def test_settings_that_a_given_tokenizer_fixes(
    data: Path, events: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(data)
    for wrong, sentence in (
        ({"context_length": 100}, "context_length: expected none .* 200, found 100"),
        ({"categories": ("lab",)}, r"categories: expected none .* found \['lab'\]"),
    ):
        chosen = msgspec.structs.replace(settings, **wrong)
        with pytest.raises(InputError, match=sentence):
            prepare(events, tmp_path / "out", chosen, tokenizer=tokenizer, progress=False)
    out = prepare(events, tmp_path / "out", tokenizer=tokenizer, progress=False)
    told = json.loads((out / "prepare.json").read_text())
    assert told["settings"]["context_length"] == told["context_length"] == 200


def test_settings_are_told_the_same_however_they_are_written(
    data: Path, settings: PrepareSettings
) -> None:
    whole = msgspec.structs.replace(settings, visits=VisitRules(day_long_hours=24))
    point = msgspec.structs.replace(settings, visits=VisitRules(day_long_hours=24.0))
    assert json.dumps(whole.plain()) == json.dumps(point.plain())
    assert json.loads((data / "prepare.json").read_text())["settings"] == whole.plain()


@pytest.fixture
def late_task() -> Iterator[Task]:
    """A task asked three days after discharge, when the patient is in no stay."""
    base = next(task for task in registered() if task.name == "readmission")
    task = replace(
        base, name="late", token=TASK_TOKENS[6], index=lambda case: base.index(case) + 3 * DAY
    )
    yield register(task)
    unregister("late")


def test_a_task_asked_outside_a_stay_has_examples_to_learn_from(
    late_task: Task, events: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    """Examples were kept by whether their index time lies in a drawn stay, and so all lost."""
    out = prepare(events, tmp_path / "data", settings, progress=False)
    rows = [r for r in labels_of(out) if r["task"] == "late" and r["split"] == "finetune"]
    keys = {(r["subject_id"], r["prediction_time"]) for r in rows_of(out, "finetune")["finetune"]}
    asked = Counter(r["subject_id"] for r in rows)
    kept = Counter(r["subject_id"] for r in rows if (r["subject_id"], r["prediction_time"]) in keys)
    assert sum(kept.values()) > 20 and set(kept) == set(asked)
    assert max(kept.values()) <= 4 < max(asked.values())
    assert load_tokenizer(out).task_tokens["late"] == "[TASK_0]"


def test_an_earlier_result_stays_until_the_next_is_whole(
    events: Path, settings: PrepareSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = prepare(events, tmp_path / "data", settings, progress=False)
    before = contents(out)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.corpus.storage._write_rows", fail)
        with pytest.raises(OutputError, match="no space left"):
            prepare(events, out, settings, progress=False)
    assert contents(out) == before
    prepare(events, out, settings, progress=False)
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_something_else_is_left_alone(
    events: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        prepare(events, tmp_path / "mine", settings, progress=False)
    shutil.copytree(events, tmp_path / "events")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        prepare(tmp_path / "events", tmp_path / "events", settings, progress=False)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events", "mine"]


def test_an_earlier_result_is_not_taken_for_events(
    data: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    for folder in (data, tmp_path / "nowhere"):
        with pytest.raises(SchemaError, match="events folder"):
            prepare(folder, tmp_path / "out", settings, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_no_patients(write_events: Callable[..., Path]) -> None:
    folder = write_events([])
    with pytest.raises(InputError, match="expected patients, found none"):
        prepare(folder, folder.parent / "out", progress=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"categories": ("lab", "medicaton")}, r"categories: .* found \['medicaton'\]"),
        ({"context_length": 3}, "context_length: expected at least 4, found 3"),
        ({"min_patients": 0}, "min_patients: expected at least 1, found 0"),
        ({"train_stays": 0}, "train_stays: expected at least 1, found 0"),
        ({"follow_up_end": "soon"}, "expected auto, complete or an ISO time, found soon"),
        ({"follow_up_end": "2021-13-45"}, "expected auto, complete or an ISO time, found 2021-13"),
        ({"splits": SplitRules(pretrain=0.9)}, "splits: expected shares from 0 to 1"),
        ({"splits": SplitRules(validation=1.5)}, "splits: expected shares from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PrepareSettings(**fields)


def test_follow_up_ends_where_the_settings_say(
    data: Path, events: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    def mortality(end: str) -> tuple[str, list[int]]:
        chosen = msgspec.structs.replace(settings, follow_up_end=end)
        out = prepare(events, tmp_path / "out", chosen, progress=False)
        told = json.loads((out / "prepare.json").read_text())["follow_up_end"]
        rows = [row for row in labels_of(out) if row["task"] == "mortality"]
        return told, sorted(row["prediction_time"] for row in rows)

    told, every = mortality("complete")
    assert told == "complete"
    middle = every[len(every) // 2]
    # Thirty days after the middle index time: it is just inside, and no later one is.
    moment = pa.scalar(middle + 30 * DAY, pa.timestamp("us")).as_py().isoformat()
    told, kept = mortality(moment)
    assert told == str(datetime.fromisoformat(moment))
    assert kept == [time for time in every if time <= middle]
    latest = json.loads((data / "prepare.json").read_text())["follow_up_end"]
    assert mortality(latest) == mortality("auto")
