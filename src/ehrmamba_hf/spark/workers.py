"""The parts of `prepare` made on a cluster, each as on one machine, in a folder that goes away.

What a task writes there is brought to the driver, in pieces, and lies where a run on one machine
would have written it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import dill

from ehrmamba_hf.corpus.parts import Place, Share, Written
from ehrmamba_hf.spark.cells import CELL_SCHEMA, Batches, batches_of, kept_on_disk, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PIECE: Final = 16 << 20  # bytes: a file may be longer than Spark's longest cell
_RESULT: Final = ""  # stands for a file's name where the cell is what a function gave

Job = Path | Share


class SparkRun:
    """What `ehrmamba_hf.processes.crew` gives, on a cluster.

    `run(function, jobs, place, *common)` gives what a function of `ehrmamba_hf.corpus.parts` gives
    for each job, in their order; its files are in `place.parts` by then.

    Args:
        session: of the run.
        contents: (path, content) of every shard, as Spark's reader of binary files has it.
        shards: the paths, by what the jobs call them.
        tables: files of the driver that belong in the events folder beside the shards, by their
            names there. Their own names are like no others', since Spark puts the files of all
            runs in one folder.
    """

    def __init__(
        self,
        session: "SparkSession",
        contents: "DataFrame",
        shards: dict[Path, str],
        tables: dict[str, Path],
    ) -> None:
        self._session, self._contents, self._shards = session, contents, shards
        self._tables = {name: file.name for name, file in tables.items()}
        for file in tables.values():
            session.sparkContext.addFile(str(file))

    def __call__(
        self, function: Callable[..., Any], jobs: Sequence[Job], place: Place, *common: Any
    ) -> Iterator[Any]:
        named = {self._name(job, i): (i, job) for i, job in enumerate(jobs)}
        # Tasks are functions, closures and a user's own among them, which pickle does not take.
        packed = dill.dumps((function, named, place, common, self._tables), recurse=True)
        others = [name for name in named if name not in self._shards.values()]
        rows = self._contents
        if others:
            more = self._session.createDataFrame([(n,) for n in others], "path string")
            rows = rows.union(more.selectExpr("path", "CAST(NULL AS binary)"))

        cells = rows.mapInArrow(
            lambda batches: _work(batches, packed), CELL_SCHEMA.format(key="job")
        )
        found: dict[int, Any] = {}
        begun: set[str] = set()
        with kept_on_disk(cells) as cells:
            for row in cells.toLocalIterator(prefetchPartitions=True):
                if row.name == _RESULT:
                    found[row.job] = _here(dill.loads(row.cell), jobs[row.job], place)
                    continue
                with (place.parts / row.name).open("ab" if row.name in begun else "wb") as file:
                    file.write(row.cell)
                begun.add(row.name)
        return (found[i] for i in range(len(jobs)))

    def _name(self, job: Job, number: int) -> str:
        shard = job if isinstance(job, Path) else job.shard
        return f"job {number}" if shard is None else self._shards[shard]


def _work(batches: Batches, packed: bytes) -> Batches:
    function, named, place, common, tables = dill.loads(packed)
    for row in rows_of(batches):
        number, job = named[row["path"]]
        cells = _cells(function, job, row["content"], place, common, tables)
        yield from batches_of("job", ((number, name, cell) for name, cell in cells))


def _cells(
    function: Callable[..., Any],
    job: Job,
    content: bytes | None,
    place: Place,
    common: Sequence[Any],
    tables: dict[str, str],
) -> Iterator[tuple[str, bytes]]:
    """A job's files, in pieces, and what the function gave, as cells."""
    from pyspark import SparkFiles

    with TemporaryDirectory() as name:
        here = replace(place, events=Path(name) / "events", parts=Path(name) / "parts")
        here.parts.mkdir()
        here.events.mkdir()
        for table, file in tables.items():
            (here.events / table).symlink_to(SparkFiles.get(file))
        shard = job if isinstance(job, Path) else job.shard
        if shard is not None and content is not None:
            shard = here.events / shard.relative_to(place.events)
            shard.parent.mkdir(parents=True)
            shard.write_bytes(content)
            job = shard if isinstance(job, Path) else replace(job, shard=shard)
        result = function(job, here, *common)
        # What says that a part is whole comes last, here as on one machine.
        for path in sorted(here.parts.iterdir(), key=lambda path: path.suffix == ".json"):
            with path.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    yield path.name, piece
        yield _RESULT, dill.dumps(result)


def _here(result: Any, job: Job, place: Place) -> Any:
    """What a function gave on a worker, with the paths of the driver."""
    if isinstance(result, Share):
        assert isinstance(job, Path)
        return replace(result, shard=job)
    if isinstance(result, Written):
        sequences = {
            name: {split: place.parts / file.name for split, file in files.items()}
            for name, files in result.sequences.items()
        }
        return replace(result, sequences=sequences, labels=place.parts / result.labels.name)
    return place.parts / result.name
