"""What an evaluation holds: counts, estimates with intervals, curves; it never holds a patient.

Every number in these records is finite. What could not be judged or computed is ``None`` and a
sentence, so that nobody reads a number where there is none.
"""

import re

import msgspec


class Counts(msgspec.Struct, frozen=True):
    """Size of one task's test set; an example is one (patient, index time)."""

    patients: int
    examples: int
    positives: int
    negatives: int


class Estimate(msgspec.Struct, frozen=True):
    """A value on the whole test set and its 95 % percentile interval over resampled patients.

    The interval is ``None`` where no resample held both outcomes.
    """

    value: float
    low: float | None
    high: float | None


class Curve(msgspec.Struct, frozen=True):
    """Points of a ROC curve (x: false positive rate, y: true positive rate) or of a
    precision-recall curve (x: recall, y: precision), from left to right."""

    x: list[float]
    y: list[float]


class CalibrationPoint(msgspec.Struct, frozen=True):
    """One tenth of the test examples by probability: mean predicted and observed frequency."""

    predicted: float
    observed: float
    examples: int


class Curves(msgspec.Struct, frozen=True):
    """The figures of one set of probabilities on one task."""

    roc: Curve
    precision_recall: Curve
    calibration: list[CalibrationPoint]


class TaskMetrics(msgspec.Struct, frozen=True):
    """The model on one task's test split; ``f1`` is at ``threshold``, never chosen on the test."""

    auroc: Estimate
    auprc: Estimate
    f1: Estimate
    brier: Estimate
    base_rate: float
    threshold: float


class Comparison(msgspec.Struct, frozen=True):
    """Another score on the same examples, and ``difference``: the model's AUROC minus its AUROC.

    ``given`` tells for true risks what they are conditioned on: ``record``, what the record shows
    up to the index time, or ``latent``, the simulated patient's hidden state.
    """

    examples: int
    auroc: Estimate
    auprc: Estimate
    brier: Estimate
    difference: Estimate
    curves: Curves
    given: str | None = None


class TaskEvaluation(msgspec.Struct, frozen=True):
    """One task: either ``metrics`` and ``curves``, or a ``not_judgeable`` sentence."""

    task: str
    title: str
    counts: Counts
    not_judgeable: str | None = None
    metrics: TaskMetrics | None = None
    curves: Curves | None = None
    true_risk: Comparison | None = None
    baselines: dict[str, Comparison] = {}
    notes: list[str] = []

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """What the model is put beside, by the name to show: the true risk, then the baselines."""
        best = {} if self.true_risk is None else {"true risk (best possible)": self.true_risk}
        return best | self.baselines


class Evaluation(msgspec.Struct, frozen=True):
    """All tasks of one model on one test split, in the order in which they are shown."""

    tasks: list[TaskEvaluation]
    resamples: int
    seed: int

    @property
    def judgeable(self) -> list[TaskEvaluation]:
        """The tasks that have numbers."""
        return [task for task in self.tasks if task.not_judgeable is None]

    def to_json(self) -> str:
        """Indented JSON with every curve's list of numbers on one line; no NaN, no subject id.

        >>> print(Evaluation(tasks=[], resamples=500, seed=0).to_json())
        {
          "tasks": [],
          "resamples": 500,
          "seed": 0
        }
        """
        text = msgspec.json.format(msgspec.json.encode(self), indent=2).decode()
        return re.sub(r"\[[-+\d.eE,\s]+\]", lambda list_: " ".join(list_[0].split()), text)
