"""The page of a data folder says what prepare.json says, and where its stays do not add up."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.corpus.page import _CUT, _MADE, _WAYS, data_page
from ehrmamba_hf.tasks import MIN_CASES
from ehrmamba_hf.timelines import SplitRules

PREPARED: dict[str, Any] = {
    "vocabulary": 1_215,
    "binned_codes": 22,
    "context_length": 2_048,
    "tokenizer": "fitted",
    "min_patients": 10,
    "settings": {
        "categories": ["lab", "vital_sign"],
        "splits": {"pretrain": 0.57, "finetune": 0.285, "validation": 0.1, "seed": 3},
        "train_stays": 4,
        "new_onset": False,
    },
    "follow_up_end": "2023-07-10 15:34:00",
    "fingerprint": "5f1c0b9e",
    "patients": {"test": 800, "pretrain": 3_000, "finetune": 0},
    "stays": {"test": 1_000, "pretrain": 4_000},
    "tokens": {"test": 50_000, "pretrain": 123_456},
    "visits": {"encounters": 5_300, "stays": 5_000, "other_visits": 0},
    "records": {
        "inside_a_visit": 700,
        "before_the_encounter_it_references": 20,
        "before_the_next_stay": 30,
        "implicit_visit": 250,
        "events_after_death": 9,
        "stays_merged": 11,
    },
    "unknown_by_system": {
        "pretrain": {"LOINC": {"events": 900, "unknown": 9}, "NDC": {"events": 100, "unknown": 50}},
        "test": {"LOINC": {"events": 90, "unknown": 0}, "NDC": {"events": 10, "unknown": 10}},
        "finetune": {},
    },
    "unfitted_units": {
        "pretrain": {"numbers": 500, "unfitted": 5},
        "test": {"numbers": 50, "unfitted": 1},
    },
    "distributions": {
        "events": {"pretrain": {"0": 1, "1": 2, "4": 2_997}, "test": {"2": 800}},
    },
    "tasks": {
        "mortality": {
            "test": {
                "examples": {"positive": 40, "negative": 860},
                "excluded": {"died in hospital": 60, "dead without a date": 40},
            },
            "pretrain": {
                "examples": {"positive": 100, "negative": 3_900},
                "excluded": {},
            },
        },
        "own_task": {
            "test": {
                "examples": {"positive": 19, "negative": 881},
                "excluded": {"the stay has no end": 100},
            },
            "pretrain": {"examples": {"negative": 4_000}, "excluded": {}},
        },
    },
}
REPORT = {
    "source": "FHIR",
    "total": {"read": 9_000, "used": 8_000, "not_used": {"no code": 950}, "rejected": 50},
    "warnings": ["All times are written in UTC."],
}


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).replace("&#39;", "'")


@pytest.fixture(scope="module")
def text() -> str:
    return text_of(data_page(PREPARED, REPORT))


def test_the_first_screen_says_what_to_know_before_training(text):
    first = text.index("Splits")
    for point in (
        "3,800 patients with 5,000 inpatient stays, in 2 splits by patient",
        "1 of 2 tasks can be judged on the test split.",
        "From reading: All times are written in UTC.",
        "From reading: 50 resources (0.6 %) were rejected.",
        "25.0 % of the events lie outside every visit.",
        "under 20 positives or negatives in the test split: own_task.",
    ):
        assert text.index(point) < first


def test_many_unknown_codes_are_said_first():
    codes = {"test": {"LOINC": {"events": 1_000, "unknown": 101}}}
    text = text_of(data_page({"unknown_by_system": codes, "patients": {"test": 1}}))
    assert "10.1 % of the test split's events have a code that is not in the vocabulary." in text


def test_splits_without_patients_are_left_out(text):
    assert "pretrain 3,000 4,000 123,456 test 800 1,000 50,000 All 3,800 5,000 173,456" in text


def test_base_rates_and_what_cannot_be_judged(text):
    assert "Death within 30 days of discharge 2.5 % 100 of 4,000 4.4 % 40 of 900" in text
    assert "own_task not judgeable 0 % 0 of 4,000 2.1 % 19 of 900" in text


@pytest.mark.parametrize(("positives", "judged"), [(MIN_CASES - 1, 0), (MIN_CASES, 1)])
def test_judgeable_needs_enough_of_both(positives, judged):
    for pair in (("positive", "negative"), ("negative", "positive")):
        counts = {"examples": dict(zip(pair, (positives, 500), strict=True)), "excluded": {}}
        page = data_page({"patients": {"test": 9}, "tasks": {"mortality": {"test": counts}}})
        assert f"{judged} of 1 tasks can be judged" in page or not judged
        assert f"{judged} of 1 tasks can be judged" in page
        assert ("not judgeable" not in page) == judged


def test_cohorts_add_up(text):
    assert (
        "5,000 stays \N{MINUS SIGN} 100 60 died in hospital 40 dead without a date "
        "= 4,900 examples → 140 positive, 2.9 % + 4,760 negative" in text
    )
    assert "test 1,000 60 40 900 40 860" in text
    assert "5,000 stays \N{MINUS SIGN} 100 the stay has no end = 4,900 examples" in text


def test_stays_that_do_not_add_up_are_said_first():
    prepared = {**PREPARED, "stays": {"test": 1_001, "pretrain": 4_000}}
    assert (
        "Do not trust these data: stays do not add up in Death within 30 days of discharge (test); "
        "own_task (test)." in text_of(data_page(prepared))
    )


def test_unknown_codes_and_unfitted_units(text):
    assert "All codes 5.9 % 59 of 1,000 10.0 % 10 of 100" in text
    assert "LOINC 1.0 % 9 of 900 0 % 0 of 90" in text
    assert "NDC 50.0 % 50 of 100 100 % 10 of 10" in text
    assert "Numbers 1.0 % 5 of 500 2.0 % 1 of 50" in text


def test_visits(text):
    assert "outside every visit: a visit of their calendar day 250 25.0 %" in text
    assert "All 1,000 100 %" in text
    assert (
        "inpatient stays, merged with the one that they overlap or closely follow 11 "
        "events after death, cut out 9 What visits were made of" in text
    )
    assert "inpatient stays made of them 5,000 other visits made of them 0" in text


def test_a_real_run_is_told_whole_and_in_words(data: Path) -> None:
    """What was cut out of records was never shown, and sizes were said to be cut out."""
    told = json.loads((data / "prepare.json").read_text())
    assert set(told) == set(PREPARED)
    text = text_of((data / "report.html").read_text())
    assert not set(told["records"]) & set(told["visits"])
    assert set(told["visits"]) == set(_MADE)
    merged = {"encounter_parts_joined", "stays_merged", "encounters_absorbed", "encounters_merged"}
    assert merged | {"without_birth_date", "without_any_event"} <= set(told["records"])
    for key, count in (told["records"] | told["visits"]).items():
        assert f" {(_WAYS | _CUT | _MADE)[key]} {count:,} " in text
    assert told["visits"]["stays"] == sum(told["stays"].values())
    assert PREPARED["settings"].keys() <= told["settings"].keys()
    assert f"Follow-up ends {told['follow_up_end'][:10]} " in text
    assert told["follow_up_end"][:16] not in text


def test_what_was_cut_out_at_death_and_merged_is_shown(write_events: Callable[..., Path]) -> None:
    noon = datetime(2020, 1, 1, 12)
    hour = timedelta(hours=1)
    death = noon + 10 * hour
    people = [{"subject_id": 1, "source_id": "a", "death": death, "deceased": True}]
    stays = [
        {"encounter_id": name, "class": "IMP", "start": noon + k * hour, "end": noon + n * hour}
        for name, k, n in (("one", 0, 4), ("two", 5, 9), ("three", 20, 30))
    ]
    labs = [{"subject_id": 1, "time": noon + k * hour, "code": "LOINC/1"} for k in (1, 2, 21)]
    folder = write_events(people, [{"subject_id": 1, **stay} for stay in stays], labs)
    rules = SplitRules(pretrain=1.0, finetune=0.0, validation=0.0)
    settings = PrepareSettings(min_patients=1, splits=rules)
    out = prepare(folder, folder.parent / "data", settings, progress=False)
    text = text_of((out / "report.html").read_text())
    for words in (
        "events after death, cut out 1",
        "encounters after death, cut out 1",
        "patients without a birth date 1",
        "merged with the one that they overlap or closely follow 1",
    ):
        assert words in text


def test_a_given_tokenizer_is_not_said_to_be_fitted() -> None:
    given = {k: v for k, v in PREPARED.items() if k != "min_patients"} | {"tokenizer": "given"}
    text = text_of(data_page(given))
    assert "The vocabulary and the bins are those of the tokenizer given." in text
    assert "fitted on the pretrain split alone" not in text
    assert "fitted on the pretrain split alone" in text_of(data_page(PREPARED))


def test_histograms_share_an_axis_without_holes():
    page = data_page(PREPARED)
    titles = re.findall(r'<div title="([^"]*)">', page)
    assert titles == [
        *("0: 1", "1: 2", "2 to 3: 0", "4 to 7: 2,997"),
        *("0: 0", "1: 0", "2 to 3: 800", "4 to 7: 0"),
    ]


def test_settings_and_source(text):
    for fact in (
        "Tokens in the vocabulary 1,215",
        "Longest sequence, in tokens 2,048",
        "Follow-up ends 2023-07-10 Events that become tokens lab, vital sign",
        "57 % pretrain, 28.5 % finetune, 10 % of each for validation, the rest test; seed 3",
        "Stays of a patient that finetuning draws at most 4",
        "Conditions are asked in every stay",
        "Fingerprint of input and settings 5f1c0b9e",
        "Of 9,000 FHIR resources read, 8,000 were used (88.9 %), 950 not used and 50 rejected.",
        "no code 950",
    ):
        assert fact in text


def test_what_an_older_version_wrote_is_shown():
    older = {key: PREPARED[key] for key in ("patients", "stays", "tokens", "tasks", "vocabulary")}
    older["records"] = PREPARED["records"]
    text = text_of(data_page(older))
    assert "inside the visit whose time holds them 700 70.0 %" in text
    assert "How much a patient has" not in text
    assert "What the tokens do not show" not in text


@pytest.mark.parametrize("missing", [*PREPARED])
def test_a_key_may_be_missing(missing):
    prepared = {key: value for key, value in PREPARED.items() if key != missing}
    assert "Training data" in data_page(prepared, {})


def test_nothing_at_all_still_gives_a_page():
    assert "Training data" in data_page({})
