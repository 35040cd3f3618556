"""Intervals by resampling patients, since one patient's examples are not independent of each other.

A resample draws as many patients as there are, with replacement; drawn k times, a patient's rows
weigh k. All resamples of a block are computed at once on a weight matrix (block, examples):
AUROC and average precision of 15,000 examples on 500 resamples took 0.5 s on one core, a sixth
of scikit-learn's time with sample weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ehrmamba_hf.evaluation.results import Estimate

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""From weights (block, examples) to values (block,), NaN where the weights leave it undefined."""

BLOCK = 50  # resamples at once: at 15,000 examples the weights take 6 MB


def patient_weights(subjects: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of weights (at most BLOCK, examples), multinomial over patients, the same by seed.

    >>> weights = next(patient_weights(np.array([7, 7, 9, 9, 9]), resamples=1, seed=0))
    >>> weights[0, 0] == weights[0, 1], weights[0, 0] + weights[0, 2]
    (np.True_, np.float64(2.0))
    """
    patients, row_patient = np.unique(subjects, return_inverse=True)
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        draws = generator.integers(
            len(patients), size=(min(BLOCK, resamples - start), len(patients))
        )
        counts = np.stack([np.bincount(draw, minlength=len(patients)) for draw in draws])
        yield counts.astype(np.float64)[:, row_patient]


def bootstrap(
    subjects: NDArray[np.int64], statistics: Mapping[str, Statistic], resamples: int, seed: int
) -> dict[str, Floats]:
    """Values (resamples,) of each statistic; all see the same resamples, so they can be paired."""
    blocks = [
        [statistic(weights) for statistic in statistics.values()]
        for weights in patient_weights(subjects, resamples, seed)
    ]
    return {
        name: np.concatenate(values)
        for name, values in zip(statistics, zip(*blocks, strict=True), strict=True)
    }


def estimate(value: float, resampled: Floats) -> Estimate:
    """The value with the 2.5 % and 97.5 % percentiles of the resamples on which it is defined.

    >>> estimate(0.5, np.array([0.0, np.nan, 1.0]))
    Estimate(value=0.5, low=0.025, high=0.975)
    """
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return Estimate(float(value), None, None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def auroc(labels: NDArray[np.bool_], scores: Floats) -> Statistic:
    """Weighted probability that a positive scores above a negative, ties counted one half."""
    order, starts = _score_groups(scores)
    positive = labels[order]

    def statistic(weights: Floats) -> Floats:
        ordered = weights[:, order]
        positives = np.add.reduceat(ordered * positive, starts, axis=1)
        negatives = np.add.reduceat(ordered * ~positive, starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        wins = np.einsum("bg,bg->b", positives, below)
        return _divide(wins, positives.sum(axis=1) * negatives.sum(axis=1))

    return statistic


def average_precision(labels: NDArray[np.bool_], scores: Floats) -> Statistic:
    """Weighted mean of the precision at each threshold, by the recall gained there (no
    interpolation)."""
    order, starts = _score_groups(-scores)
    positive = labels[order]

    def statistic(weights: Floats) -> Floats:
        ordered = weights[:, order]
        gained = np.add.reduceat(ordered * positive, starts, axis=1)
        found = np.cumsum(gained, axis=1)
        called = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return _divide(np.einsum("bg,bg->b", gained, precision), found[:, -1])

    return statistic


def f1(labels: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Statistic:
    """Weighted 2 TP / (2 TP + FP + FN); undefined without positives, labelled or predicted."""
    hits, either = (labels & predicted).astype(float), labels.astype(float) + predicted

    def statistic(weights: Floats) -> Floats:
        return _divide(2 * (weights @ hits), weights @ either)

    return statistic


def brier(labels: NDArray[np.bool_], probabilities: Floats) -> Statistic:
    """Weighted mean squared distance of the probability from the outcome."""
    squares = (probabilities - labels) ** 2

    def statistic(weights: Floats) -> Floats:
        return _divide(weights @ squares, weights.sum(axis=1))

    return statistic


def _score_groups(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The ascending order of the scores, and where in it each distinct score starts."""
    order = np.argsort(scores, kind="stable")
    changes = np.diff(scores[order], prepend=np.nan) != 0
    return order, np.flatnonzero(changes)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
