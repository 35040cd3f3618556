"""Bad input: counted and listed where something else can be used, a clear error where not."""

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events import ingest
from ehrmamba_hf.events.meds import MedsRules
from ehrmamba_hf.folders import finish_part


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def killed_at(
    monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, stage: str, zone: str | None = None
) -> None:
    """A run that is killed when the data of a stage are in place, and nothing says so yet."""

    def finish(done: Path, *given: Any) -> None:
        if done.stem.startswith(stage):
            raise KeyboardInterrupt
        finish_part(done, *given)

    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.events.fhir.source.finish_part", finish)
        patch.setattr("ehrmamba_hf.events.ingestion.write_report", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(source, out, timezone=zone, progress=False)


def rejects(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejects.ndjson").read_text().splitlines()]


def test_every_kind_of_bad_line_is_listed_and_the_rest_is_used(run, hospital, resource, tmp_path):
    file = tmp_path / "fhir" / "sub" / "a.ndjson"
    file.parent.mkdir(parents=True)
    bad = [
        (b"not json", "unknown", ""),
        (b'{"resourceType":"Observation","id":"cut', "unknown", ""),
        (b'{"resourceType":"Patient","gender":"\xff"}', "unknown", ""),
        (b'{"resourceType":"Patient","x":' + b"[" * 5000, "unknown", ""),
        (b'{"resourceType":"Patient","id":"a\x00"}', "unknown", ""),
        (b'{"some":"thing"}', "unknown", "resourceType"),
        (b"[1, 2]", "unknown", "resourceType"),
        (b'{"resourceType":"Patient","gender":"male"}', "Patient", "id"),
        (b'{"resourceType":"Bundle","entry":5}', "Bundle", "entry"),
        (
            json.dumps(
                {"resourceType": "Bundle", "entry": [{}, {"resource": {"id": "1"}}]}
            ).encode(),
            "unknown",
            "entry[0].resource.resourceType",
        ),
        (json.dumps(resource("Observation", "b", issued="2019")).encode(), "Observation", "code"),
        (
            json.dumps(resource("Observation", "b", code={"text": "x"}, subject=None)).encode(),
            "Observation",
            "subject.reference",
        ),
        (
            json.dumps(
                resource("Patient", "b", birthDate="2019", deceasedDateTime="2018")
            ).encode(),
            "Patient",
            "deceasedDateTime",
        ),
    ]
    good = [json.dumps(record).encode() for record in hospital]
    file.write_bytes(b"\n".join([*good, b"", *(line for line, _, _ in bad)]))
    report, events = run(tmp_path / "fhir")
    first = len(good) + 2
    expected = [
        ("sub/a.ndjson", number, kind, field)
        for number, (_, kind, field) in enumerate(bad, start=first)
    ]
    found = rejects(tmp_path / "events")
    assert [
        tuple(r[k] for k in ("file", "line", "resource_type", "field")) for r in found
    ] == expected
    assert all(
        r.keys() == {"file", "line", "resource_type", "field", "expected", "found"} for r in found
    )
    assert report.total.rejected == len(bad)
    assert report.total.read == len(good) + len(bad)
    assert (report.lines, report.blank_lines) == (len(good) + 1 + len(bad), 1)
    assert len(events) == 10


def test_a_cut_off_gzip_is_one_reject_and_the_run_goes_on(run, hospital, tmp_path):
    packed = gzip.compress("\n".join(json.dumps(record) for record in hospital * 200).encode())
    (tmp_path / "fhir").mkdir()
    (tmp_path / "fhir" / "a.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "fhir" / "b.ndjson").write_text(json.dumps({"resourceType": "Patient", "id": "z"}))
    report, events = run(tmp_path / "fhir")
    (reject,) = rejects(tmp_path / "events")
    assert (reject["file"], reject["found"]) == ("a.ndjson.gz", "a cut-off one")
    assert reject["line"] > len(hospital)
    assert report.resources["unknown"].rejected == 1
    assert report.subjects == 3
    assert len(events) == 10


def test_a_negative_length_encounter_and_patients_without_encounters(run, resource):
    records = [
        resource("Patient", "p1"),
        resource("Patient", "p2"),
        resource("Encounter", "e1", period={"start": "2019-03-04", "end": "2019-03-01"}),
    ]
    report, events = run(records)
    assert (report.subjects, report.encounters, len(events)) == (2, 1, 0)


def test_a_patient_with_thirty_thousand_events(run, resource):
    minutes = [f"2019-03-04T10:{n // 60 % 60:02}:{n % 60:02}Z" for n in range(30_000)]
    records = [
        resource("Observation", f"o{n}", code={"text": "x"}, issued=issued)
        for n, issued in enumerate(minutes)
    ]
    _, events = run([resource("Patient", "p1", birthDate="1950"), *records])
    assert len(events) == 30_001
    times = events["time"].to_pylist()
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "found none"),
        ("notes.txt", b"hello", r"found other endings: \.txt \(1\)"),
        ("a.ndjson", b"", "at least one Patient, found 0 records"),
        ("a.ndjson", b"hello\nworld\n", "2 of them rejected; the first at a.ndjson line 1"),
        ("package.json", b'{"name": "x"}', "package.json line 1, resourceType"),
        ("a.ndjson", b'{"resourceType": "Device"}', "found 1 records"),
        ("a.ndjson.gz", gzip.compress(b"x" * 100)[:-20], "cut-off"),
    ],
    ids=["none", "other", "empty", "no json", "no fhir", "no patient", "cut off"],
)
def test_where_nothing_can_be_done_it_is_an_error_and_nothing_is_left(
    tmp_path, name, content, message
):
    source = tmp_path / "fhir"
    source.mkdir()
    if name:
        (source / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        ingest(source, tmp_path / "events", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["fhir"]


def test_a_folder_that_is_not_there_and_an_unknown_timezone(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        ingest(tmp_path / "missing", tmp_path / "events")
    with pytest.raises(InputError, match="timezone"):
        ingest(tmp_path, tmp_path / "events", timezone="Boston")


def test_only_an_events_folder_is_replaced(hospital, write, tmp_path):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    out = tmp_path / "events"
    out.mkdir()
    ingest(source, out, progress=False)
    write(source / "b.ndjson", [{"resourceType": "Patient", "id": "p3"}])
    assert ingest(source, out, progress=False).subjects == 3
    (out / "thesis.docx").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.docx"):
        ingest(source, out, progress=False)
    (out / "thesis.docx").unlink()
    (out / "report.json").unlink()
    with pytest.raises(InputError, match="report"):
        ingest(source, out, progress=False)
    with pytest.raises(InputError, match="found a file"):
        ingest(source, source / "a.ndjson", progress=False)
    with pytest.raises(InputError, match="apart from the source"):
        ingest(source, tmp_path, progress=False)


def test_a_killed_run_keeps_the_old_folder_and_the_next_one_goes_on(
    hospital, write, tmp_path, monkeypatch
):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    out = tmp_path / "events"
    ingest(source, out, progress=False)
    before = (out / "report.json").read_bytes()
    killed_at(monkeypatch, source, out, "report")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".events.partial", "events", "fhir"]
    assert (out / "report.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.events.fhir.source.write_parts", stop)  # all of it is done
        patch.setattr("ehrmamba_hf.events.fhir.source.write_shard", stop)
        ingest(source, out, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "fhir"]
    out.rename(tmp_path / ".events.old")  # killed just between the two renames
    shutil.rmtree(source)
    source.mkdir()
    (source / "a.ndjson").write_text("broken")
    with pytest.raises(InputError):
        ingest(source, out, progress=False)
    assert (out / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("stage", "following"), [("block", "kept"), ("kept", "shard"), ("shard", "report")]
)
def test_parts_are_not_believed_with_the_data_of_another_run(
    hospital, write, tmp_path, monkeypatch, stage, following
):
    file = write(tmp_path / "fhir" / "a.ndjson", hospital)
    file.write_text(file.read_text().replace("-05:00", "Z"))
    source = file.parent
    expected, out = tmp_path / "expected", tmp_path / "out" / "events"
    ingest(source, expected, progress=False)
    ingest(source, tmp_path / "other", timezone="Asia/Tokyo", progress=False)
    assert contents(expected) != contents(tmp_path / "other")

    killed_at(monkeypatch, source, out, following)
    killed_at(monkeypatch, source, out, stage, "Asia/Tokyo")
    ingest(source, out, progress=False)
    assert contents(out) == contents(expected)


@pytest.mark.parametrize("lost", ["kept_subjects", "losers", "named-00000", "events-000000000"])
def test_parts_that_lost_their_data_are_made_again(hospital, write, tmp_path, monkeypatch, lost):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    ingest(source, tmp_path / "expected", progress=False)
    out = tmp_path / "out" / "events"
    killed_at(monkeypatch, source, out, "report")
    (out.parent / ".events.partial" / "parts" / f"{lost}.parquet").unlink()
    ingest(source, out, progress=False)
    assert contents(out) == contents(tmp_path / "expected")


def test_options_without_effect_are_refused(hospital, write, tmp_path):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    with pytest.raises(InputError, match="expected no rules for FHIR"):
        ingest(source, tmp_path / "events", rules=MedsRules(), progress=False)
    ingest(source, tmp_path / "events", progress=False)
    with pytest.raises(InputError, match="expected no timezone for a MEDS dataset"):
        ingest(tmp_path / "events", tmp_path / "again", timezone="Asia/Tokyo", progress=False)


def test_two_runs_on_one_folder(hospital, write, tmp_path, monkeypatch):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    out = tmp_path / "events"

    def second(*_: object) -> None:
        with pytest.raises(InputError, match="another run"):
            ingest(source, out, progress=False)

    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.events.ingestion.expect_something", second)
        ingest(source, out, progress=False)
    assert (out / "report.json").is_file()


def test_an_earlier_output_inside_the_source_is_not_read(hospital, write, tmp_path):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    first = ingest(source, source / "events", progress=False)
    assert ingest(source, source / "events", progress=False) == first


def test_a_file_whose_name_is_not_utf_8(hospital, write, tmp_path):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    (source / os.fsdecode(b"M\xfcller.ndjson")).write_text("broken\n")
    assert ingest(source, tmp_path / "events", progress=False).total.rejected == 1
    assert [reject["file"] for reject in rejects(tmp_path / "events")] == ["M\\xfcller.ndjson"]


def test_files_of_other_kinds_are_counted(run, hospital, tmp_path):
    (tmp_path / "fhir").mkdir()
    for name in ("export.xml", "more.XML", "labs.ndjson.bz2"):
        (tmp_path / "fhir" / name).write_bytes(b"<Patient/>")
    report, _ = run(hospital)
    assert report.files_not_read == {".bz2": 1, ".xml": 2}
    assert "files not read: .bz2 (1), .xml (2)" in report.summary().splitlines()
