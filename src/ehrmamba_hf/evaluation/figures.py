"""The report's figures as inline SVG: line styles and markers differ, so colour is never needed."""

import io
import itertools
import re
from collections.abc import Iterator
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from ehrmamba_hf.evaluation.results import (
    CalibrationPoint,
    Curves,
    Estimate,
    Evaluation,
    TaskEvaluation,
)

INK, GREY = "#1b2733", "#6b7785"
MODEL_STYLE: dict[str, Any] = {"color": "#0b4f8a", "linewidth": 2.0, "marker": "o"}
TRUE_RISK_STYLE: dict[str, Any] = {
    "color": "#b3541e",
    "linewidth": 1.4,
    "linestyle": "--",
    "marker": "D",
}
BASELINE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#4b7a47", "linewidth": 1.4, "linestyle": ":", "marker": "s"},
    {"color": "#7a4b78", "linewidth": 1.4, "linestyle": "-.", "marker": "^"},
)
SETTINGS: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, and a third of the size
    "font.size": 9,
    "legend.fontsize": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@matplotlib.rc_context(SETTINGS)
def overview(evaluation: Evaluation) -> str:
    """AUROC of every judgeable task with its interval, beside the other scores."""
    judged = evaluation.judgeable
    figure = Figure(figsize=(9.6, 0.9 + 0.45 * len(judged)), layout="constrained")
    axes = figure.add_subplot()
    shown: set[str] = set()
    for row, task in enumerate(judged):
        series = list(_series(task))
        for index, (name, area, _, style) in enumerate(series):
            height = row + 0.18 * (index - (len(series) - 1) / 2)
            _plot_interval(axes, area, height, style, None if name in shown else name)
            shown.add(name)
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(judged)), [task.title for task in judged])
    axes.set_ylim(len(judged) - 0.5, -0.5)
    axes.set_xlim(right=1.0)
    axes.set_xlabel("AUROC with 95 % interval; 0.5 is no skill")
    axes.grid(axis="x", color="#e3e7eb", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=max(len(shown), 1))
    values = " ".join(f"{task.title}: {_areas(task)}." for task in judged)
    return _svg(figure, f"AUROC by task with 95 % intervals. {values}", salt="overview")


@matplotlib.rc_context(SETTINGS)
def task_figure(task: TaskEvaluation) -> str:
    """ROC, precision-recall and calibration of one judgeable task."""
    assert task.metrics is not None
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    roc, precision_recall, reliability = figure.subplots(1, 3)
    for name, _, lines, style in _series(task):
        line = {key: value for key, value in style.items() if key != "marker"}
        roc.plot(lines.roc.x, lines.roc.y, label=name, **line)
        points = lines.precision_recall
        precision_recall.plot(points.x, points.y, drawstyle="steps-pre", **line)
        _plot_calibration(reliability, lines.calibration, style)
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="no skill, or perfect calibration")
    precision_recall.axhline(task.metrics.base_rate, color=GREY, linewidth=0.8)
    _frame(roc, "ROC", "false positive rate", "true positive rate")
    _frame(precision_recall, "Precision and recall", "recall", "precision")
    _frame(reliability, "Calibration by tenths", "mean predicted probability", "observed frequency")
    top = 1.05 * max(reliability.dataLim.x1, reliability.dataLim.y1)
    reliability.plot([0, top], [0, top], color=GREY, linewidth=0.8, zorder=0)
    reliability.set(xlim=(0, top), ylim=(0, top))
    figure.legend(*roc.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return _svg(figure, _words(task), salt=task.task)


def _series(task: TaskEvaluation) -> Iterator[tuple[str, Estimate, Curves, dict[str, Any]]]:
    """Name, AUROC, curves and style of each score that the task has, the model's first."""
    assert task.metrics is not None
    assert task.curves is not None
    yield "this model", task.metrics.auroc, task.curves, MODEL_STYLE
    others = itertools.cycle(BASELINE_STYLES)
    for name, other in task.comparisons.items():
        style = TRUE_RISK_STYLE if other is task.true_risk else next(others)
        yield name, other.auroc, other.curves, style


def _plot_interval(
    axes: Axes, area: Estimate, height: float, style: dict[str, Any], label: str | None
) -> None:
    color, marker = style["color"], style["marker"]
    if area.low is not None and area.high is not None:
        axes.plot([area.low, area.high], [height, height], color=color, linewidth=1.6)
    axes.plot([area.value], [height], color=color, marker=marker, linestyle="", label=label)


def _plot_calibration(axes: Axes, points: list[CalibrationPoint], style: dict[str, Any]) -> None:
    predicted = [point.predicted for point in points]
    axes.plot(predicted, [point.observed for point in points], markersize=4, **style)


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))


def _words(task: TaskEvaluation) -> str:
    """What the figure shows, for who cannot see it."""
    assert task.metrics is not None
    assert task.curves is not None
    tenths = ", ".join(
        f"{point.predicted:.2f} and {point.observed:.2f}" for point in task.curves.calibration
    )
    return (
        f"{task.title}: ROC, precision-recall and calibration curves. AUROC: {_areas(task)}. "
        f"Average precision: {_spoken(task.metrics.auprc)}. "
        f"Predicted and observed by tenths of the probability: {tenths}."
    )


def _areas(task: TaskEvaluation) -> str:
    return ", ".join(f"{name} {_spoken(area)}" for name, area, _, _ in _series(task))


def _spoken(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _svg(figure: Figure, words: str, salt: str) -> str:
    """The figure as an <svg> element that fills its place in the page, labelled with ``words``.

    ``salt`` keeps the ids of the figures of one page apart, and the same from run to run.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    attributes, body = text[text.index("<svg") + 4 :].split(">", 1)
    attributes = re.sub(r' (width|height)="[^"]*"', "", attributes)
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # groups that nothing refers to
    return f'<svg role="img" aria-label="{escape(words)}"{attributes}>{body}'
