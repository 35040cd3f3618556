"""Output folders and files that appear whole or not at all, and runs that continue."""

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from ehrmamba_hf.errors import InputError, OutputError, SchemaError


@contextmanager
def staged(out: Path, *, marker: str, contents: Collection[str]) -> Iterator[Path]:
    """A temporary sibling of `out` to write into, which takes its place when the block succeeds.

    On an error nothing of it stays; what a killed run left is removed by the next.

    Args:
        out: the folder to be.
        marker: the file by which an earlier result is known, which is replaced.
        contents: the names that such a result may hold, so that nothing else is lost with it.

    Raises:
        InputError: `out` holds anything else, or another run is writing it.
    """
    out = Path(out)
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
def told_of_storage(out: Path) -> Iterator[None]:
    """A full disk and a read-only folder as an OutputError."""
    try:
        yield
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
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
    out = Path(out)
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
        files: the part's data files, in place already; their places beside it are what counts.
    """
    # A worker may live on a moment after its run was killed. It must not bring back a folder that
    # the next run has done with, nor be believed where its data files went with that.
    names = [os.path.relpath(path, file.parent) for path in files]
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    part = {"key": key, "content": content, "files": names}
    temporary.write_text(json.dumps(part), encoding="utf-8")
    temporary.replace(file)


def finished_part(file: Path, key: str) -> Any | None:
    """The content of a part that was finished from the same key; None if it has to be made."""
    try:
        part = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    whole = part["key"] == key and all((file.parent / n).exists() for n in part["files"])
    return part["content"] if whole else None


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
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle.fileno()).st_ino != lock.stat().st_ino:
                raise FileExistsError  # a run that has just ended took away the file that we opened
        except OSError:
            raise InputError(f"{out}: expected to be the only writer, found another run") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


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
