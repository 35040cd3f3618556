"""FHIR files to an events folder."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import meds
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.assemble import Assembly
from ehrmamba_hf.events.parts import Tally, Worker
from ehrmamba_hf.events.report import Report, outcomes_of, warnings_of
from ehrmamba_hf.events.schema import CONTENTS, REJECTS_FILE, REPORT_FILE
from ehrmamba_hf.fhir.reading import find_files
from ehrmamba_hf.fhir.times import Clock
from ehrmamba_hf.folders import staged

_POOL_BYTES: Final = 32 << 20
"""Below this, starting processes takes longer than reading."""
_TASKS_A_WORKER: Final = 4

Advance = Callable[[int], object]


def ingest(
    source: Path,
    out: Path,
    *,
    timezone: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read FHIR R4 (or R5) files and write an events folder; return its report.

    `source` is a folder (with subfolders) of NDJSON, single resources or Bundles, also gzipped, or
    one such file. `out` appears whole at the end, or not at all; an events folder that is there is
    replaced. `timezone` (IANA name) turns times written in UTC into the hospital's wall clock.
    `workers` processes read files side by side (default: one per CPU; a script that reads more
    than a few megabytes so needs the usual `if __name__ == "__main__"`). `progress` shows a bar on
    a terminal.

    What is written does not depend on the names or the order of files and lines, nor on `workers`.
    Raises InputError where nothing can be done: no FHIR files, no usable Patient, an `out` that is
    something else, an unknown timezone.
    """
    Clock(timezone)  # complains of an unknown name before the work, not after
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: expected a folder apart from the source, found one that holds it")
    files = find_files(source, skip=out)
    workers = workers or os.cpu_count() or 1
    with staged(out, marker=REPORT_FILE, contents=CONTENTS) as folder:
        parts = folder / "parts"
        parts.mkdir()
        with _progress_bar(files, shown=progress) as advance:
            tally = _read_all(files, source, parts, timezone, workers, advance)
        with Assembly(parts, workers) as assembly:
            assembly.write(folder)
            report = _report(assembly, tally, len(files), timezone)
            _write_rejects(assembly, folder / REJECTS_FILE)
            _expect_something(report, folder / REJECTS_FILE, source)
            _write_metadata(assembly, tally, folder)
        text = msgspec.json.format(msgspec.json.encode(report), indent=2)
        (folder / REPORT_FILE).write_bytes(text + b"\n")
        shutil.rmtree(parts)
    return report


def _read_all(
    files: list[Path],
    source: Path,
    parts: Path,
    timezone: str | None,
    workers: int,
    advance: Advance,
) -> Tally:
    sizes = {file: file.stat().st_size for file in files}
    if workers == 1 or sum(sizes.values()) < _POOL_BYTES:
        return _read_task(0, files, source, parts, timezone, advance)
    total = Tally()
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
    done = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _share, (done,)) as pool:
        waiting = {
            pool.submit(_read_task, number, task, source, parts, timezone, None)
            for number, task in enumerate(_tasks(sizes, workers * _TASKS_A_WORKER))
        }
        shown = 0
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2)
            for future in finished:
                total.add(future.result())
            advance(done.value - shown)
            shown = done.value
    return total


def _tasks(sizes: dict[Path, int], wanted: int) -> list[list[Path]]:
    """Files in about `wanted` groups of like size, the largest first."""
    share = sum(sizes.values()) / wanted
    tasks: list[list[Path]] = []
    room = 0.0
    for file in sorted(sizes, key=lambda file: -sizes[file]):
        if not tasks or room < sizes[file]:
            tasks.append([])
            room = share
        tasks[-1].append(file)
        room -= sizes[file]
    return tasks


_bytes_done: Any = None  # in a worker process: the counter that it shares with its parent


def _share(counter: object) -> None:
    global _bytes_done  # noqa: PLW0603 - a pool's processes have no other way to be given it
    _bytes_done = counter


def _count_bytes(read: int) -> None:
    with _bytes_done.get_lock():
        _bytes_done.value += read


def _read_task(
    number: int,
    files: list[Path],
    source: Path,
    parts: Path,
    timezone: str | None,
    advance: Advance | None,
) -> Tally:
    worker = Worker(source, parts, number, timezone, advance or _count_bytes)
    for file in files:
        worker.read_file(file)
    return worker.finish()


@contextmanager
def _progress_bar(files: list[Path], *, shown: bool) -> Iterator[Advance]:
    console = Console(stderr=True)
    columns = (
        *(TextColumn("ingest"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("reading", total=sum(file.stat().st_size for file in files))
        yield lambda read: bar.advance(task, read)


def _report(assembly: Assembly, tally: Tally, files: int, timezone: str | None) -> Report:
    resources, total = outcomes_of(tally, assembly.outcomes())
    return Report(
        timezone=timezone,
        files=files,
        lines=tally.lines,
        blank_lines=tally.blank_lines,
        bundles=tally.bundles,
        resources=resources,
        total=total,
        unknown_code_systems=dict(sorted(tally.unknown_systems.items())),
        text_only_codes=tally.text_only,
        observations_without_category=tally.observations_without_category,
        warnings=warnings_of(tally, timezone),
        **assembly.summary(),
    )


def _write_rejects(assembly: Assembly, file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for batch in assembly.rejects():
            lines.writelines(json.dumps(reject) + "\n" for reject in batch.to_pylist())


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


def _write_metadata(assembly: Assembly, tally: Tally, folder: Path) -> None:
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
    dataset.parent.mkdir()
    dataset.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    codes, displays = zip(*tally.displays, strict=True) if tally.displays else ((), ())
    seen = pa.table(
        {
            "code": pa.array(codes, pa.string()),
            "display": pa.array(displays, pa.string()),
            "count": pa.array(tally.displays.values(), pa.int64()),
        }
    )
    described = meds.CodeMetadataSchema.align(assembly.codes(seen))
    pq.write_table(described, folder / meds.code_metadata_filepath)
