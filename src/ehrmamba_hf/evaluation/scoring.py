"""A finetuned model's probabilities, for labelled examples and for patients as they stand."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ehrmamba_hf.corpus import PackingCollator, TaskExamples
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation.predictions import PREDICTION_SCHEMA
from ehrmamba_hf.modeling import EHRMambaForSequenceClassification
from ehrmamba_hf.tokenization import EHRMambaTokenizer


def load_classifier(folder: Path) -> EHRMambaForSequenceClassification:
    """A finetuned model, ready to score, on the GPU where there is one.

    Raises:
        InputError: not a model folder, or a model that was not finetuned.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder}: expected a model folder with config.json, found none")
    model = EHRMambaForSequenceClassification.from_pretrained(str(folder))
    architecture = (model.config.architectures or ["?"])[0]
    if architecture != EHRMambaForSequenceClassification.__name__:
        raise InputError(f"{folder}: expected a finetuned model, found {architecture}")
    if model.num_labels != 1:
        raise InputError(
            f"{folder}: expected one logit, shared by all tasks, found {model.num_labels} labels"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()


@torch.inference_mode()
def probabilities(
    model: PreTrainedModel,
    tokenizer: EHRMambaTokenizer,
    rows: Sequence[Mapping[str, Any]] | TaskExamples,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """The model's probability for each prompted input, (n,) float64, in the inputs' order."""
    collate, found = PackingCollator(tokenizer), [np.zeros(0)]
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, "score", unit=" batches", leave=False, disable=not progress):
        batch = collate([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
        inputs = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        found.append(torch.sigmoid(model(**inputs).logits[:, 0].double()).cpu().numpy())
    return np.concatenate(found)


def score(
    model: PreTrainedModel,
    tokenizer: EHRMambaTokenizer,
    examples: TaskExamples,
    *,
    progress: bool = True,
) -> pa.Table:
    """Predictions (PREDICTION_SCHEMA) for labelled examples."""
    if not len(examples):
        return PREDICTION_SCHEMA.empty_table()
    scores = probabilities(model, tokenizer, examples, progress=progress)
    table = examples.table.append_column("probability", pa.array(scores))
    return table.select(PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items.

    >>> list(chunks(iter(range(3)), 2))
    [[0, 1], [2]]
    """
    held: list[Any] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
