"""What holds for every type: releases, statuses, refusals, and any bytes at all."""

import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrmamba_hf.events.schema import CATEGORIES
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import Other, decode
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.resources import Bundle, Clinical
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Site, SubjectRow
from ehrmamba_hf.fhir.statuses import EXCLUDED
from ehrmamba_hf.fhir.times import Clock

PATIENT = {"reference": "Patient/p"}
GLUCOSE = {"coding": [{"system": "http://loinc.org", "code": "2345-7", "display": "Glucose"}]}


def test_empty_texts_are_absent(rows, at, observation):
    found = rows("Patient", gender="", birthDate="", deceasedDateTime="")
    assert found.subject == SubjectRow(None, None, False, False, None, None)
    stay = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": ""})
    assert stay.encounter.end is None
    issued = observation(effectiveDateTime="", issued="2019-03-04T11:00:00-05:00", valueString="")
    assert issued.events[0].time == at("2019-03-04T11:00")
    assert issued.events[0].text_value is None
    period = {"start": "2019-03-04T10:00:00-05:00", "end": ""}
    done = rows(
        "Procedure", subject=PATIENT, code=GLUCOSE, performedDateTime="", performedPeriod=period
    )
    assert (done.events[0].time, done.events[0].end_time) == (at("2019-03-04T10:00"), None)


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("Observation", {"status": "entered-in-error"}, "status entered-in-error"),
        ("Observation", {"status": "registered"}, "status registered"),
        ("Observation", {"status": "cancelled"}, "status cancelled"),
        ("Observation", {"subject": {"reference": "Group/g"}}, "subject is not a Patient"),
        ("Observation", {"subject": PATIENT, "code": GLUCOSE}, "no time"),
        ("Encounter", {"status": "planned"}, "status planned"),
        ("Encounter", {"subject": PATIENT, "period": {"end": "2019"}}, "no period.start"),
        (
            "Encounter",
            {"subject": PATIENT, "period": {"start": "2019"}},
            "period.start without a day",
        ),
        ("Procedure", {"status": "not-done"}, "status not-done"),
        ("Procedure", {"status": "preparation"}, "status preparation"),
        ("Procedure", {"subject": PATIENT}, "no code"),
        ("Condition", {"verificationStatus": {"coding": [{"code": "refuted"}]}}, "status refuted"),
        ("Medication", {"status": "entered-in-error"}, "status entered-in-error"),
        ("Medication", {}, "no code"),
        ("MedicationRequest", {"status": "draft"}, "status draft"),
        ("MedicationRequest", {"intent": "proposal"}, "intent proposal"),
        ("MedicationRequest", {"doNotPerform": True}, "doNotPerform"),
        (
            "MedicationRequest",
            {"subject": PATIENT, "medicationCodeableConcept": {"text": "a"}},
            "no time",
        ),
        (
            "MedicationRequest",
            {"subject": PATIENT, "medicationReference": {"reference": "#m"}},
            "unresolved medicationReference",
        ),
        (
            "Immunization",
            {"patient": PATIENT, "vaccineCode": GLUCOSE, "occurrenceString": "in May"},
            "no time",
        ),
        ("AllergyIntolerance", {"patient": PATIENT}, "no code"),
        ("Procedure", {"notDone": True}, "notDone"),
        ("Procedure", {"notPerformed": True}, "notPerformed"),
        ("Immunization", {"notGiven": True}, "notGiven"),
        ("Immunization", {"wasNotGiven": True}, "wasNotGiven"),
        ("MedicationAdministration", {"notGiven": True}, "notGiven"),
        ("MedicationAdministration", {"wasNotGiven": True}, "wasNotGiven"),
        ("MedicationDispense", {"notDone": True}, "notDone"),
        ("MedicationStatement", {"wasNotTaken": True}, "wasNotTaken"),
        ("MedicationStatement", {"taken": "n"}, "taken n"),
        (
            "MedicationStatement",
            {"adherence": {"code": {"coding": [{"code": "not-taking"}]}}},
            "adherence not-taking",
        ),
        ("AllergyIntolerance", {"patient": {"reference": "Group/g"}}, "patient is not a Patient"),
    ],
)
def test_what_is_not_used_and_why(rows, kind, fields, reason):
    with pytest.raises(NotUsed) as outcome:
        rows(kind, **fields)
    assert outcome.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("Observation", {"subject": PATIENT}, "code"),
        ("Observation", {"subject": PATIENT, "code": {}}, "code"),
        ("Observation", {"code": GLUCOSE}, "subject.reference"),
        ("Observation", {"code": GLUCOSE, "subject": {"display": "somebody"}}, "subject.reference"),
        (
            "Observation",
            {"code": GLUCOSE, "subject": {"reference": "Patient?a=b"}},
            "subject.reference",
        ),
        (
            "Observation",
            {"code": GLUCOSE, "subject": PATIENT, "effectiveDateTime": "soon"},
            "effectiveDateTime",
        ),
        (
            "Observation",
            {
                "code": GLUCOSE,
                "subject": PATIENT,
                "issued": "2019",
                "valueQuantity": {"value": 1e39},
            },
            "valueQuantity.value",
        ),
        ("Encounter", {"subject": PATIENT, "period": {"start": "2019-02-30"}}, "period.start"),
        ("MedicationRequest", {"subject": PATIENT}, "medication[x]"),
    ],
)
def test_what_is_rejected_and_where(rows, kind, fields, field):
    with pytest.raises(Reject) as refusal:
        rows(kind, **fields)
    assert refusal.value.field == field


def test_utc_is_converted_with_a_timezone(rows, at):
    fields = {"subject": PATIENT, "code": GLUCOSE, "effectiveDateTime": "2019-07-01T03:00:00Z"}
    assert rows("Observation", **fields).events[0].time == at("2019-07-01T03:00")
    converted = rows("Observation", timezone="America/New_York", **fields)
    assert converted.events[0].time == at("2019-06-30T23:00")


SITE = Site(Clock())


@pytest.mark.parametrize("kind", [kind.__name__ for kind in Clinical.__args__])
def test_r4_and_r5_give_the_same_rows(records, kind):
    r4, r5 = (convert(decode(json.dumps(record).encode()), SITE) for record in records[kind])
    assert r4 == r5
    assert r4.events or r4.encounter or r4.ingredients
    assert not r4.notes


def test_the_made_records_are_read_as_they_are_meant(records, at):
    found = {}
    for kind, (record, _) in records.items():
        for event in convert(decode(json.dumps(record).encode()), SITE).events:
            found[kind, event.category] = (
                *(event.concept.code if event.concept else event.medication_id, event.time),
                *(event.available_time, event.numeric_value, event.encounter_id),
            )
    ten, half_past = at("2019-03-04T10:00"), at("2019-03-04T11:30")
    day_over = at("2019-03-04T23:59:59.999999")
    birthday_over = at("1950-06-01T23:59:59.999999")
    assert found == {
        ("Patient", "birth"): ("MEDS_BIRTH", at("1950-06-01"), birthday_over, None, None),
        ("Patient", "death"): ("MEDS_DEATH", ten, ten, None, None),
        ("Condition", "condition"): ("ICD10CM/E119", at("2019-03-04"), day_over, None, "e"),
        ("AllergyIntolerance", "allergy"): ("TEXT/penicillin", ten, ten, None, "e"),
        ("Procedure", "procedure"): ("TEXT/x-ray", ten, ten, None, "e"),
        ("Immunization", "immunization"): ("CVX/140", ten, ten, 0.5, "e"),
        ("MedicationRequest", "medication"): ("RXNORM/5856", ten, ten, None, "e"),
        ("MedicationAdministration", "administration"): ("RXNORM/5856", ten, ten, 5.0, "e"),
        ("MedicationDispense", "dispense"): ("m", ten, ten, 30.0, "e"),
        ("MedicationStatement", "statement"): ("RXNORM/5856", at("2018-05-01"), ten, None, "e"),
        ("Observation", "lab"): ("TEXT/fasting", ten, half_past, None, "e"),
        ("DiagnosticReport", "report"): ("LOINC/57698-3", ten, half_past, None, "e"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(EXCLUDED))
def test_each_excluded_status_is_counted_by_its_name(records, kind):
    field = "verificationStatus" if kind in ("Condition", "AllergyIntolerance") else "status"
    for record in records[kind]:
        for status in EXCLUDED[kind]:
            # A code in STU3, a concept since.
            forms = [status, {"coding": [{"code": status}]}] if field != "status" else [status]
            for form in forms:
                with pytest.raises(NotUsed) as outcome:
                    convert(decode(json.dumps({**record, field: form}).encode()), SITE)
                assert outcome.value.reason == f"status {status}"


# All codes of R4's and R5's value sets that are events: see statuses.py for their addresses.
USED = {
    "Encounter": "arrived triaged in-progress onleave finished unknown "
    "on-hold discharged completed discontinued",
    "Condition": "unconfirmed provisional differential confirmed",
    "AllergyIntolerance": "unconfirmed confirmed presumed",
    "Procedure": "in-progress on-hold stopped completed unknown",
    "Immunization": "completed",
    "Medication": "active inactive",
    "MedicationRequest": "active on-hold completed stopped ended unknown",
    "MedicationAdministration": "in-progress on-hold completed stopped unknown",
    "MedicationDispense": "in-progress completed stopped unknown",
    "MedicationStatement": "active completed stopped on-hold unknown recorded",
    "Observation": "preliminary final amended corrected unknown",
    "DiagnosticReport": "partial preliminary final amended corrected appended modified unknown",
}


@pytest.mark.parametrize("kind", sorted(USED))
def test_every_other_status_is_used(records, kind):
    assert set(USED) == set(EXCLUDED)
    record = records[kind][0]
    for status in USED[kind].split():
        verified = {"verificationStatus": {"coding": [{"code": status}]}}
        form = verified if "verificationStatus" in record else {"status": status}
        found = convert(decode(json.dumps({**record, **form}).encode()), SITE)
        assert found.events or found.encounter or found.ingredients


# What has only another name in STU3 is used, what is of another kind there is refused.
MADE = {"subject": PATIENT, "context": {"reference": "Encounter/e"}, "code": GLUCOSE}
TAKEN = {**MADE, "medicationCodeableConcept": GLUCOSE}
GIVEN = {
    "patient": PATIENT,
    "encounter": {"reference": "Encounter/e"},
    "vaccineCode": GLUCOSE,
    "notGiven": False,
}
REQUESTED = {"requester": {"agent": {"reference": "Practitioner/1"}}}
STU3 = {
    "Condition": {**MADE, "assertedDate": "2019-03-04", "verificationStatus": "confirmed"},
    "Procedure": {**MADE, "performedDateTime": "2019-03-04"},
    "Observation": {**MADE, "effectiveDateTime": "2019-03-04"},
    "DiagnosticReport": {**MADE, "issued": "2019-03-04"},
    "Immunization": {**GIVEN, "date": "2019-03-04"},
    "MedicationRequest": {**TAKEN, **REQUESTED, "authoredOn": "2019-03-04"},
    "MedicationStatement": {**TAKEN, "dateAsserted": "2019-03-04", "taken": "y"},
}


@pytest.mark.parametrize("kind", sorted(STU3))
def test_what_stu3_calls_otherwise_is_used(rows, at, kind):
    found = rows(kind, **STU3[kind])
    (event,) = found.events
    assert (found.patient_id, event.time, event.encounter_id) == ("p", at("2019-03-04"), "e")


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("Encounter", {"class": "inpatient", "patient": PATIENT}, "class"),  # DSTU2
        ("Observation", {"category": {"coding": [{"code": "laboratory"}]}}, "category"),  # DSTU2
    ],
)
def test_what_older_releases_write_as_another_kind_is_refused_with_its_field(
    rows, kind, fields, field
):
    with pytest.raises(Reject) as refusal:
        rows(kind, **fields)
    assert refusal.value.field == field
    assert refusal.value.resource_type == kind


def test_references_longer_than_any_are_refused(rows):
    long = {"reference": "Patient/" + "x" * 10**6}
    with pytest.raises(Reject, match="2,048"):
        rows("Encounter", subject=long, period={"start": "2019-03-04"})
    with pytest.raises(Reject, match=r"encounter\.reference"):
        rows("Observation", subject=PATIENT, code=GLUCOSE, issued="2019", encounter=long)


def outcome_of(data: bytes, clock: Clock) -> str:
    """What becomes of any bytes, after checking it: exactly one of these, and no exception."""
    try:
        resource = decode(data)
    except Reject as reject:
        assert reject.expected and reject.found
        return "rejected"
    if isinstance(resource, Bundle | Other):
        return "bundle" if isinstance(resource, Bundle) else "other"
    try:
        found = convert(resource, Site(clock))
    except Reject as reject:
        assert reject.field and reject.expected and reject.found
        return "rejected"
    except NotUsed as outcome:
        assert outcome.reason
        return "not used"
    if found.patient_id is not None:
        assert 0 <= subject_id(found.patient_id) < 2**63
    for event in found.events:
        assert event.category in CATEGORIES
        assert (event.concept is None) != (event.medication_id is None)
        assert event.concept is None or event.concept.code
        assert event.numeric_value is None or math.isfinite(event.numeric_value)
        if event.time is not None and event.available_time is not None:
            assert event.available_time >= event.time
    return "used"


@pytest.mark.parametrize("timezone", [None, "America/New_York"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_any_record_comes_to_one_end_and_raises_nothing_else(mutated, timezone, seed):
    assert outcome_of(mutated(random.Random(seed)), Clock(timezone))


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: json.dumps(text).encode())
)
def test_any_bytes_come_to_one_end(data):
    assert outcome_of(data, Clock())


def test_the_mutations_reach_every_end(mutated):
    rng = random.Random(0)
    ends = {outcome_of(mutated(rng), Clock()) for _ in range(3000)}
    assert ends >= {"used", "not used", "rejected"}
