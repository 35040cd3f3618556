"""From prediction tables to an evaluation: each task's numbers, or why there are none."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from ehrmamba_hf.tasks import MIN_CASES

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
    titles = dict(tasks or {})
    for name in task_names([test, validation]):
        titles.setdefault(name, name.replace("_", " ").capitalize())
    judge = _Judge(risks, others, resamples, seed)
    return Evaluation(
        tasks=[
            judge.task(name, title, of_task(validation, name), of_task(test, name))
            for name, title in titles.items()
        ],
        resamples=resamples,
        seed=seed,
    )


def best_f1_threshold(
    labels: NDArray[np.bool_], probabilities: NDArray[np.float64]
) -> float | None:
    """The threshold with the highest F1 of "probability >= threshold", the lowest of equals.

    ``None`` without both outcomes: no threshold could be told from another.

    >>> best_f1_threshold(np.array([False, True, True]), np.array([0.1, 0.4, 0.8]))
    0.4
    """
    if labels.all() or not labels.any():
        return None
    precision, recall, thresholds = precision_recall_curve(labels, probabilities)
    total = precision + recall
    score = np.divide(precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[np.argmax(score[:-1])])


def count(scores: Scores) -> Counts:
    """Patients, examples and outcomes of one task."""
    positives = int(scores.labels.sum())
    return Counts(
        patients=len(np.unique(scores.subjects)),
        examples=len(scores),
        positives=positives,
        negatives=len(scores) - positives,
    )


def not_judgeable(counts: Counts) -> str | None:
    """Why a task of these counts gets no numbers, or None where it gets them.

    >>> print(not_judgeable(Counts(patients=40, examples=60, positives=3, negatives=57)))
    Too few cases to judge: the test split has 3 positive and 57 negative examples from 40 \
patients, and at least 20 of each are needed.
    """
    if not counts.examples:
        return "Too few cases to judge: the test split has no example of this task."
    if counts.positives >= MIN_CASES and counts.negatives >= MIN_CASES:
        return None
    return (
        f"Too few cases to judge: the test split has {counts.positives or 'no'} positive and "
        f"{counts.negatives or 'no'} negative examples from {counts.patients} "
        f"patient{'s' * (counts.patients != 1)}, and at least {MIN_CASES} of each are needed."
    )


@dataclass(frozen=True)
class _Judge:
    """What all tasks of one evaluation share."""

    true_risks: pa.Table | None
    baselines: Mapping[str, pa.Table]
    resamples: int
    seed: int

    def task(self, name: str, title: str, validation: pa.Table, test: pa.Table) -> TaskEvaluation:
        model = scores_of(test)
        counts = count(model)
        if reason := not_judgeable(counts):
            return TaskEvaluation(name, title, counts, not_judgeable=reason)
        notes: list[str] = []
        return TaskEvaluation(
            name,
            title,
            counts,
            metrics=self.metrics(scores_of(validation), model, notes),
            curves=curves(model.labels, model.scores),
            true_risk=self.true_risk(test, notes),
            baselines=self.all_baselines(test, notes),
            notes=notes,
        )

    def metrics(self, validation: Scores, test: Scores, notes: list[str]) -> TaskMetrics:
        threshold = best_f1_threshold(validation.labels, validation.scores)
        if threshold is None:
            threshold = FALLBACK_THRESHOLD
            missing = "negative" if validation.labels.any() else "positive"
            notes.append(
                f"The validation split has no {missing} example, so F1 is at a threshold of "
                f"{FALLBACK_THRESHOLD}."
            )
        labels, scores = test.labels, test.scores
        predicted = scores >= threshold
        resampled = bootstrap.bootstrap(
            test.subjects,
            {
                "auroc": bootstrap.auroc(labels, scores),
                "auprc": bootstrap.average_precision(labels, scores),
                "f1": bootstrap.f1(labels, predicted),
                "brier": bootstrap.brier(labels, scores),
            },
            self.resamples,
            self.seed,
        )
        return TaskMetrics(
            auroc=estimate(roc_auc_score(labels, scores), resampled["auroc"]),
            auprc=estimate(average_precision_score(labels, scores), resampled["auprc"]),
            f1=estimate(f1_score(labels, predicted), resampled["f1"]),
            brier=estimate(brier_score_loss(labels, scores), resampled["brier"]),
            base_rate=float(labels.mean()),
            threshold=threshold,
        )

    def true_risk(self, test: pa.Table, notes: list[str]) -> Comparison | None:
        if self.true_risks is None:
            return None
        columns = {"true_risk": "reference", "given": "given"}
        joined = join_scores(test, self.true_risks, columns)
        given = " and ".join(sorted(joined["given"].drop_null().unique().to_pylist()))
        return self.compare(joined, "true risk", given or None, notes)

    def all_baselines(self, test: pa.Table, notes: list[str]) -> dict[str, Comparison]:
        compared = {
            name: self.compare(
                join_scores(test, table, {"probability": "reference"}), name, None, notes
            )
            for name, table in self.baselines.items()
        }
        return {name: comparison for name, comparison in compared.items() if comparison}

    def compare(
        self, joined: pa.Table, name: str, given: str | None, notes: list[str]
    ) -> Comparison | None:
        """The column ``reference`` beside the model's on the examples that have both."""
        reference = scores_of(joined, "reference")
        model = scores_of(joined.filter(pc.is_valid(joined["reference"])))
        compared = count(reference)
        enough = not_judgeable(compared) is None
        if compared.examples < len(joined):
            notes.append(
                f"The {name} is known for {compared.examples:,} of {len(joined):,} "
                + ("examples; the comparison is on these." if enough else "examples: too few.")
            )
        if not enough:
            return None
        labels, scores = reference.labels, reference.scores
        resampled = bootstrap.bootstrap(
            reference.subjects,
            {
                "model": bootstrap.auroc(labels, model.scores),
                "auroc": bootstrap.auroc(labels, scores),
                "auprc": bootstrap.average_precision(labels, scores),
                "brier": bootstrap.brier(labels, scores),
            },
            self.resamples,
            self.seed,
        )
        area = roc_auc_score(labels, scores)
        difference = roc_auc_score(labels, model.scores) - area
        return Comparison(
            examples=len(reference),
            auroc=estimate(area, resampled["auroc"]),
            auprc=estimate(average_precision_score(labels, scores), resampled["auprc"]),
            brier=estimate(brier_score_loss(labels, scores), resampled["brier"]),
            difference=estimate(difference, resampled["model"] - resampled["auroc"]),
            curves=curves(labels, scores),
            given=given,
        )
