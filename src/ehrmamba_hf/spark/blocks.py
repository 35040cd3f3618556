"""Lines to cells on the workers: a task a block, nothing read twice."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.fhir.parts import BlockConverter, Tables
from ehrmamba_hf.events.fhir.source import Reading
from ehrmamba_hf.fhir.reading import Block, Span, blocks_of, packing_of, size_of
from ehrmamba_hf.folders import name_within
from ehrmamba_hf.spark.cells import CELL_SCHEMA, Batches, batches_of, pack, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TALLY: Final = "tally"
"""The name of the cell that holds what a block counted, as JSON; the others are tables'."""


def read_blocks(
    session: "SparkSession", files: Sequence[Path], reading: Reading, size: int
) -> "DataFrame":
    """The tables of every block, as cells (block, name, cell).

    Large plain files are read in ranges of `size` bytes side by side; a large packed one, which
    can only be read from its beginning, is one task. Every worker opens the files itself.
    """
    blocks = session.sparkContext.broadcast(_blocks(files, size))
    amount = len(blocks.value)
    # What is shuffled grows with the blocks: so do the tasks that share it.
    partitions = max(amount, 2 * session.sparkContext.defaultParallelism)
    session.conf.set("spark.sql.shuffle.partitions", str(partitions))

    def convert(batches: Batches) -> Batches:
        for row in rows_of(batches):
            block = blocks.value[row["id"]]
            # How deep JSON may nest depends on the stack, which is as short in every new thread.
            with ThreadPoolExecutor(1) as thread:
                cells = thread.submit(_cells, block, reading).result()
            yield from batches_of("block", ((block.number, name, cell) for name, cell in cells))

    jobs = session.range(0, amount, 1, amount)
    return jobs.mapInArrow(convert, CELL_SCHEMA.format(key="block"))


def _blocks(files: Sequence[Path], size: int) -> list[Block]:
    large = [file for file in files if size_of(file) >= size >> 4 and packing_of(file)]
    others = [file for file in files if file not in set(large)]
    blocks = [*blocks_of(others, size), *(Block(0, (Span(file),), 0) for file in large)]
    return [block._replace(number=number) for number, block in enumerate(blocks)]


def _cells(block: Block, reading: Reading) -> list[tuple[str, bytes]]:
    cells: list[tuple[str, bytes]] = []

    def take(tables: Tables) -> None:
        cells.extend((name, pack(table)) for name, table in tables.items() if len(table))

    converter = BlockConverter(block.number, reading.timezone, reading.book, take)
    for span in block.spans:
        file, source = span.file, reading.source
        _expect_shared(source)
        name = name_within(file, source)
        converter.read(name, span)
    take(converter.tables())
    cells.append((TALLY, msgspec.json.encode(converter.tally().to_dict())))
    return cells


def _expect_shared(source: Path) -> None:
    if not source.exists():
        raise InputError(
            f"{source}: expected a place that every worker can read (of a file system that all "
            "share), found none on one of them"
        )
