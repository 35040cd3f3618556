"""The order of events in a shard, whatever they came from.

Total but for rows that are alike in every column, so that a shard is the same byte for byte however
its rows were found.
"""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What two events can still differ in after `unit` has no bearing on a sequence.
_KEYS: Final = (
    *("subject_id", "time", "category", "code", "numeric_value", "text_value", "source_id"),
    *("unit", "end_time", "available_time", "encounter_id", "resource_type", "codings"),
)
_NULLS_FIRST: Final = ("time",)
_BITS: Final = 63  # of what is sorted at once
_NARROW: Final = 32  # bits of a column that is worth it to make narrower


def row_order(events: pa.RecordBatch | pa.Table) -> np.ndarray:
    """The rows in order: by subject, time (nulls first), category, code, value, and all others.

    As many columns as fit are sorted as one number; the next ones only where rows tie.

    Args:
        events: columns of EVENT_SCHEMA, texts also as dictionaries.

    Returns:
        int64, (rows,): for `take`. Texts are in the order of their bytes, and nulls last.
    """
    order = np.arange(events.num_rows)
    # Places in `order` of rows that tie so far, and a number for each run of them.
    tied, runs = order.copy(), np.zeros(len(order), np.int64)
    keys = list(_KEYS)
    while keys and len(tied):
        rows = order[tied]
        packed, at_first = _numbered(runs), len(keys) == len(_KEYS)
        for key in tuple(keys):
            column = _array(events[key])
            if not at_first:
                column = column.take(pa.array(rows))
            ranks = _ranks(column, key in _NULLS_FIRST)
            if _width(packed) + _width(ranks) > _BITS:
                break
            packed = packed << _width(ranks) | ranks
            keys.remove(key)
        places = np.argsort(packed)
        order[tied], packed = rows[places], packed[places]
        differs = packed[1:] != packed[:-1]
        alone = np.append(True, differs) & np.append(differs, True)
        tied, runs = tied[~alone], packed[~alone]
    return order


def sorted_words(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same texts, with a dictionary that has each once, in the order of their bytes."""
    words = column.dictionary
    if not len(words):
        return column
    order = pc.array_sort_indices(words)
    words = words.take(order)
    new = np.append(True, pc.not_equal(words[1:], words[:-1]).to_numpy(zero_copy_only=False))
    places = np.empty(len(words), np.int32)
    places[order.to_numpy()] = np.cumsum(new, dtype=np.int32) - 1
    indices = pa.array(places).take(column.indices)
    return pa.DictionaryArray.from_arrays(indices, words.filter(pa.array(new)))


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _ranks(column: pa.Array, nulls_first: bool) -> np.ndarray:
    """Small numbers from 0 that are in the order of the values."""
    if pa.types.is_list(column.type):
        column = pc.binary_join(column, "\x1f")  # which comes in no code
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        column = sorted_words(column).indices
    ranks = _narrow(_integers(column))
    if column.null_count:
        nothing = column.is_null().to_numpy(zero_copy_only=False)
        ranks = (
            np.where(nothing, 0, ranks + 1)
            if nulls_first
            else np.where(nothing, ranks.max() + 1, ranks)
        )
    return ranks


def _integers(column: pa.Array) -> np.ndarray:
    """int64 in the order of the values; anything for nulls."""
    values = column.view(pa.int64()) if pa.types.is_timestamp(column.type) else column
    found = values.fill_null(0).to_numpy()
    if found.dtype == np.float32:  # but for the sign, its bits are in order
        found = found.view(np.int32)
        found = np.where(found < 0, ~found | np.int32(-1 << 31), found)
    return found.astype(np.int64)


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same order from 0, with numbers that take few bits where it is cheap to have them."""
    if not len(values):
        return values
    lowest, highest = int(values.min()), int(values.max())
    if (highest - lowest) >> _BITS == 0:
        values = values - lowest
        if (highest - lowest) >> _NARROW:
            values //= max(1, np.gcd.reduce(values))  # most times are whole seconds
    if values.min() < 0 or _width(values) > _NARROW:
        values = np.searchsorted(np.unique(values), values)
    return values


def _numbered(runs: np.ndarray) -> np.ndarray:
    """Equal ones that follow each other numbered from 0."""
    return np.append(0, np.cumsum(runs[1:] != runs[:-1]))


def _width(numbers: np.ndarray) -> int:
    """The bits that the largest of them takes."""
    return int(numbers.max(initial=0)).bit_length()
