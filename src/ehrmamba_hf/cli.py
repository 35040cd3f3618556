"""The command line: one command a stage, and `demo`, which runs them all.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ehrmamba_hf.errors import EHRMambaError, InputError

app = typer.Typer(
    help="Health records in (FHIR or MEDS), a clinical foundation model out (EHRMamba).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
TRAINING_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}

Out = Annotated[Path, typer.Option(help="Folder to write; appears when whole.")]
OutOnSpark = Annotated[  # a text, since a URL is no path
    str, typer.Option(help="Folder to write; appears when whole. On Spark, also a URL.")
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file, or `paper` or `tiny`.")
]
Tasks = Annotated[str | None, typer.Option(help="Names, with commas between; default: all.")]
Data = Annotated[Path, typer.Argument(help="Data folder, of `prepare`.")]
EventsOption = Annotated[Path, typer.Option(help="Events folder, of `ingest`.")]
Timezone = Annotated[str | None, typer.Option(help="IANA name; for sources written in UTC.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one per CPU")]
Memory = Annotated[
    str | None,
    typer.Option(help="About, in all; on Spark, a task's.", show_default="4GB"),
]
Engine = Annotated[
    Literal["local", "spark"], typer.Option(help="`spark`: on the cluster of --master.")
]
Master = Annotated[
    str | None, typer.Option(help="Spark's, such as spark://HOST:7077, yarn or local[4].")
]
Packing = Annotated[
    bool | None,
    typer.Option(
        "--packing/--no-packing", help="Several patients a row, not padding.", show_default="on"
    ),
]
At = Annotated[str | None, typer.Option(help="ISO time; nothing after it is looked at.")]


def main() -> None:
    """Run the command line; a known error is one line on stderr and exit code 1."""
    _quiet()
    try:
        app()
    except EHRMambaError as error:
        Console(stderr=True, highlight=False).print(
            f"error: {error}", style="red", markup=False, soft_wrap=True
        )
        sys.exit(1)


def _quiet() -> None:
    """Settings that libraries read as they are imported.

    Their chatter is kept away where nobody can act on it. Threads that wait shall sleep: where
    another process holds a core, threads that spin made training on two cores 10 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _progress() -> bool:
    return sys.stderr.isatty()


def _spark_master(engine: str, master: str | None) -> str | None:
    """The master's URL where Spark is to do it. Raises InputError for one without the other."""
    if (engine == "spark") != (master is not None):
        raise InputError(
            f"engine and master: expected --engine spark with --master URL, or neither, found "
            f"{engine} with {master or 'none'}"
        )
    return master


def _expect_none_on_spark(given: dict[str, object]) -> None:
    """Raises InputError for a flag that has no effect on a cluster."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"engine spark: expected no --{name}, found {value}")


def _names(tasks: str | None) -> list[str] | None:
    return [name.strip() for name in tasks.split(",") if name.strip()] if tasks else None


@app.command()
def simulate(
    out: Out,
    patients: Annotated[
        int | None, typer.Option(min=1, help="How many.", show_default="2000")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same hospital.", show_default="1")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Make a synthetic hospital: FHIR NDJSON, and the true risks beside it."""
    from ehrmamba_hf.config import load_config, with_flags
    from ehrmamba_hf.simulation import simulate as run
    from ehrmamba_hf.simulation import true_risks_path

    given = with_flags(load_config(config).simulate, patients=patients, seed=seed)
    run(out, patients=given.patients, seed=given.seed, progress=_progress())
    typer.echo(f"{given.patients} patients in {out}, their true risks in {true_risks_path(out)}")


@app.command()
def ingest(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of FHIR NDJSON or Bundles, one such file, or a MEDS dataset."),
    ],
    out: OutOnSpark,
    timezone: Timezone = None,
    systems: Annotated[
        Path | None, typer.Option(help="YAML of further code systems and their short names.")
    ] = None,
    mapping: Annotated[
        list[Path] | None, typer.Option(help="CSV of codes and what they are mapped to.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="CSV of unit conversions, or `common` for the packaged one.")
    ] = None,
    meds_rules: Annotated[
        Path | None, typer.Option(help="YAML that says what the codes of a MEDS dataset mean.")
    ] = None,
    workers: Workers = None,
    memory: Memory = None,
    engine: Engine = "local",
    master: Master = None,
    config: ConfigFile = None,
) -> None:
    """Read FHIR or MEDS into MEDS-shaped Parquet, with report.html and rejects.ndjson.

    A killed run goes on when it is started again; on Spark, it starts anew.
    """
    from ehrmamba_hf import events
    from ehrmamba_hf.config import load_config, with_flags
    from ehrmamba_hf.events.meds import read_rules
    from ehrmamba_hf.fhir.codebook import Codebook

    given = with_flags(
        load_config(config).ingest,
        timezone=timezone,
        systems=systems,
        mappings=tuple(mapping) if mapping else None,
        units=units,
        meds_rules=meds_rules,
        workers=workers,
        memory=memory,
    )
    table: Any = given.units if given.units in (None, "common") else Path(given.units)
    added = (given.systems, given.mappings, table)
    options: dict[str, Any] = {
        "timezone": given.timezone,
        "book": Codebook.load(given.systems, given.mappings, table) if any(added) else None,
        "memory": given.memory,
        "progress": _progress(),
    }
    if url := _spark_master(engine, master):
        from ehrmamba_hf import spark

        _expect_none_on_spark({"workers": given.workers, "meds-rules": given.meds_rules})
        report = spark.ingest(source, out, master=url, **options)
    else:
        rules = read_rules(given.meds_rules) if given.meds_rules else None
        report = events.ingest(source, Path(out), rules=rules, workers=given.workers, **options)
    typer.echo(report.summary())
    typer.echo(f"events in {out}: everything that was counted in report.html")


@app.command()
def prepare(
    events: Annotated[
        str, typer.Argument(help="Events folder, of `ingest`.", metavar="PATH", show_default=False)
    ],
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Model whose tokenizer to use as it is, for data it has not seen."),
    ] = None,
    test_only: Annotated[bool, typer.Option(help="All patients are the test split.")] = False,
    workers: Workers = None,
    memory: Memory = None,
    engine: Engine = "local",
    master: Master = None,
    config: ConfigFile = None,
) -> None:
    """Make splits, bins, vocabulary, tokenizer, labels and Arrow sequences, with report.html.

    A run that was killed goes on where it ended when it is started again; on Spark, anew.
    """
    from msgspec.structs import replace

    from ehrmamba_hf import corpus
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.corpus.examples import load_tokenizer

    settings = load_config(config).prepare
    if test_only:
        settings = replace(settings, splits=replace(settings.splits, pretrain=0.0, finetune=0.0))
    options: dict[str, Any] = {
        "tokenizer": load_tokenizer(tokenizer) if tokenizer else None,
        "memory": memory or "4GB",
        "progress": _progress(),
    }
    if url := _spark_master(engine, master):
        from ehrmamba_hf import spark

        _expect_none_on_spark({"workers": workers})
        spark.prepare(events, out, settings, master=url, **options)
    else:
        corpus.prepare(Path(events), out, settings, workers=workers, **options)
    typer.echo(f"data in {out}: counts, exclusions and rates in report.html")


@app.command(context_settings=TRAINING_FLAGS)
def pretrain(
    context: typer.Context,
    data: Data,
    out: Out,
    packing: Packing = None,
    config: ConfigFile = None,
) -> None:
    """Pretrain by next-token prediction.

    Defaults are the paper's: 15 epochs, batches of 44, learning rate 5e-5 with linear warm-up over
    10 % and linear decay, AdamW; a model of 32 blocks of width 768 (in the config: `model`). Every
    field of transformers' TrainingArguments is a flag, for example --num_train_epochs 5.
    """
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.training import pretrain as run

    settings = load_config(config)
    training = {**settings.pretrain, **_training_flags(context.args, packing=packing)}
    run(data, out, model=settings.model, training=training)
    typer.echo(f"pretrained model in {out}")


@app.command(context_settings=TRAINING_FLAGS)
def finetune(
    context: typer.Context,
    data: Data,
    model: Annotated[Path, typer.Option(help="Pretrained model's folder.")],
    out: Out,
    tasks: Tasks = None,
    forecasting_loss_weight: Annotated[
        float | None,
        typer.Option(help="The paper's is 0.", show_default="0.1"),
    ] = None,
    packing: Packing = None,
    config: ConfigFile = None,
) -> None:
    """Finetune one model for all tasks (Multitask Prompted Finetuning).

    Defaults are the paper's: 6 epochs, batches of 64, learning rate 5e-5 with linear warm-up over
    10 % and linear decay, AdamW. Every field of transformers' TrainingArguments is a flag, for
    example --learning_rate 1e-4.
    """
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.training import finetune as run

    own = {"forecasting_loss_weight": forecasting_loss_weight, "packing": packing}
    training = {**load_config(config).finetune, **_training_flags(context.args, **own)}
    run(data, model, out, tasks=_names(tasks), training=training)
    typer.echo(f"finetuned model in {out}")


@app.command()
def evaluate(
    data: Data,
    model: Annotated[Path, typer.Option(help="Finetuned model's folder.")],
    out: Out,
    tasks: Tasks = None,
    true_risks: Annotated[
        Path | None, typer.Option(help="True risks of `simulate`, to compare with.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Judge a model on the test split: metrics.json and report.html."""
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.evaluation import evaluate as run
    from ehrmamba_hf.evaluation import metrics_table

    evaluation = run(
        data,
        model,
        out,
        tasks=_names(tasks),
        true_risks=true_risks,
        resamples=load_config(config).evaluate.resamples,
        progress=_progress(),
    )
    Console().print(metrics_table(evaluation))
    typer.echo(f"report in {out / 'report.html'}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Finetuned model's folder.")],
    events: EventsOption,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    tasks: Tasks = None,
    at: At = None,
    config: ConfigFile = None,
) -> None:
    """Score every task for every patient."""
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.evaluation import predict as run

    rules = load_config(config).prepare.visits
    table = run(model, events, out, tasks=_names(tasks), at=at, rules=rules, progress=_progress())
    typer.echo(f"{table.num_rows} predictions in {out}")


@app.command()
def forecast(
    model: Annotated[Path, typer.Argument(help="Model's folder.")],
    events: EventsOption,
    subject: Annotated[str, typer.Option(help="subject_id, or the id at the source.")],
    tokens: Annotated[
        int | None, typer.Option(min=1, help="How many tokens.", show_default="32")
    ] = None,
    weeks: Annotated[
        float | None,
        typer.Option(help="How far ahead; the first interval that reaches it is the end."),
    ] = None,
    at: At = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.", show_default="0")] = None,
    config: ConfigFile = None,
) -> None:
    """Continue one patient's record, token by token."""
    from msgspec.structs import asdict

    from ehrmamba_hf.config import load_config, with_flags
    from ehrmamba_hf.forecasting import forecast as run
    from ehrmamba_hf.forecasting import forecast_lines

    settings = load_config(config)
    given = with_flags(settings.forecast, tokens=tokens, weeks=weeks, seed=seed)
    events_ahead = run(
        model, events, subject, at=at, rules=settings.prepare.visits, **asdict(given)
    )
    typer.echo("\n".join(forecast_lines(events_ahead)))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Odyssey checkpoint, or folder of transformers' Mamba.")
    ],
    out: Out,
    kind: Annotated[
        str | None, typer.Option(help="`odyssey` or `mamba`; default: a file, or a folder.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="odyssey: its tokenizer's JSON; mamba: data or model to be for."),
    ] = None,
) -> None:
    """Make a model folder from weights of another program."""
    from ehrmamba_hf.conversion import convert as run

    run(source, out, kind=kind, vocabulary=vocabulary)
    typer.echo(f"model in {out}")


@app.command()
def demo(
    fhir: Annotated[
        Path | None, typer.Option(help="Your FHIR folder; default: a synthetic hospital.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo"),
    patients: Annotated[int, typer.Option(min=1, help="Synthetic patients.")] = 1000,
    timezone: Timezone = None,
    config: ConfigFile = "tiny",
) -> None:
    """Run the whole line on a tiny model: FHIR to a finetuned model and its report."""
    from ehrmamba_hf.config import load_config
    from ehrmamba_hf.demo import run_demo

    run_demo(fhir, out, patients=patients, config=load_config(config), timezone=timezone)


def _training_flags(arguments: list[str], **own: Any) -> dict[str, Any]:
    """The fields of `TrainingArguments` that are given as flags, and our own, and no others."""
    from transformers import HfArgumentParser, TrainingArguments

    parser: Any = HfArgumentParser(TrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise typer.BadParameter(f"no flag of this command or of TrainingArguments: {unknown[0]}")
    return vars(given) | {name: value for name, value in own.items() if value is not None}
