"""Bins: which one a value falls in, and what becomes of a value that has none."""

import math
import struct

import numpy as np
import pytest

from ehrmamba_hf.tokenization.grammar_ehrmamba import UNK, bin_index, event_token_id

VOCAB = {"[UNK]": UNK, "LOINC/1": 41, "LOINC/1//Q1": 42, "LOINC/1//Q2": 43, "LOINC/1//Q3": 44}
VOCAB |= {"LOINC/2": 45, "LOINC/3": 46, "LOINC/3//Q1": 47}
BINS = {"LOINC/1": {"mg/dL": [80.0, 120.0], "": [1.0]}, "LOINC/3": {"mg/dL": []}}


def token(code: str, value: float | None, unit: str | None = "mg/dL") -> int:
    return event_token_id(code, value, unit, VOCAB, BINS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1e30, 42),  # outside the fitted range
        (79.99, 42),
        (80.0, 42),  # equal to an edge: below
        (80.01, 43),
        (120.0, 43),
        (120.01, 44),
        (1e30, 44),
        (math.inf, 44),
        (-math.inf, 42),
        (1e300, 44),  # beyond float32
        (-1e300, 42),
        (100, 43),  # a whole number
        (np.float32(100), 43),
    ],
)
def test_a_value_and_its_bin(value: float, expected: int) -> None:
    assert token("LOINC/1", value) == expected


def test_values_are_rounded_as_the_edges_were() -> None:
    (edge,) = struct.unpack("f", struct.pack("f", 0.7))
    assert edge < 0.7  # without rounding, the very value of the edge would go above it
    assert bin_index(0.7, [edge]) == 1
    assert bin_index(float(np.nextafter(np.float32(0.7), np.float32(1))), [edge]) == 2


def test_what_has_no_bin_is_the_bare_code() -> None:
    assert token("LOINC/1", 100.0, "mmol/L") == 41  # a unit that was not fitted
    assert token("LOINC/1", None) == 41  # a text result
    assert token("LOINC/1", math.nan) == 41
    assert token("LOINC/2", 100.0) == 45  # a code without bins


def test_no_unit_is_a_unit_of_its_own() -> None:
    assert token("LOINC/1", 1.0, None) == token("LOINC/1", 1.0, "") == 42
    assert token("LOINC/1", 1.5, None) == 43


def test_a_bin_too_rare_for_the_vocabulary_is_the_bare_code() -> None:
    rare = {name: i for name, i in VOCAB.items() if name != "LOINC/1//Q2"}
    assert event_token_id("LOINC/1", 100.0, "mg/dL", rare, BINS) == 41


def test_all_values_alike_make_one_bin() -> None:
    assert [token("LOINC/3", v) for v in (-5.0, 0.0, 5.0)] == [47, 47, 47]


def test_an_unknown_code_is_unknown() -> None:
    assert token("LOINC/9", 100.0) == token("LOINC/9", None) == UNK
