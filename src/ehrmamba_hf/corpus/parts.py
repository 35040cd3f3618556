"""The parts of a run of `prepare`: each made from a shard, kept when finished, found again by key.

A part's files are named by its key, a hash of all that it is made from, so that what a killed run
left is used if and only if the same would be made again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ehrmamba_hf import __version__
from ehrmamba_hf.corpus.labels import LABEL_SCHEMA
from ehrmamba_hf.corpus.partition import Plan, pretraining_patients, sequences_of
from ehrmamba_hf.corpus.settings import PrepareSettings
from ehrmamba_hf.corpus.storage import DATASETS, SEQUENCE_SCHEMA
from ehrmamba_hf.corpus.tally import Tally
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, ENCOUNTERS_FILE, EVENT_SCHEMA
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.folders import finish_part, finished_part
from ehrmamba_hf.processes import no_collector
from ehrmamba_hf.timelines.load import RECORD_COLUMNS, rows_of
from ehrmamba_hf.timelines.shards import iter_shard
from ehrmamba_hf.tokenization.counting import (
    FITTED_COLUMNS,
    Bins,
    count_tokens,
    count_values,
    merge_counts,
)

FORMAT = f"{__version__}/2"
"""Changes with what is made of the same input."""


def key_of(*content: Any) -> str:
    """A hash of what JSON can hold, the same on every machine.

    >>> key_of({"a": {2, 1}}) == key_of({"a": {1, 2}}), key_of("a", "b") == key_of("ab")
    (True, False)
    """
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content, order="deterministic"))


def file_hash(file: Path) -> str:
    """A hash of a file's content; of nothing where there is none."""
    digest = xxhash.xxh3_128()
    if file.is_file():
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run works, and what holds for all of its parts.

    Attributes:
        events: the events folder.
        parts: where parts are written.
        settings: see `PrepareSettings`.
        fit: whether a tokenizer is to be fitted.
        rows: events that are read at once.
        key: a hash of what every part is made from beside its shard.
    """

    events: Path
    parts: Path
    settings: PrepareSettings
    fit: bool
    rows: int
    key: str


@dataclass(frozen=True, slots=True)
class Share:
    """The patients of a part: those of a shard, or some who have no events.

    Attributes:
        key: of the part that was written of them, or is to be.
        ids: the patients.
        shard: their events; None where they have none.
        latest: the time of their last event, in microseconds.
    """

    key: str
    ids: np.ndarray
    shard: Path | None = None
    latest: int | None = None


def survey(shard: Path, place: Place) -> Share:
    """Whose events a shard has, and, where a tokenizer is to be fitted, counts of their values.

    The counts are in the Parquet file `values_of` names.
    """
    key = key_of("survey", place.key, file_hash(shard))
    about = place.parts / f"{key}.json"
    file = place.parts / f"{key}.subjects.parquet"
    latest = finished_part(about, key)
    if latest is None:
        ids: list[pa.ChunkedArray] = [pa.chunked_array([], pa.int64())]
        times: list[int] = []
        values: list[pa.Table] = []
        columns = FITTED_COLUMNS if place.fit else ("time",)
        for batch in iter_shard(shard, columns, place.rows):
            ids.append(batch["subject_id"].unique())
            times += [t for t in [pc.max(batch["time"].cast(pa.int64())).as_py()] if t is not None]
            if place.fit:
                patients = _fitted_patients(place, ids[-1])
                values.append(count_values(batch, patients, place.settings.categories))
        with _whole(place.parts) as folder:
            people = pa.table({"subject_id": pa.chunked_array(ids, pa.int64())})
            pq.write_table(people, folder / file.name)
            pq.write_table(merge_counts(values), folder / values_of(place, key).name)
        latest = [max(times, default=None)]
        finish_part(about, key, latest, [file, values_of(place, key)])
    return Share(key, pq.read_table(file)["subject_id"].to_numpy(), shard, latest[0])


def values_of(place: Place, key: str) -> Path:
    """The counts of values of a survey."""
    return place.parts / f"{key}.values.parquet"


def tokens_of(share: Share, place: Place, bins: Bins) -> Path:
    """A Parquet file of how many patients of a surveyed shard have each token."""
    assert share.shard is not None
    key = key_of("tokens", share.key, bins)
    about, file = place.parts / f"{key}.json", place.parts / f"{key}.tokens.parquet"
    if finished_part(about, key) is None:
        tokens = []
        for batch in iter_shard(share.shard, FITTED_COLUMNS, place.rows):
            patients = _fitted_patients(place, batch["subject_id"].unique())
            tokens.append(count_tokens(batch, patients, place.settings.categories, bins))
        with _whole(place.parts) as folder:
            pq.write_table(merge_counts(tokens), folder / file.name)
        finish_part(about, key, {}, [file])
    return file


def _fitted_patients(place: Place, ids: pa.Array) -> pa.Table:
    subjects = rows_of(_subjects(place.events, place.key), ids)
    return pretraining_patients(subjects, place.settings.splits)


@lru_cache(maxsize=1)
def _subjects(events: Path, key: str) -> pa.Table:
    """The patients of an events folder; the key changes with its content."""
    return read_subjects(events)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of a share: Arrow streams by data set and split, labels, and counts."""

    sequences: dict[str, dict[str, Path]]
    labels: Path
    tally: list[list]


def write_part(share: Share, place: Place, plan: Plan, plan_key: str) -> Written:
    """Write the sequences and labels of some patients; see `sequences_of`."""
    key = key_of("corpus", place.key, share.key, plan_key)
    about, labels = place.parts / f"{key}.json", place.parts / f"{key}.labels.parquet"
    found = finished_part(about, key)
    if found is None:
        with _whole(place.parts) as folder:
            found = _write(share, place, plan, folder, key)
        streams = [
            place.parts / f"{key}.{name}.{split}.arrow" for name, split in found["sequences"]
        ]
        finish_part(about, key, found, [labels, *streams])
    sequences: dict[str, dict[str, Path]] = {name: {} for name in DATASETS}
    for dataset, split in found["sequences"]:
        sequences[dataset][split] = place.parts / f"{key}.{dataset}.{split}.arrow"
    return Written(sequences, labels, found["tally"])


def _write(share: Share, place: Place, plan: Plan, folder: Path, key: str) -> dict[str, Any]:
    """Write a share's sequences and labels to a folder; what there is, and the tally."""
    tally = Tally()
    streams: dict[tuple[str, str], pa.ipc.RecordBatchStreamWriter] = {}
    labels = pq.ParquetWriter(folder / f"{key}.labels.parquet", LABEL_SCHEMA)
    with labels, ExitStack() as stack, no_collector():
        for events, encounters, subjects in _batches(share, place):
            prepared = sequences_of(events, encounters, subjects, plan)
            tally.update(prepared.tally)
            labels.write_table(prepared.labels)
            for (dataset, split), rows in prepared.sequences.items():
                if (dataset, split) not in streams:
                    file = folder / f"{key}.{dataset}.{split}.arrow"
                    stream = stack.enter_context(pa.ipc.new_stream(str(file), SEQUENCE_SCHEMA))
                    streams[dataset, split] = stream
                streams[dataset, split].write_table(rows)
    return {"sequences": list(streams), "tally": tally.to_rows()}


@contextmanager
def _whole(parts: Path) -> Iterator[Path]:
    """A folder of this process to write files in, which are then moved among the parts.

    A process that outlives a killed parent by a moment so writes to no file of the next run's.
    """
    with TemporaryDirectory(dir=parts) as folder:
        yield Path(folder)
        for file in Path(folder).iterdir():
            file.replace(parts / file.name)


def _batches(share: Share, place: Place) -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
    """Events, encounters and subjects of a share, whole patients each."""
    if not len(share.ids):
        return
    encounters = _encounters(place.events, int(share.ids.min()), int(share.ids.max()))
    subjects = _subjects(place.events, place.key)
    if share.shard is None:
        ids = pa.array(share.ids)
        yield EVENT_SCHEMA.empty_table(), rows_of(encounters, ids), rows_of(subjects, ids)
        return
    for events in iter_shard(share.shard, RECORD_COLUMNS, place.rows):
        ids = events["subject_id"].unique()
        yield events, rows_of(encounters, ids), rows_of(subjects, ids)


def _encounters(events: Path, low: int, high: int) -> pa.Table:
    """The encounters of the patients from one id to another."""
    bounds = [("subject_id", ">=", low), ("subject_id", "<=", high)]
    table = pq.read_table(
        events / ENCOUNTERS_FILE, filters=bounds, partitioning=None, use_threads=False
    )
    return table.cast(ENCOUNTER_SCHEMA)
