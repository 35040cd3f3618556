"""Files, blocks and lines: names, packing, line numbers, and where a broken file breaks."""

import gzip
import json
import os
import random

import pyarrow as pa
import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir import reading
from ehrmamba_hf.fhir.reading import (
    BrokenFile,
    Span,
    blocks_of,
    content_key,
    find_files,
    read_lines,
)

LINES = [json.dumps({"resourceType": "Patient", "id": str(n)}).encode() for n in range(50_000)]


def zstd(text: bytes, frames: int = 1) -> bytes:
    size = len(text) // frames + 1
    codec = pa.Codec("zstd")
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return b"".join(codec.compress(piece, asbytes=True) for piece in pieces)


PACK = {"": bytes, ".gz": lambda text: gzip.compress(text, mtime=0), ".zst": zstd}


def records(*spans: Span) -> list[tuple[int, bytes]]:
    """(line number in its span, text) of every line."""
    found = []
    for span in spans:
        for lines in read_lines(span):
            found += enumerate(lines.split(), start=lines.first)
    return found


def texts(*spans: Span) -> list[bytes]:
    return [text for _, text in records(*spans)]


def spans_of(files, **options) -> list[Span]:
    return [span for block in blocks_of(files, **options) for span in block.spans]


def test_files_of_any_name_in_any_subfolder(tmp_path):
    names = ["a.ndjson", "b.NDJSON.GZ", "b.ndjson.zst", "sub/c.jsonl", "sub/deep/d.json"]
    others = ["SOURCE.txt", "sub/README.TXT", "i.ndjson.bz2", "j.7z"]
    others += ["LICENSE", "1.2.840.10008", "k.", "name.of somebody", os.fsdecode(b"l.\xff")]
    others += [".hidden.ndjson", ".tmp/f.ndjson", "out/h.json"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    found, endings = find_files(tmp_path, skip=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(names)
    assert endings == {".7z": 1, ".bz2": 1, ".txt": 2, "other": 5}
    assert find_files(tmp_path / "a.ndjson") == ([tmp_path / "a.ndjson"], {})


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    for name in ("fhir/a.ndjson", "elsewhere/b.ndjson", "elsewhere/deep/c.ndjson", "out/d.ndjson"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    source = tmp_path / "fhir"
    (source / "up").symlink_to(tmp_path / "fhir")
    (source / "away").symlink_to(tmp_path / "elsewhere")
    (source / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (source / "out").symlink_to(tmp_path / "out")
    (source / "self").symlink_to(source / "self")
    found, _ = find_files(source, skip=tmp_path / "out")
    names = ["a.ndjson", "again/c.ndjson", "away/b.ndjson"]
    assert [path.relative_to(source).as_posix() for path in found] == names


def test_a_folder_without_files_and_a_missing_one(tmp_path):
    with pytest.raises(InputError, match="found none"):
        find_files(tmp_path)
    (tmp_path / "a.xml").write_bytes(b"<Patient/>")
    with pytest.raises(InputError, match=r"found other endings: \.xml \(1\)"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        find_files(tmp_path / "missing")


@pytest.mark.parametrize("name", ["a.ndjson", "a.json", "a.jsonl"])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_come_whole_and_numbered(tmp_path, name, packed, end):
    file = tmp_path / (name + packed)
    file.write_bytes(PACK[packed](end.join(LINES)))
    assert records(Span(file)) == list(enumerate(LINES, start=1))


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("block", [1, 7, 50, 51, 1000, 99_999, 10**9])
def test_blocks_of_any_size_share_the_lines_of_files_between_them(
    tmp_path, monkeypatch, packed, block
):
    rng = random.Random(block)
    monkeypatch.setattr(reading, "_CHUNK", 60)
    files, expected = [], []
    for number in range(3):
        text = [rng.choice(LINES) + b" " * rng.randrange(60) for _ in range(50)]
        content = b"\n".join(text) + b"\n" * rng.randrange(2)
        files.append(tmp_path / f"{number}.ndjson{packed}")
        files[-1].write_bytes(PACK[packed](content))
        expected += [line.strip() for line in text]
    blocks = list(blocks_of(files, block))
    spans = [span for b in blocks for span in b.spans]
    assert texts(*spans) == expected
    assert len({b.number for b in blocks}) == len(blocks)
    assert sum(b.size for b in blocks) == sum(f.stat().st_size for f in files)
    again = list(blocks_of(files, block))
    assert [content_key(b) for b in again] == [content_key(b) for b in blocks]


def test_a_changed_byte_changes_the_key_of_its_block_alone(tmp_path):
    file = tmp_path / "a.ndjson"
    file.write_bytes(b"\n".join(LINES))
    before = [content_key(b) for b in blocks_of([file], 1 << 20)]
    text = bytearray(file.read_bytes())
    text[-3] ^= 1
    file.write_bytes(text)
    after = [content_key(b) for b in blocks_of([file], 1 << 20)]
    assert [x == y for x, y in zip(before, after, strict=True)] == [True, True, False]


def test_zstd_of_several_frames(tmp_path):
    file = tmp_path / "a.ndjson.zst"
    file.write_bytes(zstd(b"\n".join(LINES), frames=5))
    assert texts(Span(file)) == LINES


def test_blank_lines_count_and_a_byte_order_mark_does_not(tmp_path):
    file = tmp_path / "a.ndjson"
    file.write_bytes(b"\xef\xbb\xbf" + LINES[0] + b"\n\n  \n" + LINES[1] + b"\n\n")
    expected = [(1, LINES[0]), (2, b""), (3, b""), (4, LINES[1]), (5, b"")]
    assert records(Span(file)) == expected
    assert texts(*spans_of([file], block=20)) == [text for _, text in expected]


def test_gzip_under_a_plain_name(tmp_path):
    file = tmp_path / "a.ndjson"
    file.write_bytes(gzip.compress(LINES[0]))
    assert texts(Span(file)) == [LINES[0]]


def test_a_json_file_on_many_lines_is_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 8)
    file = tmp_path / "a.json"
    text = json.dumps({"resourceType": "Patient", "id": "1"}, indent=2).encode()
    file.write_bytes(text + b"\n")
    for block in (4, 10**6):
        assert records(*spans_of([file], block=block)) == [(1, text)]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("first", [b'{"resourceType":', b"", b"\n  ", b"]"])
def test_records_on_lines_of_a_json_file_outlive_a_bad_first_line(
    tmp_path, monkeypatch, packed, first
):
    monkeypatch.setattr(reading, "_CHUNK", 64)
    file = tmp_path / f"a.json{packed}"
    content = b"\n".join([first, *LINES[:100]])
    file.write_bytes(PACK[packed](content))
    expected = [(n, line.strip()) for n, line in enumerate(content.split(b"\n"), start=1)]
    assert records(Span(file)) == expected


@pytest.mark.parametrize("longest", [1 << 30, 500])
def test_a_json_file_with_bad_lines_is_read_within_bounds(tmp_path, monkeypatch, longest):
    monkeypatch.setattr(reading, "_CHUNK", 64)
    monkeypatch.setattr(reading, "LONGEST", longest)
    file = tmp_path / "a.json"
    file.write_bytes(b"\n".join([b"{", *LINES[:100]]))
    assert texts(Span(file)) == [b"{", *LINES[:100]]


def test_a_cut_off_json_file_of_lines_gives_those_before_the_break(tmp_path):
    file = tmp_path / "a.json.gz"
    file.write_bytes(gzip.compress(b"\n".join([b"{", *LINES]))[:-9])
    found = []
    with pytest.raises(BrokenFile, match="cut-off"):
        for lines in read_lines(Span(file)):
            found += lines.split()
    assert found[0] == b"{" and len(found) > 10_000 and found[1:] == LINES[: len(found) - 1]


def test_a_json_text_after_blank_lines_is_one_record_and_a_broken_one_is_one_too(tmp_path):
    file = tmp_path / "a.json"
    text = json.dumps({"resourceType": "Patient", "name": [{}]}, indent=2).encode()
    for content in (text, text.replace(b"{}", b"{")):
        file.write_bytes(b"\n \n" + content)
        assert records(Span(file)) == [(1, content)]


def test_empty_files(tmp_path):
    for name in ("a.json", "a.ndjson"):
        (tmp_path / name).write_bytes(b"")
    assert texts(*spans_of(sorted(tmp_path.iterdir()))) == []


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["a.ndjson", "a.json"])
def test_a_line_that_is_too_long_is_told_and_left_out(tmp_path, monkeypatch, packed, name):
    monkeypatch.setattr(reading, "_CHUNK", 16)
    monkeypatch.setattr(reading, "_STEP", 16)
    monkeypatch.setattr(reading, "LONGEST", 100)
    file = tmp_path / (name + packed)
    content = [LINES[0], b"x" * 1000, LINES[1], b"y" * 150, LINES[2], b"z" * 5000]
    file.write_bytes(PACK[packed](b"\n".join(content)))
    for block in (50, 300, 10**6):
        found = [lines for span in spans_of([file], block=block) for lines in read_lines(span)]
        kept = [text for lines in found if lines.text for text in lines.split()]
        assert kept == LINES[:3]
        assert sum(lines.amount for lines in found if lines.text is None) == 3


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("block", [1 << 16, 1 << 30])
def test_a_cut_off_file_gives_the_whole_lines_before_the_break(tmp_path, packed, kept, block):
    text = b"\n".join(LINES)
    whole = PACK[packed](text)
    file = tmp_path / f"a.ndjson{packed}"
    file.write_bytes(whole[: int(len(whole) * kept)])
    found = []
    with pytest.raises(BrokenFile, match="cut-off") as broken:
        for span in spans_of([file], block=block):
            before = len(found)
            for lines in read_lines(span):
                found += lines.split()
    assert found == LINES[: len(found)]
    assert broken.value.line == len(found) - before + 1
    lost = 0.015 * len(text) + (1 << 17) * (packed == ".zst")
    assert len(b"\n".join(found)) >= kept * len(text) - lost


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_damaged_file_is_told(tmp_path, packed):
    whole = bytearray(PACK[packed](b"\n".join(LINES)))
    middle = len(whole) // 2
    whole[middle : middle + 40_000] = b"\xff" * 40_000
    file = tmp_path / f"a.ndjson{packed}"
    file.write_bytes(whole)
    with pytest.raises(BrokenFile, match="damaged"):
        texts(Span(file))


def test_an_unreadable_file_is_told(tmp_path):
    with pytest.raises(BrokenFile, match="readable"):
        texts(Span(tmp_path / "gone.ndjson"))
