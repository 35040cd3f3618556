"""What is in a folder; outputs that appear whole or not at all, and runs that continue."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb

from ehrmamba_hf.errors import InputError, OutputError, SchemaError

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def files_within(source: Path, *, skip: Path | None = None) -> Iterator[Path]:
    """All files of a folder, also of the folders that it links to, but of none of them twice.

    Hidden files and folders are something else, and so is `skip`. A link to nothing is given, so
    that reading it tells. Raises InputError for a folder that cannot be read.
    """
    met = {os.path.realpath(skip)} if skip else set()
    for folder, folders, names in os.walk(source, onerror=_unreadable, followlinks=True):
        place = os.path.realpath(folder)
        # In a fixed order, since of two ways to one folder the first is taken.
        folders[:] = [] if place in met else sorted(f for f in folders if not f.startswith("."))
        if place not in met:
            met.add(place)
            yield from (Path(folder, name) for name in names if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise InputError(f"{error.filename}: expected a readable folder, found: {error.strerror}")


def name_within(file: Path, source: Path) -> str:
    """What a file of a source (or the one that is the source) is called, as text that can be told.

    Bytes of it that are not UTF-8 are escaped.
    """
    name = file.relative_to(source).as_posix() if file != source else file.name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextmanager
def staged(out: Path, *, marker: str, contents: Collection[str]) -> Iterator[Path]:
    """A temporary sibling of `out` to write into, which takes its place when the block succeeds.

    On an error nothing of it stays; what a killed run left is removed by the next.

    Args:
        out: the folder to be.
        marker: the file by which an earlier result is known, which is replaced.
        contents: the names that such a result may hold, so that nothing else is lost with it.

    Raises:
        InputError: `out` holds anything else, another run is writing it, or it is a place that no
            folder can be renamed to.
    """
    out = _place(out)
    _expect_replaceable(out, marker, contents)
    temporary, old = _sibling(out, "partial"), _sibling(out, "old")
    with only_writer(out):
        if old.exists() and not out.exists():  # killed between the two renames below
            old.rename(out)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            put_in_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def told_of_storage(out: Path | str) -> Iterator[None]:
    """A full disk, a read-only folder and too little memory as an OutputError."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:  # also where it cannot spill to the disk
        raise OutputError(
            f"{out}: cannot be written: not enough memory, or disk space to spill to. What is "
            "finished is kept: run again with more memory, fewer workers, or once there is room"
        ) from error
    except (OSError, duckdb.IOException) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise OutputError(
            f"{out}: cannot be written: {reason or error}. What is finished is kept: run again "
            "once there is room"
        ) from error


@contextmanager
def resumable(out: Path, *, marker: str, contents: Collection[str]) -> Iterator[Path]:
    """Like `staged`, but what a killed or failed run wrote is still there for the next.

    Which of it can be used is for `finished_part` to say. Only what another run would meet again,
    an InputError or a SchemaError, takes it all away.
    """
    out = _place(out)
    _expect_replaceable(out, marker, contents)
    temporary, old = _sibling(out, "partial"), _sibling(out, "old")
    with only_writer(out):
        if old.exists() and not out.exists():  # killed between the two renames of put_in_place
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(exist_ok=True)
        try:
            yield temporary
        except (InputError, SchemaError):
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        put_in_place(temporary, out)


def finish_part(file: Path, key: str, content: Any, files: Iterable[Path] = ()) -> None:
    """Say that a part of a run is whole: what it counted, and the key of what it was made from.

    Args:
        file: the part's JSON file, in a folder that is there.
        key: a hash of everything that the part depends on.
        content: what JSON can hold.
        files: the part's data files, in place already: each has to be there, of the same size.
    """
    # A worker may live on a moment after its run was killed. It must not bring back a folder that
    # the next run has done with, nor be believed where its data files went with that.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    sizes = {os.path.relpath(path, file.parent): path.stat().st_size for path in files}
    part = {"key": key, "content": content, "files": sizes}
    temporary.write_text(json.dumps(part), encoding="utf-8")
    temporary.replace(file)


def finished_part(file: Path, key: str) -> Any | None:
    """The content of a part that was finished from the same key; None if it has to be made.

    What is told of another key is forgotten: its data files are about to be replaced, and a run
    that is killed meanwhile would leave it to be believed with the data of another.
    """
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a lost disk leaves these
        part = json.loads(file.read_text(encoding="utf-8"))
        sizes = {name: (file.parent / name).stat().st_size for name in part["files"]}
        if part["key"] == key and sizes == part["files"]:
            return part["content"]
    file.unlink(missing_ok=True)
    return None


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A temporary sibling of a file to write, which takes its place when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(finished: Path, out: Path) -> None:
    """Rename a finished folder to `out`, in the place of an earlier one if need be."""
    old = _sibling(out, "old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    finished.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(out: Path, word: str) -> Path:
    return out.with_name(f".{out.name}.{word}")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep every other run from writing `out` meanwhile.

    Raises:
        InputError: another run is at it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # The system drops the lock of a killed process, so a stale file never blocks anybody.
    lock = _sibling(out, "lock")
    with lock.open("w") as handle:
        try:
            with _without_locks():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle.fileno()).st_ino != lock.stat().st_ino:
                raise BlockingIOError  # a run that has just ended took away the file that we opened
        except (BlockingIOError, FileNotFoundError):
            raise InputError(f"{out}: expected to be the only writer, found another run") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _without_locks() -> Iterator[None]:
    """On a file system that has no locks, as some of clusters, nobody can be kept out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _place(out: Path) -> Path:
    """Where a folder to be is, behind links. Raises InputError where none can be renamed to it."""
    if _URL.match(str(out)):
        raise InputError(f"{out}: expected a folder of this machine, found a URL (for Spark)")
    place = Path(out).resolve()
    if Path.cwd().is_relative_to(place):
        raise InputError(f"{out}: expected a new folder, found the one that we are in")
    if os.path.ismount(place):
        raise InputError(f"{out}: expected a folder within a disk, found the whole of one")
    return place


def _expect_replaceable(out: Path, marker: str, contents: Collection[str]) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder to write, found a file")
    names = {path.name for path in out.iterdir()}
    if names and (names - set(contents) or marker not in names):
        found = min(names - set(contents), default=f"no {marker}")
        raise InputError(
            f"{out}: expected a new or empty folder, or an earlier result to replace (with "
            f"{marker}), found {found}"
        )
