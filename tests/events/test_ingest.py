"""FHIR to events: every row of a made hospital, look-ups, versions, and what must not matter."""

import gzip
import json
import random
from datetime import datetime
from pathlib import Path

import meds
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events import ingest, read_encounters, read_subjects
from ehrmamba_hf.fhir.identity import subject_id


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def by_source(events) -> dict[str, dict]:
    return {f"{row['source_id']} {row['code']}": row for row in events.to_pylist()}


def test_every_resource_becomes_its_rows(run, hospital, tmp_path):
    report, events = run(hospital)
    found = {
        key: (row["category"], row["time"], row["available_time"], row["numeric_value"])
        for key, row in by_source(events).items()
    }
    eleven = at("2019-03-04T11:00")
    after_stay = at("2019-03-06T12:00:00.000001")
    assert found == {
        "p1 MEDS_BIRTH": ("birth", at("1950-06-01"), at("1950-06-01T23:59:59.999999"), None),
        "p2 MEDS_BIRTH": ("birth", at("1960-01-01"), at("1960-12-31T23:59:59.999999"), None),
        "p2 MEDS_DEATH": ("death", at("2019-05-05"), at("2019-05-05T23:59:59.999999"), None),
        "c1 ICD10CM/I10": ("condition", at("2019-03-06T12:00"), after_stay, None),
        "r1 SNOMED/1": ("procedure", at("2019-03-05"), after_stay, None),
        "q1 RXNORM/5856": ("medication", eleven, eleven, None),
        "a1 RXNORM/5856": ("administration", eleven, eleven, None),
        "o1 LOINC/2345-7": ("lab", eleven, at("2019-03-04T13:00"), 90.5),
        "o2 LOINC/8480-6": ("vital_sign", eleven, eleven, 120.0),
        "o2 LOINC/8462-4": ("vital_sign", eleven, eleven, 80.0),
    }
    lab = by_source(events)["o1 LOINC/2345-7"]
    assert (lab["unit"], lab["encounter_id"], lab["codings"]) == ("mg/dL", "e1", ["LOINC/2345-7"])
    assert (lab["resource_type"], lab["subject_id"]) == ("Observation", subject_id("p1"))
    assert report.events == {
        **{"administration": 1, "birth": 2, "condition": 1, "death": 1},
        **{"lab": 1, "medication": 1, "procedure": 1, "vital_sign": 2},
    }
    assert report.date_range == ["2019-03-04T11:00:00", "2019-03-06T12:00:00"]


def test_subjects_and_encounters(run, hospital, tmp_path):
    run(hospital)
    subjects = {row["source_id"]: row for row in read_subjects(tmp_path / "events").to_pylist()}
    assert subjects["p1"] == {
        "subject_id": subject_id("p1"),
        "source_id": "p1",
        "birth": at("1950-06-01"),
        "death": None,
        "death_is_date": False,
        "deceased": False,
        "sex": "female",
        "race": None,
    }
    assert (subjects["p2"]["death"], subjects["p2"]["death_is_date"]) == (at("2019-05-05"), True)
    stays = {row["encounter_id"]: row for row in read_encounters(tmp_path / "events").to_pylist()}
    assert stays["e1"] == {
        "subject_id": subject_id("p1"),
        "encounter_id": "e1",
        "part_of": None,
        "start": at("2019-03-04T10:00"),
        "end": at("2019-03-06T12:00"),
        "class": "IMP",
        "disposition": None,
        "source": "",
    }
    assert (stays["e2"]["part_of"], stays["e2"]["end"]) == ("e1", None)


def test_the_report_accounts_for_every_resource(run, hospital):
    report, _ = run(hospital)
    assert report.total.read == len(hospital) == report.lines
    assert report.total.used == 11
    assert report.total.not_used == {
        "nothing refers to it": 1,
        "type not used": 1,
    }
    assert report.resources["Medication"].used == 1
    assert report.resources["Device"].not_used == {"type not used": 1}


def test_the_shards_are_meds(run, hospital, tmp_path):
    run(hospital)
    (shard,) = (tmp_path / "events" / "data").glob("*.parquet")
    meds.DataSchema.validate(pq.read_table(shard))
    codes = pq.read_table(tmp_path / "events" / "metadata" / "codes.parquet")
    meds.CodeMetadataSchema.validate(codes)
    described = dict(zip(codes["code"].to_pylist(), codes["description"].to_pylist(), strict=True))
    assert described["LOINC/2345-7"] == "Glucose"
    assert described["RXNORM/5856"] == "insulin"
    assert set(described) == set(pq.read_table(shard)["code"].to_pylist())
    about = json.loads((tmp_path / "events" / "metadata" / "dataset.json").read_text())
    meds.DatasetMetadataSchema.validate(about)


@pytest.mark.parametrize(
    ("fields", "time", "available"),
    [
        # Recorded during the stay: known just after its end.
        (
            {"recordedDate": "2019-03-05T09:00:00-05:00"},
            "2019-03-05T09:00",
            "2019-03-06T12:00:00.000001",
        ),
        # Recorded after it: just after that.
        (
            {"recordedDate": "2019-03-07T09:00:00-05:00"},
            "2019-03-07T09:00",
            "2019-03-07T09:00:00.000001",
        ),
        ({"recordedDate": "2019-03-07"}, "2019-03-07", "2019-03-07T23:59:59.999999"),
        # A stay that is still open: not known yet, however often it is asked.
        (
            {"encounter": {"reference": "Encounter/e2"}, "recordedDate": "2019-03-05"},
            "2019-03-05",
            None,
        ),
        (
            {"encounter": {"reference": "Encounter/e2"}, "onsetDateTime": "2019-03-01"},
            "2019-03-01",
            None,
        ),
        # No encounter, or one that is not in the data: as dated.
        (
            {"encounter": None, "recordedDate": "2019-03-05"},
            "2019-03-05",
            "2019-03-05T23:59:59.999999",
        ),
        (
            {"encounter": {"reference": "Encounter/gone"}, "onsetDateTime": "2018-01"},
            "2018-01-01",
            "2018-01-31T23:59:59.999999",
        ),
        # Undated: at the stay's end, whatever the onset.
        ({"onsetDateTime": "2018"}, "2019-03-06T12:00", "2019-03-06T12:00:00.000001"),
    ],
)
def test_when_a_diagnosis_could_be_known(run, hospital, resource, fields, time, available):
    condition = resource("Condition", "c9", code={"text": "gout"}, **fields)
    _, events = run([*hospital, condition])
    row = by_source(events)["c9 TEXT/gout"]
    assert row["time"] == at(time)
    assert row["available_time"] == (at(available) if available else None)


def test_an_encounter_of_another_patient_gives_no_time(run, hospital, resource):
    other = {"reference": "Patient/p2"}
    condition = resource("Condition", "c9", code={"text": "gout"}, subject=other)
    report, events = run([*hospital, condition])
    assert "c9 TEXT/gout" not in by_source(events)
    assert report.resources["Condition"].not_used == {"no time": 1}


def test_what_cannot_be_resolved_is_counted(run, hospital, resource):
    drug = {"reference": "Medication/gone"}
    elsewhere = {"reference": "Patient/gone"}
    extra = [
        resource("Observation", "o8", subject=elsewhere, code={"text": "x"}, issued="2019"),
        resource("MedicationRequest", "q8", medicationReference=drug, authoredOn="2019"),
        resource("Encounter", "e8", subject=elsewhere, period={"start": "2019-03-01"}),
        resource(
            "Encounter", "e9", period={"start": "2019-03-01"}, partOf={"reference": "Encounter/0"}
        ),
        resource(
            "Procedure",
            "r8",
            encounter={"reference": "Encounter/e8"},
            code={"text": "x"},
            performedDateTime="2019-01-01",
        ),
    ]
    report, events = run([*hospital, *extra])
    assert report.resources["Observation"].not_used == {"no Patient resource": 1}
    assert report.resources["Encounter"].not_used == {"no Patient resource": 1}
    assert report.resources["MedicationRequest"].not_used == {"unresolved medicationReference": 1}
    assert report.unresolved_references == {"Encounter.partOf": 1, "Procedure.encounter": 1}
    assert by_source(events)["r8 TEXT/x"]["available_time"] == at("2019-01-01T23:59:59.999999")


def test_a_reference_to_no_encounter_counts_once_a_record(run, hospital, resource):
    parts = [{"code": {"text": name}, "valueQuantity": {"value": 1}} for name in ("x", "y")]
    times = {
        "effectiveDateTime": "2019-03-04T11:00:00-05:00",
        "encounter": {"reference": "Encounter/0"},
    }
    extra = [
        resource("Observation", "o8", code={"text": "pair"}, component=parts, **times),
        resource("Observation", "o9", code={"text": "z"}, valueQuantity={"value": 1}, **times),
    ]
    report, events = run([*hospital, *extra])
    assert {"o8 TEXT/x", "o8 TEXT/y", "o9 TEXT/z"} <= set(by_source(events))
    assert report.unresolved_references == {"Observation.encounter": 2}
    # The stay is there, but another patient's.
    others = [record | {"encounter": {"reference": "Encounter/e1"}} for record in extra]
    others = [record | {"subject": {"reference": "Patient/p2"}} for record in others]
    assert run([*hospital, *others])[0].unresolved_references == {"Observation.encounter": 2}


def test_mixtures_are_what_their_ingredients_are(run, hospital, resource):
    def mixture(name, *parts):
        """Of Medications by id, and of texts."""
        listed = [
            {"itemReference": {"reference": part}}
            if part.startswith("Medication/")
            else {"itemCodeableConcept": {"text": part}}
            for part in parts
        ]
        return resource("Medication", name, ingredient=listed)

    def asked(name, drug):
        reference = {"reference": f"Medication/{drug}"}
        return resource("MedicationRequest", name, medicationReference=reference, authoredOn="2019")

    rxnorm = "http://www.nlm.nih.gov/research/umls/rxnorm"
    old, recent = ({"meta": {"lastUpdated": f"202{n}-01-01"}} for n in range(2))
    extra = [
        mixture("x1", "Medication/gone", "Medication/m2", "water", "Medication/m3", "water"),
        mixture("x2", "Medication/gone", "Medication/x1"),
        mixture("x3", "Medication/m4"),
        resource("Medication", "m3", code={"coding": [{"system": rxnorm, "code": "old"}]}, **old),
        resource("Medication", "m3", code={"coding": [{"system": rxnorm, "code": "3"}]}, **recent),
        resource("Medication", "m4", code={"coding": [{"system": rxnorm, "code": "4"}]}),
        asked("q7", "x1"),
        asked("q8", "x2"),
    ]
    report, events = run([*hospital, *extra])
    found = by_source(events)["q7 RXNORM/1"]
    assert found["codings"] == ["RXNORM/1", "TEXT/water", "RXNORM/3"]
    assert report.resources["MedicationRequest"].not_used == {"unresolved medicationReference": 1}
    drugs = report.resources["Medication"]
    assert drugs.used == 4  # m1, and x1 with m2 and m3, to which nothing else refers
    assert drugs.not_used == {
        "another version is used": 1,  # of m3
        "no code": 1,  # x2: what is in a mixture is looked up once
        "nothing refers to it": 2,  # x3, and m4 that only x3 has
    }


def test_references_in_all_forms(run, hospital):
    for form in ("https://h.org/fhir/{}", "https://h.org/fhir/{}/_history/2", "{}"):
        _, plain = run(hospital)
        text = json.dumps(hospital)
        for name in ("Patient/p1", "Encounter/e1", "Medication/m1"):
            text = text.replace(f'"{name}"', json.dumps(form.format(name)))
        _, events = run(json.loads(text))
        assert events == plain


def as_bundle(records: list[dict], *, ids: bool) -> dict:
    text = json.dumps(records)
    for record in records:
        text = text.replace(
            f'"{record["resourceType"]}/{record["id"]}"', f'"urn:uuid:{record["id"]}"'
        )
    entries = [{"fullUrl": f"urn:uuid:{r['id']}", "resource": r} for r in json.loads(text)]
    for entry in entries:
        if not ids:
            del entry["resource"]["id"]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("name", ["b.json", "b.json.gz", "b.ndjson"])
def test_a_bundle_gives_what_its_resources_give(run, hospital, tmp_path, name, ids):
    _, plain = run(hospital)
    text = json.dumps(as_bundle(hospital, ids=ids), indent=2 if ".json" in name else None)
    folder = tmp_path / "bundles"
    folder.mkdir()
    packed = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (folder / name).write_bytes(packed)
    report, events = run(folder)
    assert events == plain
    assert report.bundles == 1
    assert report.total.read == len(hospital)


def test_a_bundle_whose_urls_differ_from_its_ids(run, hospital):
    _, plain = run(hospital)
    bundle = json.loads(
        json.dumps(as_bundle(hospital, ids=True)).replace("urn:uuid:", "urn:uuid:0")
    )
    _, events = run([bundle])
    assert events == plain


def test_one_resource_a_file_and_a_bundle_in_a_bundle(run, hospital, write, tmp_path):
    _, plain = run(hospital)
    for number, record in enumerate(hospital):
        inner = {"resourceType": "Bundle", "entry": [{"resource": record}]}
        outer = {"resourceType": "Bundle", "entry": [{"resource": inner}]}
        write(tmp_path / "split" / f"{number}" / "a.json", [outer if number % 2 else record])
    _, events = run(tmp_path / "split")
    assert events == plain


def parquet_bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_files_and_lines_changes_nothing(
    run, hospital, resource, write, tmp_path, seed
):
    newer = {"lastUpdated": "2020-01-01T00:00:00Z"}
    versions = [
        resource(
            "Observation", "v", code={"text": "x"}, issued="2019", valueInteger=value, meta=meta
        )
        for value, meta in [(1, None), (2, None), (3, newer), (3, newer), (4, newer)]
    ]
    records = [*hospital, *versions]
    plain, _ = run(records)
    expected = parquet_bytes(tmp_path / "events")
    rng = random.Random(seed)
    rng.shuffle(records)
    for number, part in enumerate((records[:5], records[5:6], records[6:])):
        write(tmp_path / f"shuffled{seed}" / f"{rng.random()}" / f"{number}.ndjson", part)
    report, _ = run(tmp_path / f"shuffled{seed}")
    assert parquet_bytes(tmp_path / "events") == expected
    assert report.resources == plain.resources


def test_copies_are_dropped_and_the_latest_version_wins(run, hospital, resource):
    def version(value: int, **fields: object) -> dict:
        return resource("Observation", "v", code={"text": "x"}, issued="2019", valueInteger=value, **fields)  # noqa: E501  # fmt: skip

    old = version(1, meta={"lastUpdated": "2020-01-01T00:00:00Z"})
    new = version(2, meta={"lastUpdated": "2020-01-01T00:00:00-01:00"})
    report, events = run([*hospital, new, old, version(3), new])
    assert by_source(events)["v TEXT/x"]["numeric_value"] == 2
    assert report.resources["Observation"].not_used == {
        "another version is used": 2,
        "duplicate": 1,
    }
    error = version(4, status="entered-in-error", meta={"lastUpdated": "2021-01-01"})
    report, events = run([*hospital, new, error])
    assert "v TEXT/x" not in by_source(events)
    assert report.resources["Observation"].not_used == {
        "another version is used": 1,
        "status entered-in-error": 1,
    }


def test_resources_without_an_id_are_used_once_each(run, hospital):
    nameless = [
        {"resourceType": "Observation", "subject": {"reference": "Patient/p1"}}
        | {"code": {"text": "x"}, "issued": "2019", "valueInteger": number}
        for number in (1, 2, 2)
    ]
    report, events = run([*hospital, *nameless])
    values = [row["numeric_value"] for row in events.to_pylist() if row["code"] == "TEXT/x"]
    assert sorted(values) == [1, 2]
    assert report.resources["Observation"].not_used == {"duplicate": 1}


def test_several_workers_write_the_same(run, hospital, write, tmp_path, monkeypatch):
    for number, record in enumerate(hospital):
        write(tmp_path / "fhir" / f"{number}.ndjson", [record])
    alone, _ = run(tmp_path / "fhir", workers=1)
    expected = parquet_bytes(tmp_path / "events")
    monkeypatch.setattr("ehrmamba_hf.events.ingestion._POOL_BYTES", 0)
    together, _ = run(tmp_path / "fhir", workers=2)
    assert parquet_bytes(tmp_path / "events") == expected
    assert together == alone


def test_utc_without_a_timezone_is_a_warning_and_with_one_a_conversion(run, hospital, resource):
    utc = json.loads(json.dumps(hospital).replace("-05:00", "Z"))
    report, events = run(utc)
    assert any("UTC" in warning for warning in report.warnings)
    assert by_source(events)["o1 LOINC/2345-7"]["time"] == at("2019-03-04T11:00")
    report, events = run(utc, timezone="America/New_York")
    assert report.warnings == [] and report.timezone == "America/New_York"
    assert by_source(events)["o1 LOINC/2345-7"]["time"] == at("2019-03-04T06:00")
    report, _ = run(hospital)
    assert report.warnings == []


def test_what_the_report_tells_about_codes(run, hospital, resource):
    own = {"coding": [{"system": "https://h.org/codes/x", "code": "a"}]}
    answer = {"coding": [{"system": "https://h.org/answers", "code": "yes"}]}
    extra = [
        resource(
            *("Observation", "o7"),
            code={"coding": [{"system": "http://loinc.org", "code": "1-1"}]},
            issued="2019",
            valueCodeableConcept=answer,
        ),
        resource("Observation", "o8", code=own, issued="2019"),
        resource("Observation", "o9", code={"text": "gait"}, issued="2019"),
    ]
    report, events = run([*hospital, *extra])
    assert report.unknown_code_systems == {"https://h.org/answers": 1, "https://h.org/codes/x": 1}
    assert report.text_only_codes == 1
    assert report.observations_without_category == 3
    assert {"o8 CODES_X_0C0EF895/a", "o9 TEXT/gait"} <= by_source(events).keys()


def test_two_ids_with_one_hash_are_an_error(run, hospital, monkeypatch):
    monkeypatch.setattr("ehrmamba_hf.events.fhir.parts.subject_id", lambda _: 7)
    with pytest.raises(InputError, match="collision"):
        run(hospital)


def test_a_single_file_is_a_source(hospital, write, tmp_path):
    file = write(tmp_path / "all.ndjson", hospital)
    assert ingest(file, tmp_path / "events", progress=False).subjects == 2
