"""Made predictions: a logistic risk, the label drawn from it, and a noisy view of it."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

FIRST_SUBJECT = 918_273_645_000
"""Subject ids of a shape that no other number of a report has."""


def predictions(
    task: str, patients: int, seed: int, *, per_patient: int = 2, rate: float = 0.2
) -> pa.Table:
    """Prediction rows with their true risk; ``rate`` is about the base rate."""
    generator = np.random.default_rng(seed)
    rows = patients * per_patient
    logit = np.log(rate / (1 - rate)) + 1.2 * generator.normal(size=rows)
    risk = 1 / (1 + np.exp(-logit))
    days = np.arange(rows) % per_patient
    return pa.table(
        {
            "subject_id": FIRST_SUBJECT + np.repeat(np.arange(patients), per_patient),
            "task": [task] * rows,
            "prediction_time": np.datetime64("2020-01-01", "us") + days.astype("timedelta64[D]"),
            "boolean_value": generator.random(rows) < risk,
            "probability": 1 / (1 + np.exp(-logit - 0.8 * generator.normal(size=rows))),
            "true_risk": risk,
            "given": ["record"] * rows,
        }
    )


@pytest.fixture(scope="session")
def make_predictions() -> Callable[..., pa.Table]:
    return predictions
