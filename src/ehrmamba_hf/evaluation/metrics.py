"""From prediction tables to an evaluation: each task's numbers, or why there are none."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation import bootstrap
from ehrmamba_hf.evaluation.bootstrap import estimate
from ehrmamba_hf.evaluation.curves import curves
from ehrmamba_hf.evaluation.predictions import (
    Scores,
    check_predictions,
    check_true_risks,
    join_scores,
    of_task,
    scores_of,
    task_names,
)
from ehrmamba_hf.evaluation.results import (
    Comparison,
    Counts,
    Evaluation,
    TaskEvaluation,
    TaskMetrics,
)

MIN_CASES = 20
"""Fewer examples than this of either outcome in the test split, and a task is not judged."""

FALLBACK_THRESHOLD = 0.5


def evaluate_predictions(
    validation: pa.Table,
    test: pa.Table,
    *,
    true_risks: pa.Table | None = None,
    baselines: Mapping[str, pa.Table] | None = None,
    tasks: Mapping[str, str] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Evaluation:
    """Judge every task on the test split.

    Args:
        validation: predictions (``PREDICTION_SCHEMA``) from which F1's thresholds are taken.
        test: predictions on the test split.
        true_risks: subject_id, task, prediction_time, true_risk and given, for some or all of the
            test examples; others are ignored.
        baselines: predictions of other models on the test split, by the name to show.
        tasks: the title of each expected task, in the order to show; those without a single
            example are reported too. Tasks found beyond these follow under their own name.
        resamples: bootstrap resamples of patients for each interval.
        seed: of the resamples; the order of the rows does not matter.

    Raises:
        SchemaError: a table breaks its schema.
        InputError: ``resamples`` is not positive.
    """
    if resamples < 1:
        raise InputError(f"resamples: expected at least 1, found {resamples}")
    validation = check_predictions(validation, "validation predictions")
    test = check_predictions(test, "test predictions")
    risks = None if true_risks is None else check_true_risks(true_risks)
    others = {
        name: check_predictions(table, f"predictions of {name}")
        for name, table in (baselines or {}).items()
    }
    titles = {name: name.replace("_", " ") for name in task_names([test, validation])}
    titles = {**(tasks or {}), **{name: t for name, t in titles.items() if name not in (tasks or {})}}
    evaluated = [
        _evaluate_task(
            task, title, of_task(validation, task), of_task(test, task), risks, others, resamples, seed
        )
        for task, title in titles.items()
    ]
    return Evaluation(tasks=evaluated, resamples=resamples, seed=seed)
