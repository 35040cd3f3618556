"""The order of events is that of their columns, one after the other, however they are held."""

import random
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrmamba_hf.events import ordering
from ehrmamba_hf.events.ordering import row_order, sorted_words
from ehrmamba_hf.events.schema import EVENT_SCHEMA

WORDS = ("code", "text_value", "unit", "category", "encounter_id", "resource_type")
KEYS = (
    *("subject_id", "time", "category", "code", "numeric_value", "text_value", "source_id"),
    *("unit", "end_time", "available_time", "encounter_id", "resource_type", "codings"),
)
START = datetime(2019, 3, 4, 11)


def made(rng: random.Random, **fixed: Any) -> dict[str, Any]:
    """An event; few values of each column, so that rows tie."""
    times = [START, START + timedelta(microseconds=1), datetime(1, 1, 1), datetime(9999, 12, 31)]
    chosen = {
        "subject_id": rng.choice([0, 1, 2**62, 2**63 - 1, -(2**63)]),
        "time": rng.choice([None, *times]),
        "code": rng.choice(["LOINC/1", "LOINC/10", "LOINC/2", "\u00e9", "Z"]),
        "numeric_value": rng.choice([None, -1.5, -1e-40, 0.0, 1e-40, 2.0, 3e38]),
        "text_value": rng.choice([None, "", "a"]),
        "end_time": rng.choice([None, START]),
        "available_time": rng.choice([None, START]),
        "unit": rng.choice([None, "mg"]),
        "category": rng.choice(["lab", "vital_sign"]),
        "codings": rng.choice([["LOINC/1"], [], ["LOINC/1", "LOINC/2"]]),
        "encounter_id": rng.choice([None, "e1", "e2"]),
        "resource_type": "Observation",
        "source_id": rng.choice(["o1", "o2"]),
    }
    return chosen | fixed


def by_the_rule(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Column by column in Python: a null time first, other nulls last, texts by their bytes."""

    def key(row: dict[str, Any]) -> list[tuple]:
        found = []
        for name in KEYS:
            value = row[name]
            if isinstance(value, list):
                value = "\x1f".join(value)
            if isinstance(value, str):
                value = value.encode()
            if name == "numeric_value" and value is not None:
                value = float(np.float32(value))
            missing = value is None
            found.append((missing != (name == "time"), 0 if missing else value))
        return found

    return sorted(rows, key=key)


def held(rows: list[dict[str, Any]], words: bool) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    if words:
        for name in WORDS:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].dictionary_encode())
    return table


@pytest.mark.parametrize("at_once", [63, 20])  # bits that are sorted as one number
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_rows_are_in_the_order_of_their_columns(seed, words, at_once, monkeypatch):
    monkeypatch.setattr(ordering, "_BITS", at_once)
    monkeypatch.setattr(ordering, "_NARROW", at_once // 2)
    rng = random.Random(seed)
    fixed = {"subject_id": 7, "time": START} if seed % 3 else {}
    fixed |= {"source_id": "o", "numeric_value": None} if seed % 3 == 2 else {}
    rows = [made(rng, **fixed) for _ in range(rng.randrange(120))]
    table = held(rows, words)
    order = row_order(table)
    assert sorted(order.tolist()) == list(range(len(rows)))
    expected = pa.Table.from_pylist(by_the_rule(rows), schema=EVENT_SCHEMA)
    assert held(rows, False).take(pa.array(order)).to_pylist() == expected.to_pylist()
    batch = pa.RecordBatch.from_arrays(
        [c.combine_chunks() for c in table.columns], table.schema.names
    )
    assert row_order(batch).tolist() == order.tolist()


def test_a_hand_worked_order():
    rows = [
        {"subject_id": 2, "time": None},
        {"subject_id": 1, "time": START, "numeric_value": 2.0},
        {"subject_id": 1, "time": START, "numeric_value": None},
        {"subject_id": 1, "time": START, "numeric_value": -2.0},
        {"subject_id": 1, "time": None},
        {"subject_id": 1, "time": START - timedelta(days=1)},
    ]
    rng = random.Random(0)
    same = {name: value for name, value in made(rng).items() if name not in KEYS[:2]}
    table = held([same | {"numeric_value": 0.0} | row for row in rows], words=True)
    assert row_order(table).tolist() == [4, 5, 3, 1, 2, 0]


@given(st.lists(st.text(max_size=3)), st.lists(st.none() | st.integers(0, 99), max_size=20))
def test_words_are_sorted_and_none_comes_twice(words, indices):
    indices = [i if i is not None and i < len(words) else None for i in indices]
    column = pa.DictionaryArray.from_arrays(
        pa.array(indices, pa.int32()), pa.array(words, pa.string())
    )
    found = sorted_words(column)
    assert found.to_pylist() == column.to_pylist()
    assert found.dictionary.to_pylist() == sorted(set(words), key=str.encode)
