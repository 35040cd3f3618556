"""FHIR files to an events folder on a Spark cluster: the steps of a run on one machine, far apart.

Lines become tables block by block, shards become files one by one, by the very functions of
`ehrmamba_hf.events`; Spark carries what they give from one to the other. The driver holds what is
small: what was counted, the patients' and encounters' tables, the rejects.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.fhir.accounts import Summary, notes_of, report_of
from ehrmamba_hf.events.fhir.assemble import iter_rejects, keep, write_tables
from ehrmamba_hf.events.fhir.parts import Tally
from ehrmamba_hf.events.fhir.shards import shards_of
from ehrmamba_hf.events.fhir.source import Reading
from ehrmamba_hf.events.ingestion import expect_something, write_report
from ehrmamba_hf.events.meds import is_meds
from ehrmamba_hf.events.metadata import write_metadata
from ehrmamba_hf.events.report import Report
from ehrmamba_hf.events.schema import (
    CONTENTS,
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    REJECTS_FILE,
    REPORT_FILE,
    SUBJECTS_FILE,
)
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.reading import BLOCK, Found, find_files
from ehrmamba_hf.fhir.times import Clock
from ehrmamba_hf.folders import told_of_storage
from ehrmamba_hf.processes import memory_bytes
from ehrmamba_hf.spark.blocks import TALLY, read_blocks
from ehrmamba_hf.spark.cells import kept_on_disk, write_parts
from ehrmamba_hf.spark.files import full_path, staged_output
from ehrmamba_hf.spark.session import spark_session
from ehrmamba_hf.spark.shards import COUNTS, FILE, of_nobody, write_shards
from ehrmamba_hf.spark.versions import with_lost

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

DEFAULT_MEMORY: Final = "2GB"
_SHARD_FILE: Final = "concat('shard-', lpad(shard, 5, '0'), '.parquet') AS name"
_BITS: Final = 32


def ingest(
    source: Path,
    out: str | Path,
    *,
    master: str,
    timezone: str | None = None,
    book: Codebook | None = None,
    memory: str = DEFAULT_MEMORY,
    progress: bool = True,
) -> Report:
    """Read FHIR files on a Spark cluster and write an events folder; return its report.

    Row for row, and count for count, what `ehrmamba_hf.events.ingest` writes from the same files.

    Args:
        source: a folder of FHIR files, or one file, that every worker can open under this path (of
            a file system that all share).
        out: a path or a URL that Spark can write to; it appears whole at the end, or not at all (as
            far as the file system renames folders at once). An events folder there is replaced. A
            run that is killed starts anew; what it left in `.NAME.partial-...` can be removed.
        master: a Spark master's URL; see `spark_session`.
        timezone: an IANA name, to turn times written in UTC into the hospital's wall clock.
        book: what the site adds to the code systems, mapping tables and unit conversions.
        memory: what the database of one task may use, in the Python process of the worker.
        progress: show Spark's bars on the terminal.

    Raises:
        InputError: nothing can be done: no FHIR files, no usable Patient, an `out` that is
            something else, an unknown timezone, no Spark, or workers that cannot read the source.
        EHRMambaError: the work failed on the cluster.
    """
    Clock(timezone)  # complains of an unknown name before the work, not after
    source, place, limit = Path(source).absolute(), full_path(out), memory_bytes(memory)
    if is_meds(source):
        raise InputError(f"{source}: expected FHIR files for Spark, found a MEDS dataset")
    if source.is_relative_to(place):
        raise InputError(f"{out}: expected a folder apart from the source, found one that holds it")
    found = find_files(source, skip=Path(place))
    with (
        told_of_storage(out),
        spark_session(master, progress=progress) as session,
        staged_output(session, place, marker=REPORT_FILE, contents=CONTENTS) as (system, folder),
        TemporaryDirectory() as scratch,
    ):
        reading = Reading(source, Path(scratch), timezone, book or Codebook())
        small = Path(scratch) / "out"
        small.mkdir()
        with kept_on_disk(read_blocks(session, found.files, reading, BLOCK)) as cells:
            tally = _read_tally(cells, small / REJECTS_FILE)
            shards = shards_of(tally.events)
            with (
                with_lost(session, cells, limit) as decided,
                kept_on_disk(write_shards(session, decided, shards, limit)) as written,
            ):
                data = written.where(f"name = '{FILE}'").selectExpr(_SHARD_FILE, "cell")
                system.write(data, f"{folder}/{DATA_FOLDER}", len(shards))
                others = written.where(f"name <> '{FILE}'")
                summary = _write_tables(others, of_nobody(decided, shards), small, limit)
        report = _write_reports(tally, summary, found, reading, small)
        system.upload(small, folder)
    return report


def _cells(frame: "DataFrame") -> Iterator[tuple[str, bytes]]:
    """Names and cells, brought to the driver a bit at a time."""
    for row in frame.select("name", "cell").coalesce(_BITS).toLocalIterator():
        yield row.name, bytes(row.cell)


def _counted(
    cells: Iterable[tuple[str, bytes]], name: str, add: Callable[[Any], None]
) -> Iterator[tuple[str, bytes]]:
    """The other cells; the counts that those of one name hold are added."""
    for found, cell in cells:
        if found == name:
            add(msgspec.json.decode(cell))
        else:
            yield found, cell


def _read_tally(cells: "DataFrame", rejects: Path) -> Tally:
    """What all blocks counted; their rejects are written."""
    tally = Tally()
    told = _cells(cells.where(f"name IN ('{TALLY}', 'rejects')"))
    with TemporaryDirectory() as scratch, rejects.open("w", encoding="utf-8") as lines:
        others = _counted(told, TALLY, lambda content: tally.add(Tally.from_dict(content)))
        parts = write_parts(others, Path(scratch))
        found = iter_rejects(parts, tally.spans)
        lines.writelines(json.dumps(reject) + "\n" for reject in found)
    return tally


def _write_tables(written: "DataFrame", nobody: "DataFrame", folder: Path, memory: int) -> Summary:
    """Subjects and encounters of all shards; what was counted over all of them."""
    counts: list[Any] = []
    with TemporaryDirectory() as scratch:
        parts = write_parts(
            chain(_counted(_cells(written), COUNTS, counts.append), _cells(nobody)), Path(scratch)
        )
        summary = Summary(**keep(parts, 1, memory))
        for counted in counts:
            summary.add(counted)
        tables = {
            "kept_subjects": folder / SUBJECTS_FILE,
            "kept_encounters": folder / ENCOUNTERS_FILE,
        }
        summary.outcomes += write_tables(parts, 1, tables, 1, memory)
    return summary


def _write_reports(
    tally: Tally, summary: Summary, found: Found, reading: Reading, folder: Path
) -> Report:
    write_metadata(folder, {"dataset_name": "FHIR"}, notes_of(tally, summary))
    report = report_of(tally, summary, found, reading.timezone, reading.book)
    expect_something(report, folder / REJECTS_FILE, reading.source)
    write_report(report, folder)
    return report
