"""The parts of a block on disk, whole or not there."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ehrmamba_hf.events.fhir.parts import (
    PART_SCHEMAS,
    SORTED_PARTS,
    BlockConverter,
    Tables,
    Tally,
    part_file,
)
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.identity import SUBJECT_BITS
from ehrmamba_hf.fhir.reading import Block
from ehrmamba_hf.folders import name_within
from ehrmamba_hf.processes import no_collector

_GROUP: Final = 1 << 15  # rows of a row group, at most on average
_LARGEST: Final = 31 << 20  # just under the most that glibc takes note of


def write_parts(
    block: Block, source: Path, folder: Path, timezone: str | None, book: Codebook
) -> tuple[Tally, str]:
    """Convert a block and write its tables; return what was counted, and the block's content key.

    They are whole once the caller says so.
    """
    # glibc keeps what is given back up to the largest size that it has seen given back; without
    # this it fetches new pages from the system for every chunk.
    bytearray(_LARGEST)
    with no_collector(), _PartWriter(folder, block.number) as writer:
        converter = BlockConverter(block.number, timezone, book, writer.write)
        digest = xxhash.xxh3_128()
        for span in block.spans:
            file = span.file
            name = name_within(file, source)
            converter.read(name, span, digest)
        writer.write(converter.tables())
    return converter.tally(), digest.hexdigest()


class _PartWriter:
    """Writes the tables of a block, which have their names once the last is written."""

    def __init__(self, folder: Path, number: int) -> None:
        self._files = {name: part_file(folder, name, number) for name in PART_SCHEMAS}

    def __enter__(self) -> "_PartWriter":
        # A worker of a run that was killed may for a moment be at the same block.
        self._temporary = {n: f.with_suffix(f".{os.getpid()}") for n, f in self._files.items()}
        self._writers = {
            name: pq.ParquetWriter(
                self._temporary[name],
                schema,
                compression="lz4",
                use_dictionary=[f.name for f in schema if pa.types.is_dictionary(f.type)],
                write_statistics=["subject_id"] if "subject_id" in schema.names else False,
            )
            for name, schema in PART_SCHEMAS.items()
        }
        return self

    def write(self, tables: Tables) -> None:
        for name, table in tables.items():
            for group in _groups(table) if name in SORTED_PARTS else [table]:
                if len(group):
                    self._writers[name].write_table(group)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, writer in self._writers.items():
            writer.close()
            if kind is None:
                self._temporary[name].replace(self._files[name])


def _groups(events: pa.Table) -> Iterator[pa.Table]:
    """Sorted events in row groups that end where shards do, so that few are read for nothing."""
    bits = 0
    while len(events) >> bits > _GROUP:
        bits += 1
    ends = [n << (SUBJECT_BITS - bits) for n in range(1, 1 << bits)]
    cuts = [0, *np.searchsorted(events["subject_id"].to_numpy(), ends).tolist(), len(events)]
    for start, stop in pairwise(cuts):
        yield events.slice(start, stop - start)
