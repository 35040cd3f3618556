"""Metrics per task with patient-level intervals, and the report that shows them."""

from ehrmamba_hf.evaluation.evaluate import evaluate
from ehrmamba_hf.evaluation.metrics import evaluate_predictions
from ehrmamba_hf.evaluation.predict import predict
from ehrmamba_hf.evaluation.predictions import PREDICTION_SCHEMA
from ehrmamba_hf.evaluation.report import metrics_table, write_report
from ehrmamba_hf.evaluation.results import Evaluation

__all__ = [
    "PREDICTION_SCHEMA",
    "Evaluation",
    "evaluate",
    "evaluate_predictions",
    "metrics_table",
    "predict",
    "write_report",
]
