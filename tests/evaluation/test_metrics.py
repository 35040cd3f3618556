"""From prediction tables to an evaluation: values by hand, thresholds, judgement, the border."""

import json
import math
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ehrmamba_hf.errors import InputError, SchemaError
from ehrmamba_hf.evaluation import PREDICTION_SCHEMA, evaluate_predictions
from ehrmamba_hf.evaluation.curves import calibration, curves
from ehrmamba_hf.evaluation.metrics import best_f1_threshold


def table(labels, probabilities, task="a") -> pa.Table:
    """One patient a row, at one time."""
    size = len(labels)
    columns = [range(size), [task] * size, [datetime(2020, 1, 1)] * size, labels, probabilities]
    return pa.table([list(column) for column in columns], schema=PREDICTION_SCHEMA)


def hand_worked(copies: int = 20) -> pa.Table:
    """Positives at 0.8 and 0.4, negatives at 0.6 and 0.2, each so many times."""
    return table([True, False, True, False] * copies, [0.8, 0.6, 0.4, 0.2] * copies)


def test_metrics_by_hand():
    # Of the groups' pairs, three of four are in order: AUROC 3/4. AP: precision 1 at recall 1/2,
    # 2/3 at recall 1. The best threshold is 0.4 (recall 1, precision 2/3): F1 4/5. Brier 0.2.
    metrics = evaluate_predictions(hand_worked(), hand_worked(), resamples=50).tasks[0].metrics
    assert metrics.auroc.value == pytest.approx(0.75)
    assert metrics.auprc.value == pytest.approx(5 / 6)
    assert metrics.threshold == 0.4
    assert metrics.f1.value == pytest.approx(0.8)
    assert metrics.brier.value == pytest.approx(0.2)
    assert metrics.base_rate == 0.5
    for name in ("auroc", "auprc", "f1", "brier"):
        estimate = getattr(metrics, name)
        assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([False, True, True], [0.1, 0.4, 0.8], 0.4),
        ([True, False, False, False, True], [0.2, 0.3, 0.4, 0.5, 0.9], 0.9),  # F1 2/3, not 4/7
        ([False, True], [0.5, 0.5], 0.5),
        ([False, False], [0.1, 0.2], None),
        ([True, True], [0.1, 0.2], None),
        ([], [], None),
    ],
)
def test_best_threshold_by_hand(labels, probabilities, expected):
    labels = np.array(labels, dtype=bool)
    assert best_f1_threshold(labels, np.array(probabilities)) == expected


def test_thresholds_never_see_the_test_labels(make_predictions):
    validation, test = make_predictions("a", 200, seed=0), make_predictions("a", 200, seed=1)
    flipped = test.set_column(3, "boolean_value", pc.invert(test["boolean_value"]))
    first = evaluate_predictions(validation, test, resamples=20).tasks[0].metrics
    second = evaluate_predictions(validation, flipped, resamples=20).tasks[0].metrics
    assert first.threshold == second.threshold
    assert first.auroc.value == pytest.approx(1 - second.auroc.value)


@pytest.mark.parametrize("labels", [[], [False] * 4], ids=["no rows", "no positives"])
def test_a_validation_split_without_positives_falls_back(labels):
    validation = table(labels, [0.3] * len(labels))
    result = evaluate_predictions(validation, hand_worked(), resamples=20).tasks[0]
    assert result.metrics.threshold == 0.5
    assert result.notes == [
        "The validation split has no positive example, so F1 is at a threshold of 0.5."
    ]


@pytest.mark.parametrize(
    ("positives", "negatives", "judged"),
    [(20, 20, True), (19, 20, False), (20, 19, False), (0, 60, False), (60, 0, False)],
)
def test_judgeable_from_twenty_of_each(positives, negatives, judged):
    test = table([True] * positives + [False] * negatives, np.linspace(0, 1, positives + negatives))
    result = evaluate_predictions(test, test, resamples=20).tasks[0]
    assert (result.metrics is not None) is judged
    assert (result.not_judgeable is None) is judged
    if not judged:
        assert result.curves is None
        assert f"{positives or 'no'} positive and {negatives or 'no'} negative" in (
            result.not_judgeable
        )


def test_an_expected_task_without_examples_is_reported_in_its_place():
    tasks = {"b": "Task b", "a": "Task a"}
    result = evaluate_predictions(hand_worked(), hand_worked(), tasks=tasks, resamples=20)
    assert [task.title for task in result.tasks] == ["Task b", "Task a"]
    assert "no example of this task" in result.tasks[0].not_judgeable


def test_a_task_beyond_the_expected_ones_keeps_its_name():
    made = table([True], [0.5], task="some_new_task")
    assert evaluate_predictions(made, made).tasks[0].title == "Some new task"


def test_the_same_scores_differ_by_exactly_nothing(make_predictions):
    test = make_predictions("a", 150, seed=1)
    same = evaluate_predictions(test, test, baselines={"itself": test}, resamples=60)
    difference = same.tasks[0].baselines["itself"].difference
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_true_risk_beside_the_model(make_predictions):
    test = make_predictions("a", 1500, seed=1)
    shuffled = test.take(np.random.default_rng(0).permutation(len(test)))
    result = evaluate_predictions(test, test, true_risks=shuffled, resamples=200).tasks[0]
    best, model = result.true_risk, result.metrics
    assert best.given == "record"
    assert best.examples == len(test)
    assert best.difference.value == pytest.approx(model.auroc.value - best.auroc.value)
    # Paired on the same resamples, the difference is known better than either area.
    assert best.difference.high < 0
    assert best.difference.high - best.difference.low < model.auroc.high - model.auroc.low


def test_true_risks_of_some_examples_compare_on_these(make_predictions):
    test = make_predictions("a", 300, seed=1)
    result = evaluate_predictions(test, test, true_risks=test.slice(0, 400), resamples=30).tasks[0]
    assert result.true_risk.examples == 400
    assert result.notes == [
        "The true risk is known for 400 of 600 examples; the comparison is on these."
    ]
    few = evaluate_predictions(test, test, true_risks=test.slice(0, 30), resamples=30).tasks[0]
    assert few.true_risk is None
    assert few.notes == ["The true risk is known for 30 of 600 examples: too few."]


def test_shuffled_rows_give_the_same_evaluation(make_predictions):
    test = make_predictions("a", 150, seed=1)
    order = np.random.default_rng(0).permutation(len(test))
    first = evaluate_predictions(test, test, resamples=50).tasks[0].metrics
    second = evaluate_predictions(test, test.take(order), resamples=50).tasks[0].metrics
    assert first.auroc.low == pytest.approx(second.auroc.low, abs=1e-12)
    assert first.auprc.value == pytest.approx(second.auprc.value, abs=1e-12)


def test_json_has_no_nan_and_no_subject(make_predictions):
    test = pa.concat_tables(
        [
            make_predictions("a", 100, seed=1),
            make_predictions("few", 4, seed=2),
            make_predictions("constant", 60, seed=3).set_column(
                4, "probability", pa.array([0.25] * 120)
            ),
        ]
    )
    text = evaluate_predictions(test.slice(0, 0), test, true_risks=test, resamples=30).to_json()
    subjects = {str(subject) for subject in test["subject_id"].to_pylist()}

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    def walk(value) -> None:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)
        elif isinstance(value, float):
            assert math.isfinite(value)

    walk(json.loads(text, parse_constant=refuse))
    assert not any(subject in text for subject in subjects)
    # msgspec writes NaN as null, so only the fields that may be None are.
    assert '"value": null' not in text
    assert '"low": null' not in text


def test_one_patient_with_both_outcomes_has_an_interval_of_no_width():
    made = table([True, False] * 30, [0.7, 0.2] * 30)
    times = [datetime(2020, 1, 1, minute=minute) for minute in range(60)]
    made = made.set_column(0, PREDICTION_SCHEMA.field("subject_id"), [[1] * 60])
    made = made.set_column(2, PREDICTION_SCHEMA.field("prediction_time"), [times])
    auroc = evaluate_predictions(made, made, resamples=20).tasks[0].metrics.auroc
    assert (auroc.low, auroc.value, auroc.high) == (1.0, 1.0, 1.0)


def test_calibration_by_hand():
    probabilities = np.array([0.1, 0.1, 0.1, 0.3, 0.7, 0.9])
    labels = np.array([False, False, True, False, True, True])
    points = calibration(labels, probabilities, groups=2)
    assert [(p.predicted, p.observed, p.examples) for p in points] == [
        (0.1, pytest.approx(1 / 3, abs=1e-5), 3),
        (pytest.approx(1.9 / 3, abs=1e-5), pytest.approx(2 / 3, abs=1e-5), 3),
    ]
    assert len(calibration(labels, np.full(6, 0.5))) == 1


def test_curves_run_from_end_to_end_and_are_thin(make_predictions):
    made = make_predictions("a", 3000, seed=0)
    drawn = curves(made["boolean_value"].to_numpy(), made["probability"].to_numpy())
    for curve in (drawn.roc, drawn.precision_recall):
        assert len(curve.x) <= 101
        assert (curve.x[0], curve.x[-1]) == (0.0, 1.0)
        assert curve.x == sorted(curve.x)
    assert (drawn.roc.y[0], drawn.roc.y[-1]) == (0.0, 1.0)
    assert sum(point.examples for point in drawn.calibration) == len(made)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("probability", [0.5, float("nan")], "expected numbers in 0..1, found 1 others"),
        ("probability", [0.5, 1.5], "expected numbers in 0..1, found 1 others"),
        ("probability", ["high", "low"], "probability: expected double, found string"),
        ("boolean_value", [True, None], "expected a value in every row, found 1 nulls"),
        ("subject_id", [3, 3], "one row for each subject, task and prediction time, found 1 more"),
    ],
)
def test_bad_predictions_are_refused(column, values, message):
    good = table([True, False], [0.5, 0.4])
    bad = good.set_column(good.column_names.index(column), column, pa.array(values))
    with pytest.raises(SchemaError, match=message):
        evaluate_predictions(good, bad)


def test_missing_columns_and_resamples_are_refused():
    good = table([True], [0.5])
    with pytest.raises(SchemaError, match=r"validation predictions: .*\['probability'\] not found"):
        evaluate_predictions(good.drop_columns("probability"), good)
    with pytest.raises(InputError, match="resamples: expected at least 1, found 0"):
        evaluate_predictions(good, good, resamples=0)
