"""ROC, precision-recall and calibration, thinned to what a figure shows."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ehrmamba_hf.evaluation.results import CalibrationPoint, Curve, Curves

CURVE_POINTS = 101


def curves(labels: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> Curves:
    """The three figures of labels (n,) and probabilities (n,); both outcomes must occur."""
    false_positive, true_positive, _ = roc_curve(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities, drop_intermediate=True)
    return Curves(
        roc=_thin(false_positive, true_positive),
        precision_recall=_thin(recall[::-1], precision[::-1]),
        calibration=calibration(labels, probabilities),
    )


def calibration(
    labels: NDArray[np.bool_], probabilities: NDArray[np.float64], groups: int = 10
) -> list[CalibrationPoint]:
    """Reliability by tenths of the probability; examples of one probability stay together.

    >>> calibration(np.array([False, True, True, True]), np.array([0.2, 0.4, 0.8, 0.9]), groups=2)
    [CalibrationPoint(predicted=0.3, observed=0.5, examples=2), \
CalibrationPoint(predicted=0.85, observed=1.0, examples=2)]
    """
    inner = np.linspace(0, 1, groups + 1)[1:-1]
    edges = np.unique(np.quantile(probabilities, inner, method="inverted_cdf"))
    group = np.searchsorted(edges, probabilities, side="left")
    counts = np.bincount(group, minlength=len(edges) + 1)
    predicted = np.bincount(group, probabilities, minlength=len(counts))
    observed = np.bincount(group, labels, minlength=len(counts))
    return [
        CalibrationPoint(_round(predicted[i] / n), _round(observed[i] / n), int(n))
        for i, n in enumerate(counts)
        if n
    ]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> Curve:
    """At most CURVE_POINTS points, even along the line, with both ends."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0, length[-1], CURVE_POINTS)
    keep = np.unique(np.searchsorted(length, wanted).clip(max=len(x) - 1))
    return Curve([_round(value) for value in x[keep]], [_round(value) for value in y[keep]])


def _round(value: float) -> float:
    return round(float(value), 5)
