"""Files of FHIR JSON: which there are, and the records in them with their line numbers."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ehrmamba_hf.errors import InputError

_SUFFIXES: Final = (".ndjson", ".jsonl", ".json")
_CHUNK: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """One JSON text; `line` counts from 1 in the unpacked file."""

    line: int
    text: bytes


class BrokenFile(Exception):  # noqa: N818 - an outcome: what came before the break is used
    """The file cannot be read past `line`."""

    def __init__(self, line: int, expected: str, found: str) -> None:
        super().__init__(f"line {line}: expected {expected}, found {found}")
        self.line, self.expected, self.found = line, expected, found


def find_files(source: Path, *, skip: Path | None = None) -> list[Path]:
    """The FHIR files of a folder and its subfolders, sorted by name; a single file is itself one.

    .ndjson, .jsonl and .json, each also with .gz, in any case; hidden files and what lies in `skip`
    are left out. Raises InputError where there is none.
    """
    if not source.exists():
        raise InputError(f"{source}: expected a folder of FHIR files, found nothing there")
    if source.is_file():
        files = [source]
    else:
        files = [
            path
            for path in sorted(source.rglob("*"))
            if path.name.lower().removesuffix(".gz").endswith(_SUFFIXES)
            and not any(part.startswith(".") for part in path.relative_to(source).parts)
            and not (skip and path.resolve().is_relative_to(skip.resolve()))
            and path.is_file()
        ]
    if not files:
        raise InputError(f"{source}: expected {', '.join(_SUFFIXES)} files (also .gz), found none")
    return files


def read_records(file: Path, advance: Callable[[int], object] = lambda _: None) -> Iterator[Record]:
    """The records of one file: a line each, or the whole of a .json file that is one JSON text.

    `advance` is told the bytes read from disk as they are read. Blank lines come as empty texts.
    Raises BrokenFile, after the whole lines before the break, for a damaged or cut-off gzip and
    for an unreadable file.
    """
    lines = _read_lines(file, advance)
    if not file.name.lower().removesuffix(".gz").endswith(".json"):
        yield from lines
        return
    first = next(lines, None)
    if first is None:
        return
    if _is_json(first.text):  # one resource on one line, or NDJSON under another name
        yield first
        yield from lines
    else:
        yield Record(1, b"\n".join([first.text, *(record.text for record in lines)]))


def _read_lines(file: Path, advance: Callable[[int], object]) -> Iterator[Record]:
    number, rest = 1, b""
    try:
        with file.open("rb") as disk:
            zipped = disk.peek(2)[:2] == b"\x1f\x8b"
            for chunk in _chunks(gzip.GzipFile(fileobj=disk) if zipped else disk, disk, advance):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield Record(number, line.strip())
                    number += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        found = "a cut-off one" if isinstance(error, EOFError) else "a damaged one"
        raise BrokenFile(number, "a whole gzip file", found) from None
    except OSError as error:
        raise BrokenFile(number, "a readable file", error.strerror or "an error") from None
    if rest.strip():
        yield Record(number, rest.strip())


def _chunks(
    unpacked: gzip.GzipFile | BufferedReader, disk: BufferedReader, advance: Callable[[int], object]
) -> Iterator[bytes]:
    done, first = 0, True
    # read1 gives what it has; read would lose all of a chunk that a break lies in.
    while chunk := unpacked.read1(_CHUNK):
        yield chunk.removeprefix(_BOM) if first else chunk
        first = False
        advance(disk.tell() - done)
        done = disk.tell()


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)  # checks, builds nothing
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
