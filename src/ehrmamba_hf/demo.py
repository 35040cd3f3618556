"""The whole line in one call, by the same functions that the commands use."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ehrmamba_hf.config import Config
from ehrmamba_hf.corpus import load_examples, prepare
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation import evaluate, metrics_table
from ehrmamba_hf.evaluation.evaluate import LOAD_SNIPPET
from ehrmamba_hf.events import ingest, read_subjects
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


def run_demo(
    fhir: Path | None, out: Path, *, patients: int, config: Config, timezone: str | None = None
) -> None:
    """FHIR to a finetuned model and its report; prints metrics, a forecast, and how to load it.

    Args:
        fhir: a folder of FHIR; None makes a synthetic hospital.
        out: the folder that gets `events`, `data`, `model`, `mpf` and `report`.
        patients: synthetic patients.
        config: settings of every stage.
        timezone: see `ingest`.
    """
    console = Console(highlight=False)
    steps = _Steps(console)
    progress = console.is_terminal
    out = Path(out)
    events, data, model, mpf = (out / name for name in ("events", "data", "model", "mpf"))
    risks = None
    if fhir is None:
        fhir = out / "fhir"
        steps.run("simulate", simulate, fhir, patients=patients, seed=1, progress=progress)
        risks = true_risks_path(fhir)
    report = steps.run("ingest", ingest, fhir, events, timezone=timezone, progress=progress)
    console.print(report.summary())
    steps.run("prepare", prepare, events, data, config.prepare, progress=progress)
    steps.run("pretrain", pretrain, data, model, model=config.model, training=config.pretrain)
    if not len(load_examples(data, "finetune")):
        console.print(
            "No stay of these patients gives an example to finetune on; the reasons are in "
            f"{data / 'report.html'}. The pretrained model forecasts:"
        )
        _show(console, _forecast(model, events, config), model)
        return
    steps.run("finetune", finetune, data, model, mpf, training=config.finetune)
    lines = steps.run("forecast", _forecast, mpf, events, config)
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
    _show(console, lines, mpf)
    console.print(f"\nReport: {out / 'report' / 'report.html'}")


def _show(console: Console, lines: list[str], model: Path) -> None:
    """A forecast, where the model is, and how to load it."""
    console.print("\n".join(f"  {line}" for line in lines), markup=False)
    kind = "SequenceClassification" if model.name == "mpf" else "CausalLM"
    console.print(f"\nModel: {model}\nLoad it:")
    console.print(LOAD_SNIPPET.format(folder=model, kind=kind), markup=False, soft_wrap=True)


def _forecast(model: Path, events: Path, config: Config) -> list[str]:
    """A forecast for the first patient of the test split who has an event; else for anybody."""
    subjects = read_subjects(events)["subject_id"].to_pylist()
    first = sorted(subjects, key=lambda i: (split_of(i, config.prepare.splits) != "test", i))
    for subject in first:
        try:
            ahead = forecast(
                model, events, str(subject), tokens=FORECAST_TOKENS, rules=config.prepare.visits
            )
        except InputError:  # a patient without any event
            continue
        return forecast_lines(ahead)
    return []
