"""Sequences as `datasets` folders of Arrow streams: a row a sequence, a column an attribute.

Files depend on the rows alone, not on the parts that they come in. `length` is a column of its
own, so that batches can be planned without reading a token: `rows.data["length"]`.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import DatasetInfo, Features

from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS

DATASETS = ("pretrain", "finetune")
ROWS_A_BATCH = 1000
BYTES_A_FILE = 500_000_000
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
_BYTES_A_TOKEN = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())
_BYTES_A_ROW = 8 + 8 + 4 + 4 * len(COLUMNS)


def save_dataset(folder: Path, splits: Mapping[str, Sequence[Path]], fingerprint: str) -> None:
    """Write a data set that `datasets.load_from_disk` loads, its rows in order of the patients.

    Args:
        folder: to be made.
        splits: of each split, Arrow streams of SEQUENCE_SCHEMA, in any order.
        fingerprint: of what the rows are made from; with the split it is the data set's own.
    """
    folder.mkdir()
    about = f"Patient sequences; fingerprint of inputs and settings: {fingerprint}"
    info = DatasetInfo(description=about, features=Features.from_arrow_schema(SEQUENCE_SCHEMA))
    for split, files in splits.items():
        (folder / split).mkdir()
        names = _write_rows(folder / split, files, info.features.arrow_schema)
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": xxhash.xxh3_64_hexdigest(
                f"{fingerprint} {folder.name} {split}".encode()
            ),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        _write_json(folder / split / "state.json", state)
        info.write_to_directory(str(folder / split), pretty_print=True)
    _write_json(folder / "dataset_dict.json", {"splits": list(splits)})


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_rows(folder: Path, files: Sequence[Path], schema: pa.Schema) -> list[str]:
    """Write the rows of streams, sorted, to files of about BYTES_A_FILE at most; their names."""
    rows = pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in files])
    moment = rows["prediction_time"].fill_null(0).to_numpy()
    order = np.lexsort((moment, rows["subject_id"].to_numpy()))
    windows = [order[i : i + ROWS_A_BATCH] for i in range(0, len(order), ROWS_A_BATCH)]
    lengths = rows["length"].to_numpy()
    spans = _filled([_bytes(lengths[window]) for window in windows])
    names = [f"data-{i:05d}-of-{len(spans):05d}.arrow" for i in range(len(spans))]
    for name, span in zip(names, spans, strict=True):
        with pa.ipc.new_stream(str(folder / name), schema) as stream:
            for window in windows[span]:
                stream.write_batch(_picked(rows, window, schema))
    return names


def _bytes(lengths: np.ndarray) -> int:
    """What sequences of some lengths take in a file, in all."""
    return len(lengths) * _BYTES_A_ROW + int(lengths.sum(dtype=np.int64)) * _BYTES_A_TOKEN


def _filled(sizes: Sequence[int]) -> list[slice]:
    """Cut a sequence of sizes where a file would be over BYTES_A_FILE.

    >>> _filled([300_000_000, 200_000_000, 1])
    [slice(0, 2, None), slice(2, 3, None)]
    """
    cuts, held = [0], 0
    for i, size in enumerate(sizes):
        if held and held + size > BYTES_A_FILE:
            cuts.append(i)
            held = 0
        held += size
    return [slice(a, b) for a, b in pairwise([*cuts, len(sizes)])]


def _picked(rows: pa.Table, window: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """The rows at some positions as one batch, gathered run by run.

    In buffers of its own, just as long as the rows: of a part of a longer one, Arrow writes up to
    63 bytes of what comes after it too, so that files would depend on how the rows came.
    """
    cuts = [0, *(np.flatnonzero(np.diff(window) != 1) + 1).tolist(), len(window)]
    runs = pa.concat_tables([rows.slice(int(window[a]), b - a) for a, b in pairwise(cuts)])
    arrays = [_own(runs[name].combine_chunks()) for name in runs.column_names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _own(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        ends = np.cumsum(column.value_lengths().to_numpy(), dtype=np.int32)
        return pa.ListArray.from_arrays(
            pa.array(np.append(np.int32(0), ends)), _own(column.flatten())
        )
    values = column.fill_null(0).to_numpy().copy()
    if not column.null_count:
        return pa.array(values)
    return pa.array(values, mask=column.is_null().to_numpy(zero_copy_only=False))
