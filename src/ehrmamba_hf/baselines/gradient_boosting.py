"""Gradient boosting on token counts: what the codes tell without their order, one model a task.

The paper's XGBoost baseline (EHRMamba, section 4.2, https://arxiv.org/abs/2405.14567): frequencies
of the tokens of the vocabulary without the special ones, and the patient's age at the first and
the last visit; here with scikit-learn's histogram gradient boosting, which is of the same family.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ehrmamba_hf.errors import InputError

Example = tuple[Sequence[int], Sequence[float], Sequence[int]]
"""input_ids, ages (years) and visit_orders (0 on tokens outside visits) of one input."""

MIN_LEAF = 20


@dataclass(frozen=True)
class ExampleCounts:
    """One task's examples: token counts (n, vocabulary) float32, ages at the first and the last
    visit (n, 2) float32 in years, NaN without a visit, and labels (n,) bool."""

    counts: csr_array
    ages: NDArray[np.float32]
    labels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)


def count_examples(
    examples: Iterable[Example],
    labels: Iterable[bool],
    *,
    special_tokens: int,
    vocab_size: int,
) -> ExampleCounts:
    """Count each example's tokens with ids from ``special_tokens`` up to ``vocab_size``.

    The age at a visit is that of its first token. A truncated input's first visit is the first
    that it shows.

    Raises:
        InputError: a token id is outside the vocabulary, or examples and labels differ in number.

    >>> made = count_examples(
    ...     [([3, 1, 5, 5, 2], [0.0, 40.0, 40.5, 41.0, 0.0], [0, 1, 1, 2, 0])],
    ...     [True], special_tokens=4, vocab_size=6)
    >>> made.counts.toarray().tolist(), made.ages.tolist()
    ([[0.0, 2.0]], [[40.0, 41.0]])
    """
    tokens: list[NDArray[np.int64]] = []
    ages: list[tuple[float, float]] = []
    for input_ids, example_ages, visit_orders in examples:
        ids = np.asarray(input_ids, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise InputError(
                f"input_ids of example {len(ages)}: expected ids from 0 to {vocab_size - 1}, "
                f"found {ids.min()} to {ids.max()}"
            )
        tokens.append(ids[ids >= special_tokens] - special_tokens)
        ages.append(_first_and_last_age(np.asarray(example_ages), np.asarray(visit_orders)))
    known = np.fromiter(labels, dtype=np.bool_)
    if len(known) != len(ages):
        raise InputError(f"expected a label an example, found {len(known)} for {len(ages)}")
    return ExampleCounts(
        _count_matrix(tokens, vocab_size - special_tokens),
        np.array(ages, dtype=np.float32).reshape(-1, 2),
        known,
    )


def fit_predict(train: ExampleCounts, test: ExampleCounts, *, seed: int = 0) -> NDArray[np.float64]:
    """Probabilities (n,) of the test examples by a model fitted on the training examples.

    The test labels are not read. Where the training labels are all alike, or there are none, there
    is nothing to fit, and every example gets their mean (0 without any).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    if not train.labels.any() or train.labels.all():
        return np.full(len(test), float(train.labels.any()))
    # A split needs MIN_LEAF examples on either side, so a rarer token can never be used: leaving
    # it out changes no prediction and keeps the dense matrix small.
    usable = np.flatnonzero(np.diff(train.counts.tocsc().indptr) >= MIN_LEAF)
    # scikit-learn's early stopping would hold out examples, not patients, so it stays off.
    model = HistGradientBoostingClassifier(
        min_samples_leaf=MIN_LEAF, early_stopping=False, random_state=seed
    )
    model.fit(_features(train, usable), train.labels)
    if not len(test):
        return np.zeros(0)
    return model.predict_proba(_features(test, usable))[:, 1]


def _first_and_last_age(
    ages: NDArray[np.float64], visit_orders: NDArray[np.int64]
) -> tuple[float, float]:
    inside = np.flatnonzero(visit_orders > 0)
    if not len(inside):
        return float("nan"), float("nan")
    last = np.flatnonzero(visit_orders == visit_orders[inside[-1]])[0]
    return float(ages[inside[0]]), float(ages[last])


def _count_matrix(tokens: list[NDArray[np.int64]], width: int) -> csr_array:
    lengths = [len(row) for row in tokens]
    columns = np.concatenate([np.zeros(0, np.int64), *tokens])
    ends = np.cumsum([0, *lengths])
    ones = np.ones(len(columns), dtype=np.float32)
    matrix = csr_array((ones, columns, ends), shape=(len(tokens), width))
    matrix.sum_duplicates()
    return matrix


def _features(examples: ExampleCounts, usable: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.hstack([examples.counts[:, usable].toarray(), examples.ages])
