"""Judge a finetuned model on the test split of a data folder, and write the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers

import ehrmamba_hf
from ehrmamba_hf.corpus import load_examples
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.corpus.prepare import REPORT_FILE
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation.metrics import evaluate_predictions
from ehrmamba_hf.evaluation.report import write_report
from ehrmamba_hf.evaluation.results import Evaluation
from ehrmamba_hf.evaluation.scoring import load_classifier, score
from ehrmamba_hf.tasks import registered
from ehrmamba_hf.timelines import SPLITS

LOAD_SNIPPET = """\
from transformers import AutoModelFor{kind}, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelFor{kind}.from_pretrained("{folder}", trust_remote_code=True)"""


def evaluate(
    data: Path,
    model: Path,
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    true_risks: Path | None = None,
    forecast: Sequence[str] | None = None,
    facts: Mapping[str, str] | None = None,
    resamples: int = 500,
    progress: bool = True,
) -> Evaluation:
    """Score the validation and test examples, and write `metrics.json` and `report.html`.

    Thresholds come from the finetuning split's validation patients; everything reported comes
    from the test split.

    Args:
        data: a data folder, prepared with the model's tokenizer.
        model: a finetuned model's folder.
        out: the report's folder.
        tasks: names of tasks; all of the data folder's by default.
        true_risks: the simulator's file, where the data are synthetic.
        forecast: readable lines to show in the report.
        facts: more of what was run, by name, to show in the report.
        resamples: bootstrap resamples of patients.
        progress: show progress bars.
    """
    tokenizer, of_data = load_tokenizer(model), load_tokenizer(data)
    if (tokenizer.vocab, tokenizer.bins) != (of_data.vocab, of_data.bins):
        raise InputError(f"{data}: expected to be prepared with the tokenizer of {model}")
    classifier = load_classifier(model)
    tables = {
        split: score(
            classifier,
            tokenizer,
            load_examples(data, split, tasks=tasks, tokenizer=tokenizer),
            progress=progress,
        )
        for split in ("finetune_validation", "test")
    }
    counted = json.loads((Path(data) / REPORT_FILE).read_text(encoding="utf-8"))
    titles = {t.name: t.title for t in registered()}
    evaluation = evaluate_predictions(
        tables["finetune_validation"],
        tables["test"],
        true_risks=pq.read_table(true_risks) if true_risks else None,
        tasks={name: titles.get(name, name) for name in (tasks or counted["tasks"])},
        resamples=resamples,
    )
    size = sum(p.numel() for p in classifier.parameters())
    write_report(
        Path(out),
        evaluation,
        facts={
            "patients": _patients(counted["patients"]),
            "vocabulary": f"{tokenizer.vocab_size} tokens",
            "model": f"{size:,} parameters, {classifier.config.num_hidden_layers} Mamba blocks of "
            f"width {classifier.config.hidden_size}",
            "versions": f"ehrmamba-hf {ehrmamba_hf.__version__}, transformers "
            f"{transformers.__version__}, torch {torch.__version__}",
            **(facts or {}),
        },
        exclusions={
            name: by_split.get("test", {}).get("excluded", {})
            for name, by_split in counted["tasks"].items()
        },
        forecast=forecast,
        load_snippet=LOAD_SNIPPET.format(folder=Path(model).name, kind="SequenceClassification"),
    )
    return evaluation


def _patients(counts: Mapping[str, int]) -> str:
    """How many patients each split has.

    >>> _patients({"finetune_validation": 1, "pretrain": 9, "test": 4})
    '9 pretrain, 1 finetune validation, 4 test'
    """
    known = [(counts[split], split.replace("_", " ")) for split in SPLITS if split in counts]
    return ", ".join(f"{count:,} {split}" for count, split in known)
