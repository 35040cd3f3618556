"""Files and their records: names, compression, line numbers, and where a broken file breaks."""

import gzip
import json

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.reading import BrokenFile, find_files, read_records

LINES = [json.dumps({"resourceType": "Patient", "id": str(n)}).encode() for n in range(50_000)]


def test_files_of_any_name_in_any_subfolder(tmp_path):
    names = ["a.ndjson", "b.NDJSON.GZ", "sub/c.jsonl", "sub/deep/d.json", "e.json.gz"]
    others = ["SOURCE.txt", ".hidden.ndjson", ".tmp/f.ndjson", "g.csv", "out/h.json"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    found = find_files(tmp_path, skip=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(names)
    assert find_files(tmp_path / "a.ndjson") == [tmp_path / "a.ndjson"]


def test_a_folder_without_files_and_a_missing_one(tmp_path):
    with pytest.raises(InputError, match="found none"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        find_files(tmp_path / "missing")


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz", "a.json", "a.json.gz", "a.jsonl"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_come_whole_and_numbered(tmp_path, name, end):
    text = end.join(LINES)
    file = tmp_path / name
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    records = list(read_records(file))
    assert [record.text for record in records] == LINES
    assert [record.line for record in records] == list(range(1, len(LINES) + 1))


def test_blank_lines_count_and_a_byte_order_mark_does_not(tmp_path):
    file = tmp_path / "a.ndjson"
    file.write_bytes(b"\xef\xbb\xbf" + LINES[0] + b"\n\n  \n" + LINES[1] + b"\n\n")
    found = [(record.line, record.text) for record in read_records(file)]
    assert found == [(1, LINES[0]), (2, b""), (3, b""), (4, LINES[1]), (5, b"")]


def test_gzip_under_a_plain_name(tmp_path):
    file = tmp_path / "a.ndjson"
    file.write_bytes(gzip.compress(LINES[0]))
    assert [record.text for record in read_records(file)] == [LINES[0]]


def test_a_json_file_on_many_lines_is_one_record(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"resourceType": "Patient", "id": "1"}, indent=2))
    (record,) = read_records(file)
    assert record.line == 1
    assert json.loads(record.text) == {"resourceType": "Patient", "id": "1"}


def test_empty_files(tmp_path):
    for name in ("a.json", "a.ndjson"):
        (tmp_path / name).write_bytes(b"")
        assert list(read_records(tmp_path / name)) == []


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_cut_off_gzip_gives_every_whole_line_before_the_break(tmp_path, kept):
    packed = gzip.compress(b"\n".join(LINES), mtime=0)
    file = tmp_path / "a.ndjson.gz"
    file.write_bytes(packed[: int(len(packed) * kept)])
    found = []
    with pytest.raises(BrokenFile, match="cut-off") as broken:
        for record in read_records(file):
            found.append(record.text)
    assert found == LINES[: len(found)]
    assert broken.value.line == len(found) + 1
    assert len(found) >= (kept - 0.015) * len(LINES)


def test_a_damaged_gzip_is_told(tmp_path):
    packed = bytearray(gzip.compress(b"\n".join(LINES), mtime=0))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = b"\xff" * 64
    file = tmp_path / "a.ndjson.gz"
    file.write_bytes(packed)
    with pytest.raises(BrokenFile, match="damaged"):
        list(read_records(file))


def test_progress_adds_up_to_the_size_on_disk(tmp_path):
    file = tmp_path / "a.ndjson.gz"
    file.write_bytes(gzip.compress(b"\n".join(LINES)))
    steps = []
    list(read_records(file, steps.append))
    assert sum(steps) == file.stat().st_size
