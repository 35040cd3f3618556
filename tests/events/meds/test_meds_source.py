"""MEDS datasets as other people write them: codes become subjects, encounters and events."""

import json
import random
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import meds
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.events.meds.rules import MedsRules, read_rules
from ehrmamba_hf.events.meds.source import is_meds

HADM = ("hadm_id", pa.int64())
ICU = ("icustay_id", pa.int64())
JUST = ".000001"


def at(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def row(subject: int | None, time: str | None, code: str | None, **fields: Any) -> dict:
    return {"subject_id": subject, "time": at(time), "code": code, **fields}


def mimic_rows() -> list[dict]:
    """One stay of MIMIC-IV as MIMIC_IV_MEDS writes it, with the emergency room and intensive care
    before it and in it, and an open stay of another."""
    stay, icu = {"hadm_id": 20}, {"hadm_id": 20, "icustay_id": 30}
    return [
        row(1, None, "GENDER//F"),
        row(1, "2090-01-01", "MEDS_BIRTH"),
        row(1, "2150-03-01T08:00", "ED_REGISTRATION"),
        row(1, "2150-03-01T09:00", "LAB//50912//mg/dL", numeric_value=1.5),
        row(1, "2150-03-01T10:00", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM", **stay),
        row(1, "2150-03-01T10:00", "RACE//WHITE", **stay),
        row(1, "2150-03-01T11:00", "ED_OUT"),
        row(1, "2150-03-01T12:00", "ICU_ADMISSION//MICU", **icu),
        row(1, "2150-03-01T12:30", "LAB//220045//bpm", numeric_value=90, **icu),
        row(
            1, "2150-03-01T13:00", "INFUSION_START//225158", numeric_value=2, unit="mL/hour", **icu
        ),
        row(1, "2150-03-01T14:00", "MEDICATION//START//Aspirin//63323026201"),
        row(1, "2150-03-01T15:00", "MEDICATION//Aspirin//Not Given//UNK", **stay),
        row(1, "2150-03-02T00:00", "HCPCS//Hospital observation", **stay),
        row(1, "2150-03-02T12:00", "ICU_DISCHARGE//MICU", **icu),
        row(1, "2150-03-04T16:00", "DIAGNOSIS//ICD//10//I10", **stay),
        row(1, "2150-03-04T16:00", "PROCEDURE//ICD//9//3893", **stay),
        row(1, "2150-03-04T16:00", "HOSPITAL_DISCHARGE//DIED", **stay),
        row(1, "2150-03-04", "MEDS_DEATH"),
        row(2, None, "GENDER//M"),
        row(2, "2160-01-01T05:00", "HOSPITAL_ADMISSION//URGENT//UNK", hadm_id=21),
        row(2, "2160-01-01T06:00", "DIAGNOSIS//ICD//9//4019", hadm_id=21),
        row(2, "2160-01-01T07:00", "EYE_COLOR//BLUE", hadm_id=99),
    ]


@pytest.fixture
def mimic(dataset, tmp_path) -> Path:
    more = (HADM, ICU, ("unit", pa.string()))
    return dataset(tmp_path / "mimic", mimic_rows(), more=more, dataset_name="MIMIC-IV")


def test_a_stay_of_mimic_iv(run, mimic):
    found = run(mimic)
    woman, man = found.subjects
    assert woman | {"source_id": "1"} == {
        "subject_id": 1,
        "source_id": "1",
        "birth": at("2090-01-01"),
        "death": at("2150-03-04"),
        "death_is_date": True,
        "deceased": True,
        "sex": "female",
        "race": "WHITE",
    }
    assert (man["sex"], man["birth"], man["deceased"]) == ("male", None, False)
    assert [tuple(e.values()) for e in found.encounters] == [
        (1, "1/ed/1", None, at("2150-03-01T08:00"), at("2150-03-01T11:00"), "EMER", None, "mimic"),
        (1, "20", None, at("2150-03-01T10:00"), at("2150-03-04T16:00"), "EMER", "DIED", "mimic"),
        (1, "icu/30", "20", at("2150-03-01T12:00"), at("2150-03-02T12:00"), "ACUTE", None, "mimic"),
        (2, "21", None, at("2160-01-01T05:00"), None, "AMB", None, "mimic"),
    ]
    names = ("code", "category", "unit", "numeric_value", "available_time", "encounter_id")
    after = at("2150-03-04T16:00:00" + JUST)
    assert [tuple(e[name] for name in names) for e in found.events] == [
        ("MEDS_BIRTH", "birth", None, None, at("2090-01-01T23:59:59.999999"), None),
        ("MIMIC_LAB/50912", "lab", "mg/dL", 1.5, at("2150-03-01T09:00"), None),
        ("MIMIC_CHART/220045", "vital_sign", "bpm", 90, at("2150-03-01T12:30"), "20"),
        ("MIMIC_MED_ICU/225158", "administration", "mL/hour", 2, at("2150-03-01T13:00"), "20"),
        ("MEDICATION//START//Aspirin", "medication", None, None, at("2150-03-01T14:00"), None),
        ("HCPCS_TEXT/Hospital observation", "procedure", None, None, after, "20"),
        ("MEDS_DEATH", "death", None, None, at("2150-03-04T23:59:59.999999"), None),
        ("ICD10CM/I10", "condition", None, None, after, "20"),
        ("ICD9PCS/3893", "procedure", None, None, after, "20"),
        ("ICD9CM/4019", "condition", None, None, None, "21"),
        ("EYE_COLOR//BLUE", "observation", None, None, at("2160-01-01T07:00"), "99"),
    ]
    assert found.events[4]["codings"] == [
        *("MEDICATION//START//Aspirin", "MEDICATION//START//Aspirin//63323026201"),
        "NDC/63323026201",
    ]
    assert found.report["rows"] == {
        "read": 22,
        "event": 11,
        "subject_fact": 3,
        "encounter_boundary": 7,
        "not_used": {"a medication not given": 1},
        "rejected": 0,
    }
    assert found.report["unknown_codes"] == {"EYE_COLOR": 1}
    assert found.report["unresolved_references"] == {"encounter_id": 1}
    assert found.report["encounters_without_end"] == 1


def test_another_hospitals_numbers_are_not_mimics(run, dataset, tmp_path):
    rows = [
        row(1, "2020-01-01T10:00", "HOSPITAL_ADMISSION//ELECTIVE"),
        row(1, "2020-01-01T11:00", "LAB//50912//mg/dL", numeric_value=1),
        row(1, "2020-01-01T12:00", "LAB//50912//UNK", numeric_value=1),
        row(1, "2020-01-03T10:00", "HOSPITAL_DISCHARGE//UNK"),
    ]
    found = run(dataset(tmp_path / "meds", rows, dataset_name="ours"))
    assert [(e["code"], e["unit"]) for e in found.events] == [
        ("LAB//50912", "mg/dL"),
        ("LAB//50912", None),
    ]
    (stay,) = found.encounters
    assert (stay["class"], stay["disposition"], stay["source"]) == ("IMP", None, "")


def encounters_of(found: SimpleNamespace) -> list[tuple]:
    return [(e["start"].hour, e["end"] and e["end"].hour) for e in found.encounters]


@pytest.mark.parametrize(
    ("marks", "encounters", "unpaired"),
    [
        ("1a 3d 5a 6d", [(1, 3), (5, 6)], 0),
        ("1a 3a 4d", [(1, None), (3, 4)], 0),
        ("1d 3a 4d 5d", [(3, 4)], 2),
        ("1a 3d 3a 4d", [(1, 3), (3, 4)], 0),  # moved on at 3
        ("2a 2d", [(2, 2)], 0),  # began and ended at once
        ("1a 3d 5d 5a", [(1, 3), (5, 5)], 0),
        ("", [], 0),
    ],
)
def test_encounters_without_ids_are_paired_in_time_order(
    run, dataset, tmp_path, marks, encounters, unpaired
):
    words = {"a": "ADMISSION//WARD", "d": "DISCHARGE//HOME"}
    rows = [row(1, f"2020-01-01T0{hour}:00", words[side]) for hour, side in marks.split()]
    rows.append(row(1, "2020-02-01T00:30", "LOINC/1-1"))
    random.Random(1).shuffle(rows)
    found = run(dataset(tmp_path / "meds", rows))
    assert encounters_of(found) == encounters
    counted = {"an encounter's end without its begin": unpaired} if unpaired else {}
    assert found.report["rows"]["not_used"] == counted


def test_parts_without_ids_belong_to_what_holds_them(run, dataset, tmp_path):
    rows = [
        row(1, "2020-01-01T01:00", "ICU_ADMISSION//A"),
        row(1, "2020-01-01T02:00", "ICU_DISCHARGE//A"),
        row(1, "2020-01-01T04:00", "HOSPITAL_ADMISSION"),
        row(1, "2020-01-01T05:00", "ICU_ADMISSION//A"),
        row(1, "2020-01-01T06:00", "ICU_DISCHARGE//A"),
        row(1, "2020-01-01T08:00", "HOSPITAL_DISCHARGE"),
        row(1, "2020-01-01T09:00", "ICU_ADMISSION//A"),
    ]
    found = run(dataset(tmp_path / "meds", rows))
    assert [(e["encounter_id"], e["part_of"]) for e in found.encounters] == [
        ("1/icu/1", None),
        ("1/hospital/1", None),
        ("1/icu/2", "1/hospital/1"),
        ("1/icu/3", None),
    ]


def test_ids_that_two_subjects_share_are_told_apart(run, dataset, tmp_path):
    rows = [
        row(subject, f"2020-01-01T0{hour}:00", code, hadm_id=7)
        for subject in (1, 2)
        for hour, code in ((1, "ADMISSION"), (2, "ICD10CM/I10"), (3, "DISCHARGE"))
    ]
    found = run(dataset(tmp_path / "meds", rows, more=(HADM,)))
    assert [e["encounter_id"] for e in found.encounters] == ["1/7", "2/7"]
    assert [e["encounter_id"] for e in found.events] == ["1/7", "2/7"]
    assert {e["available_time"] for e in found.events} == {at("2020-01-01T03:00:00" + JUST)}


@pytest.mark.parametrize(
    ("time", "code", "known"),
    [
        ("2020-01-01T10:00", "ICD10CM/I10", "2020-01-05T10:00:00" + JUST),  # at admission
        ("2020-01-05T10:00", "ICD10CM/I10", "2020-01-05T10:00:00" + JUST),
        ("2020-01-07T10:00", "ICD10CM/I10", "2020-01-07T10:00"),  # outside
        ("2020-01-07T00:00", "ICD10CM/I10", "2020-01-07T23:59:59.999999"),
        ("2020-01-03T10:00", "CPT/1", "2020-01-03T10:00"),  # a procedure with its hour
        ("2020-01-03T00:00", "CPT4/1", "2020-01-05T10:00:00" + JUST),
        ("2020-01-03T23:59:59", "CPT/1", "2020-01-05T10:00:00" + JUST),
        ("2020-01-03T00:00", "LOINC/1-1", "2020-01-03T00:00"),
        ("2020-02-03T10:00", "ICD10CM/I10", None),  # within the stay that has no end
    ],
)
def test_what_is_coded_after_a_stay_is_known_after_it(run, dataset, tmp_path, time, code, known):
    rows = [
        row(1, "2020-01-01T10:00", "ADMISSION"),
        row(1, "2020-01-02T10:00", "ED_REGISTRATION"),  # inside, and over long before
        row(1, "2020-01-02T11:00", "ED_OUT"),
        row(1, time, code),
        row(1, "2020-01-05T10:00", "DISCHARGE"),
        row(1, "2020-02-01T10:00", "ADMISSION"),
    ]
    (event,) = run(dataset(tmp_path / "meds", rows)).events
    assert event["available_time"] == at(known)


def test_visits_of_omop_that_name_their_end(run, dataset, tmp_path):
    more = (("end", pa.timestamp("us")), ("visit_id", pa.int64()), ("table", pa.string()))
    about = {"table": "person"}
    rows = [
        row(1, "1950-05-05", "MEDS_BIRTH", **about),
        row(1, "1950-05-05", "Gender/F", **about),
        row(1, "1950-05-05", "Race/5", **about),
        row(
            1, "2020-01-01T10:00", "Visit/IP", end=at("2020-01-03T10:00"), visit_id=1, table="visit"
        ),
        row(1, "2020-01-01T11:00", "SNOMED/1", visit_id=1, table="procedure"),
        row(1, "2020-01-01T12:00", "SNOMED/1", visit_id=1, table="condition"),
        row(1, "2020-01-01T13:00", "RxNorm/2", visit_id=1, table="drug_exposure"),
        row(
            1, "2020-01-02T13:00", "LOINC/8867-4", numeric_value=80, visit_id=1, table="measurement"
        ),
        row(
            1, "2020-01-02T14:00", "LOINC/2160-0", numeric_value=1, visit_id=1, table="observation"
        ),
        row(
            1, "2020-05-01T10:00", "Visit/OP", end=at("2020-05-01T11:00"), visit_id=2, table="visit"
        ),
        row(1, "2021-01-01T23:59:59", "MEDS_DEATH", table="death"),
    ]
    found = run(dataset(tmp_path / "omop", rows, more=more))
    (subject,) = found.subjects
    assert (subject["sex"], subject["race"], subject["death_is_date"]) == ("female", "White", True)
    assert [(e["encounter_id"], e["class"], e["end"]) for e in found.encounters] == [
        ("1", "IMP", at("2020-01-03T10:00")),
        ("2", "AMB", at("2020-05-01T11:00")),
    ]
    assert [(e["code"], e["category"]) for e in found.events[1:-1]] == [
        ("SNOMED/1", "procedure"),
        ("SNOMED/1", "condition"),
        ("RXNORM/2", "medication"),
        ("LOINC/8867-4", "vital_sign"),
        ("LOINC/2160-0", "observation"),
    ]
    assert found.events[2]["available_time"] == at("2020-01-03T10:00:00" + JUST)
    assert found.report["warnings"] == []


def test_facts_that_differ_are_counted(run, dataset, tmp_path):
    rows = [
        row(1, None, "SEX//F"),
        row(1, None, "SEX//male"),
        row(1, "1950-01-02", "MEDS_BIRTH"),
        row(1, "1950-01-01", "MEDS_BIRTH"),
        row(1, "2020-01-01", "RACE//WHITE"),
        row(1, "2021-01-01", "RACE//ASIAN"),
        row(2, None, "MEDS_DEATH"),
        row(2, None, "BLOOD_TYPE//A"),
    ]
    found = run(dataset(tmp_path / "meds", rows))
    first, second = found.subjects
    assert (first["birth"], first["sex"], first["race"]) == (at("1950-01-01"), None, "ASIAN; WHITE")
    assert (second["deceased"], second["death"]) == (True, None)
    assert found.report["conflicting_facts"] == {"birth": 1, "sex": 1}
    static = [e["code"] for e in found.events if e["time"] is None]
    assert static == ["MEDS_DEATH", "BLOOD_TYPE//A"]


def written(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "rejects.ndjson" and p.parent.name != "parts"
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_shards_and_the_order_of_rows_change_nothing(run, mimic, dataset, tmp_path, seed):
    expected = written(run(mimic, "plain").out)
    rows = mimic_rows()
    random.Random(seed).shuffle(rows)
    more = (HADM, ICU, ("unit", pa.string()))
    shards = (rows[:7], rows[7:8], rows[8:], [])
    other = dataset(tmp_path / "shuffled", *shards, more=more, dataset_name="MIMIC-IV")
    found = run(other, "other", memory="500MB")
    assert written(found.out) == expected
    assert any("several files" in warning for warning in found.report["warnings"])


def test_codes_keep_their_descriptions_and_parents(run, dataset, tmp_path):
    rows = [
        row(1, "2020-01-01", "LAB//50912//mg/dL"),
        row(1, "2020-01-01", "LAB//50912//mg/dL"),
        row(1, "2020-01-02", "LAB//50912//UNK"),
    ]
    source = dataset(tmp_path / "meds", rows, dataset_name="MIMIC-IV", license="ODbL")
    codes = [
        {"code": rows[0]["code"], "description": "Creatinine", "parent_codes": ["LOINC/2160-0"]},
        {"code": rows[2]["code"], "description": "none", "parent_codes": None},
    ]
    schema = meds.CodeMetadataSchema.schema()
    pq.write_table(pa.Table.from_pylist(codes, schema), source / "metadata" / "codes.parquet")
    splits = pa.table({"subject_id": [1], "split": ["train"]})
    pq.write_table(splits, source / "metadata" / "subject_splits.parquet")
    found = run(source)
    assert found.report["warnings"][-1] == (
        "The dataset's own splits (metadata/subject_splits.parquet) are not used: patients are "
        "split anew by prepare."
    )
    assert found.events[0]["codings"] == ["MIMIC_LAB/50912", "LAB//50912//mg/dL", "LOINC/2160-0"]
    (code,) = pq.read_table(found.out / "metadata" / "codes.parquet").to_pylist()
    assert code == {
        "code": "MIMIC_LAB/50912",
        "description": "Creatinine",
        "parent_codes": ["LOINC/2160-0"],
    }
    about = json.loads((found.out / "metadata" / "dataset.json").read_text())
    assert (about["dataset_name"], about["license"]) == ("MIMIC-IV", "ODbL")
    kept = pq.read_table(found.out / "metadata" / "subject_splits.parquet")
    meds.SubjectSplitSchema.validate(kept)
    standard = run(source, "standard", rules=MedsRules(prefer_standard=True))
    assert standard.events[0]["code"] == "LOINC/2160-0"


def test_rules_of_a_site(run, dataset, tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("hourless: ['12:00:00']\nrules: [{pattern: X, role: not_used, value: no X}]")
    rows = [row(1, "2020-01-01T12:00", "CPT/7"), row(1, "2020-01-01", "X")]
    found = run(dataset(tmp_path / "meds", rows), rules=read_rules(file))
    assert found.events[0]["available_time"] == at("2020-01-01T23:59:59.999999")
    assert found.report["rows"]["not_used"] == {"no X": 1}


def test_what_is_a_meds_dataset(tmp_path, mimic, write, hospital):
    assert is_meds(mimic)
    write(tmp_path / "fhir" / "data" / "all.ndjson", hospital)
    assert not is_meds(tmp_path / "fhir")
    assert not is_meds(tmp_path / "fhir" / "data" / "all.ndjson")
    pq.write_table(pa.table({"id": ["1"], "code": ["x"]}), tmp_path / "fhir/data/Patient.parquet")
    assert not is_meds(tmp_path / "fhir")
    (mimic / "metadata" / "dataset.json").unlink()
    assert is_meds(mimic)
