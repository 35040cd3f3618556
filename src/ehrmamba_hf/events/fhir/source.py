"""FHIR to an events folder: blocks side by side, then shards, each kept when it is done.

A run that was killed goes on with what is missing: a block's parts and a shard are used again where
the hash of all that they were made from is the same.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from ehrmamba_hf.events.fhir.accounts import Summary, notes_of, report_of
from ehrmamba_hf.events.fhir.assemble import iter_rejects, keep, kept_files, write_tables
from ehrmamba_hf.events.fhir.database import Parts
from ehrmamba_hf.events.fhir.parts import PART_SCHEMAS, Tally, part_file
from ehrmamba_hf.events.fhir.shards import (
    Shard,
    shard_file,
    shard_files,
    shards_of,
    write_shard,
)
from ehrmamba_hf.events.fhir.versions import find_losers
from ehrmamba_hf.events.fhir.writing import write_parts
from ehrmamba_hf.events.metadata import write_metadata
from ehrmamba_hf.events.report import Report
from ehrmamba_hf.events.schema import DATA_FOLDER, ENCOUNTERS_FILE, REJECTS_FILE, SUBJECTS_FILE
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.reading import Block, Found, blocks_of, content_key
from ehrmamba_hf.folders import finish_part, finished_part, name_within
from ehrmamba_hf.processes import Run, crew

_FORMAT: Final = "4"
"""Of the parts: another one where a new version of the code gives others for the same input."""

Advance = Callable[[float], object]
"""Is told how many bytes more are done."""
Begin = Callable[[str], Advance]
"""Begins a stage of the work, by its name."""


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


def ingest_fhir(
    found: Found,
    reading: Reading,
    folder: Path,
    *,
    workers: int,
    memory: int,
    size: int,
    begin: Begin,
) -> Report:
    """Write the events folder of some FHIR files, but for its report.

    Args:
        found: what to read.
        reading: how.
        folder: to write into; its parts folder holds what a killed run finished.
        workers: processes.
        memory: bytes for DuckDB, in all.
        size: bytes of the files on disk.
        begin: is told of each stage, which goes over so many bytes.

    Raises:
        InputError: two patients' ids have one hash.
    """
    reading.parts.mkdir(exist_ok=True)
    with crew(workers) as run:
        parts, tally, key = _read_all(found.files, reading, run, begin("reading"))
        advance = begin("sorting")
        summary = Summary(**_keep(parts, key, workers, memory))
        shards = shards_of(tally.events)
        for counted in run(_use_shard, shards, parts, folder, key, memory // workers):
            summary.add(counted)
            advance(size / len(shards))
        summary.outcomes += _write_tables(parts, shards, folder, workers, memory)
    with (folder / REJECTS_FILE).open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(reject) + "\n" for reject in iter_rejects(parts, tally.spans))
    write_metadata(folder, {"dataset_name": "FHIR"}, notes_of(tally, summary))
    return report_of(tally, summary, found, reading.timezone, reading.book)


def _read_all(
    files: Sequence[Path], reading: Reading, run: Run, advance: Advance
) -> tuple[Parts, Tally, str]:
    """Every block's parts, what was counted in all, and a key of all that they were made from."""
    total, keys, numbers = Tally(), [], []
    for number, key, content, size in run(_use_block, blocks_of(files), reading):
        total.add(Tally.from_dict(content))
        numbers.append(number)
        keys.append(f"{number} {key}")
        advance(size)
    return Parts(reading.parts, tuple(sorted(numbers))), total, reading.key(str(sorted(keys)))


def _use_block(block: Block, reading: Reading) -> tuple[int, str, Any, int]:
    """The parts of a block, unless a run before this one has finished them."""
    names = [name_within(span.file, reading.source) for span in block.spans]
    done = reading.parts / f"block-{block.number:09d}.json"
    if done.exists():
        key = reading.key(f"{names} {content_key(block)}")
        content = finished_part(done, key)
        if content is not None:
            return block.number, key, content, block.size
    # How deep JSON may nest depends on the stack, which is as short in every new thread.
    with ThreadPoolExecutor(1) as thread:
        tally, found = thread.submit(
            write_parts, block, reading.source, reading.parts, reading.timezone, reading.book
        ).result()
    key = reading.key(f"{names} {found}")
    files = [part_file(reading.parts, name, block.number) for name in PART_SCHEMAS]
    finish_part(done, key, tally.to_dict(), files)
    return block.number, key, tally.to_dict(), block.size


def _keep(parts: Parts, key: str, workers: int, memory: int) -> dict[str, Any]:
    """Decide which records are used; how many patients and encounters there are."""
    done = parts.folder / "kept.json"
    kept = finished_part(done, key)
    if kept is None:
        find_losers(parts, workers, memory // 4)  # with more it uses more, and is no faster
        kept = keep(parts, workers, memory)
        finish_part(done, key, kept, kept_files(parts))
    return kept


def _write_tables(
    parts: Parts, shards: list[Shard], folder: Path, workers: int, memory: int
) -> list[Any]:
    """Subjects and encounters beside the shards; the outcomes of resources of no patient."""
    for other in {*(folder / DATA_FOLDER).iterdir()} - {shard_file(folder, s) for s in shards}:
        other.unlink()  # of a run before this one, on other input
    tables = {
        "kept_subjects": folder / SUBJECTS_FILE,
        "kept_encounters": folder / ENCOUNTERS_FILE,
    }
    return write_tables(parts, len(shards), tables, workers, memory)


def _use_shard(shard: Shard, parts: Parts, folder: Path, key: str, memory: int) -> Any:
    done = parts.folder / f"shard-{shard.number:05d}.json"
    content = finished_part(done, key)
    if content is None:
        content = write_shard(parts, shard, folder, memory)
        finish_part(done, key, content, shard_files(parts, shard, folder))
    return content
