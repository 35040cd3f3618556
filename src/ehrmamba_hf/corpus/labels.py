"""Labelled index times: the rows of the label table, and which of them finetuning sees."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.corpus.tally import Tally
from ehrmamba_hf.tasks import Example, Task, label_stays
from ehrmamba_hf.timelines import Record, Visit

LABEL_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("task", pa.string()),
        ("split", pa.string()),
    ]
)
"""The label table: the MEDS label columns (https://github.com/Medical-Event-Data-Standard/meds),
task and split; every example of every task and split, uncapped."""

ROWS_A_GROUP = 131_072
LabelRow = tuple[int, int, bool, str, str]


def examples_of(
    record: Record,
    stays: Sequence[Visit],
    tasks: Iterable[Task],
    follow_up_end: int | None,
    split: str,
    tally: Tally,
) -> list[Example]:
    """Every example of every task that a patient gives; see `label_stays`. The tally is told."""
    result: list[Example] = []
    for task in tasks:
        excluded: Counter[str] = Counter()
        found = list(label_stays(record, stays, task, follow_up_end, excluded))
        tally.add_all("excluded", task.name, split, counts=excluded)
        for example in found:
            tally["examples", task.name, split, "positive" if example.label else "negative"] += 1
        result += found
    return result


def drawn(
    examples: Sequence[Example], stays: Sequence[Visit], subject_id: int, most: int, seed: int
) -> list[Example]:
    """The examples of at most `most` stays, drawn from those that give any."""
    starts = [stay.start for stay in stays]
    position = [bisect_right(starts, e.prediction_time) for e in examples]
    asked = sorted(set(position))
    kept = {asked[i] for i in sample_stays(subject_id, len(asked), most, seed)}
    return [e for e, p in zip(examples, position, strict=True) if p in kept]


def sample_stays(subject_id: int, count: int, most: int, seed: int) -> set[int]:
    """The positions of at most `most` of a patient's `count` stays, drawn by seed and patient.

    >>> sample_stays(7, count=3, most=4, seed=0) == {0, 1, 2}, len(sample_stays(7, 9, 4, 0))
    (True, 4)
    """
    if count <= most:
        return set(range(count))
    entropy = [seed % 2**64, subject_id % 2**64]  # either may be negative
    return set(np.random.default_rng(entropy).choice(count, most, replace=False).tolist())


def label_table(rows: Sequence[LabelRow]) -> pa.Table:
    """Rows of the label table, times in microseconds, as LABEL_SCHEMA."""
    columns = list(zip(*rows, strict=True)) or [()] * len(LABEL_SCHEMA)
    arrays = [
        pa.array(column, type=pa.int64()).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else pa.array(column, type=field.type)
        for column, field in zip(columns, LABEL_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=LABEL_SCHEMA)


def write_labels(file: Path, batches: pa.RecordBatchReader) -> None:
    """Write the label table in row groups of ROWS_A_GROUP, however the rows are batched."""
    with pq.ParquetWriter(file, LABEL_SCHEMA) as table:
        held = LABEL_SCHEMA.empty_table()
        for batch in batches:
            held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(LABEL_SCHEMA)])
            while len(held) >= ROWS_A_GROUP:
                table.write_table(held.slice(0, ROWS_A_GROUP).combine_chunks())
                held = held.slice(ROWS_A_GROUP)
        table.write_table(held.combine_chunks())
