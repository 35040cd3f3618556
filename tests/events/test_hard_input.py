"""Input that is large, packed to burst, or no file at all: bounded, counted, and never a hang."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from ehrmamba_hf.config import load_config
from ehrmamba_hf.corpus import prepare
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events import ingest
from ehrmamba_hf.fhir import reading

MEGABYTE = 1 << 20
PATIENT = b'{"resourceType":"Patient","id":"p1","birthDate":"1950"}\n'
LAB = (
    b'{"resourceType":"Observation","id":"%s","code":{"text":"x"},"subject":{"reference":'
    b'"Patient/p1"},"effectiveDateTime":"2019-03-04T10:00:00Z","valueQuantity":{"value":1}%s}\n'
)
ALONE = """
import json, re, sys
from pathlib import Path
from ehrmamba_hf.events import ingest

report = ingest(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, progress=False)
unknown = report.resources.get("unknown")
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)
counts = [report.lines, report.blank_lines, report.total.used, unknown.rejected if unknown else 0]
print(json.dumps([counts, int(peak) / 1024]))
"""


class Ingested(NamedTuple):
    lines: int
    blank: int
    used: int
    unknown: int  # rejected records that do not say what they are


@pytest.fixture
def alone(tmp_path) -> Callable[[Path], tuple[Ingested, float]]:
    """Ingests a folder in a process of its own; counts, and its largest size in MB."""

    def run(source: Path) -> tuple[Ingested, float]:
        command = [sys.executable, "-c", ALONE, source, tmp_path / "events"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        counts, peak = json.loads(done.stdout)
        return Ingested(*counts), peak

    return run


def folder_of(folder: Path, **files: bytes) -> Path:
    """A folder of files by name, with _ for a dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def rejects(events: Path) -> list[tuple]:
    found = (json.loads(line) for line in (events / "rejects.ndjson").open())
    return [(r["file"], r["line"], r["expected"], r["found"]) for r in found]


# Long lines and bombs.

HUGE = b"x" * (100 * MEGABYTE)
LONG_LINES = {
    # (the line, how many of three records are used, how many are of no known type)
    "a field that nobody reads": (LAB % (b"o1", b',"x":"%s"' % HUGE), 3, 0),
    "a value": (LAB % (b"o1", b',"valueQuantity":null,"valueString":"%s"' % HUGE), 3, 0),
    "an id": (LAB % (HUGE, b""), 3, 0),
    "cut off": ((LAB % (b"o1", b',"x":"%s"' % HUGE))[:-3] + b"\n", 2, 1),
    "arrays in one another": (LAB % (b"o1", b',"x":%s' % (b"[" * len(HUGE))), 2, 1),
    "digits": (LAB % (b"o1", b',"valueInteger":%s' % (b"9" * len(HUGE))), 2, 0),
    "a malformed field beside many": (
        LAB % (b"o1", b',"status":5,"x":[%s[]]' % (b"[]," * (len(HUGE) // 3))),
        *(2, 0),
    ),
    "a Bundle of copies": (
        b'{"resourceType":"Bundle","entry":[%s{}]}\n'
        % (b'{"resource":%s},' % (LAB % (b"o1", b""))[:-1] * 500_000),
        *(3, 0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_LINES)
def test_a_line_of_a_hundred_megabytes(name, alone, tmp_path):
    line, used, unknown = LONG_LINES[name]
    counts, peak = alone(folder_of(tmp_path / "fhir", a_ndjson=PATIENT + line + LAB % (b"o2", b"")))
    assert counts == Ingested(3, 0, used, unknown)
    assert peak < 1500


def packed(suffix: str, unit: bytes, times: int) -> bytes:
    """A patient, then something many times over, as many members of a file."""
    if suffix == "gz":
        return gzip.compress(PATIENT) + gzip.compress(unit) * times
    codec = pa.Codec("zstd")
    return codec.compress(PATIENT, asbytes=True) + codec.compress(unit, asbytes=True) * times


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("gigabytes", [3, 10])
def test_a_bomb_of_zeros_is_one_line_too_long(suffix, gigabytes, alone, tmp_path):
    bomb = packed(suffix, bytes(MEGABYTE), gigabytes << 10)
    counts, peak = alone(folder_of(tmp_path / "fhir", **{f"a_ndjson_{suffix}": bomb}))
    assert counts == Ingested(2, 0, 1, 1)
    assert peak < 1500


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_bomb_of_empty_lines_is_counted(suffix, alone, tmp_path):
    bomb = packed(suffix, b"\n" * MEGABYTE, 4 << 10)
    counts, peak = alone(folder_of(tmp_path / "fhir", **{f"a_ndjson_{suffix}": bomb}))
    assert counts == Ingested(1 + (4 << 30), 4 << 30, 1, 0)
    assert peak < 1000


@pytest.mark.slow
def test_a_bomb_of_the_shortest_records_is_listed_to_the_last(alone, tmp_path):
    bomb = packed("gz", b"{}\n" * 100_000, 30)
    source = folder_of(tmp_path / "fhir", a_ndjson_gz=bomb)
    counts, peak = alone(source)
    assert counts == Ingested(3_000_001, 0, 1, 3_000_000)
    assert peak < 1200
    listed = (tmp_path / "events" / "rejects.ndjson").open()
    assert sum(1 for _ in listed) == 3_000_000


@pytest.mark.slow
def test_a_bomb_of_sound_records_that_are_all_the_same(alone, tmp_path):
    bomb = packed("gz", (LAB % (b"o", b"")) * 10_000, 300)
    counts, peak = alone(folder_of(tmp_path / "fhir", a_ndjson_gz=bomb))
    assert counts == Ingested(3_000_001, 0, 2, 0)
    assert peak < 1500


def test_a_file_without_a_line_end_is_read_once_not_once_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 1000)
    file = tmp_path / "a.ndjson"
    file.write_bytes(b"x" * 1_000_000)
    read = 0
    for block in reading.blocks_of([file], block=10_000):
        for chunk in reading._chunks(block.spans[0]):
            read += len(chunk)
    assert read == 1_000_000


@pytest.mark.parametrize("depth", [10**6])
@pytest.mark.parametrize(
    "opening", [b"[", b'{"x":', b'{"resourceType":"Bundle","entry":[{"resource":']
)
def test_a_million_levels(run, tmp_path, depth, opening):
    report, events = run(folder_of(tmp_path / "fhir", a_ndjson=PATIENT + opening * depth))
    assert (report.total.used, report.resources["unknown"].rejected) == (1, 1)
    assert len(events) == 1


# Odd files.


@pytest.mark.parametrize("many", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_small_files(many, run, tmp_path, monkeypatch):
    # Row numbers are made from the block's, which once were the file's times 16,384: too large for
    # 64 bits from the 8,192nd file on.
    monkeypatch.setattr(
        "ehrmamba_hf.events.fhir.source.blocks_of",
        lambda files: reading.blocks_of(files, block=100_000),
    )
    folder = folder_of(tmp_path / "fhir", p_json=PATIENT)
    for n in range(many):
        (folder / f"{n:05}.json").write_bytes(LAB % (b"o%d" % n, b""))
    report, events = run(folder, workers=1)
    assert (report.files, report.total.used, len(events)) == (many + 1,) * 3


def test_packed_files_share_blocks_by_what_they_unpack_to(tmp_path):
    plain, small = b"x" * 1000, gzip.compress(b"x" * 100_000)
    files = [*folder_of(tmp_path / "plain", **{f"{n}_json": plain for n in range(20)}).iterdir()]
    assert len(list(reading.blocks_of(files, block=20_000))) == 1
    files = [*folder_of(tmp_path / "packed", **{f"{n}_json": small for n in range(20)}).iterdir()]
    assert len(list(reading.blocks_of(files, block=20_000))) > 1


def test_what_is_no_file_and_what_cannot_be_read(run, hospital, write, tmp_path):
    folder = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    _, plain = run(folder)
    write(folder / "folder.ndjson" / "b.ndjson", [{"resourceType": "Device"}])
    os.mkfifo(folder / "pipe.ndjson")  # has no writer: opening it would wait for ever
    (folder / "dangling.ndjson").symlink_to(tmp_path / "gone")
    (folder / "loop.ndjson").symlink_to(folder / "loop.ndjson")
    (folder / "empty.ndjson").touch()
    (folder / "empty.json").touch()
    (folder / "empty.ndjson.gz").write_bytes(gzip.compress(b""))
    (folder / "linked.ndjson").symlink_to(folder / "a.ndjson")
    report, events = run(folder)
    assert events == plain
    assert report.resources["Device"].read == 1 + 2  # one of the two twice: by the link as well
    found = {file: (line, expected) for file, line, expected, _ in rejects(tmp_path / "events")}
    assert found == dict.fromkeys(["dangling.ndjson", "loop.ndjson"], (1, "a readable file"))
    assert report.total.not_used["duplicate"] == len(hospital) - 1  # but the Device


@pytest.mark.parametrize("kind", ["an empty folder", "an empty file", "a pipe", "a dangling link"])
def test_a_source_of_nothing(kind, tmp_path):
    source = tmp_path / "a.ndjson"
    {
        "an empty folder": source.mkdir,
        "an empty file": source.touch,
        "a pipe": lambda: os.mkfifo(source),
        "a dangling link": lambda: source.symlink_to(tmp_path / "gone"),
    }[kind]()
    with pytest.raises(InputError, match=r"a\.ndjson: expected"):
        ingest(source, tmp_path / "events", progress=False)
    assert not (tmp_path / "events").exists()


def test_a_file_that_vanishes_grows_or_shrinks_after_it_was_found(
    run, hospital, write, tmp_path, monkeypatch
):
    folder = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    for name in ("gone", "grown", "shrunk"):
        write(folder / f"{name}.ndjson", [{"resourceType": "Device", "id": "d"}] * 2)

    def changed(files: list[Path]):
        blocks = list(reading.blocks_of(files, block=60))
        (folder / "gone.ndjson").unlink()
        with (folder / "grown.ndjson").open("a") as more:
            more.write('{"resourceType": "Device"}\n')
        (folder / "shrunk.ndjson").write_bytes(b"")
        return blocks

    monkeypatch.setattr("ehrmamba_hf.events.fhir.source.blocks_of", changed)
    report, events = run(folder, workers=1)
    assert len(events) == 10
    assert {file for file, *_ in rejects(tmp_path / "events")} == {"gone.ndjson"}
    assert report.resources["Device"].read >= 1 + 2


# Records that go in circles, and many of one name.


def test_thousands_of_versions_of_one_record(run, resource):
    made = [
        resource(
            "Observation",
            "o",
            code={"text": "x"},
            issued="2019",
            valueInteger=n % 1000,
            meta={"lastUpdated": f"2020-01-01T00:00:00.{n % 1000:03}Z"},
        )
        for n in range(5_000)
    ]
    report, events = run([resource("Patient", "p1"), *made])
    assert events["numeric_value"].to_pylist() == [999]
    not_used = {"duplicate": 4, "another version is used": 4_995}
    assert report.resources["Observation"].not_used == not_used


def test_parts_that_go_in_circles(run, resource, tmp_path):
    day = {"start": "2019-03-04T10:00:00Z", "end": "2019-03-05T10:00:00Z"}
    circles = {
        "own": "own",
        "a": "b",
        "b": "a",
        "c": "a",
        "x": "y",
        "y": "z",
        "z": "x",
        "w": "gone",
    }
    stays = [
        resource("Encounter", name, period=day, partOf={"reference": f"Encounter/{part_of}"})
        | {"class": {"code": "IMP"}}
        for name, part_of in circles.items()
    ]
    people = [resource("Patient", f"p{n}", birthDate="1950") for n in range(1, 200)]
    labs = [
        resource(
            "Observation",
            f"o{n}",
            code={"text": "x"},
            category=[{"text": "laboratory"}],
            subject={"reference": f"Patient/p{n}"},
            effectiveDateTime="2019-03-04T11:00:00Z",
            valueInteger=n,
        )
        for n in range(1, 200)
    ]
    report, _ = run([*people, *stays, *labs])
    assert report.encounters == len(circles)
    assert report.unresolved_references["Encounter.partOf"] == 1
    prepare(tmp_path / "events", tmp_path / "data", load_config("tiny").prepare, progress=False)
    assert (tmp_path / "data" / "prepare.json").is_file()
