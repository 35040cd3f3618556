"""Sequences in Arrow files: a row a sequence, a column an attribute, as the model takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, Columns

DATASETS = ("pretrain", "finetune")
ROWS_A_BATCH = 1000
_ATTRIBUTES = [(name, pa.list_(pa.type_for_alias(kind))) for name, kind in COLUMNS.items()]
SEQUENCE_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.int64()),
        ("length", pa.int32()),
        *_ATTRIBUTES,
    ]
)
"""`prediction_time` in microseconds, null for a whole record; then the model's columns."""


class SequenceWriter:
    """Writes sequences to one Arrow stream a data set and split, in batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stream"
        self.folder.mkdir()
        self.waiting: dict[tuple[str, str], list[tuple]] = {}
        self.streams: dict[tuple[str, str], pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, dataset: str, split: str, subject_id: int, at: int | None, row: Columns) -> None:
        """Add one sequence to a split of a data set."""
        rows = self.waiting.setdefault((dataset, split), [])
        rows.append((subject_id, at, len(row["input_ids"]), *(row[name] for name in COLUMNS)))
        if len(rows) >= ROWS_A_BATCH:
            self._flush(dataset, split)

    def _flush(self, dataset: str, split: str) -> None:
        key = (dataset, split)
        if key not in self.streams:
            self.streams[key] = pa.ipc.new_stream(self._file(*key), SEQUENCE_SCHEMA)
        columns = zip(*self.waiting[key], strict=True)
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, SEQUENCE_SCHEMA, strict=True)]
        self.streams[key].write_batch(pa.record_batch(arrays, schema=SEQUENCE_SCHEMA))
        self.waiting[key] = []

    def _file(self, dataset: str, split: str) -> Path:
        return self.folder / f"{dataset}-{split}.arrow"

    def close(self) -> dict[tuple[str, str], Path]:
        """Write what is left; the file of each (data set, split)."""
        for key in [key for key, rows in self.waiting.items() if rows]:
            self._flush(*key)
        for stream in self.streams.values():
            stream.close()
        return {key: self._file(*key) for key in self.streams}


def save_datasets(folder: Path, writer: SequenceWriter) -> None:
    """Close the writer and save its streams as `datasets` folders, one a data set."""
    files = writer.close()
    for dataset in DATASETS:
        splits = {
            split: Dataset.from_file(str(file))
            for (name, split), file in sorted(files.items())
            if name == dataset
        }
        with _without_bars():
            DatasetDict(splits).save_to_disk(str(folder / dataset))
    for file in files.values():
        file.unlink()
    writer.folder.rmdir()


@contextmanager
def _without_bars() -> Iterator[None]:
    # One bar a split of some thousand rows says nothing, and fills the logs of a batch job.
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
