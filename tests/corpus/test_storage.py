"""Arrow files: the same however the rows come, loaded whole and streamed, lengths apart."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from ehrmamba_hf.corpus import best_fit, storage
from ehrmamba_hf.corpus.storage import SEQUENCE_SCHEMA, save_dataset
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """3,500 sequences of 1 to 40 tokens, of 1,000 patients, in order."""
    rng = np.random.default_rng(0)
    keys = sorted({(int(s), int(t)) for s, t in rng.integers(0, (1000, 10**9), (3500, 2))})
    lengths = rng.integers(1, 41, len(keys))
    starts = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    values = rng.integers(0, 100, int(lengths.sum()))
    columns = [
        pa.array([s for s, _ in keys], pa.int64()),
        pa.array([t for _, t in keys], pa.int64()),
        pa.array(lengths, pa.int32()),
        *(
            pa.ListArray.from_arrays(starts, pa.array(values.astype(kind)))
            for kind in COLUMNS.values()
        ),
    ]
    return pa.Table.from_arrays(columns, schema=SEQUENCE_SCHEMA)


def stream(file: Path, table: pa.Table, chunk: int) -> Path:
    with pa.ipc.new_stream(file, SEQUENCE_SCHEMA) as out:
        out.write_table(table, max_chunksize=chunk)
    return file


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def saved(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In files of 400 kB at most."""
    folder = tmp_path_factory.mktemp("saved")
    file = stream(folder / "all.arrow", rows, 10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "BYTES_A_FILE", 400_000)
        save_dataset(folder / "finetune", {"test": [file]}, "abc")
    return folder / "finetune"


def test_files_are_the_same_however_the_rows_come(
    rows: pa.Table, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BYTES_A_FILE", 400_000)
    patient = rows["subject_id"].to_numpy()
    halves = [stream(tmp_path / "b", rows.slice(1700), 7), stream(tmp_path / "a", rows[:1700], 90)]
    mixed = [
        stream(tmp_path / f"m{k}", rows.filter(pa.array(patient % 3 == k)), 64) for k in (2, 0, 1)
    ]
    for name, files in (("halves", halves), ("mixed", mixed)):
        (tmp_path / name).mkdir()
        save_dataset(tmp_path / name / "finetune", {"test": files}, "abc")
        assert content(tmp_path / name / "finetune") == content(saved)


def test_files_are_not_too_large(saved: Path, rows: pa.Table) -> None:
    files = sorted((saved / "test").glob("*.arrow"))
    assert [f.name for f in files] == [
        f"data-{i:05d}-of-{len(files):05d}.arrow" for i in range(len(files))
    ]
    assert len(files) > 2 and max(f.stat().st_size for f in files) < 410_000
    assert sum(f.stat().st_size for f in files) < 1.02 * rows.nbytes


def test_they_are_loaded_and_streamed(saved: Path, rows: pa.Table) -> None:
    loaded = datasets.load_from_disk(str(saved))["test"]
    assert loaded.data.table.combine_chunks().equals(rows.combine_chunks())
    expected = rows.to_pylist()
    assert list(loaded.to_iterable_dataset()) == expected
    files = sorted(str(f) for f in (saved / "test").glob("*.arrow"))
    streamed = datasets.load_dataset(
        "arrow", data_files=files, streaming=True, split="train", cache_dir=str(saved.parent / "c")
    )
    assert list(streamed) == expected
    assert streamed.features == loaded.features == datasets.Features.from_arrow_schema(rows.schema)


def test_fingerprints_are_of_inputs_settings_and_split(
    saved: Path, rows: pa.Table, tmp_path: Path
) -> None:
    found = set()
    for name, split, mark in (
        *(("finetune", "test", "abc"), ("finetune", "test", "abd")),
        *(("finetune", "finetune", "abc"), ("pretrain", "test", "abc")),
    ):
        file = stream(tmp_path / f"{len(found)}.arrow", rows, 1000)
        folder = tmp_path / str(len(found)) / name
        folder.parent.mkdir()
        save_dataset(folder, {split: [file]}, mark)
        found.add(datasets.load_from_disk(str(folder))[split]._fingerprint)
        about = json.loads((folder / split / "dataset_info.json").read_text())
        assert mark in about["description"]
    assert len(found) == 4
    assert datasets.load_from_disk(str(saved))["test"]._fingerprint in found


def test_lengths_are_read_without_tokens_and_plan_the_packing(saved: Path) -> None:
    loaded = datasets.load_from_disk(str(saved))["test"]
    lengths = loaded.data["length"].to_numpy()
    assert lengths.tolist() == [len(row) for row in loaded["input_ids"]]
    packed = best_fit(lengths.tolist(), 64)
    assert sorted(i for row in packed for i in row) == list(range(len(loaded)))
    assert lengths.sum() / (64 * len(packed)) > 0.99
