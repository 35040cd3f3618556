"""Batches of whole patients: packed into rows that need no padding, or a row a patient."""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS

IGNORED = -100  # the label that torch's losses leave out
_DTYPES = {name: np.float32 if kind == "float32" else np.int64 for name, kind in COLUMNS.items()}


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack sequences into rows: the longest first, each into the fullest row that still holds it.

    That is best-fit decreasing, which takes at most 11/9 of the fewest possible rows, and 4 more
    (Johnson et al. 1974, https://doi.org/10.1137/0203025). A sequence longer than `row_length` has
    a row of its own.

    Args:
        lengths: tokens of each sequence.
        row_length: tokens that a row holds.

    Returns:
        The indices of the sequences of each row.

    >>> best_fit([3, 8, 2, 5, 5, 12], 10)
    [[5], [1, 2], [3, 4], [0]]
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # tokens free in a row and the row, in order
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        place = bisect_left(free, (length, 0))
        if place < len(free):
            room, row = free.pop(place)
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > length:
            insort(free, (room - length, row))
    return rows


class PackingCollator:
    """Makes a batch of rows that hold several whole patients each, with little padding or none.

    A step sees the same patients as with padding, and predicts the same tokens, so its mean loss
    and gradients are the same. The model must keep the patients of a row apart by `seq_idx`.

    Args:
        tokenizer: its [PAD] fills what is left of a row.
        row_length: tokens of a row, into which the patients are packed by `best_fit`; where one is
            longer, all rows are as long as the longest patient. By default a single row takes them
            all, without any padding: the model's cost grows with the tokens, however they stand.
        pad_to_multiple_of: rounds the rows' length up.

    Raises:
        InputError: a length under 1.

    >>> from ehrmamba_hf.tokenization import EHRMambaTokenizer
    >>> one, two = ({name: [1] * length for name in COLUMNS} for length in (2, 3))
    >>> batch = PackingCollator(EHRMambaTokenizer(), pad_to_multiple_of=4)([one, two])
    >>> [batch[name].tolist() for name in ("input_ids", "seq_idx")]
    [[[1, 1, 1, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 2, 2, 2]]]
    >>> batch["labels"].tolist()
    [[-100, 1, -100, 1, 1, -100, -100, -100]]
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        row_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        for name, value in (("row_length", row_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        self.padding = dict.fromkeys(COLUMNS, 0) | {"input_ids": tokenizer.pad_token_id}
        self.row_length = row_length
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Lay examples out in rows.

        Args:
            examples: each a patient's columns, not padded, and a label if the patients have one;
                whatever else there is, is left out.

        Returns:
            The columns, (rows, width), with padding on the right, int64 or float32. `seq_idx`,
            (rows, width) int32: 0, 1, 2 ... by patient within a row, and the next number on
            padding. `labels`: those given, (patients, ...) in the order in which the patients now
            stand, row by row; or else the tokens, (rows, width), with -100 on padding and on each
            patient's first token, before which there is nothing to predict it from.

        Raises:
            InputError: a column that is missing, empty, or not as long as the others; padding.
        """
        lengths = _lengths(examples)
        rows = self._rows(lengths)
        order = [index for row in rows for index in row]
        filled = np.array([sum(lengths[index] for index in row) for row in rows])
        width = max(self.row_length or 0, filled.max())
        width = -(-width // self.multiple) * self.multiple
        real = np.arange(width) < filled[:, None]

        batch = {}
        for name, kind in _DTYPES.items():
            values = np.concatenate([np.asarray(examples[index][name], kind) for index in order])
            batch[name] = _laid_out(values, real, self.padding[name])
        if not batch["attention_mask"][real].all():
            raise InputError("attention_mask: expected examples without padding, found some")
        numbers = np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows])
        seq_idx = np.repeat(numbers, [lengths[index] for index in order])
        batch["seq_idx"] = _laid_out(seq_idx, real, [[len(row)] for row in rows])
        if "labels" in examples[0]:
            batch["labels"] = _labels([examples[index]["labels"] for index in order])
        else:
            first = np.diff(batch["seq_idx"], prepend=-1) != 0
            batch["labels"] = np.where(real & ~first, batch["input_ids"], IGNORED)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _rows(self, lengths: list[int]) -> list[list[int]]:
        """The patients of each row."""
        if self.row_length is None:
            return [list(range(len(lengths)))]
        return best_fit(lengths, max(self.row_length, *lengths))


class PaddingCollator(PackingCollator):
    """Makes a batch of a row a patient, for models that take no `seq_idx`.

    Rows are as long as the longest patient, or as `row_length`. Columns and labels are otherwise
    those of `PackingCollator`, the patients in the order given.

    >>> from ehrmamba_hf.tokenization import EHRMambaTokenizer
    >>> one, two = ({name: [1] * length for name in COLUMNS} for length in (2, 3))
    >>> PaddingCollator(EHRMambaTokenizer())([one, two])["labels"].tolist()
    [[-100, 1, -100], [-100, 1, 1]]
    """

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Lay examples out, a row each; see `PackingCollator`."""
        batch = super().__call__(examples)
        del batch["seq_idx"]
        return batch

    def _rows(self, lengths: list[int]) -> list[list[int]]:
        return [[index] for index in range(len(lengths))]


def _lengths(examples: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens of each example, whose columns are seen to be whole."""
    for example in examples:
        missing = [name for name in COLUMNS if name not in example]
        if missing:
            raise InputError(f"an example: expected the columns {list(COLUMNS)}, {missing} missing")
        found = {name: len(example[name]) for name in COLUMNS}
        if len(set(found.values())) > 1 or not found["input_ids"]:
            raise InputError(f"an example: expected columns of one length over 0, found {found}")
    return [len(example["input_ids"]) for example in examples]


def _laid_out(values: np.ndarray, real: np.ndarray, padding: ArrayLike) -> np.ndarray:
    """Put values on the real cells, row by row, and padding (one value, or one a row) on others."""
    cells = np.empty(real.shape, values.dtype)
    cells[:] = padding
    cells[real] = values
    return cells


def _labels(labels: list[Any]) -> np.ndarray:
    """One label or more a patient, in the types that torch's losses take."""
    values = np.asarray(labels)
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
