"""Records read from an events folder: what is there, what is cut out after death, and counted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ehrmamba_hf.events import ingest
from ehrmamba_hf.timelines import Record, iter_records, stays_of

ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
MIMIC = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-encounter-class"


def resource(kind: str, name: str, patient: str = "p", **fields) -> dict:
    subject = {} if kind == "Patient" else {"subject": {"reference": f"Patient/{patient}"}}
    return {"resourceType": kind, "id": name, **subject, **fields}


def lab(name: str, when: str, patient: str = "p") -> dict:
    category = [{"coding": [{"code": "laboratory"}]}]
    code = {"coding": [{"system": "http://loinc.org", "code": name}]}
    return resource(
        "Observation", name, patient, category=category, code=code, effectiveDateTime=when
    )


def stay(name: str, start: str, end: str, **fields) -> dict:
    period = {"start": start, "end": end}
    return resource("Encounter", name, **{"class": {"code": "IMP"}}, period=period, **fields)


def diagnosis(name: str, encounter: str | None, when: str | None = None) -> dict:
    code = {"coding": [{"system": ICD10, "code": "I10"}, {"system": "http://h.org/x", "code": "7"}]}
    fields = {"recordedDate": when} if when else {}
    if encounter:
        fields["encounter"] = {"reference": f"Encounter/{encounter}"}
    return resource("Condition", name, code=code, **fields)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Record]]:
    def of(*resources: dict, categories=("lab",), only=None) -> list[Record]:
        file = tmp_path / "fhir" / "all.ndjson"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(r) + "\n" for r in resources))
        ingest(file.parent, tmp_path / "events", workers=1, progress=False)
        return list(iter_records(tmp_path / "events", categories, only))

    return of


def test_a_disposition_of_death_is_a_death_without_a_date(read):
    expired = {"dischargeDisposition": {"coding": [{"code": "7"}], "text": "Expired"}}
    home = {"dischargeDisposition": {"text": "Home"}}
    first = stay("a", "2020-01-02T08:00:00Z", "2020-01-05T18:00:00Z", hospitalization=home)
    last = stay("b", "2020-01-12T08:00:00Z", "2020-01-15T18:00:00Z", hospitalization=expired)
    (record,) = read(resource("Patient", "p"), first, last)
    assert (record.deceased, record.death) == (True, None)
    assert [e.died for e in record.encounters] == [False, True]
    (record,) = read(resource("Patient", "p"), first)
    assert not record.deceased


def test_what_lies_after_a_death_is_cut_out_and_counted(read, made):
    (record,) = read(
        resource("Patient", "p", birthDate="1950-01-01", deceasedDateTime="2020-01-05T12:00:00Z"),
        stay("a", "2020-01-02T08:00:00Z", "2020-01-05T18:00:00Z"),
        stay("b", "2020-01-05T12:00:01Z", "2020-01-06T18:00:00Z"),
        lab("1", "2020-01-05T12:00:00Z"),
        lab("2", "2020-01-05T12:00:01Z"),
        diagnosis("c", "a", "2020-01-20T08:00:00Z"),  # coders are at work after the death
        diagnosis("d", None, "2020-01-20T08:00:00Z"),
        diagnosis("e", "b", "2020-01-20T08:00:00Z"),
    )
    assert [e.encounter_id for e in record.encounters] == ["a"]
    assert record.code == ["LOINC/1"]
    assert [d.encounter_id for d in record.diagnoses] == ["a"]
    assert record.counts == {
        "encounters_after_death": 1,
        "events_after_death": 1,
        "diagnoses_after_death": 2,
    }
    assert made.text(record.last_alive) == "2020-01-05T12:00"


def test_the_day_of_a_death_without_an_hour_is_kept_whole(read, made):
    (record,) = read(
        resource("Patient", "p", deceasedDateTime="2020-01-05"),
        lab("1", "2020-01-05T23:59:59.999999Z"),
        lab("2", "2020-01-06T00:00:00Z"),
    )
    assert record.code == ["LOINC/1"]
    assert made.text(record.last_alive) == "2020-01-05T23:59:59.999999"


def test_a_mimic_condition_takes_the_end_of_its_encounter(read, made):
    mimic = {"class": {"system": MIMIC, "code": "AMB"}}
    (record,) = read(
        resource("Patient", "p"),
        stay("a", "2020-01-02T08:00:00-05:00", "2020-01-05T18:00:00-05:00") | mimic,
        diagnosis("c", "a"),
    )
    (found,) = record.diagnoses
    assert made.text(found.time) == "2020-01-05T18:00"
    assert found.codings == ("ICD10CM/I10", "H_ORG_X_B813EE52/7")
    assert len(stays_of(record)) == 1  # 24 h or more in MIMIC, whatever the class


@pytest.mark.parametrize(
    ("disposition", "died"),
    [("exp", True), ("DIED", True), ("20", True), ("Hospice", False), ("01", False), (None, False)],
)
def test_a_disposition_says_whether_a_stay_ended_in_death(read, disposition, died):
    hospitalization = {"dischargeDisposition": {"coding": [{"code": disposition}]}}
    more = {"hospitalization": hospitalization} if disposition else {}
    (record,) = read(
        resource("Patient", "p"),
        stay("a", "2020-01-02T08:00:00Z", "2020-01-05T18:00:00Z", **more),
    )
    assert [v.died for v in stays_of(record)] == [died]


def test_every_patient_comes_once_with_the_wanted_kinds_of_event(read):
    resources = [
        *(resource("Patient", name) for name in ("p", "q", "r")),
        lab("1", "2020-01-05T08:00:00Z", "q"),
        diagnosis("c", None, "2020-01-04T08:00:00Z"),
    ]
    records = read(*resources)
    assert sorted((len(r.time), len(r.diagnoses)) for r in records) == [(0, 0), (0, 1), (1, 0)]
    conditions = read(*resources, categories=("condition",))
    assert sorted((len(r.time), len(r.diagnoses)) for r in conditions) == [(0, 0), (0, 0), (1, 1)]
    wanted = [r.subject_id for r in records if len(r.time)]
    assert [r.subject_id for r in read(*resources, only=wanted)] == wanted
