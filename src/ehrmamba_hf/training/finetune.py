"""Multitask Prompted Finetuning: one model for all tasks (paper, section 3.3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehrmamba_hf.corpus import load_examples
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.corpus.prepare import REPORT_FILE
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaForSequenceClassification
from ehrmamba_hf.training.run import run_training, written

RECIPE = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 64,
    "forecasting_loss_weight": 0.1,  # not the paper's: without it, the model forgets to forecast
}


def finetune(
    data: Path,
    model: Path,
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Finetune a pretrained model on the examples of all tasks at once, mixed in each batch.

    Args:
        data: a data folder, as `prepare` writes it.
        model: a pretrained model's folder; its tokenizer encodes the examples.
        out: the model folder to be.
        tasks: names of tasks; all of the data folder's by default.
        training: fields of `TrainingArguments`, the paper's by default, and `packing`: see
            `run_training`. Besides, `forecasting_loss_weight`: the weight of next-token prediction
            on the same inputs, which keeps the model able to forecast; 0 is the paper's finetuning.

    Raises:
        InputError: `model` was made with another vocabulary or other bins than the data; see
            also `run_training`.
    """
    tokenizer, of_data = load_tokenizer(model), load_tokenizer(data)
    if (tokenizer.vocab, tokenizer.bins) != (of_data.vocab, of_data.bins):
        raise InputError(
            f"{model}: expected the vocabulary and bins with which {data} was prepared, found "
            "others: prepare the events with this model's tokenizer"
        )
    arguments = {**RECIPE, **(training or {})}
    weight = arguments.pop("forecasting_loss_weight")
    if not isinstance(weight, int | float) or weight < 0:
        raise InputError(f"forecasting_loss_weight: expected a number from 0, found {weight!r}")
    examples = {
        split: load_examples(data, split, tasks=tasks, tokenizer=tokenizer)
        for split in ("finetune", "finetune_validation")
    }
    return run_training(
        out,
        build=lambda: _classifier(Path(model), weight),
        tokenizer=tokenizer,
        arguments=arguments,
        train=examples["finetune"],
        validation=examples["finetune_validation"],
        fingerprint={
            "data": written(data, REPORT_FILE),
            "model": written(model, "config.json"),
            "tasks": sorted(tasks or []),
            "forecasting_loss_weight": weight,
        },
    )


def _classifier(folder: Path, weight: float) -> EHRMambaForSequenceClassification:
    return EHRMambaForSequenceClassification.from_pretrained(
        str(folder), num_labels=1, forecasting_loss_weight=weight
    )
