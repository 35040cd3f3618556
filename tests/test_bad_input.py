"""Bad input at the command line: a clear error, or a count of what was left out and the work done.

The exit code is not zero only where nothing could be done.
"""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.cli import main
from ehrmamba_hf.fhir.identity import subject_id


class Done(NamedTuple):
    code: int
    out: str
    error: str


@pytest.fixture
def ehrmamba(monkeypatch, capsys) -> Callable[..., Done]:
    """Runs the command line as installed, in this process; no failure may show a trace."""

    monkeypatch.setenv("COLUMNS", "1000")  # no line break inside a path

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["ehrmamba", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return Done(int(left.value.code or 0), out, error)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Few patients: every code is kept, and everybody is in the pretraining split."""
    file = tmp_path / "config.yaml"
    splits = "splits: {pretrain: 1.0, finetune: 0.0, validation: 0.0}"
    file.write_text(f"prepare: {{min_patients: 1, context_length: 512, {splits}}}\n")
    return file


def patient(name: str, **fields: str) -> dict:
    return {"resourceType": "Patient", "id": name, "birthDate": "1950-01-01", **fields}


def stay(name: str, start: str, end: str, of: str = "p") -> dict:
    return {
        "resourceType": "Encounter",
        "id": name,
        "class": {"code": "IMP"},
        "subject": {"reference": f"Patient/{of}"},
        "period": {"start": start, "end": end},
    }


def lab(name: str, time: str, of: str = "p", code: str | None = "2345-7") -> dict:
    coded = {"code": {"coding": [{"system": "http://loinc.org", "code": code}]}} if code else {}
    return {
        "resourceType": "Observation",
        "id": name,
        "category": [{"coding": [{"code": "laboratory"}]}],
        "subject": {"reference": f"Patient/{of}"},
        "effectiveDateTime": time,
        **coded,
    }


GOOD = [
    patient("p"),
    stay("s", "2020-01-01T08:00:00-05:00", "2020-01-10T08:00:00-05:00"),
    lab("o", "2020-01-02T08:00:00-05:00"),
]


def write(folder: Path, resources: Iterable[dict | str], name: str = "all.ndjson") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in resources]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def report(events: Path) -> dict:
    return json.loads((events / "report.json").read_text())


def rejects(events: Path) -> list[tuple[str, int, str]]:
    lines = (events / "rejects.ndjson").read_text().splitlines()
    return [(r["file"], r["line"], r["field"]) for r in map(json.loads, lines)]


# Nothing could be done


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "found none"),
        ("a.ndjson", b"", "at least one Patient, found 0 records"),
        ("a.ndjson", b"hello\n", "the first at a.ndjson line 1"),
        ("a.ndjson.gz", gzip.compress(json.dumps(GOOD[0]).encode() * 50)[:40], "a.ndjson.gz line"),
        ("a.ndjson", json.dumps(lab("o", "2020", code=None)).encode(), "line 1, code"),
        ("a.ndjson", json.dumps(lab("o", "2020-01-02")).encode(), "found 1 records"),
        (
            "a.ndjson",
            json.dumps(patient("p", deceasedDateTime="1949-12-31")).encode(),
            "line 1, deceasedDateTime",
        ),
    ],
    ids=["empty", "no lines", "not JSON", "cut gzip", "no code", "no patient", "died unborn"],
)
def test_a_folder_of_which_nothing_can_be_used(ehrmamba, tmp_path, name, content, message):
    fhir, out = tmp_path / "fhir", tmp_path / "events"
    fhir.mkdir()
    if name:
        (fhir / name).write_bytes(content)
    done = ehrmamba("ingest", fhir, "--out", out)
    assert done.code == 1
    assert done.error.startswith("error: ") and message in done.error
    assert not out.exists()


def test_the_exit_code_of_a_process(tmp_path):
    command = [sys.executable, "-m", "ehrmamba_hf", "ingest", str(tmp_path), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "events")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_a_stage_that_is_given_another_folder(ehrmamba, tmp_path):
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    for arguments, expected in (
        (("prepare", empty), "expected an events folder"),
        (("pretrain", empty), "expected"),
        (("finetune", empty, "--model", empty), "expected"),
        (("evaluate", empty, "--model", empty), "expected"),
        (("predict", empty, "--events", empty), "expected a model folder"),
        (("prepare", empty, "--config", tmp_path / "no.yaml"), "expected a YAML file"),
    ):
        done = ehrmamba(*arguments, "--out", out)
        assert done.code == 1
        assert re.match(r"error: .*expected .*found", done.error), done.error
        assert expected in done.error
    done = ehrmamba("forecast", empty, "--events", empty, "--subject", "1")
    assert done.code == 1 and done.error.startswith("error: ")
    assert not out.exists()


def test_a_config_with_a_field_that_is_not_one(ehrmamba, tmp_path, config):
    config.write_text("prepare: {min_patient: 1}\n")
    done = ehrmamba("prepare", tmp_path, "--out", tmp_path / "data", "--config", config)
    assert done.code == 1 and "min_patient" in done.error


def test_too_few_patients_for_any_token(ehrmamba, tmp_path):
    ehrmamba("ingest", write(tmp_path / "fhir", GOOD), "--out", tmp_path / "events")
    done = ehrmamba("prepare", tmp_path / "events", "--out", tmp_path / "data")
    assert done.code == 1 and "at least 10 patients" in done.error
    assert not (tmp_path / "data").exists()


# Something could be done


def test_bad_records_are_counted_and_the_rest_is_used(ehrmamba, tmp_path, config):
    fhir = write(
        tmp_path / "fhir",
        [
            *GOOD,
            "this is no JSON",  # line 4
            lab("bad", "2020-01-02", code=None),
            patient("q", deceasedDateTime="1949-12-31"),  # born in 1950
            lab("of q", "2020-01-02", of="q"),
            stay("negative", "2020-03-05T08:00:00-05:00", "2020-03-01T08:00:00-05:00"),
            lab("in it", "2020-03-05T09:00:00-05:00"),
        ],
    )
    whole = "\n".join(json.dumps(lab(f"z{i}", "2020-01-03T08:00:00-05:00")) for i in range(2000))
    packed = gzip.compress(whole.encode())
    (fhir / "cut.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    events = tmp_path / "events"

    done = ehrmamba("ingest", fhir, "--out", events)
    assert done.code == 0
    counted = report(events)
    assert rejects(events)[:3] == [
        ("all.ndjson", 4, ""),
        ("all.ndjson", 5, "code"),
        ("all.ndjson", 6, "deceasedDateTime"),
    ]
    ((file, line, _),) = rejects(events)[3:]
    assert file == "cut.ndjson.gz" and 1 < line <= 2000
    total = counted["total"]
    assert total["rejected"] == 4
    assert total["read"] == total["used"] + sum(total["not_used"].values()) + total["rejected"]
    assert counted["resources"]["Observation"]["not_used"] == {"no Patient resource": 1}
    assert "rejected" in done.out and "4" in done.out
    assert counted["encounters"] == 2  # as written, the negative one too

    done = ehrmamba("prepare", events, "--out", tmp_path / "data", "--config", config)
    assert done.code == 0
    prepared = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert prepared["records"]["encounter_ends_before_start"] == 1
    assert prepared["stays"] == {"pretrain": 1}
    labels = pq.read_table(tmp_path / "data" / "labels.parquet")
    asked = [datetime(2020, 1, 2, 8), datetime(2020, 1, 10, 8)]
    assert sorted(labels["prediction_time"].unique().to_pylist()) == asked


def test_patients_without_encounters_or_events_are_patients(ehrmamba, tmp_path, config, finetuned):
    fhir = write(
        tmp_path / "fhir",
        [*GOOD, patient("q"), lab("of q", "2020-05-02T08:00:00-05:00", of="q"), patient("r")],
    )
    events, out = tmp_path / "events", tmp_path / "predictions.parquet"
    assert ehrmamba("ingest", fhir, "--out", events).code == 0
    assert ehrmamba("prepare", events, "--out", tmp_path / "data", "--config", config).code == 0
    prepared = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert prepared["patients"] == {"pretrain": 3}
    assert prepared["records"]["without_any_event"] == 1

    assert ehrmamba("predict", finetuned.mpf, "--events", events, "--out", out).code == 0
    rows = {(r["subject_id"], r["task"]): r for r in pq.read_table(out).to_pylist()}
    assert len(rows) == 3 * 6
    assert all(0 < row["probability"] < 1 for row in rows.values())
    mortality = {name: rows[subject_id(name), "mortality"] for name in "pqr"}
    asked = {name: (row["asked_at"], row["prediction_time"]) for name, row in mortality.items()}
    assert asked == {
        "p": ("index time", datetime(2020, 1, 10, 8)),
        "q": ("end of record", datetime(2020, 5, 2, 8)),
        "r": ("end of record", None),
    }
    forecast = ("forecast", finetuned.mpf, "--events", events, "--tokens", 2, "--subject")
    assert ehrmamba(*forecast, "q").code == 0
    for subject in ("r", "nobody"):
        done = ehrmamba(*forecast, subject)
        assert done.code == 1 and done.error.startswith("error: ")
    wrong = ehrmamba("predict", finetuned.mpf, "--events", events, "--out", out, "--at", "May")
    assert wrong.code == 1 and "at: expected an ISO time, found May" in wrong.error


def test_encounters_in_the_wrong_order(ehrmamba, tmp_path, config):
    resources = [
        *GOOD,
        stay("t", "2020-02-01T08:00:00-05:00", "2020-02-05T08:00:00-05:00"),
        lab("o2", "2020-02-02T08:00:00-05:00"),
        stay("u", "2020-06-01T08:00:00-05:00", "2020-06-05T08:00:00-05:00"),
    ]
    found = []
    for name, ordered in (("a", resources), ("b", resources[::-1])):
        root = tmp_path / name
        root.mkdir()
        ehrmamba("ingest", write(root / "fhir", ordered), "--out", root / "events")
        done = ehrmamba("prepare", root / "events", "--out", root / "data", "--config", config)
        assert done.code == 0
        tables = ["events/encounters.parquet", "events/data", "data/labels.parquet"]
        found.append([pq.read_table(root / table).to_pylist() for table in tables])
    assert found[0] == found[1]
    readmitted = [row for row in found[0][2] if row["task"] == "readmission"]
    assert [row["boolean_value"] for row in readmitted] == [True, False]


def test_a_patient_with_thirty_thousand_events(ehrmamba, tmp_path, config, finetuned):
    start = datetime(2000, 1, 1)
    times = [start + timedelta(hours=5 * i) for i in range(30_000)]
    resources = [patient("p")]
    resources += [lab(f"o{i}", f"{t:%Y-%m-%dT%H:%M:%S}-05:00") for i, t in enumerate(times)]
    for i in range(200):
        day = start + timedelta(days=30 * i)
        end = day + timedelta(days=1 + i % 12)
        resources.append(stay(f"s{i}", f"{day:%Y-%m-%dT08:00:00}-05:00", f"{end:%Y-%m-%d}"))
    events, data = tmp_path / "events", tmp_path / "data"
    assert ehrmamba("ingest", write(tmp_path / "fhir", resources), "--out", events).code == 0
    assert report(events)["events"]["lab"] == 30_000
    assert ehrmamba("prepare", events, "--out", data, "--config", config).code == 0
    prepared = json.loads((data / "prepare.json").read_text())
    assert prepared["stays"] == {"pretrain": 200}
    assert 500 < prepared["tokens"]["pretrain"] <= 512  # the most recent ones
    out = tmp_path / "predictions.parquet"
    assert ehrmamba("predict", finetuned.mpf, "--events", events, "--out", out).code == 0
    assert pq.read_table(out).num_rows == 6
