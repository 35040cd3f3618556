"""A folder that appears whole or not at all."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    METADATA_FOLDER,
    REJECTS_FILE,
    REPORT_FILE,
    SUBJECTS_FILE,
)

_OURS: Final = {
    DATA_FOLDER,
    ENCOUNTERS_FILE,
    METADATA_FOLDER,
    REJECTS_FILE,
    REPORT_FILE,
    SUBJECTS_FILE,
}


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write into, which takes its place when the block succeeds.

    On an error nothing of it stays; what a killed run left is removed by the next. An `out` that is
    an events folder is replaced. Raises InputError where `out` holds anything else, or while
    another run is writing it.
    """
    _expect_replaceable(out)
    temporary, old = (out.with_name(f".{out.name}.{word}") for word in ("partial", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        if old.exists() and not out.exists():  # killed between the two renames below
            old.rename(out)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if out.exists():
                out.rename(old)
            temporary.rename(out)
        finally:
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    # The system drops the lock of a killed process, so a stale file never blocks anybody.
    lock = out.with_name(f".{out.name}.lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{out}: expected to be the only writer, found another run") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _expect_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder to write, found a file")
    names = {path.name for path in out.iterdir()}
    if names and (names - _OURS or REPORT_FILE not in names):
        found = min(names - _OURS, default="no report.json")
        raise InputError(f"{out}: expected a new, empty or events folder, found {found}")
