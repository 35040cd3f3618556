"""FHIR or MEDS to an events folder."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
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
from ehrmamba_hf.events.fhir import Advance, Begin, Reading, ingest_fhir
from ehrmamba_hf.events.meds import MedsRules, ingest_meds, is_meds
from ehrmamba_hf.events.page import events_page
from ehrmamba_hf.events.report import Outcome, Report
from ehrmamba_hf.events.schema import (
    CONTENTS,
    DATA_FOLDER,
    PAGE_FILE,
    PARTS_FOLDER,
    REJECTS_FILE,
    REPORT_FILE,
)
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.reading import Found, find_files, size_of
from ehrmamba_hf.fhir.times import Clock
from ehrmamba_hf.folders import resumable, told_of_storage
from ehrmamba_hf.processes import memory_bytes, worker_count

_POOL_BYTES: Final = 32 << 20
"""Below this, starting processes takes longer than reading."""
_WORKER_BYTES: Final = 400_000_000  # of memory, while a block is read: measured
_DATABASE_SHARE: Final = 0.6  # of the memory; the rest is for Python, Arrow and what is read
DEFAULT_MEMORY: Final = "4GB"


def ingest(
    source: Path,
    out: Path,
    *,
    timezone: str | None = None,
    book: Codebook | None = None,
    rules: MedsRules | None = None,
    workers: int | None = None,
    memory: str = DEFAULT_MEMORY,
    progress: bool = True,
) -> Report:
    """Read FHIR files or a MEDS dataset and write an events folder; return its report.

    What is written does not depend on the names or the order of files and lines, nor on `workers`
    or `memory`. A run that was killed goes on where it ended.

    Args:
        source: a folder (with subfolders) of FHIR R4, R4B or R5 as NDJSON, single resources or
            Bundles, also packed by gzip or zstd, or one such file; or a MEDS 0.4 dataset.
        out: appears whole at the end, or not at all; an events folder that is there is replaced.
        timezone: an IANA name, to turn times of FHIR written in UTC into the hospital's wall clock.
        book: what the site adds to the code systems, mapping tables and unit conversions of FHIR.
        rules: what the codes of a MEDS dataset mean; the packaged ones by default.
        workers: processes that work side by side; one per CPU by default, and no more than can
            share the memory. A script that reads more than a few megabytes so needs the usual
            `if __name__ == "__main__"`.
        memory: about what they may use in all.
        progress: show a bar on a terminal.

    Raises:
        InputError: nothing can be done: no FHIR files, no usable Patient, an `out` that is
            something else, an unknown timezone, an option that the source has no use for.
        OutputError: `out` cannot be written.
    """
    Clock(timezone)  # complains of an unknown name before the work, not after
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: expected a folder apart from the source, found one that holds it")
    total = memory_bytes(memory)
    share = int(total * _DATABASE_SHARE)
    workers = min(worker_count(workers), max(total // _WORKER_BYTES, 1))
    meds, found = _look_at(source, out)
    _expect_meant(source, meds, {"timezone": timezone, "book": book}, {"rules": rules})
    size = sum(map(size_of, found.files))
    with told_of_storage(out), resumable(out, marker=REPORT_FILE, contents=CONTENTS) as folder:
        if meds:
            _clear(folder, keep=frozenset({DATA_FOLDER, PARTS_FOLDER}))
            counted = ingest_meds(
                source,
                folder,
                workers=workers,
                memory=f"{share >> 20}MiB",
                progress=progress,
                rules=rules,
            )
            report = _meds_report(counted)
        else:
            reading = Reading(source, folder / PARTS_FOLDER, timezone, book or Codebook())
            workers = workers if size >= _POOL_BYTES else 1
            with _progress_bars(size, shown=progress) as begin:
                report = ingest_fhir(
                    found, reading, folder, workers=workers, memory=share, size=size, begin=begin
                )
            expect_something(report, folder / REJECTS_FILE, source)
        write_report(report, folder)
        _clear(folder, keep=CONTENTS)
    return report


def _look_at(source: Path, out: Path) -> tuple[bool, Found]:
    """Whether a source is a MEDS dataset; if not, its FHIR files."""
    try:
        meds = is_meds(source)
        return meds, Found([], {}) if meds else find_files(source, skip=out)
    except OSError as error:
        raise InputError(
            f"{source}: expected a source that can be read, found: {error.strerror}"
        ) from None


def _expect_meant(
    source: Path, meds: bool, of_fhir: dict[str, object], of_meds: dict[str, object]
) -> None:
    """No option is without effect in silence."""
    kind, others = ("a MEDS dataset", of_fhir) if meds else ("FHIR", of_meds)
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{source}: expected no {name} for {kind}, which it has no effect on")


def write_report(report: Report, folder: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (folder / REPORT_FILE).write_bytes(text + b"\n")
    with (folder / REJECTS_FILE).open(encoding="utf-8") as lines:
        page = events_page(msgspec.to_builtins(report), map(json.loads, lines))
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")


def _clear(folder: Path, keep: frozenset[str]) -> None:
    """Remove what is no part of the result, or what another run left."""
    for other in {path.name for path in folder.iterdir()} - keep:
        path = folder / other
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _meds_report(counted: dict[str, Any]) -> Report:
    """The report of a MEDS dataset: its rows are told like the resources of FHIR."""
    rows = counted["rows"]
    used = rows["event"] + rows["subject_fact"] + rows["encounter_boundary"]
    outcome = Outcome(rows["read"], used, rows["not_used"], rows["rejected"])
    notes = {f"{fact}: several that differ": n for fact, n in counted["conflicting_facts"].items()}
    if endless := counted["encounters_without_end"]:
        notes["encounters without an end"] = endless
    return Report(
        source="MEDS",
        timezone=None,
        files=counted["files"],
        lines=rows["read"],
        blank_lines=0,
        bundles=0,
        resources={"MEDS": outcome},
        total=outcome,
        subjects=counted["subjects"],
        encounters=counted["encounters"],
        events=counted["events"],
        events_by_year={},
        date_range=counted["date_range"],
        systems={},
        unknown_code_systems=counted["unknown_codes"],
        text_only_codes=0,
        notes=notes,
        observations_without_category=0,
        unresolved_references=counted["unresolved_references"],
        warnings=counted["warnings"],
    )


@contextmanager
def _progress_bars(size: int, *, shown: bool) -> Iterator[Begin]:
    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:

        def begin(stage: str) -> Advance:
            task = bar.add_task(stage, total=size)
            bar.advance(task, 0)  # the rate counts from the first that it is told
            return partial(bar.advance, task)

        yield begin


def expect_something(report: Report, rejects: Path, source: Path) -> None:
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
