"""Output folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ehrmamba_hf.errors import InputError


@contextmanager
def new_folder(out: Path, *, marker: str) -> Iterator[Path]:
    """Write into a temporary sibling; rename it to `out` when the block ends without an error.

    A folder that an earlier run left is replaced; a folder with other content is refused.

    Args:
        out: the folder to be.
        marker: a file that every such folder holds, by which an earlier result is known.

    Raises:
        InputError: `out` exists and is not an earlier result.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / marker).exists() or not any(out.iterdir()))):
        raise InputError(
            f"{out}: expected a new or empty folder, or an earlier result (with {marker}), "
            "found other content"
        )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    put_in_place(part, out)


def put_in_place(part: Path, out: Path) -> None:
    """Rename a finished folder, over an earlier one if need be."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
