"""Events to training data: splits, tokenizer, labels and Arrow sequences, a part at a time."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrmamba_hf.corpus.event_ids import TokenTable
from ehrmamba_hf.corpus.identity import identity_of
from ehrmamba_hf.corpus.labels import ROWS_A_GROUP, write_labels
from ehrmamba_hf.corpus.page import data_page
from ehrmamba_hf.corpus.partition import Plan
from ehrmamba_hf.corpus.parts import (
    FORMAT,
    Place,
    Share,
    Written,
    file_hash,
    key_of,
    survey,
    tokens_of,
    values_of,
    write_part,
)
from ehrmamba_hf.corpus.settings import PrepareSettings
from ehrmamba_hf.corpus.storage import DATASETS, save_dataset
from ehrmamba_hf.corpus.tally import Tally, summary
from ehrmamba_hf.errors import InputError, SchemaError
from ehrmamba_hf.events.schema import ENCOUNTERS_FILE, METADATA_FOLDER, SUBJECTS_FILE
from ehrmamba_hf.events.schema import REPORT_FILE as EVENTS_REPORT_FILE
from ehrmamba_hf.events.table import data_files, read_encounters, read_subjects
from ehrmamba_hf.folders import resumable, told_of_storage
from ehrmamba_hf.processes import Run, crew, memory_bytes, worker_count
from ehrmamba_hf.tasks import Task
from ehrmamba_hf.timelines import SPLITS
from ehrmamba_hf.timelines.shards import ROWS_A_BATCH
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.counting import merge_counts
from ehrmamba_hf.tokenization.fitting import build_tokenizer, fit_bins, names_of

LABELS_FILE = "labels.parquet"
REPORT_FILE = "prepare.json"
PAGE_FILE = "report.html"
TOKENIZER_FOLDER = "tokenizer"
CONTENTS = frozenset({LABELS_FILE, REPORT_FILE, PAGE_FILE, TOKENIZER_FOLDER, *DATASETS})
POOL_ROWS = 1_000_000
"""Under so many events a pool of processes takes longer to start than it saves."""
BYTES_A_ROW = 8192  # of memory, while a batch is worked on: measured, and twice that
IDS_A_PART = 50_000  # patients without events


def prepare(
    events: Path,
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    tokenizer: EHRMambaTokenizer | None = None,
    workers: int | None = None,
    memory: str = "4GB",
    progress: bool = True,
) -> Path:
    """Write splits, labels, tokenizer and Arrow sequences of an events folder.

    `out` gets `labels.parquet` (LABEL_SCHEMA), `pretrain/` (a data set of whole records, a row a
    patient), `finetune/` (a data set of records as they stood at an index time, a row a patient
    and index time), `tokenizer/`, `prepare.json` (counts, exclusions, unknown rates, settings, and
    the fingerprint of the inputs and settings) and `report.html`, the page of them. Equal inputs
    and settings give equal bytes.

    A run that was killed is gone on with by the next of the same inputs and settings.

    Args:
        events: an events folder.
        out: the folder to be; written under a temporary name and renamed.
        settings: see `PrepareSettings`.
        tokenizer: a fitted tokenizer to use as it is, for data that a model has never seen.
        workers: processes, each at a shard at a time; one per CPU by default, and one for small
            data.
        memory: about what all of them may use, such as "4GB".
        progress: show a progress bar.

    Raises:
        InputError: no usable patients, or settings that do not fit the data or the tokenizer.
        SchemaError: `events` is not an events folder.
        OutputError: the disk is full, or `out` cannot be written to.
    """
    settings = settings or PrepareSettings()
    _tasks(settings, tokenizer)  # what is wrong there takes nothing away of a killed run
    events, out = Path(events), Path(out)
    shards = data_files(events)
    count = _processes(shards, workers)
    limit = memory_bytes(memory)
    with (
        told_of_storage(out),
        resumable(out, marker=REPORT_FILE, contents=CONTENTS) as folder,
        crew(count) as run,
    ):
        write_corpus(
            folder,
            events,
            shards,
            run,
            settings,
            tokenizer,
            memory=limit,
            memory_of_worker=limit // count,
            progress=progress,
        )
    return out


def write_corpus(
    folder: Path,
    events: Path,
    shards: Sequence[Path],
    run: Run,
    settings: PrepareSettings,
    tokenizer: EHRMambaTokenizer | None,
    *,
    memory: int,
    memory_of_worker: int,
    progress: bool,
) -> None:
    """Write a data folder by whatever runs the functions on its parts.

    Args:
        folder: to write into; its parts folder holds what a killed run finished.
        events: an events folder.
        shards: its data files, as the functions on parts are given them.
        run: see `ehrmamba_hf.processes.crew`.
        settings, tokenizer, progress: as of `prepare`.
        memory: bytes that this process may use.
        memory_of_worker: bytes that each of the others may use.
    """
    tasks = _tasks(settings, tokenizer)
    subjects, encounters = read_subjects(events), read_encounters(events)
    if not subjects.num_rows:
        raise InputError(f"{events}: expected patients, found none")
    rows = min(max(memory_of_worker // BYTES_A_ROW, ROWS_A_BATCH // 16), ROWS_A_BATCH)
    parts = _cleared(folder)
    key = _key(events, settings, tasks, tokenizer)
    place = Place(events, parts, settings, tokenizer is None, rows, key)
    bar = tqdm(desc="prepare", unit=" parts", leave=False, disable=not progress)
    shares = list(_watched(run(survey, shards, place), bar))
    end = _follow_up_end(encounters, subjects, shares, settings)
    del encounters
    if tokenizer is None:
        tokenizer = _fit(run, shares, place, tasks, memory, bar)
    plan = Plan(TokenTable.of(tokenizer), tasks, settings, end)
    plan_key = key_of(_content(tokenizer), end)
    shares += _without_events(shares, subjects, events)
    written = list(_watched(run(write_part, shares, place, plan, plan_key), bar))
    bar.close()
    fingerprint = key_of(key, plan_key, sorted(share.key for share in shares))
    _put_together(folder, written, fingerprint, memory)
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    report = _about(plan, fitted=place.fit) | {"fingerprint": fingerprint}
    report |= summary(Tally.sum_of(part.tally for part in written), [t.name for t in tasks])
    write_report(folder, report, events)
    shutil.rmtree(parts)


def write_report(folder: Path, report: dict[str, Any], events: Path) -> None:
    """prepare.json, and the page of it and of the ingestion before it."""
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
    ingested = events / EVENTS_REPORT_FILE
    about = json.loads(ingested.read_text(encoding="utf-8")) if ingested.is_file() else None
    (folder / PAGE_FILE).write_text(data_page(report, about), encoding="utf-8")


def _tasks(settings: PrepareSettings, tokenizer: EHRMambaTokenizer | None) -> tuple[Task, ...]:
    """The tasks of settings that fit the tokenizer; see `PrepareSettings`."""
    if tokenizer is not None:
        settings.expect_fit(tokenizer)
    return tuple(settings.tasks())


def _processes(shards: Sequence[Path], workers: int | None) -> int:
    if sum(pq.read_metadata(shard).num_rows for shard in shards) < POOL_ROWS:
        return 1
    return min(worker_count(workers), len(shards))


def _cleared(folder: Path) -> Path:
    """The folder of parts; what a killed run had begun to put together of them is removed."""
    parts = folder / "parts"
    for path in folder.iterdir():
        if path != parts:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts.mkdir(exist_ok=True)
    return parts


def _key(
    events: Path,
    settings: PrepareSettings,
    tasks: Sequence[Task],
    tokenizer: EHRMambaTokenizer | None,
) -> str:
    """A hash of what all parts are made from beside the events."""
    files = (SUBJECTS_FILE, ENCOUNTERS_FILE, f"{METADATA_FOLDER}/codes.parquet")
    more = file_hash(Path(settings.more_codes)) if settings.more_codes else None
    kinds = [identity_of(task) for task in tasks]
    given = tokenizer and _content(tokenizer)
    hashes = [file_hash(events / file) for file in files]
    return key_of(FORMAT, hashes, settings.plain(), more, kinds, given)


def _content(tokenizer: EHRMambaTokenizer) -> list[Any]:
    """All of a tokenizer that counts here."""
    t = tokenizer
    return [t.vocab, t.types, t.bins, t.names, t.task_tokens, t.categories, t.model_max_length]


def _watched(results: Iterator[Any], bar: tqdm) -> Iterator[Any]:
    for result in results:
        bar.update()
        yield result


def _fit(
    run: Run,
    shares: Sequence[Share],
    place: Place,
    tasks: Sequence[Task],
    memory: int,
    bar: tqdm,
) -> EHRMambaTokenizer:
    """The tokenizer of the pretraining patients of a survey."""
    settings = place.settings
    values = [values_of(place, share.key) for share in shares]
    limit = f"{memory}B"
    bins = fit_bins(values, min_patients=settings.min_patients, memory=limit, spill=place.parts)
    tokens = list(_watched(run(tokens_of, shares, place, bins), bar))
    of_events = [("measure", "=", "events")]
    counts = [pq.read_table(file, filters=of_events) for file in values]
    return build_tokenizer(
        merge_counts([*counts, *map(pq.read_table, tokens)]),
        bins,
        names_of(place.events),
        categories=settings.categories,
        task_tokens={task.name: task.token for task in tasks},
        min_patients=settings.min_patients,
        context_length=settings.context_length,
    )


def _without_events(shares: Sequence[Share], subjects: pa.Table, events: Path) -> list[Share]:
    """The patients of no shard, as shares of their own."""
    seen = np.concatenate([share.ids for share in shares])
    if len(np.unique(seen)) < len(seen):
        raise SchemaError(f"{events}: expected each patient in one shard, found some in several")
    others = np.setdiff1d(subjects["subject_id"].to_numpy(), seen)
    groups = [others[i : i + IDS_A_PART] for i in range(0, len(others), IDS_A_PART)]
    return [Share(key_of("without events", ids.tolist()), ids) for ids in groups]


def _follow_up_end(
    encounters: pa.Table, subjects: pa.Table, shares: Sequence[Share], settings: PrepareSettings
) -> int | None:
    """The last moment that the source tells of, in microseconds; None where it is complete."""
    setting = settings.follow_up_end
    if setting == "complete" or (
        setting == "auto" and pc.any(pc.equal(encounters["source"], "mimic")).as_py()
    ):
        return None
    if setting != "auto":
        return pa.scalar(settings.follow_up_moment, type=pa.timestamp("us")).value
    times = [encounters["start"], encounters["end"], subjects["death"]]
    moments = [pc.max(column.cast(pa.int64())).as_py() for column in times]
    moments += [share.latest for share in shares]
    return max((moment for moment in moments if moment is not None), default=None)


def _put_together(folder: Path, parts: Sequence[Written], fingerprint: str, memory: int) -> None:
    """The data sets and the label table of all parts."""
    for dataset in DATASETS:
        files = {
            split: [p.sequences[dataset][split] for p in parts if split in p.sequences[dataset]]
            for split in SPLITS
        }
        save_dataset(folder / dataset, {s: f for s, f in files.items() if f}, fingerprint)
    limits = {"memory_limit": f"{memory}B", "temp_directory": str(folder / "parts")}
    with duckdb.connect(config={"threads": 1, **limits}) as db:
        db.execute("set enable_progress_bar = false")
        labels = db.read_parquet([str(part.labels) for part in parts])
        order = "task, subject_id, prediction_time, split, boolean_value"
        write_labels(folder / LABELS_FILE, labels.order(order).to_arrow_reader(ROWS_A_GROUP))


def _about(plan: Plan, *, fitted: bool) -> dict[str, Any]:
    """What prepare.json says beside the counts; of the settings, those that held."""
    end, settings = plan.follow_up_end, plan.settings.plain()
    settings |= {
        "categories": list(plan.tokens.categories),
        "context_length": plan.tokens.context_length,
    }
    if not fitted:
        del settings["min_patients"]
    return {
        "tokenizer": "fitted" if fitted else "given",
        "vocabulary": len(plan.tokens.vocab),
        "binned_codes": len(plan.tokens.bins),
        "context_length": plan.tokens.context_length,
        "follow_up_end": "complete" if end is None else str(pa.scalar(end, pa.timestamp("us"))),
        **({"min_patients": settings["min_patients"]} if fitted else {}),
        "settings": settings,
    }
