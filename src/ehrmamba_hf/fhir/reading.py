"""Files of FHIR JSON: which there are, the blocks that they are read in, and the lines of a block.

A block is what one process reads at a time and what a run that was killed need not read again.
A large plain file has one for every BLOCK bytes, a large packed one for every BLOCK bytes
unpacked, and small files share one. So memory is bounded whatever the size of a file, except where
a .json file is one long JSON text: that is read whole, up to LONGEST.
"""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import files_within

BLOCK: Final = 128 << 20
"""Bytes of text. Each gives a Parquet file a table, and these are opened again for every shard."""
LONGEST: Final = 1 << 30
"""Bytes of a JSON text; one that is a chunk longer is rejected: no line uses up the memory."""
_SUFFIXES: Final = (".ndjson", ".jsonl", ".json")
_PACKED: Final = (".gz", ".zst")
_ENDING: Final = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,10}")
_CHUNK: Final = 1 << 20
_RATIO: Final = 16  # of a text to what it is packed to, about
_STEP: Final = 1 << 16  # what pyarrow unpacks at once is lost as a whole where it is damaged
_LINE_END: Final = ord("\n")
_BOM: Final = b"\xef\xbb\xbf"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Span(NamedTuple):
    """Part of a file: the lines that begin in bytes `start` to `stop` of its text.

    `data` holds them where the parent process has unpacked them.
    """

    file: Path
    start: int = 0
    stop: int | None = None  # None: to the end
    data: bytes | None = None


class Block(NamedTuple):
    """Spans to read together, with a number like no other's of the run."""

    number: int  # from 0
    spans: tuple[Span, ...]
    size: int  # bytes on disk, for progress


_Share = tuple[list[Span], int]  # of a block, less its number


class Lines(NamedTuple):
    """Whole lines in a row; `text` is None for a single one that is longer than LONGEST."""

    first: int  # number of the first, from 1 at the span's start
    amount: int
    text: bytes | None
    breaks: npt.NDArray[np.intp] | None = None  # where each of several ends

    def split(self) -> list[bytes]:
        """The lines, without white space around them; a JSON text on several lines is one."""
        text = self.text or b""
        lines = [text] if self.amount == 1 else text.removesuffix(b"\n").split(b"\n")
        return [line.strip() for line in lines]


class Found(NamedTuple):
    """What a source holds."""

    files: list[Path]  # FHIR, sorted by name
    others: dict[str, int]  # how many files are of each kind that is not read, by ending


class BrokenFile(Exception):  # noqa: N818 - an outcome: what came before the break is used
    """The file cannot be read past `line`."""

    def __init__(self, line: int, expected: str, found: str) -> None:
        super().__init__(f"line {line}: expected {expected}, found {found}")
        self.line, self.expected, self.found = line, expected, found


def find_files(source: Path, *, skip: Path | None = None) -> Found:
    """The FHIR files of a folder and its subfolders; a single file is itself one.

    .ndjson, .jsonl and .json, each also with .gz or .zst, in any case; hidden files and what lies
    in `skip` are left out. A link to nothing is found, so that reading it tells. Raises InputError
    where there is none.
    """
    if not source.exists():
        raise InputError(f"{source}: expected a folder of FHIR files, found nothing there")
    if source.is_file():
        return Found([source], {})
    paths = [p for p in files_within(source, skip=skip) if p.is_file() or not p.exists()]
    files = sorted(path for path in paths if _plain_name(path).endswith(_SUFFIXES))
    others = dict(sorted(Counter(map(_ending, set(paths) - set(files))).items()))
    if not files:
        known = ", ".join(_SUFFIXES)
        raise InputError(
            f"{source}: expected {known} files (also .gz and .zst), found "
            + (f"other endings: {told_endings(others)}" if others else "none")
        )
    return Found(files, others)


def told_endings(endings: Mapping[str, int]) -> str:
    """How many files have each ending, in words.

    >>> told_endings({".txt": 1, ".xml": 30})
    '.txt (1), .xml (30)'
    """
    return ", ".join(f"{ending} ({count:,})" for ending, count in endings.items())


def blocks_of(files: Sequence[Path], block: int = BLOCK) -> Iterator[Block]:
    """The blocks of some files. Those of a packed file are unpacked as they are asked for.

    They depend on the files alone: a second run makes the same ones. Raises nothing for a file that
    cannot be read: whoever reads its span is told.
    """
    for number, (spans, size) in enumerate(_shares(files, block)):
        yield Block(number, tuple(spans), size)


def size_of(file: Path) -> int:
    """Bytes on disk; 0 where that cannot be told, as of a file that is gone."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _shares(files: Sequence[Path], block: int) -> Iterator[_Share]:
    small: list[Span] = []
    weight = size = 0
    for file in files:
        own_size, packed = size_of(file), packing_of(file) is not None
        own = own_size * (_RATIO if packed else 1)
        if own >= block and not _is_document(file):
            yield from _unpacked_shares(file, block) if packed else _ranges(file, own_size, block)
            continue
        if small and weight + own > block:
            yield small, size
            small, weight, size = [], 0, 0
        small.append(Span(file))
        weight, size = weight + own, size + own_size
    if small:
        yield small, size


def _ranges(file: Path, size: int, block: int) -> Iterator[_Share]:
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield [Span(file, start, stop)], stop - start


def content_key(block: Block) -> str:
    """A hash of what `read_lines` reads of a block."""
    digest = xxhash.xxh3_128()
    for span in block.spans:
        with suppress(BrokenFile):
            for _ in read_lines(span, digest):
                pass
    return digest.hexdigest()


def read_lines(span: Span, digest: xxhash.xxh3_128 | None = None) -> Iterator[Lines]:
    """The lines of a span, about _CHUNK bytes at a time, without those that begin outside it.

    A .json file that is one JSON text on several lines comes as one line. Raises BrokenFile, after
    the whole lines before the break, for a damaged or cut-off packed file and an unreadable one.
    `digest` is told the name, the place and the text of all of it.
    """
    lines = _split(span, digest)
    return _of_document(lines) if _is_document(span.file) else lines


def _of_document(lines: Iterator[Lines]) -> Iterator[Lines]:
    """The lines of a .json file, as one where they are one JSON text.

    What is neither that nor has a record on a line of its own is one broken text, not many.
    """
    for head in lines:
        if head.text is None or not head.text.isspace():
            break
        yield head
    else:
        return
    if head.text is None or _is_json(head.text.lstrip().split(b"\n", 1)[0]):
        yield head
        yield from lines
        return
    held, size = [head], len(head.text)
    try:
        for more in lines:
            held.append(more)
            size += LONGEST if more.text is None else len(more.text)
            if size > LONGEST:
                break
    except BrokenFile:
        if any(map(_has_record, held)):
            yield from held
        raise
    text = b"".join(part.text or b"" for part in held) if size <= LONGEST else None
    if (text is None or not _is_json(text)) and any(map(_has_record, held)):
        del text
        yield from held
        yield from lines
    else:
        yield Lines(head.first, 1, text)


def _has_record(lines: Lines) -> bool:
    """Whether one of the lines is an object. In a text on several lines, most are set in."""
    texts = (lines.text or b"").split(b"\n")
    return any(text.startswith(b"{") and _is_json(text) for text in texts)


def _split(span: Span, digest: xxhash.xxh3_128 | None) -> Iterator[Lines]:
    held: list[bytes] = []
    number, length = 1, 0  # `held` is the beginning of line `number`
    skipping = False  # that line is too long
    if digest is not None:
        digest.update(os.fsencode(f"{span.file.name}\0{span.start}\0{span.stop}\0"))
    try:
        for chunk in _chunks(span):
            if digest is not None:
                digest.update(chunk)
            cut = chunk.rfind(b"\n") + 1
            if cut and skipping:
                yield Lines(number, 1, None)
                number, skipping = number + 1, False
                after = chunk.find(b"\n") + 1
                chunk, cut = chunk[after:], cut - after
            if cut:
                text = b"".join([*held, memoryview(chunk)[:cut]])
                breaks = line_ends(text)
                yield Lines(number, len(breaks), text, breaks)
                number, held, length, chunk = number + len(breaks), [], 0, chunk[cut:]
            if chunk and not skipping:
                held.append(chunk)
                length += len(chunk)
                if length > LONGEST:
                    held, length, skipping = [], 0, True
    except (EOFError, zlib.error, OSError) as error:
        raise _broken(number, error) from None
    if skipping:
        yield Lines(number, 1, None)
    elif last := b"".join(held).strip():
        yield Lines(number, 1, last)


def line_ends(text: bytes) -> npt.NDArray[np.intp]:
    """Where the line breaks are.

    >>> line_ends(b"a\\n\\nlong enough for a word\\n").tolist()
    [1, 2, 25]
    """
    # Eight bytes at a time, as few have one: twice as fast as byte by byte.
    is_end = np.frombuffer(text, np.uint8) == _LINE_END
    whole = len(is_end) & ~7
    eights = is_end[:whole].view("<u8")
    places = np.flatnonzero(eights != 0)
    found = eights[places]
    if (found & (found - np.uint64(1))).any():  # two in one
        return np.flatnonzero(is_end)
    inside = np.log2(found).astype(np.intp) >> 3
    return np.append(places * 8 + inside, whole + np.flatnonzero(is_end[whole:]))


def _broken(line: int, error: Exception) -> BrokenFile:
    # Only the system's own errors have a number: gzip's and pyarrow's say what is in the file.
    if isinstance(error, OSError) and error.errno is not None:
        return BrokenFile(line, "a readable file", error.strerror or "an error")
    cut_off = isinstance(error, EOFError) or "Truncated" in str(error)
    return BrokenFile(line, "a whole packed file", f"a {'cut-off' if cut_off else 'damaged'} one")


def _chunks(span: Span) -> Iterator[bytes]:
    if span.data is not None:
        for start in range(0, len(span.data), _CHUNK):
            yield span.data[start : start + _CHUNK]
        return
    with span.file.open("rb") as disk:
        if span.stop is None:
            yield from _unpacked(disk, span.file, span.start)
        else:
            yield from _between(disk, span.start, span.stop)


def _between(disk: BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """The lines of a plain file that begin between two of its bytes."""
    chunk, at = b"\n", start
    if start:  # the line that reaches into the span belongs to the one before
        disk.seek(start - 1)
        at -= 1
        while at <= stop and (piece := disk.readline(_CHUNK)):
            at += len(piece)
            if piece.endswith(b"\n"):
                break
        else:
            return  # no line begins here
    while at < stop and (chunk := disk.read(min(_CHUNK, stop - at))):
        yield chunk.removeprefix(_BOM) if at == 0 else chunk
        at += len(chunk)
    while not chunk.endswith(b"\n") and (chunk := disk.readline(_CHUNK)):  # the last goes on
        yield chunk


def _unpacked(disk: BufferedReader, file: Path, skip: int = 0) -> Iterator[bytes]:
    """The text of a file from byte `skip` on; what comes before a break is given first."""
    packing = packing_of(file)
    stream: Any = disk
    if packing == "gzip":
        stream = gzip.GzipFile(fileobj=disk)
    elif packing == "zstd":
        stream = _Zstd(disk)
    first = True
    # read1 gives what it has; read would lose all of a chunk that a break lies in.
    while chunk := stream.read1(_CHUNK):
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        yield chunk[skip:]
        skip = 0


class _Zstd:
    """pyarrow's reader under the name of gzip's."""

    def __init__(self, disk: BufferedReader) -> None:
        self._stream = pa.CompressedInputStream(disk, "zstd")

    def read1(self, _: int) -> bytes:
        return bytes(self._stream.read(_STEP))


def _unpacked_shares(file: Path, block: int) -> Iterator[_Share]:
    """Whole lines of about `block` bytes each."""
    text = bytearray()  # no list of chunks, whose memory would not go back to the system
    start = done = 0
    whole = size_of(file)
    with file.open("rb") as disk:
        chunks = _unpacked(disk, file)
        chunk: bytes | None = b""
        while chunk is not None and len(text) <= LONGEST:
            try:
                chunk = next(chunks, None)
            except (EOFError, zlib.error, OSError):
                break
            text += chunk or b""
            cut = text.rfind(b"\n", len(text) - len(chunk)) + 1 if chunk else len(text)
            if chunk is None or (len(text) >= block and cut):
                at = whole if chunk is None else disk.tell()
                yield [Span(file, start, start + cut, bytes(memoryview(text)[:cut]))], at - done
                del text[:cut]
                start, done = start + cut, at
    if chunk is not None:
        # Whoever reads the rest of the file meets the break, or the end of the long line.
        del text
        yield [Span(file, start)], whole - done


def packing_of(file: Path) -> str | None:
    """How a file is packed, by its first bytes: names lie."""
    try:
        with file.open("rb") as disk:
            head = disk.read(4)
    except OSError:
        return None
    return "gzip" if head[:2] == _GZIP else "zstd" if head == _ZSTD else None


def _plain_name(file: Path) -> str:
    name = file.name.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    return name


def _ending(file: Path) -> str:
    """The ending of a name, where it is that of a kind of file and not of a number or the like."""
    ending = file.suffix.lower()
    return ending if _ENDING.fullmatch(ending) else "other"


def _is_document(file: Path) -> bool:
    return _plain_name(file).endswith(".json")


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)  # checks, builds nothing
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
