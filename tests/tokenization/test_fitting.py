"""Bins and vocabulary: exact edges, whose values count, and what is too rare to have a token."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.table import data_files
from ehrmamba_hf.timelines.shards import iter_shard
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.counting import (
    FITTED_COLUMNS,
    count_tokens,
    count_values,
    merge_counts,
)
from ehrmamba_hf.tokenization.fitting import build_tokenizer, fit_bins, names_of

Row = dict[str, Any]
Writer = Callable[..., Path]
NOON = datetime(2019, 3, 4, 12)
CATEGORIES = ("procedure", "medication", "lab")


def row(subject: int, code: str, value: float | None = None, **fields: Any) -> Row:
    common = {"time": NOON, "available_time": NOON, "category": "lab", "unit": "mg/dL"}
    return {"subject_id": subject, "code": code, "numeric_value": value, **common, **fields}


def labs(code: str, values: Iterable[float], **fields: Any) -> list[Row]:
    return [row(i % 3, code, float(v), **fields) for i, v in enumerate(values)]


def fit(
    events: Path,
    *,
    patients: Iterable[int] = (0, 1, 2),
    last: dict[int, datetime] | None = None,
    min_patients: int = 1,
    categories: tuple[str, ...] = CATEGORIES,
) -> EHRMambaTokenizer:
    ids = list(patients)
    moments = [(last or {}).get(i) for i in ids]
    known = pa.table({"subject_id": ids, "last_time": pa.array(moments, pa.timestamp("us"))})
    parts = [part for file in data_files(events) for part in iter_shard(file, FITTED_COLUMNS)]
    values = merge_counts(count_values(part, known, categories) for part in parts)
    bins = fit_bins(values, min_patients=min_patients)
    tokens = [count_tokens(part, known, categories, bins) for part in parts]
    return build_tokenizer(
        merge_counts([values, *tokens]),
        bins,
        names_of(events),
        categories=categories,
        task_tokens={"mortality": "[MOR]"},
        min_patients=min_patients,
        context_length=128,
    )


def ordinary(tokenizer: EHRMambaTokenizer) -> list[str]:
    return tokenizer.tokens[41:]


def test_edges_are_those_of_the_inverted_distribution_function(write_events: Writer) -> None:
    rng = np.random.default_rng(0)
    made = {f"LOINC/{n}": rng.lognormal(size=n).astype(np.float32) for n in range(20, 75)}
    tokenizer = fit(write_events("events", [r for c, v in made.items() for r in labs(c, v)]))
    for code, values in made.items():
        expected = np.quantile(values, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")
        assert np.float32(tokenizer.bins[code]["mg/dL"]).tolist() == expected.tolist()
        counts = np.bincount([tokenizer.event_id(code, float(v), "mg/dL") for v in values])
        # Five bins, each of a fifth of the values, to within one.
        assert len(counts[counts > 0]) == 5
        assert abs(counts[counts > 0] - len(values) / 5).max() <= 1


def test_twenty_values_make_bins_and_nineteen_do_not(write_events: Writer) -> None:
    rows = labs("LOINC/19", range(19)) + labs("LOINC/20", range(20))
    rows += labs("LOINC/split", range(15)) + labs("LOINC/split", range(15), unit="mmol/L")
    rows += [*labs("LOINC/null", range(19)), row(0, "LOINC/null"), row(0, "LOINC/null", np.nan)]
    rows += [*labs("LOINC/inf", range(19)), row(0, "LOINC/inf", np.inf)]
    tokenizer = fit(write_events("events", rows))
    assert tokenizer.bins == {"LOINC/20": {"mg/dL": [3.0, 7.0, 11.0, 15.0]}}
    bins = [f"LOINC/20//Q{k}" for k in range(1, 6)]
    bare = ["LOINC/19", "LOINC/20", "LOINC/inf", "LOINC/null", "LOINC/split"]
    assert ordinary(tokenizer) == sorted(bare + bins)


def test_units_have_bins_of_their_own(write_events: Writer) -> None:
    rows = labs("LOINC/1", range(20)) + labs("LOINC/1", range(100, 120), unit="mmol/L")
    rows += labs("LOINC/1", range(1000, 1020), unit=None)
    tokenizer = fit(write_events("events", rows))
    assert tokenizer.bins["LOINC/1"] == {
        "": [1003.0, 1007.0, 1011.0, 1015.0],
        "mg/dL": [3.0, 7.0, 11.0, 15.0],
        "mmol/L": [103.0, 107.0, 111.0, 115.0],
    }


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([0] * 12 + list(range(1, 9)), [0.0, 4.0]),  # 20, 40 and 60 % are all 0
        ([0] * 20, []),  # all alike: one bin
        ([0] * 10 + [1] * 10, [0.0]),  # the highest value is no edge: nothing lies above it
        ([-1] * 5 + [5] * 15, [-1.0]),
    ],
)
def test_tied_edges_merge_bins(write_events: Writer, values: list[int], edges: list[float]) -> None:
    tokenizer = fit(write_events("events", labs("LOINC/1", values)))
    assert tokenizer.bins == {"LOINC/1": {"mg/dL": edges}}
    expected = [f"LOINC/1//Q{k}" for k in range(1, len(edges) + 2)]
    assert ordinary(tokenizer) == ["LOINC/1", *expected]  # no bin without a value


def test_edges_are_float32_and_come_back_as_saved(write_events: Writer, tmp_path: Path) -> None:
    tokenizer = fit(write_events("events", labs("LOINC/1", np.arange(20) / 10)))
    edges = tokenizer.bins["LOINC/1"]["mg/dL"]
    assert edges == [float(np.float32(v)) for v in (0.3, 0.7, 1.1, 1.5)]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert EHRMambaTokenizer.from_pretrained(tmp_path / "saved").bins == tokenizer.bins
    for k, value in enumerate((0.3, 0.7, 1.1, 1.5), 1):  # as a hospital writes them, in decimal
        assert tokenizer.tokens[tokenizer.event_id("LOINC/1", value, "mg/dL")] == f"LOINC/1//Q{k}"


def saved(tokenizer: EHRMambaTokenizer, folder: Path) -> dict[str, bytes]:
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_other_patients_change_nothing(write_events: Writer, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    own = [row(s, "LOINC/1", v) for s in range(3) for v in rng.normal(size=10).round(2)]
    names = {"LOINC/1": "one", "LOINC/2": "two"}
    results = []
    for n, shift in enumerate((0.0, 50.0)):
        others = [row(s, "LOINC/1", v + shift) for s in range(3, 9) for v in rng.normal(size=9)]
        others += [row(s, "LOINC/2") for s in range(3, 9)] * n
        events = write_events(f"events{n}", own + others, names)
        results.append(saved(fit(events, min_patients=2), tmp_path / f"tokenizer{n}"))
    assert results[0] == results[1]
    alone = write_events("alone", own, names)
    assert saved(fit(alone, min_patients=2), tmp_path / "alone_tokenizer") == results[0]
    assert json.loads(results[0]["codebook.json"])["names"] == {"LOINC/1": "one"}


def test_a_token_needs_min_patients(write_events: Writer) -> None:
    rows = [row(s, "LOINC/rare") for s in (0, 0, 0, 1)]
    rows += [row(s, "LOINC/kept") for s in (0, 1, 2)]
    # Values 0 to 14 of patients 0, 1, 2 in turn; 15 to 19 of patients 0 and 1 only.
    rows += [row(i % 3 if i < 15 else i % 2, "LOINC/bins", float(i)) for i in range(20)]
    tokenizer = fit(write_events("events", rows), min_patients=3)
    bins = [f"LOINC/bins//Q{k}" for k in range(1, 5)]
    assert ordinary(tokenizer) == ["LOINC/bins", *bins, "LOINC/kept"]
    assert tokenizer.event_id("LOINC/bins", 19.0, "mg/dL") == tokenizer.vocab["LOINC/bins"]
    assert ordinary(fit(write_events("again", rows), min_patients=2)) == [
        "LOINC/bins",
        *bins,
        "LOINC/bins//Q5",
        "LOINC/kept",
        "LOINC/rare",
    ]


def test_a_value_that_is_not_a_number_supports_no_bin(write_events: Writer) -> None:
    # Values 0 to 14 of patients 0, 1, 2 in turn; 15 to 19 of patients 0 and 1 only.
    rows = [row(i % 3 if i < 15 else i % 2, "LOINC/1", float(i)) for i in range(20)]
    rows.append(row(3, "LOINC/1", np.nan))
    four = [f"LOINC/1//Q{k}" for k in range(1, 5)]
    events = write_events("events", rows)
    assert ordinary(fit(events, patients=range(5), min_patients=3)) == ["LOINC/1", *four]
    rows.append(row(4, "LOINC/1", np.inf))  # infinity is in the highest bin, but moves no edge
    events = write_events("again", rows)
    five = ordinary(fit(events, patients=range(5), min_patients=3))
    assert five == ["LOINC/1", *four, "LOINC/1//Q5"]


def test_bins_need_min_patients_too(write_events: Writer) -> None:
    # 20 values of patients 0, 1, 2 in turn; patient 3 has the code without a value.
    events = write_events("events", [*labs("LOINC/1", range(20)), row(3, "LOINC/1")])
    patients = range(4)
    assert fit(events, patients=patients, min_patients=3).bins
    assert not fit(events, patients=patients, min_patients=4).bins  # they'd tell of three patients


def test_the_type_is_the_one_that_the_code_has_most_often(write_events: Writer) -> None:
    def times(code: str, category: str, n: int) -> list[Row]:
        return [row(0, code, None, category=category)] * n

    rows = [*times("X/1", "lab", 2), *times("X/1", "procedure", 3)]
    # Orders and administrations are both of type medication: together they are more than the labs.
    rows += [*times("X/2", "lab", 4), *times("X/2", "medication", 3)]
    rows += times("X/2", "administration", 3)
    rows += times("X/3", "vital_sign", 2)
    rows += labs("X/4", range(20))
    categories = (*CATEGORIES, "administration", "vital_sign")
    tokenizer = fit(write_events("events", rows), categories=categories)
    kinds = {token: tokenizer.types[token] for token in ("X/1", "X/2", "X/3", "X/4")}
    assert kinds == {"X/1": "procedure", "X/2": "medication", "X/3": "other", "X/4": "lab"}
    assert {tokenizer.types[f"X/4//Q{k}"] for k in range(1, 6)} == {"lab"}


def test_other_kinds_of_event_do_not_count(write_events: Writer) -> None:
    rows = [row(0, "X/1"), row(0, "X/2", category="vital_sign"), row(0, "X/3", category="death")]
    assert ordinary(fit(write_events("events", rows))) == ["X/1"]
    # Doses are numbers too, but only results have bins.
    rows += labs("X/4", range(20), category="medication")
    tokenizer = fit(write_events("more", rows))
    assert (ordinary(tokenizer), tokenizer.bins) == (["X/1", "X/4"], {})


def test_what_lies_after_death_does_not_count(write_events: Writer) -> None:
    rows = [*labs("LOINC/1", range(20)), row(0, "LOINC/2"), row(1, "LOINC/3")]
    for late in ("LOINC/1", "LOINC/2", "LOINC/4"):
        rows.append(row(0, late, 1e6, time=NOON + timedelta(microseconds=1)))
    tokenizer = fit(write_events("events", rows), last={0: NOON}, min_patients=1)
    assert "LOINC/4" not in tokenizer.vocab
    assert {"LOINC/2", "LOINC/3"} <= set(tokenizer.vocab)  # a moment before it still counts
    assert tokenizer.bins["LOINC/1"]["mg/dL"] == [3.0, 7.0, 11.0, 15.0]


def test_names_of_kept_codes_only(write_events: Writer) -> None:
    rows = [row(0, "LOINC/1"), row(1, "LOINC/1"), row(0, "LOINC/2"), row(1, "LOINC/3")]
    rows += [row(0, "LOINC/3")]
    names = {"LOINC/1": "Sodium", "LOINC/2": "a rare thing", "LOINC/3": None, "LOINC/4": "unused"}
    tokenizer = fit(write_events("events", rows, names), min_patients=2)
    assert tokenizer.names == {"LOINC/1": "Sodium"}


def test_a_code_that_looks_like_a_special_token_is_no_second_one(write_events: Writer) -> None:
    tokenizer = fit(write_events("events", [row(0, "[VS]"), row(0, "LOINC/1")]))
    assert ordinary(tokenizer) == ["LOINC/1"]


def test_settings_come_along(write_events: Writer) -> None:
    tokenizer = fit(write_events("events", [row(0, "LOINC/1")]), categories=("lab",))
    assert tokenizer.task_tokens == {"mortality": "[MOR]"}
    assert (tokenizer.categories, tokenizer.model_max_length) == (("lab",), 128)


def test_no_code_is_frequent_enough(write_events: Writer) -> None:
    events = write_events("events", [row(0, "LOINC/1")])
    with pytest.raises(InputError, match="at least 2 patients of the pretraining split"):
        fit(events, min_patients=2)
    with pytest.raises(InputError, match="events of procedure"):
        fit(events, categories=("procedure",))
