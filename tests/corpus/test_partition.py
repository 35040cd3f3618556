"""Partitions: the same sequences, labels and counts as one record at a time, in any grouping."""

import pickle
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrmamba_hf.corpus import PrepareSettings
from ehrmamba_hf.corpus.encode import RecordEncoder
from ehrmamba_hf.corpus.event_ids import TokenTable
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.corpus.labels import sample_stays
from ehrmamba_hf.corpus.partition import Plan, Prepared, pretraining_patients, sequences_of
from ehrmamba_hf.corpus.tally import Tally, bin_of
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, EVENT_SCHEMA, SUBJECT_SCHEMA
from ehrmamba_hf.events.table import read_encounters, read_subjects
from ehrmamba_hf.tasks import label_stays
from ehrmamba_hf.timelines import SplitRules, VisitRules, split_of, stays_of
from ehrmamba_hf.timelines.load import read_records, rows_of
from ehrmamba_hf.timelines.shards import iter_shard
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, UNK

CODES = ("LOINC/1", "LOINC/2", "LOINC/rare", "RXNORM/1", "odd")
TOKENS = ("LOINC/1", "LOINC/1//Q1", "LOINC/1//Q2", "LOINC/2", "LOINC/2//Q1", "RXNORM/1")
TOKENIZER = EHRMambaTokenizer(
    vocab={token: 41 + i for i, token in enumerate(TOKENS)},
    types={token: "medication" if token[0] == "R" else "lab" for token in TOKENS},
    bins={"LOINC/1": {"": [1.0], "g": [2.0, 3.0]}, "LOINC/2": {"g": []}},
    categories=("lab", "medication"),
    model_max_length=24,
)
SETTINGS = PrepareSettings(
    categories=("lab", "medication"),
    context_length=24,
    train_stays=2,
    splits=SplitRules(pretrain=0.3, finetune=0.4, validation=0.3),
)
PLAN = Plan(TokenTable.of(TOKENIZER), tuple(SETTINGS.tasks()), SETTINGS, None)
START = datetime(2020, 1, 1)
MOMENT = st.one_of(st.integers(0, 200), st.integers(0, 20_000)).map(
    lambda h: h * timedelta(hours=1)
)
WHEN = MOMENT.map(lambda shift: START + shift)
CONDITIONS = ("ICD10CM/I10", "ICD9CM/276.1", "SNOMED/1")


def some(of: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | of


@st.composite
def patients(draw: st.DrawFn, subject_id: int) -> tuple[dict, list[dict], list[dict]]:
    """A subject's row, encounters and events."""
    names = [f"{subject_id}-{k}" for k in range(draw(st.integers(0, 5)))]
    death = draw(some(WHEN))
    subject = {
        "subject_id": subject_id,
        "birth": draw(some(st.just(datetime(1950, 3, 1)))),
        "death": death,
        "death_is_date": death is not None and draw(st.booleans()),
        "deceased": death is not None or draw(st.booleans()),
    }
    encounters = [
        {
            "encounter_id": name,
            "start": (start := draw(WHEN)),
            "end": draw(some(st.integers(-2, 400).map(lambda h, s=start: s + timedelta(hours=h)))),
            "class": draw(st.sampled_from(("IMP", "AMB", "EMER", None))),
            "part_of": draw(some(st.sampled_from(names))),
            "disposition": draw(st.sampled_from((None, "home", "exp"))),
            "source": draw(st.sampled_from(("", "mimic"))),
        }
        for name in names
    ]
    events = [
        {
            "time": (time := draw(WHEN)),
            "available_time": draw(
                some(st.integers(0, 50).map(lambda h, t=time: t + timedelta(hours=h)))
            ),
            "code": draw(st.sampled_from(CODES)),
            "numeric_value": draw(some(st.sampled_from((0.5, 1.0, 2.5, 9.0, np.inf, np.nan)))),
            "unit": draw(st.sampled_from((None, "", "g", "mg"))),
            "category": draw(st.sampled_from(("lab", "lab", "medication", "vital_sign"))),
            "encounter_id": draw(some(st.sampled_from([*names, "elsewhere"]))),
        }
        for _ in range(draw(st.integers(0, 40)))
    ]
    for code in draw(st.lists(st.sampled_from(CONDITIONS), max_size=4)):
        time = draw(WHEN)
        codings = draw(st.sampled_from(([code], [code, "H/1"], [], None)))
        reference = draw(some(st.sampled_from([*names, "elsewhere"])))
        common = {"time": time, "available_time": time, "category": "condition"}
        events.append({**common, "code": code, "codings": codings, "encounter_id": reference})
    common = {"subject_id": subject_id}
    return (
        subject,
        [common | e for e in sorted(encounters, key=lambda e: e["start"])],
        [common | e for e in sorted(events, key=lambda e: e["time"])],
    )


def tables(people: list[tuple[dict, list[dict], list[dict]]]) -> tuple[pa.Table, ...]:
    """Events, encounters and subjects of patients."""
    events = [row for *_, rows in people for row in rows]
    encounters = [row for _, rows, _ in people for row in rows]
    return (
        pa.Table.from_pylist(events, schema=EVENT_SCHEMA),
        pa.Table.from_pylist(encounters, schema=ENCOUNTER_SCHEMA),
        pa.Table.from_pylist([subject for subject, *_ in people], schema=SUBJECT_SCHEMA),
    )


def one_by_one(
    given: tuple[pa.Table, ...], plan: Plan, tokenizer: EHRMambaTokenizer
) -> tuple[dict[tuple[str, str], list[dict]], list[tuple], Counter]:
    """Sequences, labels and counts by the road of a single record."""
    sequences: dict[tuple[str, str], list[dict]] = {}
    labels: list[tuple] = []
    tally = Counter[tuple]()
    for record in read_records(*given, tokenizer.categories).records:
        split = split_of(record.subject_id, plan.settings.splits)
        encoder = RecordEncoder(record, tokenizer, plan.settings.visits)
        whole = encoder.columns()
        stays = stays_of(record, plan.settings.visits)
        tally["patients", split] += 1
        tally["stays", split] += len(stays)
        tally["distribution", "events", split, bin_of(len(record.time))] += 1
        for code, token_id in zip(record.code, encoder.ids, strict=True):
            tally["events", split, code.split("/")[0]] += 1
            tally["unknown", split, code.split("/")[0]] += token_id == UNK
        for task in plan.tasks:
            excluded: Counter[str] = Counter()
            for e in label_stays(record, stays, task, plan.follow_up_end, excluded):
                labels.append((record.subject_id, e.prediction_time, e.label, e.task, split))
                tally["examples", task.name, split, "positive" if e.label else "negative"] += 1
            for reason, n in excluded.items():
                tally["excluded", task.name, split, reason] += n
        moments: list[int | None] = sorted({t for s, t, *_ in labels if s == record.subject_id})
        if split.startswith("finetune"):
            position = {t: sum(stay.start <= t for stay in stays) for t in moments}
            asked = sorted(set(position.values()))
            most, seed = plan.settings.train_stays, plan.settings.splits.seed
            drawn = sample_stays(record.subject_id, len(asked), most, seed)
            moments = [t for t in moments if asked.index(position[t]) in drawn]
        if split.startswith("pretrain"):
            moments = [None] if len(whole["input_ids"]) > 1 else []
        for at in moments:
            row = {"subject_id": record.subject_id, "prediction_time": at}
            columns = whole if at is None else encoder.columns(at)
            row["length"] = len(columns["input_ids"])
            name = ("pretrain" if split.startswith("pretrain") else "finetune", split)
            sequences.setdefault(name, []).append(row | columns)
            tally["tokens", split] += row["length"]
    return sequences, labels, tally


def expect_equal(
    found: Prepared, expected: tuple[dict[tuple[str, str], list[dict]], list[tuple], Counter]
) -> None:
    sequences, labels, tally = expected
    assert set(found.sequences) == set(sequences)
    for name, table in found.sequences.items():
        slow = pa.Table.from_pylist(sequences[name], schema=table.schema)
        assert table.combine_chunks().equals(slow.combine_chunks())
    columns = [
        found.labels[name].cast(pa.int64()) if name == "prediction_time" else found.labels[name]
        for name in found.labels.column_names
    ]
    assert sorted(zip(*[c.to_pylist() for c in columns], strict=True)) == sorted(labels)
    for key, n in tally.items():
        assert found.tally[key] == n, key


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True), st.data())
@settings(max_examples=150, deadline=None)
def test_a_partition_is_its_records_one_by_one(ids: list[int], data: st.DataObject) -> None:
    given = tables([data.draw(patients(subject_id)) for subject_id in ids])
    found = sequences_of(*given, PLAN)
    expect_equal(found, one_by_one(given, PLAN, TOKENIZER))
    # By itself, as a grouped apply calls it, each patient gives the same as among others.
    apart = [sequences_of(*(rows_of(table, pa.array([i])) for table in given), PLAN) for i in ids]
    expect_same(apart, found, ids)


def expect_same(parts: list[Prepared], whole: Prepared, ids: list[int]) -> None:
    """Parts in the order of `ids` give together what the whole gave."""
    tally = Tally.sum_of(part.tally.to_rows() for part in parts)
    assert +tally == +whole.tally
    for name, table in whole.sequences.items():
        joined = pa.concat_tables([p.sequences[name] for p in parts if name in p.sequences])
        assert joined.combine_chunks().equals(table.combine_chunks())
    rows = [row for part in parts for row in part.labels.to_pylist()]
    rank = {subject_id: place for place, subject_id in enumerate(ids)}

    def key(row: dict[str, Any]) -> tuple:
        return rank[row["subject_id"]], row["task"], row["prediction_time"]

    assert sorted(rows, key=key) == sorted(whole.labels.to_pylist(), key=key)


def test_the_simulated_hospital_in_any_grouping(
    events: Path, settings: PrepareSettings, data: Path
) -> None:
    tokenizer = load_tokenizer(data)
    plan = Plan(TokenTable.of(tokenizer), tuple(settings.tasks()), settings, None)
    encounters, subjects = read_encounters(events), read_subjects(events)
    columns = [name for name in EVENT_SCHEMA.names if name != "subject_id"]
    batches = list(iter_shard(events / "data" / "shard-00000.parquet", columns, rows=2000))
    whole = pa.concat_tables(batches).unify_dictionaries()
    expected = one_by_one((whole, encounters, subjects), plan, tokenizer)
    parts = [
        sequences_of(batch, rows_of(encounters, ids), rows_of(subjects, ids), plan)
        for batch in batches
        for ids in [batch["subject_id"].unique()]
    ]
    assert len(parts) > 4
    everybody = sequences_of(whole, encounters, subjects, plan)
    expect_equal(everybody, expected)
    expect_same(parts, everybody, subjects["subject_id"].to_pylist())


def test_what_crosses_the_border_can_be_pickled() -> None:
    tokens = pickle.loads(pickle.dumps(TokenTable.of(TOKENIZER)))
    assert tokens.vocab == TOKENIZER.vocab and set(tokens.types.tolist()) <= set(range(11))
    rules = VisitRules()
    assert pickle.loads(pickle.dumps(SETTINGS)).visits == rules
    found = sequences_of(*tables([]), PLAN)
    back = pickle.loads(pickle.dumps(found))
    assert back.labels.equals(found.labels) and back.tally == found.tally and not back.sequences


def test_only_the_pretraining_patients_are_fitted_on() -> None:
    rules = SplitRules(pretrain=0.5, finetune=0.2)
    people = [
        ({"subject_id": i, "death": START, "death_is_date": i % 2 == 0, "deceased": True}, [], [])
        for i in range(200)
    ]
    found = pretraining_patients(tables(people)[2], rules)
    assert found["subject_id"].to_pylist() == [
        i for i in range(200) if split_of(i, rules) == "pretrain"
    ]
    day = START + timedelta(days=1, microseconds=-1)  # a death without an hour: the whole day
    for row in found.to_pylist():
        assert row["last_time"] == (START if row["subject_id"] % 2 else day)


def test_columns_are_those_of_the_model() -> None:
    ids = list(range(40))
    event = {"time": START, "available_time": START, "code": "LOINC/1", "category": "lab"}
    people = [({"subject_id": i}, [], [{"subject_id": i} | event]) for i in ids]
    for subject, *_ in people:
        subject |= {"death_is_date": False, "deceased": False}
    found = sequences_of(*tables(people), PLAN)
    assert {name for name, _ in found.sequences} == {"pretrain"}  # without a stay, no example
    for table in found.sequences.values():
        assert table.column_names == ["subject_id", "prediction_time", "length", *COLUMNS]
        assert table["length"].to_pylist() == [4 + 1] * len(table)
