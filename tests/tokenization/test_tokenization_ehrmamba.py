"""The tokenizer as transformers' users meet it: batches, padding, index times, collators, text."""

import copy
import pickle
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, SPECIAL_ID, TYPE_ID

Patient = dict[str, Any]
WHOLE = (
    "[CLS] [VS] LOINC/2345-7//Q2 RXNORM/5856 [VE] [REG] [W_2] [VS] LOINC/2345-7//Q3 [VE] [REG] "
    "[LT] [VS] SNOMED/80146002 LOINC/2345-7"
)


def words(tokenizer: EHRMambaTokenizer, encoded: Any) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(encoded["input_ids"]))


def shorter(patient: Patient, visits: int) -> Patient:
    return {**patient, "visits": patient["visits"][:visits]}


def test_a_patient(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    encoded = tokenizer(patient)
    assert list(encoded) == list(COLUMNS)
    assert words(tokenizer, encoded) == WHOLE
    assert {len(column) for column in encoded.values()} == {15}
    kinds = "CLS VS lab medication VE REG interval VS lab VE REG interval VS procedure lab"
    assert encoded["token_type_ids"] == [TYPE_ID[kind] for kind in kinds.split()]


def test_a_prompted_patient(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    by_name = tokenizer(patient, task="readmission")
    assert words(tokenizer, by_name) == WHOLE.replace("[CLS]", "[REA]") + " [REA]"
    assert by_name == tokenizer(patient, task="[REA]")
    closed = words(tokenizer, tokenizer(shorter(patient, 1), task="[TASK_3]"))
    assert closed == "[TASK_3] [VS] LOINC/2345-7//Q2 RXNORM/5856 [VE] [TASK_3]"


def test_times_in_any_form(tokenizer: EHRMambaTokenizer) -> None:
    def encode(start: Any, birth: Any) -> Any:
        event = {"code": "LOINC/2345-7", "time": start}
        return tokenizer({"birth": birth, "visits": [{"start": start, "events": [event]}]})

    moment = datetime(1970, 1, 3, 12)
    expected = encode("1970-01-03T12:00:00", "1970-01-01")
    assert expected["ages"] == pytest.approx([0, 2.5 / 365.25, 2.5 / 365.25])
    assert encode(moment, date(1970, 1, 1)) == expected
    assert encode(216_000_000_000, 0) == expected
    assert encode("1970-01-03T12:00:00+05:00", datetime(1970, 1, 1)) == expected


def test_events_inside_a_visit_are_sorted_by_time_kind_code_and_value(
    tokenizer: EHRMambaTokenizer,
) -> None:
    glucose = {"code": "LOINC/2345-7", "unit": "mg/dL", "category": "lab"}
    at, later = "2020-01-01T09:00", "2020-01-01T10:00"
    events = [
        {"code": "LOINC/2345-7", "time": later, "category": "lab"},
        {"code": "SNOMED/80146002", "time": at, "category": "procedure"},
        {"code": "RXNORM/5856", "time": at, "category": "medication"},
        {**glucose, "time": at},  # as in the event table, a missing value comes last
        {**glucose, "time": at, "value": 300},
        {**glucose, "time": at, "value": 7},
        {**glucose, "time": at, "value": float("nan")},
    ]
    expected = (
        "[CLS] [VS] LOINC/2345-7//Q1 LOINC/2345-7//Q3 LOINC/2345-7 LOINC/2345-7 RXNORM/5856 "
        "SNOMED/80146002 LOINC/2345-7"
    )
    for order in (events, events[::-1]):
        encoded = tokenizer({"visits": [{"start": "2020-01-01T08:00", "events": order}]})
        assert words(tokenizer, encoded) == expected


def test_visits_in_any_order_and_kinds_that_are_no_part(
    tokenizer: EHRMambaTokenizer, patient: Patient
) -> None:
    turned = {**patient, "visits": patient["visits"][::-1]}
    assert tokenizer(turned) == tokenizer(patient)
    more = copy.deepcopy(patient)
    pulse = {"code": "LOINC/8867-4", "time": "2019-03-04T12:00", "category": "vital_sign"}
    more["visits"][0]["events"].append(pulse)
    more["visits"].append({"start": "2021-01-01", "end": "2021-01-02", "events": []})
    assert tokenizer(more) == tokenizer(patient)
    del pulse["category"]
    assert "[UNK]" in words(tokenizer, tokenizer(more))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_covers_every_column(
    tokenizer: EHRMambaTokenizer, patient: Patient, side: str
) -> None:
    tokenizer.padding_side = side
    batch = [patient, shorter(patient, 1), shorter(patient, 2)]
    padded = tokenizer(batch, task="mortality", padding=True, return_tensors="pt")
    assert list(padded) == list(COLUMNS)
    for row, single in enumerate(batch):
        alone = tokenizer(single, task="mortality")
        length = len(alone["input_ids"])
        empty = padded["input_ids"].shape[1] - length
        place = slice(empty, None) if side == "left" else slice(0, length)
        for name in COLUMNS:
            column = padded[name][row]
            torch.testing.assert_close(column[place], torch.tensor(alone[name]))
            assert torch.count_nonzero(column) == torch.count_nonzero(column[place])


def test_padding_to_a_length(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    padded = tokenizer(patient, padding="max_length", max_length=20)
    assert {len(column) for column in padded.values()} == {20}
    assert {len(c) for c in tokenizer(patient, padding="max_length").values()} == {64}
    multiple = tokenizer([patient], padding=True, pad_to_multiple_of=8, return_tensors="pt")
    assert {column.shape for column in multiple.values()} == {(1, 16)}
    assert {len(c) for c in tokenizer(patient, padding=False).values()} == {15}


def test_a_batch_is_its_patients_one_by_one(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    batch = [shorter(patient, n) for n in (3, 1, 2)]
    for options in ({}, {"task": "mortality"}, {"truncation": True, "max_length": 6}):
        together = tokenizer(batch, **options)
        for row, single in enumerate(batch):
            alone = tokenizer(single, **options)
            assert {name: together[name][row] for name in COLUMNS} == dict(alone)
    assert all(column == [] for column in tokenizer([]).values())


def test_truncation_covers_every_column(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    cut = tokenizer(patient, truncation=True, max_length=8)
    assert words(tokenizer, cut) == "[CLS] [VS] [VE] [REG] [LT] [VS] SNOMED/80146002 LOINC/2345-7"
    assert {len(column) for column in cut.values()} == {8}
    assert cut["visit_orders"] == [0, 2, 2, 2, 0, 3, 3, 3]
    for most in range(4, 20):
        encoded = tokenizer(patient, "mortality", truncation="longest_first", max_length=most)
        assert {len(column) <= most for column in encoded.values()} == {True}
        assert words(tokenizer, encoded).startswith("[MOR] [VS]")
        assert words(tokenizer, encoded).endswith("LOINC/2345-7 [MOR]")
    for kept in (False, "do_not_truncate"):
        assert words(tokenizer, tokenizer(patient, truncation=kept, max_length=8)) == WHOLE
    tokenizer.model_max_length = 4
    assert len(tokenizer(patient, truncation=True)["input_ids"]) == 4
    for too_few in (0, 3):
        for given in (patient, dict(tokenizer(patient))):
            with pytest.raises(ValueError, match=f"at least 4, found {too_few}"):
                tokenizer(given, truncation=True, max_length=too_few)


def test_ready_columns(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    ready = {name: np.array(column) for name, column in tokenizer(patient).items()}
    extra = {**ready, "subject_id": 5, "length": 15}
    assert tokenizer(extra) == tokenizer(patient)
    options = {"task": "mortality", "truncation": True, "max_length": 9}
    assert tokenizer(extra, **options) == tokenizer(patient, **options)
    assert tokenizer([extra, ready], **options) == tokenizer([patient, patient], **options)
    ids = {"input_ids": ready["input_ids"].tolist()}
    assert dict(tokenizer(ids)) == {**ids, "attention_mask": [1] * 15}
    with pytest.raises(ValueError, match=r"token_type_ids.*missing"):
        tokenizer(ids, task="mortality")


def test_an_index_time_equals_removing_later_things_by_hand(
    tokenizer: EHRMambaTokenizer, patient: Patient
) -> None:
    first, second, third = patient["visits"]
    cases = {
        # before anything
        "2019-03-04T10:59": [],
        # an event exactly at the index time is in; the stay is open
        "2019-03-04T11:00": [{**first, "end": None, "events": first["events"][:1]}],
        # the stay's end is not known one minute before it
        "2019-03-06T11:59": [{**first, "end": None}],
        "2019-03-06T12:00": [first],
        # a stay that has begun shows from its first event on
        "2019-03-20T12:30": [first],
        "2019-03-20T13:00": [first, {**second, "end": None}],
        "2019-03-20T18:00": [first, second],
        "2020-03-19T23:00": [first, second, {**third, "events": third["events"][:1]}],
        "2030-01-01": [first, second, third],
    }
    for moment, visits in cases.items():
        by_hand = tokenizer({**patient, "visits": visits}, task="mortality")
        assert tokenizer(patient, task="mortality", at=moment) == by_hand, moment
        assert tokenizer(patient, "mortality", at=datetime.fromisoformat(moment)) == by_hand


def test_what_was_not_available_is_no_part(tokenizer: EHRMambaTokenizer) -> None:
    def encode(available: Any, at: Any) -> str:
        event = {"code": "LOINC/2345-7", "time": "1970-01-01", "available": available}
        other = {"code": "RXNORM/5856", "time": "1969-12-31T12:00"}
        stay = {"start": "1969-12-30", "end": None, "events": [event, other]}
        return words(tokenizer, tokenizer({"visits": [stay]}, at=at))

    without, with_it = "[CLS] [VS] RXNORM/5856", "[CLS] [VS] RXNORM/5856 LOINC/2345-7"
    assert encode("1970-01-02", "1970-01-01T23:59") == without
    assert encode("1970-01-02", "1970-01-02") == with_it
    assert encode(None, "1970-01-01") == encode(0, 0) == with_it
    assert encode("1969-01-01", "1969-12-31T23:59") == without  # not before it happened
    assert encode("1970-01-02", None) == with_it


def test_shifting_all_dates_by_whole_days_changes_nothing(
    tokenizer: EHRMambaTokenizer, patient: Patient
) -> None:
    # 1461 days: a shift of other lengths would move the leap day that a date of birth counts with.
    for days in (1, -400, 1461, 36525):
        moved = copy.deepcopy(patient)
        shift = timedelta(days=days)

        def later(text: str, shift: timedelta = shift) -> str:
            return (datetime.fromisoformat(text) + shift).isoformat()

        moved["birth"] = later(moved["birth"])
        for visit in moved["visits"]:
            visit["start"] = later(visit["start"])
            visit["end"] = visit["end"] and later(visit["end"])
            for event in visit["events"]:
                event["time"] = later(event["time"])
        assert tokenizer(moved) == tokenizer(patient)
        moment = "2019-03-20T13:00"
        assert tokenizer(moved, "mortality", at=later(moment)) == tokenizer(
            patient, "mortality", at=moment
        )


def test_stock_collators(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    features = [dict(tokenizer(shorter(patient, n))) for n in (1, 3)]
    prompted = [{**feature, "labels": [1.0]} for feature in features]
    batch = DataCollatorWithPadding(tokenizer)(prompted)
    assert {name: tuple(column.shape) for name, column in batch.items()} == {
        **dict.fromkeys(COLUMNS, (2, 15)),
        "labels": (2, 1),
    }
    assert batch["ages"].dtype == batch["time_stamps"].dtype == torch.float32
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(features)
    real = batch["attention_mask"].bool()
    assert real.sum(1).tolist() == [6, 15]
    assert torch.equal(batch["labels"][real], batch["input_ids"][real])
    assert batch["labels"][~real].unique().tolist() == [-100]


def test_readable_text(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    ids = tokenizer(patient)["input_ids"]
    assert tokenizer.decode(ids) == WHOLE
    assert tokenizer(WHOLE)["input_ids"] == ids
    assert tokenizer.batch_decode([ids[:2], ids[12:14]]) == ["[CLS] [VS]", "[VS] SNOMED/80146002"]
    assert tokenizer.readable(torch.tensor([3, 41, 42, 43, 44, 45, 46, 1])) == [
        "[CLS]",
        "Glucose (LOINC/2345-7)",
        "Glucose (LOINC/2345-7) <=80 mg/dL",
        "Glucose (LOINC/2345-7) 80-120 mg/dL",
        "Glucose (LOINC/2345-7) >120 mg/dL",
        "insulin, human (RXNORM/5856)",
        "SNOMED/80146002",
        "[UNK]",
    ]
    tokenizer.bins["LOINC/2345-7"]["mmol/L"] = [5.0]
    assert tokenizer.readable([43]) == ["Glucose (LOINC/2345-7) Q2"]


def test_the_vocabulary_is_what_it_says(tokenizer: EHRMambaTokenizer) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 47
    assert sorted(tokenizer.get_vocab().values()) == list(range(47))
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(tokenizer.tokens)}
    ids = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
    assert [*ids, tokenizer.cls_token_id] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("patient", "options", "sentence"),
    [
        ({"events": []}, {}, "expected visits or input_ids, found"),
        ({"visits": [{"end": None}]}, {}, "a visit: expected a start"),
        ({"visits": []}, {"task": "sepsis"}, "unknown task sepsis: expected one of"),
    ],
)
def test_what_cannot_be_encoded(
    tokenizer: EHRMambaTokenizer, patient: Patient, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        tokenizer(patient, **options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"vocab": {"LOINC/1": 42}}, "ids 0, 1, 2"),
        ({"vocab": {"LOINC/1": SPECIAL_ID["[PAD]"]}}, "ids 0, 1, 2"),
        ({"vocab": {"LOINC/1": 40, "[TASK_9]": 41}}, "special tokens of the grammar first"),
        ({"task_tokens": {"sepsis": "[SEP]"}}, "its token \\[SEP\\] is not one of"),
    ],
)
def test_what_is_no_tokenizer(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EHRMambaTokenizer(**arguments)


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        (7, "patients: expected a dict or a list of dicts, found int"),
        (None, "patients: expected a dict or a list of dicts, found none"),
        ([1, 2], "a patient: expected a dict, found int"),
        ({"visits": None}, "visits: expected a list of dicts, found none"),
        ({"visits": {"start": "2020-01-01"}}, "visits: expected a list of dicts, found dict"),
        ({"visits": ["2020-01-01"]}, "visits: expected a list of dicts, found str in it"),
        (
            {"visits": [{"start": "2020-01-01", "events": ["LOINC/2345-7"]}]},
            "events: expected a list of dicts, found str in it",
        ),
        (
            {"visits": [{"start": "2020-01-01", "events": [{"time": "2020-01-01"}]}]},
            "an event: expected a code, found none",
        ),
        (
            {"visits": [{"start": "2020-01-01", "events": [{"code": 5}]}]},
            "an event: expected a code, found int",
        ),
    ],
)
def test_what_is_no_patient_is_named_but_not_shown(
    tokenizer: EHRMambaTokenizer, patients: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        tokenizer(patients)


def test_a_second_patient_is_no_task(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    with pytest.raises(ValueError, match="task: expected a name, found dict"):
        tokenizer(patient, patient)


def test_a_pickled_tokenizer_is_the_same(tokenizer: EHRMambaTokenizer, patient: Patient) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again(patient, task="mortality") == tokenizer(patient, task="mortality")
    assert again.readable(range(again.vocab_size)) == tokenizer.readable(
        range(tokenizer.vocab_size)
    )
