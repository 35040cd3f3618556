"""Events to training data on a Spark cluster: the parts there, and what they add up to here."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from ehrmamba_hf.corpus.prepare import CONTENTS, REPORT_FILE, write_corpus
from ehrmamba_hf.corpus.settings import PrepareSettings
from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    METADATA_FOLDER,
    SUBJECTS_FILE,
)
from ehrmamba_hf.events.schema import REPORT_FILE as EVENTS_REPORT
from ehrmamba_hf.folders import staged, told_of_storage
from ehrmamba_hf.processes import memory_bytes
from ehrmamba_hf.spark.files import SparkFiles, full_path
from ehrmamba_hf.spark.ingestion import DEFAULT_MEMORY
from ehrmamba_hf.spark.session import spark_session
from ehrmamba_hf.spark.workers import SparkRun
from ehrmamba_hf.tokenization import EHRMambaTokenizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CODES_FILE = f"{METADATA_FOLDER}/codes.parquet"


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
        memory: about what one task may use, in the Python process of the worker, and the driver.
        progress: show bars on the terminal.

    Raises:
        InputError: no usable patients, settings that do not fit, or no Spark.
        SchemaError: `events` is not an events folder.
        EHRMambaError: the work failed on the cluster.
    """
    limit = memory_bytes(memory)
    with (
        told_of_storage(Path(out)),
        staged(Path(out), marker=REPORT_FILE, contents=CONTENTS) as folder,
        TemporaryDirectory() as scratch,
        spark_session(master, progress=False) as session,
    ):
        local = Path(scratch) / "events"
        run, shards = _reach(session, full_path(events), local)
        write_corpus(
            folder,
            local,
            shards,
            run,
            settings or PrepareSettings(),
            tokenizer,
            memory=limit,
            memory_of_worker=limit,
            progress=progress,
        )
    return Path(out)


def _reach(session: "SparkSession", events: str, local: Path) -> tuple[SparkRun, list[Path]]:
    """What works on the shards of a folder, and what they are called; its tables come here."""
    files = SparkFiles(session, events)
    tables = {name: local / f"{uuid4().hex}-{name}" for name in (SUBJECTS_FILE, ENCOUNTERS_FILE)}
    for name in (*tables, DATA_FOLDER):
        if not files.exists(f"{events}/{name}"):
            raise SchemaError(f"{events}: expected an events folder, found no {name}")
    for name in (*tables, CODES_FILE, EVENTS_REPORT):
        if files.exists(f"{events}/{name}"):
            files.download(f"{events}/{name}", local / name)
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
    if not paths:
        raise SchemaError(f"{events}: expected shards in {DATA_FOLDER}, found none")
    shards = {local / DATA_FOLDER / path.rpartition(f"/{DATA_FOLDER}/")[2]: path for path in paths}
    return SparkRun(session, contents, shards, tables), list(shards)
