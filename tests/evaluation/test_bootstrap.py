"""Weighted statistics against explicit resampling and scikit-learn, and what the intervals mean."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from ehrmamba_hf.evaluation import bootstrap
from ehrmamba_hf.evaluation.bootstrap import BLOCK, estimate, patient_weights


def made(patients: int, seed: int, *, ties: bool = False):
    """Subjects, labels and scores with one to four rows a patient."""
    generator = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(patients) * 7, generator.integers(1, 5, size=patients))
    scores = generator.random(len(subjects))
    labels = generator.random(len(subjects)) < scores * 0.6
    return subjects, labels, np.round(scores, 1) if ties else scores


def statistics(labels, scores):
    return {
        "auroc": bootstrap.auroc(labels, scores),
        "auprc": bootstrap.average_precision(labels, scores),
        "f1": bootstrap.f1(labels, scores >= 0.5),
        "brier": bootstrap.brier(labels, scores),
    }


# Positives 0.8 and 0.4, negatives 0.6 and 0.2. Three of the four pairs are in order: AUROC 3/4.
# Precision 1 at recall 1/2, then 2/3 at recall 1: AP (1 + 2/3) / 2. At 0.5: one hit, one false
# alarm, one miss: F1 2/4. Squares 0.04, 0.36, 0.36, 0.04: Brier 0.2.
HAND_LABELS = np.array([True, False, True, False])
HAND_SCORES = np.array([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("name", "expected"), [("auroc", 3 / 4), ("auprc", 5 / 6), ("f1", 1 / 2), ("brier", 0.2)]
)
def test_by_hand(name, expected):
    statistic = statistics(HAND_LABELS, HAND_SCORES)[name]
    assert statistic(np.ones((1, 4))) == pytest.approx([expected])


# With the first row twice: 2 x 2 + 1 of 3 x 2 pairs in order. Precision 1 at recall 2/3, then 3/4.
# Two hits, one false alarm, one miss: F1 4/6. Squares 2 x 0.04 + 0.36 + 0.36 + 0.04 over five.
@pytest.mark.parametrize(
    ("name", "expected"), [("auroc", 5 / 6), ("auprc", 11 / 12), ("f1", 4 / 6), ("brier", 0.168)]
)
def test_by_hand_with_the_first_row_twice(name, expected):
    statistic = statistics(HAND_LABELS, HAND_SCORES)[name]
    assert statistic(np.array([[2.0, 1, 1, 1]])) == pytest.approx([expected])


@pytest.mark.parametrize("ties", [False, True])
def test_weights_equal_explicit_resampling(ties):
    subjects, labels, scores = made(40, seed=3, ties=ties)
    weights = next(patient_weights(subjects, 20, seed=0))
    values = {name: f(weights) for name, f in statistics(labels, scores).items()}
    for index, row in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), row.astype(int))
        y, p = labels[rows], scores[rows]
        expected = {
            "auroc": roc_auc_score(y, p),
            "auprc": average_precision_score(y, p),
            "f1": f1_score(y, p >= 0.5),
            "brier": brier_score_loss(y, p),
        }
        for name, value in expected.items():
            assert values[name][index] == pytest.approx(value, abs=1e-12), name


def test_weights_are_multinomial_over_patients():
    subjects = np.array([5, 3, 5, 9])
    weights = np.concatenate(list(patient_weights(subjects, 4000, seed=1)))
    assert weights.shape == (4000, 4)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(4), abs=0.05)
    assert weights[:, 1].var() == pytest.approx(2 / 3, abs=0.05)


def test_the_number_of_resamples_is_exact():
    subjects, labels, scores = made(10, seed=0)
    values = bootstrap.bootstrap(subjects, statistics(labels, scores), 2 * BLOCK + 1, seed=0)
    assert {len(value) for value in values.values()} == {2 * BLOCK + 1}


def test_seeded_and_blind_to_the_order_of_rows():
    subjects, labels, scores = made(60, seed=2)
    order = np.random.default_rng(0).permutation(len(labels))
    there = bootstrap.bootstrap(subjects, statistics(labels, scores), 60, seed=4)
    shuffled = statistics(labels[order], scores[order])
    again = bootstrap.bootstrap(subjects[order], shuffled, 60, seed=4)
    other = bootstrap.bootstrap(subjects, statistics(labels, scores), 60, seed=5)
    for name in there:
        assert there[name] == pytest.approx(again[name], abs=1e-12)
    assert not np.array_equal(there["auroc"], other["auroc"])


def test_repeating_a_patients_rows_does_not_narrow_the_interval():
    """Rows of one patient are no new evidence: the interval is by patient, not by row."""
    subjects, labels, scores = made(80, seed=6)

    def width(copies: int) -> float:
        repeated = [np.tile(column, copies) for column in (subjects, labels, scores)]
        statistic = {"auroc": bootstrap.auroc(repeated[1], repeated[2])}
        values = bootstrap.bootstrap(repeated[0], statistic, 300, seed=0)["auroc"]
        interval = estimate(0.0, values)
        return interval.high - interval.low

    assert width(5) == pytest.approx(width(1), abs=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Scores of positives N(1, 1), of negatives N(0, 1): AUROC is Phi(1 / sqrt 2) = 0.7602."""
    truth, covered, trials = 0.76025, 0, 120
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        labels = np.arange(150) % 3 == 0
        scores = generator.normal(size=150) + labels
        statistic = {"auroc": bootstrap.auroc(labels, scores)}
        interval = estimate(0, bootstrap.bootstrap(np.arange(150), statistic, 200, seed)["auroc"])
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / trials <= 0.99


def test_undefined_resamples_are_left_out_and_none_gives_no_interval():
    one_class = np.array([[1.0, 0.0]])
    value = bootstrap.auroc(np.array([True, False]), np.array([0.9, 0.1]))(one_class)
    assert np.isnan(value).all()
    assert estimate(1.0, value).low is None
    assert estimate(0.5, np.array([np.nan, 0.5])).low == 0.5


def test_quick_at_size():
    """15,000 examples on 500 resamples take about half a second; a slow loop takes far more."""
    subjects, labels, scores = made(6000, seed=0)
    start = time.perf_counter()
    bootstrap.bootstrap(subjects, statistics(labels, scores), 500, seed=0)
    assert time.perf_counter() - start < 8
