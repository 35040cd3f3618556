"""The data sets of a data folder: sequences for pretraining, prompted examples for finetuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, load_from_disk

from ehrmamba_hf.corpus.prepare import LABELS_FILE, REPORT_FILE, TOKENIZER_FOLDER
from ehrmamba_hf.corpus.storage import SEQUENCE_SCHEMA
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, fit


class TaskExamples(torch.utils.data.Dataset):
    """Examples of several tasks, mixed: each one an input, prompted for its task, and a label.

    One stored input serves every task that is asked at its index time; the prompt is put in as an
    example is read (Multitask Prompted Finetuning, paper section 3.3).

    Args:
        inputs: sequences, a row a patient and index time.
        table: the label table's rows, in order, with `row`, the input of each.
        tokenizer: knows the tasks' tokens and the context length.
    """

    def __init__(self, inputs: Dataset, table: pa.Table, tokenizer: EHRMambaTokenizer) -> None:
        self.inputs = inputs
        self.table = table
        self.rows = table["row"].to_numpy()
        self.labels = table["boolean_value"].to_numpy().astype(np.float32)
        self.token_ids = [tokenizer.task_token_id(task) for task in table["task"].to_pylist()]
        self.context_length = tokenizer.model_max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.inputs[int(self.rows[index])]
        columns = {name: row[name] for name in COLUMNS}
        columns = fit(columns, self.context_length, self.token_ids[index])
        return {**columns, "labels": [float(self.labels[index])]}


def load_tokenizer(folder: Path) -> EHRMambaTokenizer:
    """The tokenizer of a data folder or a model folder.

    Raises:
        InputError: neither of the two; names of the Hub are not looked up.
    """
    folder = Path(folder)
    inner = folder / TOKENIZER_FOLDER
    place = inner if inner.is_dir() else folder
    file = place / EHRMambaTokenizer.vocab_files_names["vocab_file"]
    if not file.is_file():
        raise InputError(f"{folder}: expected a tokenizer with {file.name}, found none")
    return EHRMambaTokenizer.from_pretrained(str(place))


def load_sequences(folder: Path, split: str) -> Dataset:
    """Whole records, a row a patient, of `pretrain` or `pretrain_validation`."""
    return _split(folder, "pretrain", split)


def load_examples(
    folder: Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    tokenizer: EHRMambaTokenizer | None = None,
) -> TaskExamples:
    """The examples of a split whose inputs were kept, in the label table's order.

    Args:
        folder: a data folder, as `prepare` writes it.
        split: `finetune`, `finetune_validation` or `test`.
        tasks: names of tasks; all that the label table has by default.
        tokenizer: the folder's own by default.

    Raises:
        InputError: not a data folder, or a task that it or the tokenizer does not know.
    """
    tokenizer = tokenizer or load_tokenizer(folder)
    inputs = _split(folder, "finetune", split)
    labels = pq.read_table(Path(folder) / LABELS_FILE)
    held = sorted(set(labels["task"].to_pylist()))
    known = sorted(set(held) & set(tokenizer.task_tokens))
    unknown = sorted(set(tasks or held) - set(known))
    if unknown:
        raise InputError(
            f"{folder}: expected tasks that it holds and the tokenizer knows, {known}, "
            f"found {unknown}"
        )
    labels = labels.filter(pc.equal(labels["split"], split))
    labels = labels.filter(pc.is_in(labels["task"], value_set=pa.array(tasks or held, pa.string())))
    row_of: dict[tuple, int] = {}
    if len(inputs):
        keys = zip(inputs["subject_id"], inputs["prediction_time"], strict=True)
        row_of = {key: row for row, key in enumerate(keys)}
    wanted = zip(
        labels["subject_id"].to_pylist(),
        labels["prediction_time"].cast(pa.int64()).to_pylist(),
        strict=True,
    )
    rows = pa.array([row_of.get(key) for key in wanted], type=pa.int64())
    table = labels.append_column("row", rows).filter(pc.is_valid(rows))
    return TaskExamples(inputs, table, tokenizer)


def _split(folder: Path, dataset: str, split: str) -> Dataset:
    folder = Path(folder)
    if not (folder / REPORT_FILE).is_file():
        raise InputError(f"{folder}: expected a data folder with {REPORT_FILE}, found none")
    splits = load_from_disk(str(folder / dataset))
    if split not in splits:
        features = Features.from_arrow_schema(SEQUENCE_SCHEMA)
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return splits[split]
