"""Counts of the events of a part of the patients, which add up to the counts of all.

`count_values` and `count_tokens` count a part and `merge_counts` adds; whatever the parts, the sum
is the same. Patients add up too, as no patient is in two parts. No function here reads a file.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ehrmamba_hf.timelines.load import of_categories
from ehrmamba_hf.timelines.record import NEVER
from ehrmamba_hf.timelines.shards import factorized

BINNED_CATEGORIES = ("lab", "vital_sign", "output", "observation")
FITTED_COLUMNS = ("time", "code", "numeric_value", "unit", "category")
"""What of the events is counted, beside `subject_id`."""


COUNTS_SCHEMA = pa.schema(
    [
        ("measure", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
        ("value", pa.float32()),
        ("count", pa.int64()),
    ]
)
"""What was counted of a code: `value`, events with a number, by unit and number; `patients`, those
with any number, by unit; `events`, by category; `token`, patients, by token."""
_KEYS = COUNTS_SCHEMA.names[:-1]


Bins = dict[str, dict[str, list[float]]]


def count_values(events: pa.Table, patients: pa.Table, categories: Collection[str]) -> pa.Table:
    """Count some patients' numbers, and their events by category.

    Args:
        events: events of whole patients, FITTED_COLUMNS; others' are left out.
        patients: `subject_id` and `last_time` (null, or the last moment before death) of the
            patients of the pretraining split, without those kept for validation.
        categories: the kinds of event that become tokens.

    Returns:
        COUNTS_SCHEMA, of the measures `value`, `patients` and `events`.
    """
    events, patient = _fitted(events, patients, categories)
    code, codes = _codes(events)
    category, kinds = factorized(events["category"])
    unit, units = _units(events)
    value = numbers_of(events)
    binned = np.array([kind in BINNED_CATEGORIES for kind in [*kinds, None]])[category]
    used = binned & np.isfinite(value)
    pair, number = np.unique(code[used] * len(units) + unit[used], return_inverse=True)
    # 0.0 is added so that there is one zero; the bits of a value then stand for it.
    bits = (value[used].astype(np.float32) + np.float32(0)).view(np.uint32)
    keys, n = np.unique((number.astype(np.uint64) << 32) | bits, return_counts=True)
    at = pair[(keys >> 32).astype(np.int64)]
    low = (keys & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    parts = [_counts("value", codes, at // len(units), units, at % len(units), n, low)]
    supporters = _distinct(number, patient[used], len(pair))
    parts.append(
        _counts("patients", codes, pair // len(units), units, pair % len(units), supporters)
    )
    keys, n = np.unique(code * len(kinds) + category, return_counts=True)
    parts.append(_counts("events", codes, keys // len(kinds), kinds, keys % len(kinds), n))
    return pa.concat_tables(parts)


def count_tokens(
    events: pa.Table, patients: pa.Table, categories: Collection[str], bins: Bins
) -> pa.Table:
    """Count the patients that have each token, bare codes among them.

    Args:
        events, patients, categories: as in `count_values`.
        bins: code to unit to edges.

    Returns:
        COUNTS_SCHEMA, of the measure `token`.
    """
    events, patient = _fitted(events, patients, categories)
    found = find_bins(events, bins)
    names: list[str] = []
    code_of: dict[str, str] = {}
    keys, number = np.unique(found.pair * found.width + found.bin, return_inverse=True)
    for key in keys.tolist():
        code = found.pairs[key // found.width][0]
        names.append(token_of(code, key % found.width))
        for name in (names[-1], code):  # the bare code stands behind its bins
            code_of[name] = min(code, code_of.get(name, code))
    position = {name: i for i, name in enumerate(code_of)}
    binned = np.array([position[name] for name in names], dtype=np.int64)[number]
    bare = np.array([position[code] for code, _ in found.pairs], dtype=np.int64)[found.pair]
    n = _distinct(np.concatenate((binned, bare)), np.tile(patient, 2), len(position))
    every = np.arange(len(position))
    return _counts("token", list(code_of.values()), every, list(position), every, n)


@dataclass(slots=True)
class FoundBins:
    """The bins of some events.

    Attributes:
        pairs: the (code, unit) that there are; no unit is the unit "".
        fitted: of each pair, whether it has bins.
        pair: of each event, the position of its (code, unit).
        bin: of each event, from 1; 0 where it has no number or its pair no bins.
        width: above every bin.
    """

    pairs: list[tuple[str, str]]
    fitted: np.ndarray
    pair: np.ndarray
    bin: np.ndarray
    width: int


def find_bins(events: pa.Table, bins: Mapping[str, Mapping[str, Sequence[float]]]) -> FoundBins:
    """The bin of every event: what the grammar's `bin_index` gives, for a whole column.

    >>> columns = {"code": ["A", "A", "B"], "unit": [None, "g", None], "numeric_value": [3, 3, 3]}
    >>> find_bins(pa.table(columns), {"A": {"": [1.0, 2.0], "g": [9.0]}}).bin.tolist()
    [3, 1, 0]
    """
    code, codes = _codes(events)
    unit, units = _units(events)
    value = numbers_of(events)
    keys, pair = np.unique(code * len(units) + unit, return_inverse=True)
    pairs = [(codes[key // len(units)], units[key % len(units)]) for key in keys.tolist()]
    edges = [bins.get(code, {}).get(unit) for code, unit in pairs]
    fitted = np.array([e is not None for e in edges], dtype=bool)
    most = max((len(e) for e in edges if e), default=0)
    table = np.array([[*(e or ()), *[np.inf] * (most - len(e or ()))] for e in edges])
    number = np.ones(len(pair), dtype=np.int64)
    for k in range(most):
        number += table[pair, k] < value
    number[~fitted[pair] | np.isnan(value)] = 0
    return FoundBins(pairs, fitted, pair, number, most + 2)


def token_of(code: str, bin_number: int) -> str:
    """The token of a code's bin; of the bare code where the bin is 0."""
    return f"{code}//Q{bin_number}" if bin_number else code


def numbers_of(events: pa.Table) -> np.ndarray:
    """The numbers of events, (events,) float64: NaN where there is none."""
    return events["numeric_value"].cast(pa.float64()).fill_null(np.nan).to_numpy()


def _codes(events: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Each event's code, as a position in the codes that there are, which can be multiplied."""
    code, codes = factorized(events["code"])
    return code.astype(np.int64), codes


def _units(events: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Each event's unit, as a position in the units that there are: none is the unit ""."""
    unit, units = factorized(events["unit"])
    if "" not in units:
        units = [*units, ""]
    return np.where(unit < 0, units.index(""), unit), units


def _fitted(
    events: pa.Table, patients: pa.Table, categories: Collection[str]
) -> tuple[pa.Table, np.ndarray]:
    """The events that are counted, and whose each is: a position among the patients."""
    events = of_categories(events, categories)
    if not len(patients):
        return events.slice(0, 0), np.empty(0, dtype=np.int64)
    known = patients["subject_id"].to_numpy()
    last = patients["last_time"].cast(pa.int64()).fill_null(NEVER - 1).to_numpy()
    time = events["time"].cast(pa.int64()).fill_null(NEVER).to_numpy()
    ids = events["subject_id"].to_numpy()
    order = np.argsort(known)
    place = np.searchsorted(known, ids, sorter=order)
    patient = order[np.minimum(place, len(known) - 1)]
    used = (known[patient] == ids) & (time <= last[patient])
    return events.filter(pa.array(used)), patient[used]


def _distinct(group: np.ndarray, patient: np.ndarray, groups: int) -> np.ndarray:
    """How many different patients each group has, (groups,)."""
    most = int(patient.max(initial=0)) + 1
    pairs = np.unique(group.astype(np.int64) * most + patient)
    return np.bincount(pairs // most, minlength=groups)


def _counts(
    measure: str,
    codes: Sequence[str],
    code: np.ndarray,
    details: Sequence[str],
    detail: np.ndarray,
    count: np.ndarray,
    value: np.ndarray | None = None,
) -> pa.Table:
    n = len(count)
    columns = [
        pa.array([measure] * n, pa.string()),
        pa.array(codes, pa.string()).take(pa.array(code, pa.int64())),
        pa.array(details, pa.string()).take(pa.array(detail, pa.int64())),
        pa.nulls(n, pa.float32()) if value is None else pa.array(value, pa.float32()),
        pa.array(count, pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=COUNTS_SCHEMA)


def merge_counts(parts: Iterable[pa.Table]) -> pa.Table:
    """The sum of counts (COUNTS_SCHEMA), in order, in whatever parts they come.

    >>> one = pa.Table.from_pylist([{"measure": "token", "code": "A", "count": 2}], COUNTS_SCHEMA)
    >>> merge_counts([one, one])["count"].to_pylist()
    [4]
    """
    table = pa.concat_tables([COUNTS_SCHEMA.empty_table(), *parts])
    summed = table.group_by(_KEYS, use_threads=False).aggregate([("count", "sum")])
    summed = summed.rename_columns(COUNTS_SCHEMA.names)
    return summed.sort_by([(name, "ascending") for name in _KEYS])
