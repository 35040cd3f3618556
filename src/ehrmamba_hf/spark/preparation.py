"""Events to training data on a Spark cluster: the parts there, and what they add up to here."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from tqdm import tqdm

from ehrmamba_hf.corpus.event_ids import TokenTable
from ehrmamba_hf.corpus.partition import Plan
from ehrmamba_hf.corpus.parts import Place, key_of, survey, write_part
from ehrmamba_hf.corpus.prepare import (
    BYTES_A_ROW,
    CONTENTS,
    REPORT_FILE,
    TOKENIZER_FOLDER,
    _about,
    _cleared,
    _content,
    _fit,
    _follow_up_end,
    _key,
    _put_together,
    _watched,
    _without_events,
    write_report,
)
from ehrmamba_hf.corpus.settings import PrepareSettings
from ehrmamba_hf.corpus.tally import Tally, summary
from ehrmamba_hf.errors import InputError, SchemaError
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    METADATA_FOLDER,
    SUBJECTS_FILE,
)
from ehrmamba_hf.events.schema import (
    REPORT_FILE as EVENTS_REPORT,
)
from ehrmamba_hf.events.table import read_encounters, read_subjects
from ehrmamba_hf.folders import staged
from ehrmamba_hf.processes import memory_bytes
from ehrmamba_hf.spark.files import SparkFiles, full_path
from ehrmamba_hf.spark.ingestion import DEFAULT_MEMORY
from ehrmamba_hf.spark.session import spark_session
from ehrmamba_hf.spark.workers import SparkRun
from ehrmamba_hf.timelines.shards import ROWS_A_BATCH
from ehrmamba_hf.tokenization import EHRMambaTokenizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def prepare(
    events: str | Path,
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    master: str,
    tokenizer: EHRMambaTokenizer | None = None,
    memory: str = DEFAULT_MEMORY,
    progress: bool = True,
) -> Path:
    """Write splits, labels, tokenizer and Arrow sequences of an events folder, on a Spark cluster.

    Byte for byte what `ehrmamba_hf.corpus.prepare` writes. Every shard is a task, and only whole
    shards, of some million events each, travel to the workers; counts, labels and sequences come
    back to the driver, which puts them together on its own disk, where training reads them.

    Args:
        events: an events folder, at a path or a URL that Spark can read.
        out: the folder to be, on the driver's machine. A run that is killed starts anew.
        settings: see `PrepareSettings`.
        master: a Spark master's URL; see `spark_session`.
        tokenizer: a fitted tokenizer to use as it is, for data that a model has never seen.
        memory: about what one task may use, in the Python process of the worker.
        progress: show bars on the terminal.

    Raises:
        InputError: no usable patients, settings that do not fit, or no Spark.
        SchemaError: `events` is not an events folder.
        EHRMambaError: the work failed on the cluster.
    """
    settings, limit = settings or PrepareSettings(), memory_bytes(memory)
    with (
        staged(Path(out), marker=REPORT_FILE, contents=CONTENTS) as folder,
        TemporaryDirectory() as scratch,
        spark_session(master, progress=False) as session,
    ):
        local = Path(scratch) / "events"
        run, shards = _reach(session, full_path(events), local)
        write_corpus(folder, local, shards, run, settings, tokenizer, limit, progress=progress)
    return Path(out)


def _reach(session: "SparkSession", events: str, local: Path) -> tuple[SparkRun, list[Path]]:
    """What works on the shards of a folder, and what they are called; its tables come here."""
    files = SparkFiles(session, events)
    tables = {name: local / f"{uuid4().hex}-{name}" for name in (SUBJECTS_FILE, ENCOUNTERS_FILE)}
    codes = f"{METADATA_FOLDER}/codes.parquet"
    for name in (*tables, codes):
        if not files.exists(f"{events}/{name}"):
            raise SchemaError(f"{events}/{name}: expected a file of an events folder, found none")
        files.download(f"{events}/{name}", local / name)
    if files.exists(f"{events}/{EVENTS_REPORT}"):
        files.download(f"{events}/{EVENTS_REPORT}", local / EVENTS_REPORT)
    for name, file in tables.items():
        shutil.copyfile(local / name, file)
    session.conf.set("spark.sql.files.maxPartitionBytes", "1")  # a task a file
    contents = (
        session.read.format("binaryFile")
        .options(pathGlobFilter="*.parquet", recursiveFileLookup="true")
        .load(f"{events}/{DATA_FOLDER}")
        .select("path", "content")
    )
    paths = sorted(row.path for row in contents.select("path").collect())
    shards = {local / DATA_FOLDER / f"{number:06d}": path for number, path in enumerate(paths)}
    return SparkRun(session, contents, shards, tables), list(shards)


def write_corpus(
    folder: Path,
    events: Path,
    shards: Sequence[Path],
    run: SparkRun,
    settings: PrepareSettings,
    tokenizer: EHRMambaTokenizer | None,
    limit: int,
    *,
    progress: bool,
) -> None:
    tasks = tuple(settings.tasks())
    subjects, encounters = read_subjects(events), read_encounters(events)
    if not subjects.num_rows:
        raise InputError(f"{events}: expected patients, found none")
    rows = min(max(limit // BYTES_A_ROW, ROWS_A_BATCH // 16), ROWS_A_BATCH)
    parts = _cleared(folder)
    key = _key(events, settings, tasks, tokenizer)
    place = Place(events, parts, settings, tokenizer is None, rows, key)
    bar = tqdm(desc="prepare", unit=" parts", leave=False, disable=not progress)
    shares = list(_watched(run(survey, shards, place), bar))
    end = _follow_up_end(encounters, subjects, shares, settings.follow_up_end)
    del encounters
    if tokenizer is None:
        tokenizer = _fit(run, shares, place, tasks, limit, bar)
    plan = Plan(TokenTable.of(tokenizer), tasks, settings, end)
    plan_key = key_of(_content(tokenizer), end)
    shares += _without_events(shares, subjects, events)
    written = list(_watched(run(write_part, shares, place, plan, plan_key), bar))
    bar.close()
    fingerprint = key_of(key, plan_key, sorted(share.key for share in shares))
    _put_together(folder, written, fingerprint, limit)
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    report = _about(plan) | {"fingerprint": fingerprint}
    report |= summary(Tally.sum_of(part.tally for part in written), [t.name for t in tasks])
    write_report(folder, report, events)
    shutil.rmtree(parts)
