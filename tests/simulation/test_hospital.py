"""The written hospital: FHIR R4 files, times, references, and the true risks beside them."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.simulation import simulate, true_risks_path

NAMES = {
    "Patient",
    "Encounter",
    "Condition",
    "Procedure",
    "Medication",
    "MedicationRequest",
    "MedicationAdministration",
    "Observation",
}


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.ndjson").open()]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "fhir", patients=60, seed=1)


def test_one_file_a_resource_type_and_the_risks_beside_the_folder(hospital):
    assert {file.name for file in hospital.iterdir()} == {f"{name}.ndjson" for name in NAMES}
    assert {p.name for p in hospital.parent.iterdir()} == {"fhir", "fhir.true_risks.parquet"}
    for name in NAMES:
        resources = read(hospital, name)
        assert resources and {r["resourceType"] for r in resources} == {name}
        assert len({r["id"] for r in resources}) == len(resources)


def test_every_reference_leads_somewhere(hospital):
    known = {f"{name}/{r['id']}" for name in NAMES for r in read(hospital, name)}
    for name in NAMES - {"Patient", "Medication"}:
        for resource in read(hospital, name):
            places = ("subject", "encounter", "context", "medicationReference")
            references = {resource[place]["reference"] for place in places if place in resource}
            assert references <= known and resource["subject"]["reference"] in references


def test_medications_come_by_reference_and_by_concept(hospital):
    for name in ("MedicationRequest", "MedicationAdministration"):
        by_reference = ["medicationReference" in r for r in read(hospital, name)]
        by_concept = ["medicationCodeableConcept" in r for r in read(hospital, name)]
        assert any(by_reference) and any(by_concept)
        assert all(a != b for a, b in zip(by_reference, by_concept, strict=True))


def test_times_carry_the_offset_and_observations_a_value_with_a_ucum_unit(hospital):
    for resource in read(hospital, "Observation"):
        sampled, issued = (
            datetime.fromisoformat(resource[k]) for k in ("effectiveDateTime", "issued")
        )
        assert sampled.utcoffset() == timedelta(hours=-5) and sampled < issued
        assert resource["valueQuantity"]["value"] > 0
        assert resource["valueQuantity"]["system"] == "http://unitsofmeasure.org"
        assert resource["code"]["coding"][0]["system"] == "http://loinc.org"


def test_no_procedure_at_midnight_and_no_names(hospital):
    times = [procedure["performedDateTime"] for procedure in read(hospital, "Procedure")]
    assert not any(time[11:16] == "00:00" for time in times)
    assert not any("name" in patient for patient in read(hospital, "Patient"))


def test_true_risks_have_their_columns_and_stand_at_discharge_or_at_24_hours(hospital):
    risks = pq.read_table(true_risks_path(hospital))
    columns = ["subject_id", "task", "prediction_time", "true_risk", "given"]
    assert risks.column_names == columns
    assert str(risks.schema.field("prediction_time").type) == "timestamp[us]"
    index_times, discharges = set(), set()
    for encounter in read(hospital, "Encounter"):
        if encounter["class"]["code"] != "IMP":
            continue
        subject = subject_id(encounter["subject"]["reference"].removeprefix("Patient/"))
        start, end = (
            datetime.fromisoformat(encounter["period"][name]).replace(tzinfo=None)
            for name in ("start", "end")
        )
        if end - start > timedelta(hours=24):
            index_times.add((subject, start + timedelta(hours=24)))
        disposition = encounter["hospitalization"]["dischargeDisposition"]["coding"][0]["code"]
        if disposition != "exp":
            discharges.add((subject, end))
    for task in ("length_of_stay", "condition_0", "condition_1", "condition_2"):
        found = [r for r in risks.to_pylist() if r["task"] == task]
        assert sorted((r["subject_id"], r["prediction_time"]) for r in found) == sorted(index_times)
        assert {r["given"] for r in found} == {
            "record" if task in ("condition_0", "condition_2") else "latent"
        }
    for task in ("mortality", "readmission"):
        found = {
            (r["subject_id"], r["prediction_time"]) for r in risks.to_pylist() if r["task"] == task
        }
        assert found <= discharges and len(discharges - found) <= 3  # the last 30 days of data


def test_a_patient_does_not_depend_on_how_many_there_are(hospital, tmp_path):
    few = simulate(tmp_path / "few", patients=7, seed=1)
    for name in NAMES:
        lines = (few / f"{name}.ndjson").read_bytes()
        assert (hospital / f"{name}.ndjson").read_bytes().startswith(lines)
    other = simulate(tmp_path / "other", patients=7, seed=2)
    assert {p["id"] for p in read(few, "Patient")}.isdisjoint(
        p["id"] for p in read(other, "Patient")
    )


def test_foreign_folders_and_numbers_out_of_range_are_refused(tmp_path_factory, tmp_path):
    foreign = tmp_path_factory.mktemp("foreign")
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        simulate(foreign, patients=1)
    assert (foreign / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="found patients=0, seed=0"):
        simulate(tmp_path / "x", patients=0)
    with pytest.raises(InputError, match="found patients=1, seed=-1"):
        simulate(tmp_path / "x", patients=1, seed=-1)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    out = tmp_path / "fhir"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.simulation.hospital._resources", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            simulate(out, patients=1)
    assert list(tmp_path.iterdir()) == [out] and not list(out.iterdir())
    assert simulate(out, patients=1) == out
    assert {file.name for file in out.iterdir()} == {f"{name}.ndjson" for name in NAMES}
