"""The parts of all blocks as one database, and what every stage does with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from ehrmamba_hf.events.fhir.parts import PART_SCHEMAS, part_file
from ehrmamba_hf.events.sql import quoted

KEPT_TABLES: Final = ("kept_subjects", "kept_encounters", "kept_medications")
"""The records that are used, beside the parts (see `ehrmamba_hf.events.fhir.assemble.keep`)."""


class Parts(NamedTuple):
    """What all blocks gave: the folder of the parts, and the blocks' numbers."""

    folder: Path
    numbers: tuple[int, ...]


@contextmanager
def open_parts(parts: Parts, threads: int, memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with a view of each of PART_SCHEMAS; `memory` in bytes, it spills beyond."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": f"{memory >> 20}MiB",
        "temp_directory": str(parts.folder / "spill"),
    }
    with duckdb.connect(config=config) as database:
        database.execute("SET enable_progress_bar = false")  # it writes to stdout
        for name in PART_SCHEMAS:
            files = [quoted(part_file(parts.folder, name, number)) for number in parts.numbers]
            database.execute(f"CREATE VIEW {name} AS FROM read_parquet([{', '.join(files)}])")
        yield database


def save(database: duckdb.DuckDBPyConnection, parts: Parts, table: str) -> None:
    """Write a table beside the parts."""
    file = parts.folder / f"{table}.parquet"
    database.execute(f"COPY {table} TO {quoted(file)} (FORMAT parquet)")


def count(database: duckdb.DuckDBPyConnection, what: str) -> int:
    """How many rows a FROM clause has."""
    return int(database.execute(f"SELECT count(*) {what}").fetchall()[0][0])
