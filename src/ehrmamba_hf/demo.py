"""The whole line in one call, by the same functions that the commands use."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from rich.console import Console

from ehrmamba_hf.config import Config
from ehrmamba_hf.corpus import prepare
from ehrmamba_hf.evaluation import evaluate, metrics_table
from ehrmamba_hf.evaluation.evaluate import LOAD_SNIPPET
from ehrmamba_hf.events import ingest
from ehrmamba_hf.forecasting import forecast, forecast_lines
from ehrmamba_hf.simulation import simulate, true_risks_path
from ehrmamba_hf.timelines import split_of
from ehrmamba_hf.training import finetune, pretrain

FORECAST_TOKENS = 24
Result = TypeVar("Result")


class _Steps:
    """Says what is being done, and how long it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    def run(self, name: str, function: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        self.console.print(f"[bold]{name}[/bold] ...")
        start = time.perf_counter()
        result = function(*args, **kw)
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"  done in {self.seconds[name]:.0f} s")
        return result


def run_demo(fhir: Path | None, out: Path, *, patients: int, config: Config) -> None:
    """FHIR to a finetuned model and its report; prints metrics, a forecast, and how to load it.

    Args:
        fhir: a folder of FHIR; None makes a synthetic hospital.
        out: the folder that gets `events`, `data`, `model`, `mpf` and `report`.
        patients: synthetic patients.
        config: settings of every stage.
    """
    console = Console(highlight=False)
    steps = _Steps(console)
    progress = console.is_terminal
    out = Path(out)
    risks = None
    if fhir is None:
        fhir = out / "fhir"
        steps.run("simulate", simulate, fhir, patients=patients, seed=1, progress=progress)
        risks = true_risks_path(fhir)
    report = steps.run("ingest", ingest, fhir, out / "events", progress=progress)
    console.print(report.summary())
    data, model, mpf = out / "data", out / "model", out / "mpf"
    steps.run("prepare", prepare, out / "events", data, config.prepare, progress=progress)
    steps.run("pretrain", pretrain, data, model, model=config.model, training=config.pretrain)
    steps.run("finetune", finetune, data, model, mpf, training=config.finetune)
    lines = steps.run("forecast", _forecast, mpf, out / "events", config)
    evaluation = steps.run(
        "evaluate",
        evaluate,
        data,
        mpf,
        out / "report",
        true_risks=risks,
        forecast=lines,
        facts={name: f"{seconds:.0f} s" for name, seconds in steps.seconds.items()},
        progress=progress,
    )
    console.print(metrics_table(evaluation))
    console.print("\nA patient of the test split, forecast by the model:")
    console.print("\n".join(f"  {line}" for line in lines), markup=False)
    console.print(f"\nModel:  {mpf}\nReport: {out / 'report' / 'report.html'}\n\nLoad it:")
    console.print(LOAD_SNIPPET.format(folder=mpf), markup=False, soft_wrap=True)


def _forecast(model: Path, events: Path, config: Config) -> list[str]:
    """A forecast for the first patient of the test split who has an example; else for anybody."""
    labels = pq.read_table(model.parent / "data" / "labels.parquet", columns=["subject_id"])
    patients = sorted(set(labels["subject_id"].to_pylist()))
    test = [i for i in patients if split_of(i, config.prepare.splits) == "test"]
    for subject in test or patients:
        lines = forecast_lines(
            forecast(
                model, events, str(subject), tokens=FORECAST_TOKENS, rules=config.prepare.visits
            )
        )
        return lines
    return []
