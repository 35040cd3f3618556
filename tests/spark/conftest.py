"""A small cluster of two worker processes, started once for all tests that need one."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ehrmamba_hf.simulation import simulate

LOINC = "http://loinc.org"
Resource = dict[str, Any]


def about(kind: str, name: str, **fields: Any) -> Resource:
    whose = {} if kind in ("Patient", "Medication") else {"subject": {"reference": "Patient/p1"}}
    return {"resourceType": kind, "id": name, **whose, **fields}


def lab(name: str, value: float, **fields: Any) -> Resource:
    return about(
        "Observation",
        name,
        status="final",
        code={"coding": [{"system": LOINC, "code": "2345-7"}]},
        effectiveDateTime="2019-03-04T11:00:00-05:00",
        valueQuantity={"value": value, "unit": "mg/dL"},
        **fields,
    )


def drug(value: str) -> Resource:
    system = "http://www.nlm.nih.gov/research/umls/rxnorm"
    return {"coding": [{"system": system, "code": value}, {"system": "urn:x", "code": value}]}


def mixture(name: str, *medications: str) -> Resource:
    parts = [{"itemReference": {"reference": f"Medication/{one}"}} for one in medications]
    return about("Medication", name, ingredient=parts)


def asked(name: str, medication: str) -> Resource:
    reference = {"reference": f"Medication/{medication}"}
    at = "2019-03-04T11:00:00-05:00"
    return about("MedicationRequest", name, medicationReference=reference, authoredOn=at)


def stay(name: str, start: str, **fields: Any) -> Resource:
    return about("Encounter", name, period={"start": start, "end": "2019-03-09"}, **fields)


def condition(name: str, encounter: str, **fields: Any) -> Resource:
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I10"}]}
    return about(
        "Condition", name, code=code, encounter={"reference": f"Encounter/{encounter}"}, **fields
    )


OF_P2 = {"subject": {"reference": "Patient/p2"}}
RECENT, OLD = {"meta": {"lastUpdated": "2020-01-02"}}, {"meta": {"lastUpdated": "2020-01-01"}}
FIRST = [
    about("Patient", "p1", birthDate="1950-06-01"),
    about("Patient", "p2", birthDate="1960", deceasedDateTime="2019-05-05"),
    about("Patient", "p3", gender="male"),
    stay("e1", "2019-03-04"),
    stay("e2", "2019-03-05", partOf={"reference": "Encounter/e1"}),
    stay("e3", "2019-03-06", partOf={"reference": "Encounter/not-here"}),
    lab("updated", 1, **OLD),
    lab("same", 2),
    lab("other patient", 3, **RECENT),
    lab("undated", 4),
    lab("once", 5),
    about("Observation", "in words", code={"text": "mood"}, valueString="low\u0000 \u00e9"),
    asked("q1", "m1"),
    asked("q2", "m2"),
    asked("q3", "nowhere"),
    asked("q4", "mixture"),
    asked("q5", "mixture of nothing"),
    condition("c1", "e1"),
    condition("c2", "nowhere", recordedDate="2019-03-07"),
    condition("c3", "nowhere"),
    about("Device", "d1"),
    lab("of nobody", 6, **{"subject": {"reference": "Patient/nobody"}}),
    lab("withdrawn", 6) | {"status": "entered-in-error"},
    {"resourceType": "Observation", "id": "bad", "status": 3},
]
SECOND = [
    about("Medication", "m1", code=drug("5856")),
    about("Medication", "m2", code=drug("1"), **OLD),
    about("Medication", "m2", code=drug("2"), **RECENT),
    about("Medication", "m3", code=drug("3")),
    about("Medication", "m4", code=drug("4")),
    mixture("mixture", "nowhere", "m4", "m1"),
    mixture("mixture of nothing", "nowhere", "mixture"),
    mixture("mixture of no use", "m3"),
    about("Patient", "p1", birthDate="1950-06-01", gender="female"),
    stay("e1", "2019-03-03", **RECENT),
    stay("e1", "2019-03-02", **OLD),
    lab("updated", 10, **RECENT),
    lab("same", 2),
    lab("other patient", 30, **OLD) | OF_P2,
    lab("undated", 40),
    lab("undated", 41),
    lab("withdrawn", 6, **OLD),
]

MASTER = "local-cluster[2,1,1024]"


@pytest.fixture(scope="session")
def master() -> Iterator[str]:
    """The URL of a cluster that runs already: runs use it and leave it alone."""
    missing = None if shutil.which("java") else "Spark needs Java, and there is none here"
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        missing = "pyspark is not installed"
    if missing and os.environ.get("CI"):
        pytest.fail(f"{missing}: CI has to have it")
    if missing:
        pytest.skip(missing)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        SparkSession.builder.master(MASTER)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.hadoop.fs.viewfs.mounttable.hospital.linkFallback", "file:///")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield MASTER
    session.stop()


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic patients, and all that is odd, in files of every kind."""
    folder = tmp_path_factory.mktemp("hospital") / "fhir"
    simulate(folder, patients=25, seed=4)
    lines = [json.dumps(resource) for resource in FIRST]
    (folder / "first.ndjson").write_text("\n".join([*lines, "", "{broken"]))
    second = "".join(json.dumps(resource) + "\n" for resource in SECOND)
    with gzip.open(folder / "second.ndjson.gz", "wt") as file:
        file.write(second + " " * 50_000 + "\nnot JSON\n")
    bundle = {"resourceType": "Bundle", "type": "collection"}
    bundle["entry"] = [{"resource": resource} for resource in (*FIRST[:4], lab("in bundle", 7))]
    (folder / "bundle.json").write_text(json.dumps(bundle, indent=1))
    return folder
