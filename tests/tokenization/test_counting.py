"""Counts of parts add up: the fit is the same in whatever parts the events come, and exact."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.tokenization.counting import (
    BINNED_CATEGORIES,
    count_tokens,
    count_values,
    find_bins,
    merge_counts,
)
from ehrmamba_hf.tokenization.fitting import build_tokenizer, fit_bins
from ehrmamba_hf.tokenization.grammar_ehrmamba import bin_index

NOON = datetime(2019, 3, 4, 12)
CATEGORIES = ("lab", "medication")
PATIENTS = pa.table(
    {
        "subject_id": pa.array(range(8), pa.int64()),
        "last_time": pa.array([None, NOON, *[None] * 6], pa.timestamp("us")),
    }
)
VALUES = st.sampled_from(
    [0.1, 0.3, 1.0, 2.0, 2.5, 3.0, 1e9, -1.0, 0.0, -0.0, np.nan, np.inf, -np.inf]
)
ROWS = st.fixed_dictionaries(
    {
        "subject_id": st.integers(0, 9),  # 8 and 9 are not fitted on
        "code": st.sampled_from(["A", "A", "A", "B", "A//Q1", "C"]),
        "numeric_value": st.none() | VALUES,
        "unit": st.sampled_from([None, "", "g"]),
        "category": st.sampled_from(["lab", "lab", "medication", "vital_sign"]),
        "time": st.sampled_from([NOON, NOON, NOON + timedelta(hours=1)]),
    }
)
Row = dict


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def fitted_rows(rows: list[Row]) -> list[Row]:
    """Those of the patients, of the categories, before death."""
    return [
        row
        for row in rows
        if row["subject_id"] < 8
        and row["category"] in CATEGORIES
        and not (row["subject_id"] == 1 and row["time"] > NOON)
    ]


def plainly(rows: list[Row], min_patients: int) -> tuple[dict, dict[str, int]]:
    """Bins and each token's patients, from the definitions."""
    values, supporters = defaultdict(list), defaultdict(set)
    for row in rows:
        number = row["numeric_value"]
        if number is None or not np.isfinite(number) or row["category"] not in BINNED_CATEGORIES:
            continue
        key = row["code"], row["unit"] or ""
        values[key].append(np.float32(number))
        supporters[key].add(row["subject_id"])
    bins: dict = defaultdict(dict)
    for (code, unit), numbers in values.items():
        if len(numbers) >= 20 and len(supporters[code, unit]) >= min_patients:
            edges = np.quantile(numbers, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")
            bins[code][unit] = sorted({float(e) + 0.0 for e in edges if e < max(numbers)})
    patients = defaultdict(set)
    for row in rows:
        code, number = row["code"], row["numeric_value"]
        edges = bins.get(code, {}).get(row["unit"] or "")
        patients[code].add(row["subject_id"])
        if edges is not None and number is not None and not np.isnan(number):
            patients[f"{code}//Q{bin_index(number, edges)}"].add(row["subject_id"])
    return bins, {token: len(who) for token, who in patients.items()}


@given(st.lists(ROWS, max_size=150), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_parts_add_up_to_the_definition(rows: list[Row], min_patients: int, parts: int) -> None:
    groups = [[row for row in rows if row["subject_id"] % parts == k] for k in range(parts)]
    batches = [table(group) for group in groups]
    counts = merge_counts([count_values(batch, PATIENTS, CATEGORIES) for batch in batches])
    bins = fit_bins(counts, min_patients=min_patients)
    tokens = merge_counts([count_tokens(batch, PATIENTS, CATEGORIES, bins) for batch in batches])
    used = fitted_rows(rows)
    expected, patients = plainly(used, min_patients)
    assert bins == expected
    found = Counter[str]()
    for row in tokens.to_pylist():
        found[row["detail"]] += row["count"]
    assert found == patients
    kinds = counts.filter(pa.compute.equal(counts["measure"], "events")).to_pylist()
    assert {(row["code"], row["detail"]): row["count"] for row in kinds} == Counter(
        (row["code"], row["category"]) for row in used
    )


def test_files_are_added_up_within_a_memory_limit(tmp_path) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(7, 30_000)).astype(np.float32)
    files = []
    for k, numbers in enumerate(values):
        ids = np.arange(k, 7_000, 7).repeat(30)[: len(numbers)]
        common = {"category": ["lab"] * len(ids), "time": [NOON] * len(ids)}
        rows = {"subject_id": ids, "numeric_value": numbers[: len(ids)], "code": ["A"] * len(ids)}
        batch = pa.table(rows | common | {"unit": ["g"] * len(ids)})
        patients = pa.table(
            {"subject_id": np.unique(ids), "last_time": pa.nulls(len(set(ids)), pa.timestamp("us"))}
        )
        files.append(tmp_path / f"{k}.parquet")
        pq.write_table(count_values(batch, patients, ("lab",)), files[-1])
    bins = fit_bins(files, min_patients=10, memory="60MB", spill=tmp_path / "spill")
    expected = np.quantile(values, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")
    assert bins == {"A": {"g": expected.tolist()}}


@given(st.lists(ROWS, max_size=40))
@settings(max_examples=100, deadline=None)
def test_bins_of_a_column_are_those_of_the_grammar(rows: list[Row]) -> None:
    bins = {"A": {"": [0.3, 2.0], "g": []}, "B": {"g": [0.10000000149011612]}}
    found = find_bins(table(rows), bins)
    for row, pair, number in zip(rows, found.pair, found.bin, strict=True):
        code, unit, value = row["code"], row["unit"] or "", row["numeric_value"]
        edges = bins.get(code, {}).get(unit)
        missing = edges is None or value is None or np.isnan(value)
        assert number == (0 if missing else bin_index(value, edges))
        assert found.pairs[pair] == (code, unit) and found.fitted[pair] == (edges is not None)
        assert number < found.width


def test_many_codes_of_many_units_are_kept_apart() -> None:
    """Positions multiplied in 32 bits began again from below."""
    n = 66_000
    events = pa.table(
        {
            "subject_id": pa.array(np.zeros(n, np.int64)),
            "time": pa.array([NOON] * n, pa.timestamp("us")),
            "code": [f"C{i}" for i in range(n)],
            "numeric_value": pa.array(np.arange(n), pa.float32()),
            "unit": [f"u{i}" for i in range(n)],
            "category": ["lab"] * n,
        }
    )
    counts = count_values(events, PATIENTS, CATEGORIES)
    found = counts.filter(pc.equal(counts["measure"], "value"))
    rows = zip(*(found[name].to_pylist() for name in ("code", "detail", "value")), strict=True)
    assert sorted((int(code[1:]), int(unit[1:]), int(value)) for code, unit, value in rows) == [
        (i, i, i) for i in range(n)
    ]


def test_the_order_of_parts_does_not_show() -> None:
    rows = [
        {"subject_id": i % 8, "code": f"C{i % 3}", "category": "lab", "time": NOON, "unit": "g"}
        | {"numeric_value": float(i)}
        for i in range(200)
    ]
    parts = [table([r for r in rows if r["subject_id"] == k]) for k in range(8)]
    built = []
    for order in (range(8), [5, 2, 7, 1, 0, 3, 6, 4]):
        counts = merge_counts([count_values(parts[k], PATIENTS, CATEGORIES) for k in order])
        bins = fit_bins(counts, min_patients=2)
        tokens = [count_tokens(parts[k], PATIENTS, CATEGORIES, bins) for k in order]
        tokenizer = build_tokenizer(
            merge_counts([*tokens, counts]),
            bins,
            {"C1": "one", "X": "unused"},
            categories=CATEGORIES,
            task_tokens={"mortality": "[MOR]"},
            min_patients=2,
            context_length=8,
        )
        built.append((tokenizer.vocab, tokenizer.bins, tokenizer.types, tokenizer.names))
    assert built[0] == built[1] and len(built[0][1]) == 3
    assert list(built[0][0]) == list(built[1][0])
