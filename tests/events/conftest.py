"""A small made record and ways to write, ingest and read it."""

import json
import os
from collections.abc import Callable, Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events import Report, ingest, validate
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.events.table import data_files

Record = dict[str, Any]


def _module(file: Path) -> ModuleType:
    spec = spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The made records of each type, and the ways to break them, serve here too.
_fhir = _module(Path(__file__).parents[1] / "fhir" / "conftest.py")
records, mutated = _fhir.records, _fhir.mutated
_broken = _module(Path(__file__).with_name("broken_lines.py"))


@pytest.fixture(scope="session")
def broken_lines(mutated, records) -> Callable[[int], Any]:
    """A maker of broken lines, by its seed."""
    return lambda seed: _broken.Maker(mutated, records, seed)


def about(kind: str, name: str, **fields: Any) -> Record:
    """A resource of patient p1 in stay e1, unless `fields` say otherwise."""
    shared = {} if kind in ("Patient", "Medication") else {"subject": {"reference": "Patient/p1"}}
    if kind in ("Condition", "Procedure", "Observation", "MedicationRequest"):
        shared["encounter"] = {"reference": "Encounter/e1"}
    return {"resourceType": kind, "id": name, **shared, **fields}


def code(system: str, value: str, display: str | None = None) -> Record:
    return {"coding": [{"system": system, "code": value, "display": display}]}


@pytest.fixture
def resource() -> Callable[..., Record]:
    return about


@pytest.fixture
def hospital() -> list[Record]:
    """Two patients; p1 has a stay from 4 March 10:00 to 6 March 12:00 and one of each resource."""
    rxnorm = "http://www.nlm.nih.gov/research/umls/rxnorm"
    loinc = "http://loinc.org"
    at = "2019-03-04T11:00:00-05:00"
    return [
        about("Patient", "p1", gender="female", birthDate="1950-06-01"),
        about("Patient", "p2", birthDate="1960", deceasedDateTime="2019-05-05"),
        about(
            "Encounter",
            "e1",
            **{"class": {"code": "IMP"}},
            period={"start": "2019-03-04T10:00:00-05:00", "end": "2019-03-06T12:00:00-05:00"},
        ),
        about("Encounter", "e2", period={"start": at}, partOf={"reference": "Encounter/e1"}),
        about("Condition", "c1", code=code("http://hl7.org/fhir/sid/icd-10-cm", "I10", "High BP")),
        about(
            "Procedure",
            "r1",
            code=code("http://snomed.info/sct", "1"),
            performedDateTime="2019-03-05",
        ),
        about("Medication", "m1", code=code(rxnorm, "5856", "insulin")),
        about("Medication", "m2", code=code(rxnorm, "1")),
        about(
            "MedicationRequest",
            "q1",
            medicationReference={"reference": "Medication/m1"},
            authoredOn=at,
        ),
        about(
            "MedicationAdministration",
            "a1",
            medicationReference={"reference": "urn:uuid:m1"},
            effectiveDateTime=at,
        ),
        about(
            "Observation",
            "o1",
            status="final",
            category=[{"coding": [{"code": "laboratory"}]}],
            code=code(loinc, "2345-7", "Glucose"),
            effectiveDateTime=at,
            issued="2019-03-04T13:00:00-05:00",
            valueQuantity={"value": 90.5, "unit": "mg/dL"},
        ),
        about(
            "Observation",
            "o2",
            category=[{"text": "vital-signs"}],
            code=code(loinc, "85354-9"),
            effectiveDateTime=at,
            component=[
                {"code": code(loinc, "8480-6"), "valueQuantity": {"value": 120}},
                {"code": code(loinc, "8462-4"), "valueQuantity": {"value": 80}},
            ],
        ),
        about("Device", "d1"),
    ]


@pytest.fixture
def write() -> Callable[[Path, Iterable[Record]], Path]:
    """Writes records as NDJSON, making the folders."""

    def to(file: Path, records: Iterable[Record]) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return file

    return to


@pytest.fixture
def run(tmp_path: Path, write: Callable[..., Path]) -> Callable[..., tuple[Report, pa.Table]]:
    """Ingests records (or a folder) and gives the report and the events, after the border's check
    and the sum of the accounts."""

    def of(source: Path | Iterable[Record], **options: Any) -> tuple[Report, pa.Table]:
        if not isinstance(source, Path):
            source = write(tmp_path / "fhir" / "all.ndjson", source).parent
        report = ingest(source, tmp_path / "events", progress=False, **options)
        validate(tmp_path / "events")
        for outcome in (*report.resources.values(), report.total):
            not_used = sum(outcome.not_used.values())
            assert outcome.read == outcome.used + not_used + outcome.rejected
        assert report.total.read == sum(o.read for o in report.resources.values())
        batches = [pq.read_table(f).cast(EVENT_SCHEMA) for f in data_files(tmp_path / "events")]
        return report, pa.concat_tables([EVENT_SCHEMA.empty_table(), *batches])

    return of


@pytest.fixture
def shared_data() -> Path:
    """The folder of FHIR samples that are not part of the repository."""
    given = os.environ.get("EHRMAMBA_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared FHIR samples here")
    return folder
