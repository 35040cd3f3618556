"""FHIR files to an events folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import duckdb
import meds
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ehrmamba_hf.errors import InputError, OutputError
from ehrmamba_hf.events.assemble import (
    Parts,
    Shard,
    iter_rejects,
    shards_of,
    write_kept,
    write_shard,
    write_tables,
)
from ehrmamba_hf.events.parts import Tally, write_parts
from ehrmamba_hf.events.report import Report, Summary, outcomes_of, warnings_of
from ehrmamba_hf.events.schema import (
    CONTENTS,
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    REJECTS_FILE,
    REPORT_FILE,
    SUBJECTS_FILE,
)
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.reading import Block, blocks_of, content_key, find_files
from ehrmamba_hf.fhir.times import Clock
from ehrmamba_hf.folders import finish_part, finished_part, resumable
from ehrmamba_hf.processes import memory_bytes, results, worker_count

_POOL_BYTES: Final = 32 << 20
"""Below this, starting processes takes longer than reading."""
_FORMAT: Final = "1"
"""Of the parts: another one where a new version of the code gives others for the same input."""
_DATABASE_SHARE: Final = 0.6  # of the memory; the rest is for Python, Arrow and what is read
DEFAULT_MEMORY: Final = "4GB"

Advance = Callable[[int], object]


class Reading(msgspec.Struct, frozen=True):
    """What the parts of a block depend on besides its text."""

    source: Path
    parts: Path
    timezone: str | None
    book: Codebook

    def key(self, content: str) -> str:
        """The key of what was made from some content."""
        made_by = f"{_FORMAT} {version('ehrmamba-hf')} {self.timezone} {self.book.fingerprint()}"
        return xxhash.xxh3_128_hexdigest(f"{made_by} {content}".encode())


def ingest(
    source: Path,
    out: Path,
    *,
    timezone: str | None = None,
    book: Codebook | None = None,
    workers: int | None = None,
    memory: str = DEFAULT_MEMORY,
    progress: bool = True,
) -> Report:
    """Read FHIR R4, R4B or R5 files and write an events folder; return its report.

    `source` is a folder (with subfolders) of NDJSON, single resources or Bundles, also packed by
    gzip or zstd, or one such file. `out` appears whole at the end, or not at all; an events folder
    that is there is replaced. A run that was killed goes on where it ended. `timezone` (IANA name)
    turns times written in UTC into the hospital's wall clock. `book` holds what the site adds to
    the code systems, mapping tables and unit conversions. `workers` processes work side by
    side (default: one per CPU; a script that reads more than a few megabytes so needs the usual
    `if __name__ == "__main__"`), with about `memory` in all. `progress` shows a bar on a terminal.

    What is written does not depend on the names or the order of files and lines, nor on `workers`
    or `memory`. Raises InputError where nothing can be done: no FHIR files, no usable Patient, an
    `out` that is something else, an unknown timezone; OutputError where `out` cannot be written.
    """
    Clock(timezone)  # complains of an unknown name before the work, not after
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: expected a folder apart from the source, found one that holds it")
    files = find_files(source, skip=out)
    size = sum(file.stat().st_size for file in files)
    workers = worker_count(workers) if size >= _POOL_BYTES else 1
    share = int(memory_bytes(memory) * _DATABASE_SHARE)
    with _told_of_storage(out), resumable(out, marker=REPORT_FILE, contents=CONTENTS) as folder:
        reading = Reading(source, folder / "parts", timezone, book or Codebook())
        reading.parts.mkdir(exist_ok=True)
        with _progress_bar(size, shown=progress) as advance:
            parts, tally, key = _read_all(files, reading, workers, advance)
        summary = _assemble(parts, tally, key, folder, workers, share)
        report = _report(tally, summary, len(files), timezone)
        _write_rejects(parts, tally, folder / REJECTS_FILE)
        _expect_something(report, folder / REJECTS_FILE, source)
        _write_metadata(tally, summary, folder)
        text = msgspec.json.format(msgspec.json.encode(report), indent=2)
        (folder / REPORT_FILE).write_bytes(text + b"\n")
        for other in {path.name for path in folder.iterdir()} - CONTENTS:
            shutil.rmtree(folder / other)
    return report


@contextmanager
def _told_of_storage(out: Path) -> Iterator[None]:
    """A full disk and a read-only folder as an OutputError."""
    try:
        yield
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise OutputError(
            f"{out}: cannot be written: {reason or error}. What is finished is kept: run again "
            "once there is room"
        ) from error


def _read_all(
    files: list[Path], reading: Reading, workers: int, advance: Advance
) -> tuple[Parts, Tally, str]:
    """Every block's parts, what was counted in all, and a key of all that they were made from."""
    total, keys, numbers = Tally(), [], []
    for number, key, content, size in results(
        partial(_use_block, reading), blocks_of(files), workers
    ):
        total.add(Tally.from_dict(content))
        numbers.append(number)
        keys.append(f"{number} {key}")
        advance(size)
    return Parts(reading.parts, tuple(sorted(numbers))), total, reading.key(str(sorted(keys)))


def _use_block(reading: Reading, block: Block) -> tuple[int, str, Any, int]:
    """The parts of a block, unless a run before this one has finished them."""
    names = [span.file.relative_to(reading.source).as_posix() for span in block.spans]
    key = reading.key(f"{names} {content_key(block)}")
    done = reading.parts / f"block-{block.number:09d}.json"
    content = finished_part(done, key)
    if content is None:
        tally = write_parts(block, reading.source, reading.parts, reading.timezone, reading.book)
        content = tally.to_dict()
        finish_part(done, key, content)
    return block.number, key, content, block.size


def _assemble(
    parts: Parts, tally: Tally, key: str, folder: Path, workers: int, memory: int
) -> Summary:
    """Subjects, encounters and the sorted shards; what was counted over all of them."""
    done = parts.folder / "kept.json"
    kept = finished_part(done, key)
    if kept is None:
        kept = write_kept(parts, workers, memory)
        finish_part(done, key, kept)
    shards = shards_of(tally.events)
    workers = min(workers, len(shards))
    summary = Summary(**kept)
    job = partial(_use_shard, parts, folder, key, memory // workers)
    for counted in results(job, shards, workers):
        summary.add(counted)
    written = {f"shard-{shard.number:05d}.parquet" for shard in shards}
    for file in (folder / DATA_FOLDER).iterdir():
        if file.name not in written:  # of a run before this one, on other input
            file.unlink()
    tables = {
        "kept_subjects": folder / SUBJECTS_FILE,
        "kept_encounters": folder / ENCOUNTERS_FILE,
    }
    summary.outcomes += write_tables(parts, len(shards), tables, workers, memory)
    return summary


def _use_shard(parts: Parts, folder: Path, key: str, memory: int, shard: Shard) -> Any:
    done = parts.folder / f"shard-{shard.number:05d}.json"
    content = finished_part(done, key)
    if content is None:
        content = write_shard(parts, shard, folder, memory)
        finish_part(done, key, content)
    return content


@contextmanager
def _progress_bar(size: int, *, shown: bool) -> Iterator[Advance]:
    console = Console(stderr=True)
    columns = (
        *(TextColumn("ingest"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("reading", total=size)
        yield lambda read: bar.advance(task, read)


def _report(tally: Tally, summary: Summary, files: int, timezone: str | None) -> Report:
    resources, total = outcomes_of(tally, summary.outcomes)
    return Report(
        timezone=timezone,
        files=files,
        lines=tally.lines,
        blank_lines=tally.blank_lines,
        bundles=tally.bundles,
        resources=resources,
        total=total,
        subjects=summary.subjects,
        encounters=summary.encounters,
        events=dict(sorted(summary.events.items())),
        events_by_year=dict(sorted(summary.years.items())),
        date_range=summary.date_range,
        unknown_code_systems=dict(sorted(tally.unknown_systems.items())),
        systems=dict(sorted(summary.systems.items())),
        text_only_codes=tally.text_only,
        notes=dict(sorted(tally.notes.items())),
        observations_without_category=tally.observations_without_category,
        unresolved_references=summary.unresolved,
        warnings=warnings_of(tally, timezone),
    )


def _write_rejects(parts: Parts, tally: Tally, file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(reject) + "\n" for reject in iter_rejects(parts, tally.spans))


def _expect_something(report: Report, rejects: Path, source: Path) -> None:
    if report.subjects:
        return
    found = f"{report.total.read} records, {report.total.rejected} of them rejected"
    with rejects.open(encoding="utf-8") as lines:
        first = next(lines, None)
    if first is not None:
        r = json.loads(first)
        where = f"{r['file']} line {r['line']}{r['field'] and ', ' + r['field']}"
        found += f"; the first at {where}: expected {r['expected']}, found {r['found']}"
    raise InputError(f"{source}: expected FHIR with at least one Patient, found {found}")


def _write_metadata(tally: Tally, summary: Summary, folder: Path) -> None:
    """dataset.json and codes.parquet of MEDS 0.4; without a date, so that equal data are equal."""
    about = {
        "dataset_name": "FHIR",
        "etl_name": "ehrmamba-hf",
        "etl_version": version("ehrmamba-hf"),
        "meds_version": meds.__version__,
        "raw_source_id_columns": ["encounter_id", "source_id"],
        "code_modifier_columns": ["unit"],
        "other_extension_columns": [
            *("end_time", "available_time", "category", "codings", "resource_type")
        ],
    }
    meds.DatasetMetadataSchema.validate(about)
    dataset = folder / meds.dataset_metadata_filepath
    dataset.parent.mkdir(exist_ok=True)
    dataset.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    best: dict[str, tuple[int, str]] = {}
    for text, count in tally.displays.items():
        code, display = text.split("\n", 1)
        # Of equally frequent ones, the first in the alphabet.
        if code not in best or (-count, display) < (-best[code][0], best[code][1]):
            best[code] = count, display
    codes = sorted(summary.codes)
    described = pa.table(
        {
            "code": pa.array(codes, pa.string()),
            "description": pa.array([best.get(c, (0, None))[1] for c in codes], pa.string()),
            "parent_codes": pa.array([[] for _ in codes], pa.list_(pa.string())),
        }
    )
    pq.write_table(meds.CodeMetadataSchema.align(described), folder / meds.code_metadata_filepath)
