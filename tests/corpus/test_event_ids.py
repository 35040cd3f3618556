"""Ids of whole columns of events: the same as the tokenizer's of one."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrmamba_hf.corpus.event_ids import TokenTable
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import UNK

TOKENS = ("L/1", "L/1//Q1", "L/1//Q3", "L/2", "M/1//Q1", "[VS]//Q1")
TOKENIZER = EHRMambaTokenizer(
    vocab={token: 41 + i for i, token in enumerate(TOKENS)},
    # The middle bin of L/1 is too rare for a token; M/1 has a bin's token without its own.
    bins={"L/1": {"": [1.0, 2.0], "g": [0.1, 0.2, 0.3, 0.4, 0.5]}, "M/1": {"g": []}},
)
ROWS = st.fixed_dictionaries(
    {
        "code": st.sampled_from(["L/1", "L/1", "L/2", "M/1", "N/9", "plain", "[VS]"]),
        "numeric_value": st.none() | st.sampled_from([0.1, 0.45, 1.0, 1.5, 3.0, np.nan, np.inf]),
        "unit": st.sampled_from([None, "", "g", "mg"]),
        "category": st.sampled_from(["lab", "vital_sign", "medication"]),
    }
)


@given(st.lists(ROWS, max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_column_is_its_events_one_by_one(rows: list[dict]) -> None:
    given = pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    encoded = TokenTable.of(TOKENIZER).encode(given)
    values = [None if v is None else float(v) for v in given["numeric_value"].to_pylist()]
    ids = [
        TOKENIZER.event_id(row["code"], value, row["unit"])
        for row, value in zip(rows, values, strict=True)
    ]
    assert encoded.ids.tolist() == ids and encoded.ids.dtype == np.int32
    systems = [row["code"].split("/")[0] for row in rows]
    assert encoded.by_system() == Counter(systems)
    unknown = Counter(s for s, i in zip(systems, ids, strict=True) if i == UNK)
    assert encoded.by_system(encoded.unknown) == unknown
    numbers = [
        row["category"] != "medication" and v is not None and not np.isnan(v)
        for row, v in zip(rows, values, strict=True)
    ]
    assert encoded.number.tolist() == numbers
    fitted = [(row["unit"] or "") in TOKENIZER.bins.get(row["code"], {}) for row in rows]
    assert encoded.unfitted.tolist() == [n and not f for n, f in zip(numbers, fitted, strict=True)]
