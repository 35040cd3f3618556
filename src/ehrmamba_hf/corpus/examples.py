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
from ehrmamba_hf.timelines.shards import factorized
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
        task, names = factorized(table["task"])
        self.token_ids = np.array([tokenizer.task_token_id(name) for name in names])[task]
        self.context_length = tokenizer.model_max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.inputs[int(self.rows[index])]
        columns = {name: row[name] for name in COLUMNS}
        columns = fit(columns, self.context_length, int(self.token_ids[index]))
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
    held = sorted(labels["task"].unique().to_pylist())
    known = sorted(set(held) & set(tokenizer.task_tokens))
    unknown = sorted(set(tasks or held) - set(known))
    if unknown:
        raise InputError(
            f"{folder}: expected tasks that it holds and the tokenizer knows, {known}, "
            f"found {unknown}"
        )
    labels = labels.filter(pc.equal(labels["split"], split))
    labels = labels.filter(pc.is_in(labels["task"], value_set=pa.array(tasks or held, pa.string())))
    rows = _rows_of(labels, inputs.data.table)
    table = labels.append_column("row", pa.array(rows)).filter(pa.array(rows >= 0))
    return TaskExamples(inputs, table, tokenizer)


def _rows_of(labels: pa.Table, inputs: pa.Table) -> np.ndarray:
    """The input of each label, by patient and index time; -1 where none was kept."""
    number = np.zeros(len(inputs) + len(labels), dtype=np.int64)
    for name in ("subject_id", "prediction_time"):
        columns = [table[name].cast(pa.int64()).to_numpy() for table in (inputs, labels)]
        values, place = np.unique(np.concatenate(columns), return_inverse=True)
        number = number * len(values) + place
    held, wanted = np.split(number, [len(inputs)])
    order = np.argsort(held)
    place = np.searchsorted(held, wanted, sorter=order)
    rows = np.append(order, -1)[place]
    return np.where(np.append(held, -1)[rows] == wanted, rows, -1)


def _split(folder: Path, dataset: str, split: str) -> Dataset:
    folder = Path(folder)
    if not (folder / REPORT_FILE).is_file():
        raise InputError(f"{folder}: expected a data folder with {REPORT_FILE}, found none")
    splits = load_from_disk(str(folder / dataset))
    if split not in splits:
        features = Features.from_arrow_schema(SEQUENCE_SCHEMA)
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return splits[split]
