"""An evaluation as files to read: metrics.json, one self-contained page, a table for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.box
from rich.table import Table

from ehrmamba_hf.evaluation.figures import overview, task_figure
from ehrmamba_hf.evaluation.results import Estimate, Evaluation, TaskEvaluation
from ehrmamba_hf.folders import staged_file
from ehrmamba_hf.pages import environment

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    facts: Mapping[str, str],
    exclusions: Mapping[str, Mapping[str, int]],
    forecast: Sequence[str] | None,
    load_snippet: str,
) -> Path:
    """Write metrics.json and report.html, each whole or not at all, and return the page's path.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        evaluation: of ``evaluate_predictions``.
        facts: what was run, in words: patients, model size, times, versions.
        exclusions: for each task, how many index times were left out, by reason.
        forecast: readable lines of one patient's forecast, or None without one.
        load_snippet: lines of Python that load the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = render_report(
        evaluation, facts=facts, exclusions=exclusions, forecast=forecast, load_snippet=load_snippet
    )
    for name, text in ((METRICS_FILE, evaluation.to_json() + "\n"), (REPORT_FILE, page)):
        with staged_file(folder / name) as file:
            file.write_text(text, encoding="utf-8")
    return folder / REPORT_FILE


def render_report(
    evaluation: Evaluation,
    *,
    facts: Mapping[str, str],
    exclusions: Mapping[str, Mapping[str, int]],
    forecast: Sequence[str] | None,
    load_snippet: str,
) -> str:
    """The page as text; arguments as in ``write_report``."""
    made = environment()
    made.filters |= {"value": value_text, "interval": interval_text, "signed": signed_text}
    return made.get_template("evaluation/report.html.j2").render(
        evaluation=evaluation,
        judged=evaluation.judgeable,
        overview=overview(evaluation) if evaluation.judgeable else "",
        figures={task.task: task_figure(task) for task in evaluation.judgeable},
        titles={task.task: task.title for task in evaluation.tasks},
        has_true_risk=any(task.true_risk for task in evaluation.tasks),
        facts=facts,
        exclusions=exclusions,
        forecast=forecast,
        load_snippet=load_snippet,
    )


def metrics_table(evaluation: Evaluation) -> Table:
    """The metrics a task a row, for a terminal; what cannot be judged is said below the table."""
    table = Table(
        title="Metrics on the test split, with 95 % intervals by patient",
        title_justify="left",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Task", no_wrap=True)
    if not evaluation.judgeable:
        table.add_column("Judgement")
        for task in evaluation.tasks:
            table.add_row(task.task, task.not_judgeable)
        return table
    headings = ["Cases", "AUROC", "AUPRC", "F1", "Brier"]
    if any(task.true_risk for task in evaluation.tasks):
        headings += ["Best\npossible", "Model\nminus best"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for task in evaluation.tasks:
        table.add_row(task.task, *_terminal_cells(task))
    table.caption = "\n".join(
        f"{task.task}: {sentence}"
        for task in evaluation.tasks
        for sentence in (task.not_judgeable, *task.notes)
        if sentence
    )
    return table


def value_text(estimate: Estimate) -> str:
    """The value to three decimals.

    >>> value_text(Estimate(0.81249, 0.79, 0.83))
    '0.812'
    """
    return f"{estimate.value:.3f}"


def interval_text(estimate: Estimate) -> str:
    """The interval with a dash, or words where there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{estimate.low:.3f}\N{EN DASH}{estimate.high:.3f}"


def signed_text(estimate: Estimate) -> tuple[str, str]:
    """A difference and its interval, with signs.

    >>> signed_text(Estimate(0.0124, 0.002, 0.02))
    ('+0.012', '+0.002 to +0.020')
    """
    value = _signed(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value, "no interval"
    return value, f"{_signed(estimate.low)} to {_signed(estimate.high)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _short_interval(estimate: Estimate, sign: str = "") -> str:
    """The interval to two decimals: a terminal of 80 columns holds no more."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    low, high = (f"{bound:{sign}.2f}" for bound in (estimate.low, estimate.high))
    return f"{low} {high}".replace("-", "\N{MINUS SIGN}")


def _terminal_cells(task: TaskEvaluation) -> list[str]:
    counts, metrics = task.counts, task.metrics
    cells = [f"{counts.positives:,}\nof {counts.examples:,}"]
    if metrics is None:
        return [*cells, "too few\nto judge"]
    cells += [
        f"{value_text(metrics.auroc)}\n{_short_interval(metrics.auroc)}",
        value_text(metrics.auprc),
        value_text(metrics.f1),
        value_text(metrics.brier),
    ]
    if task.true_risk is not None:
        best, difference = task.true_risk.auroc, task.true_risk.difference
        cells += [
            f"{value_text(best)}\n{_short_interval(best)}",
            f"{_signed(difference.value)}\n{_short_interval(difference, sign='+')}",
        ]
    return cells
