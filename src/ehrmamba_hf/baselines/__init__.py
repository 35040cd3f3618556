"""Models to put beside EHRMamba."""

from ehrmamba_hf.baselines.gradient_boosting import ExampleCounts, count_examples, fit_predict

__all__ = ["ExampleCounts", "count_examples", "fit_predict"]
