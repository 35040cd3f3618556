"""Files on any file system that Spark knows, by its own way of reaching them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ehrmamba_hf.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MAGIC: Final = b"PAR1"
"""What a Parquet file ends with."""


class SparkFiles:
    """The folders and files of one file system: a path without a scheme is of the machine's own."""

    def __init__(self, session: "SparkSession", place: str) -> None:
        java: Any = session._jvm
        self._file = java.java.io.File
        self._copy = java.org.apache.hadoop.fs.FileUtil.copy
        self._new = java.org.apache.hadoop.fs.Path
        self._settings = session._jsparkSession.sessionState().newHadoopConf()
        self._system = self._new(place).getFileSystem(self._settings)

    def exists(self, place: str) -> bool:
        return bool(self._system.exists(self._new(place)))

    def names(self, folder: str) -> list[str]:
        """What a folder holds, sorted."""
        return sorted(s.getPath().getName() for s in self._system.listStatus(self._new(folder)))

    def is_folder(self, place: str) -> bool:
        return bool(self._system.getFileStatus(self._new(place)).isDirectory())

    def make_folder(self, folder: str) -> None:
        self._system.mkdirs(self._new(folder))

    def remove(self, place: str) -> None:
        """Remove a file, or a folder with all that it holds; it may be gone already."""
        self._system.delete(self._new(place), True)

    def move(self, place: str, to: str) -> None:
        """Rename a file or a folder. Raises InputError where the file system refuses."""
        if not self._system.rename(self._new(place), self._new(to)):
            raise InputError(f"{to}: expected a place to write to, found one that cannot be")

    def upload(self, folder: Path, to: str) -> None:
        """Copy all that a folder of this machine holds into another."""
        for path in sorted(folder.iterdir()):
            place = self._new(f"{to}/{path.name}")
            self._copy(self._file(str(path)), self._system, place, False, self._settings)

    def download(self, place: str, file: Path) -> None:
        """Copy a file to this machine, making folders."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._copy(self._system, self._new(place), self._file(str(file)), False, self._settings)

    def write(self, files: "DataFrame", folder: str, amount: int) -> None:
        """Write Parquet files from the workers, each where it is.

        Spark can write rows as Parquet, but not with the Arrow types that MEDS asks for, and it has
        no way to write a file's bytes. Its text writer does write a value's bytes as they are, and
        after each the line separator: so a file goes without its last four bytes, MAGIC, and these
        are the separator.

        Args:
            files: a row a file, `name` and `cell`, the file's bytes without MAGIC.
            folder: to be.
            amount: how many files.

        Raises:
            InputError: what the workers wrote is not there, as on a disk of their own.
        """
        staging = f"{folder}.text"
        lines = files.selectExpr("name", "CAST(cell AS string) AS value")
        lines.write.partitionBy("name").option("lineSep", MAGIC.decode()).text(staging)
        groups = [name for name in self.names(staging) if name.startswith("name=")]
        if len(groups) < amount:
            raise InputError(
                f"{folder}: expected a place that all workers share, found {len(groups)} of "
                f"{amount} files there"
            )
        self.make_folder(folder)
        for group in groups:
            (part,) = self.names(f"{staging}/{group}")
            self.move(f"{staging}/{group}/{part}", f"{folder}/{group.removeprefix('name=')}")
        self.remove(staging)


@contextmanager
def staged_output(
    session: "SparkSession", out: str, *, marker: str, contents: Collection[str]
) -> Iterator[tuple[SparkFiles, str]]:
    """The file system of `out` and a folder beside it, which takes its place at the end.

    Like `folders.staged`, on any file system of Spark's; runs side by side do not meet, as each has
    a folder of its own.

    Raises:
        InputError: `out` holds something else than an earlier result, with `marker`.
    """
    files = SparkFiles(session, out)
    _expect_replaceable(files, out, marker, contents)
    parent, _, name = out.rstrip("/").rpartition("/")
    run = session.sparkContext.applicationId
    temporary, old = (f"{parent}/.{name}.{word}-{run}" for word in ("partial", "old"))
    files.make_folder(temporary)
    try:
        yield files, temporary
    except BaseException:
        with suppress(Exception):  # where Spark is gone, what went wrong is the better news
            files.remove(temporary)
        raise
    if files.exists(out):
        files.move(out, old)
    files.move(temporary, out)
    files.remove(old)


def full_path(place: str | Path) -> str:
    """A path for Spark: a local one from the root on, a URL as it is.

    >>> full_path("s3a://bucket/events/"), full_path("/data/events")
    ('s3a://bucket/events', '/data/events')
    """
    text = str(place)
    return text.rstrip("/") if "://" in text else str(Path(text).absolute())


def _expect_replaceable(
    files: SparkFiles, out: str, marker: str, contents: Collection[str]
) -> None:
    if not files.exists(out):
        return
    if not files.is_folder(out):
        raise InputError(f"{out}: expected a folder to write, found a file")
    names = set(files.names(out))
    if names and (names - set(contents) or marker not in names):
        found = min(names - set(contents), default=f"no {marker}")
        raise InputError(
            f"{out}: expected a new or empty folder, or an earlier result to replace (with "
            f"{marker}), found {found}"
        )
