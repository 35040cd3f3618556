"""Hand-worked rows, one resource at a time. Times are written as the wall clock says them."""

import json
from datetime import datetime, timedelta

import pytest

from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import decode
from ehrmamba_hf.fhir.rows import EncounterRow, NotUsed, Reject, Rows, Site, SubjectRow
from ehrmamba_hf.fhir.times import Clock

PATIENT = {"reference": "Patient/p"}
STAY = {"reference": "Encounter/e"}
LOINC = "http://loinc.org"
GLUCOSE = {"coding": [{"system": LOINC, "code": "2345-7", "display": "Glucose"}]}


def rows(kind: str, timezone: str | None = None, **fields: object) -> Rows:
    record = {"resourceType": kind, "id": "x", **{k.rstrip("_"): v for k, v in fields.items()}}
    return convert(decode(json.dumps(record).encode()), Site(Clock(timezone)))


def observation(**fields: object) -> Rows:
    defaults = {
        "subject": PATIENT,
        "code": GLUCOSE,
        "effectiveDateTime": "2019-03-04T10:00:00-05:00",
    }
    return rows("Observation", **{**defaults, **fields})


def request(**fields: object) -> Rows:
    defaults = {
        "subject": PATIENT,
        "medicationCodeableConcept": {"text": "aspirin"},
        "authoredOn": "2019-03-04T10:00:00-05:00",
    }
    return rows("MedicationRequest", **{**defaults, **fields})


def at(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def test_patient():
    race = {
        "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
        "extension": [
            {"url": "ombCategory", "valueCoding": {"code": "2106-3", "display": "White"}},
            {"url": "ombCategory", "valueCoding": {"code": "2028-9", "display": "Asian"}},
            {"url": "text", "valueString": "ignored"},
        ],
    }
    found = rows(
        "Patient",
        gender="female",
        birthDate="1950-06-01",
        deceasedDateTime="2019-03-04T23:15:00-05:00",
        extension=[{"url": "http://other", "valueString": "ignored"}, race],
    )
    born, died = at("1950-06-01"), at("2019-03-04T23:15")
    assert found.subject == SubjectRow(born, died, False, True, "female", "Asian; White")
    birth, death = found.events
    assert (birth.time, birth.category, birth.concept.code) == (born, "birth", "MEDS_BIRTH")
    assert birth.available_time == at("1950-06-01T23:59:59.999999")
    assert (death.time, death.category, death.concept.code) == (died, "death", "MEDS_DEATH")
    assert death.available_time == died


def test_a_death_known_as_a_date_or_only_as_a_fact():
    dated = rows("Patient", deceasedDateTime="2019-03-04")
    assert dated.subject == SubjectRow(None, at("2019-03-04"), True, True, None, None)
    assert dated.events[0].available_time == at("2019-03-04T23:59:59.999999")
    fact = rows("Patient", birthDate="1950", deceasedBoolean=True)
    assert fact.subject == SubjectRow(at("1950-01-01"), None, False, True, None, None)
    assert [event.category for event in fact.events] == ["birth"]
    assert not rows("Patient", deceasedBoolean=False).subject.deceased


def test_a_death_before_the_birth_is_rejected_but_a_vague_one_is_not():
    with pytest.raises(Reject) as refusal:
        rows("Patient", birthDate="2019-03-04", deceasedDateTime="2019-03-03")
    assert refusal.value.field == "deceasedDateTime"
    vague = rows("Patient", birthDate="2019-03-04", deceasedDateTime="2019")
    assert vague.subject == SubjectRow(at("2019-03-04"), None, False, True, None, None)
    assert [event.category for event in vague.events] == ["birth"]


def test_a_death_at_midnight_is_a_date():
    found = rows("Patient", deceasedDateTime="2019-03-04T00:00:00-05:00")
    assert found.subject == SubjectRow(None, at("2019-03-04"), True, True, None, None)
    assert found.events[0].available_time == at("2019-03-04T23:59:59.999999")


def test_encounter_in_r4_and_r5():
    discharge = {"dischargeDisposition": {"coding": [{"code": "home"}], "text": "Home"}}
    period = {"start": "2019-03-04T10:00:00-05:00", "end": "2019-03-06T12:00:00-05:00"}
    expected = EncounterRow(
        "parent", at("2019-03-04T10:00"), at("2019-03-06T12:00"), "IMP", "home; Home", ""
    )
    shared = {"subject": PATIENT, "partOf": {"reference": "Encounter/parent"}}
    r4 = rows(
        "Encounter", class_={"code": "IMP"}, period=period, hospitalization=discharge, **shared
    )
    r5 = rows(
        "Encounter",
        class_=[{"coding": [{"code": "IMP"}]}],
        actualPeriod=period,
        admission=discharge,
        **shared,
    )
    assert r4 == r5 == Rows("p", encounter=expected)


def test_of_the_classes_of_r5_the_one_of_hl7_counts():
    own = {"coding": [{"system": "urn:oid:1.2.3", "code": "102"}]}
    hl7 = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    stay = {"subject": PATIENT, "actualPeriod": {"start": "2019-03-04"}}
    for class_, code in (
        ([own, {"coding": [hl7]}], "IMP"),
        ([own], "102"),
        ([{"text": "Inpatient"}], "Inpatient"),
        ([], None),
    ):
        assert rows("Encounter", class_=class_, **stay).encounter.class_code == code


def disposition(**fields: object) -> str | None:
    stay = {"subject": PATIENT, "period": {"start": "2019-03-04"}}
    return rows("Encounter", **stay, hospitalization={"dischargeDisposition": fields}).encounter[4]


def test_a_disposition_keeps_all_its_terms():
    local = {"system": "urn:oid:1.2.3", "code": "7"}
    assert disposition(coding=[local, {"code": "exp"}]) == "7; exp"
    assert disposition(coding=[{"display": "Expired"}], text="Expired") == "Expired"
    assert disposition(text="Home") == "Home"
    assert disposition(coding=[]) is None


def test_a_german_reason_of_discharge_is_read_by_its_own_code_set():
    system = "http://fhir.de/CodeSystem/dgkev/EntlassungsgrundErsteUndZweiteStelle"
    died, regular = {"system": system, "code": "07"}, {"system": system, "code": "01"}
    inner = {"url": "ErsteUndZweiteStelle", "valueCoding": died}
    assert disposition(coding=[died]) == "07; exp"
    assert disposition(extension=[{"url": "u", "extension": [inner]}]) == "07; exp"
    assert disposition(coding=[regular]) == "01"
    assert disposition(coding=[{"system": "urn:other", "code": "07"}]) == "07"


def test_an_end_known_by_its_month_is_no_end():
    found = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": "2019-03"})
    assert found.encounter.end is None


def test_empty_texts_are_absent():
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


def test_an_encounter_of_whole_days_ends_with_its_last_day():
    found = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": "2019-03-06"})
    assert found.encounter.start == at("2019-03-04")
    assert found.encounter.end == at("2019-03-06T23:59:59.999999")


def test_an_encounter_that_ends_before_it_starts_stays_as_written():
    period = {"start": "2019-03-04T10:00:00Z", "end": "2019-03-04T09:00:00Z"}
    found = rows("Encounter", subject=PATIENT, period=period)
    assert found.encounter.end < found.encounter.start


@pytest.mark.parametrize(
    "fields",
    [
        {"meta": {"profile": ["http://mimic.mit.edu/fhir/mimic/StructureDefinition/x"]}},
        {"identifier": [{"system": "http://fhir.mimic.mit.edu/identifier/encounter-hosp"}]},
        {"class_": {"system": "http://fhir.mimic.mit.edu/CodeSystem/c", "code": "EW EMER."}},
    ],
)
def test_mimic_is_known_by_profile_or_code_system(fields):
    found = rows("Encounter", subject=PATIENT, period={"start": "2119-01-01"}, **fields)
    assert found.encounter.source == "mimic"


def test_a_condition_waits_for_the_end_of_its_encounter():
    found = rows(
        "Condition",
        subject=PATIENT,
        encounter=STAY,
        code=GLUCOSE,
        recordedDate="2019-03-04",
        onsetDateTime="2018",
    ).events[0]
    assert (found.time, found.category, found.encounter_id) == (at("2019-03-04"), "condition", "e")
    assert found.after_encounter
    assert found.available_time == at("2019-03-04T23:59:59.999999")


def test_an_undated_condition_takes_its_encounters_end_or_its_onset():
    found = rows("Condition", subject=PATIENT, code=GLUCOSE, onsetPeriod={"start": "2018-05"})
    assert found.events[0].time is None
    assert found.events[0].fallback_time == at("2018-05-01")
    assert found.events[0].available_time == at("2018-05-31T23:59:59.999999")


@pytest.mark.parametrize(
    ("fields", "time", "end", "available", "after_encounter"),
    [
        (
            {"performedDateTime": "2019-03-04T10:00:00-05:00"},
            "2019-03-04T10:00",
            None,
            "2019-03-04T10:00",
            False,
        ),
        (
            {"occurrenceDateTime": "2019-03-04T10:00:00-05:00"},
            "2019-03-04T10:00",
            None,
            "2019-03-04T10:00",
            False,
        ),
        (
            {"performedPeriod": {"start": "2019-03-04T10:00:00Z", "end": "2019-03-05T11:00:00Z"}},
            "2019-03-04T10:00",
            "2019-03-05T11:00",
            "2019-03-04T10:00",
            False,
        ),
        (
            {"occurrencePeriod": {"start": "2019-03-04T10:00:00Z"}},
            "2019-03-04T10:00",
            None,
            "2019-03-04T10:00",
            False,
        ),
        (
            {"performedDateTime": "2019-03-04"},
            "2019-03-04",
            None,
            "2019-03-04T23:59:59.999999",
            True,
        ),
        (
            {"performedDateTime": "2019-03-04T00:00:00-05:00"},
            "2019-03-04",
            None,
            "2019-03-04T23:59:59.999999",
            True,
        ),
        ({"performedDateTime": "2019"}, "2019-01-01", None, "2019-12-31T23:59:59.999999", True),
    ],
)
def test_a_procedure_without_an_hour_waits_for_its_encounter(
    fields, time, end, available, after_encounter
):
    found = rows("Procedure", subject=PATIENT, encounter=STAY, code=GLUCOSE, **fields).events[0]
    assert found.time == at(time)
    assert found.end_time == (at(end) if end else None)
    assert found.available_time == at(available)
    assert found.after_encounter == after_encounter


def test_medication_request_by_code_reference_and_contained():
    insulin = {
        "coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "5856"}]
    }
    assert request().events[0].concept.code == "TEXT/aspirin"
    assert request(medicationCodeableConcept=insulin).events[0].concept.code == "RXNORM/5856"
    r5 = request(medicationCodeableConcept=None, medication={"concept": insulin})
    assert r5.events[0].concept.code == "RXNORM/5856"
    for reference in ("Medication/m", "https://h/fhir/Medication/m/_history/2", "urn:uuid:m"):
        named = request(
            medicationCodeableConcept=None, medicationReference={"reference": reference}
        )
        assert (named.events[0].concept, named.events[0].medication_id) == (None, "m")
    worded = request(
        medicationCodeableConcept=None, medicationReference={"display": "Heparin  5000"}
    )
    assert worded.events[0].concept.code == "TEXT/heparin 5000"
    inside = request(
        medicationCodeableConcept=None,
        medicationReference={"reference": "#m"},
        contained=[
            {"resourceType": "Organization", "id": "o", "code": ["of another kind"]},
            {"resourceType": "Medication", "id": "m", "code": insulin},
        ],
    )
    assert inside.events[0].concept.code == "RXNORM/5856"


def test_medication_request_times():
    assert request().events[0].time == request().events[0].available_time == at("2019-03-04T10:00")
    window = {"validityPeriod": {"start": "2019-03-05", "end": "2019-03-09"}}
    found = request(authoredOn=None, dispenseRequest=window).events[0]
    assert (found.time, found.available_time) == (
        at("2019-03-05"),
        at("2019-03-05T23:59:59.999999"),
    )
    assert found.end_time is None  # a plan, and not known at the time


def test_medication_administration_in_r4_and_r5():
    period = {"start": "2019-03-04T10:00:00Z", "end": "2019-03-04T11:00:00Z"}
    shared = {
        "subject": PATIENT,
        "dosage": {"dose": {"value": 5, "unit": "milligram", "code": "mg"}},
    }
    drug = {"text": "Heparin"}
    r4 = rows(
        "MedicationAdministration",
        medicationCodeableConcept=drug,
        context=STAY,
        effectivePeriod=period,
        **shared,
    )
    r5 = rows(
        "MedicationAdministration",
        medication={"concept": drug},
        encounter=STAY,
        occurencePeriod=period,
        **shared,
    )
    assert r4 == r5
    found = r4.events[0]
    assert (found.category, found.numeric_value, found.unit) == ("administration", 5.0, "mg")
    assert (found.time, found.end_time) == (at("2019-03-04T10:00"), at("2019-03-04T11:00"))
    assert (found.available_time, found.encounter_id) == (found.time, "e")


def test_an_observation_is_available_when_issued():
    found = observation(issued="2019-03-04T12:30:00.250-05:00", encounter=STAY).events[0]
    assert found.time == at("2019-03-04T10:00")
    assert found.available_time == at("2019-03-04T12:30:00.250")
    assert found.encounter_id == "e"


@pytest.mark.parametrize(
    ("fields", "time", "available"),
    [
        ({"issued": "2019-03-04T09:00:00-05:00"}, "2019-03-04T10:00", "2019-03-04T10:00"),
        ({"effectiveDateTime": "2019-03-04"}, "2019-03-04", "2019-03-04T23:59:59.999999"),
        (
            {"effectiveDateTime": None, "issued": "2019-03-05T08:00:00Z"},
            "2019-03-05T08:00",
            "2019-03-05T08:00",
        ),
        (
            {"effectiveDateTime": None, "effectiveInstant": "2019-03-05T08:00:00Z"},
            "2019-03-05T08:00",
            "2019-03-05T08:00",
        ),
        (
            {
                "effectiveDateTime": None,
                "effectivePeriod": {"start": "2019-03-04T10:00:00Z", "end": "2019-03-05T10:00:00Z"},
            },
            "2019-03-04T10:00",
            "2019-03-05T10:00",
        ),
    ],
)
def test_observation_times(fields, time, available):
    found = observation(**fields).events[0]
    assert (found.time, found.available_time) == (at(time), at(available))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueQuantity": {"value": 5.5, "unit": "milligrams", "code": "mg"}}, (5.5, None, "mg")),
        ({"valueQuantity": {"value": 5, "unit": "mg"}}, (5.0, None, "mg")),
        ({"valueQuantity": {"value": 0.1, "comparator": "<"}}, (0.1, "<", None)),
        ({"valueQuantity": {"unit": "mg"}}, (None, None, "mg")),
        ({"valueInteger": 3}, (3.0, None, None)),
        ({"valueString": "7.5"}, (None, "7.5", None)),
        ({"valueBoolean": False}, (None, "false", None)),
        ({"valueCodeableConcept": GLUCOSE}, (None, "LOINC/2345-7", None)),
        ({"valueCodeableConcept": {"text": "Not Seen"}}, (None, "Not Seen", None)),
        ({"valueCodeableConcept": {"coding": [{"display": "Seen"}]}}, (None, "Seen", None)),
        ({"valueCodeableConcept": {}}, (None, None, None)),
        (
            {"valueRange": {"low": {"value": 1, "code": "mg"}, "high": {"value": 2}}},
            (None, "1-2", "mg"),
        ),
        (
            {"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}},
            (None, "1:128", None),
        ),
        ({"valueTime": "10:00:00"}, (None, "10:00:00", None)),
        ({"valuePeriod": {"start": "2019", "end": "2020"}}, (None, "2019/2020", None)),
        ({"dataAbsentReason": {"text": "error"}}, (None, None, None)),
    ],
)
def test_observation_values(value, expected):
    found = observation(**value).events[0]
    assert (found.numeric_value, found.text_value, found.unit) == expected


def test_minus_zero_is_zero():
    assert str(observation(valueQuantity={"value": -0.0}).events[0].numeric_value) == "0.0"


def test_a_component_without_a_code_does_not_cost_the_others():
    coded = {"code": GLUCOSE, "valueQuantity": {"value": 5}}
    for bare in ({"valueQuantity": {"value": 7}}, {"code": {"coding": []}}):
        (event,) = observation(component=[bare, coded], code={"text": "panel"}).events
        assert (event.concept.code, event.numeric_value) == ("LOINC/2345-7", 5)
        (event,) = observation(component=[bare], code={"text": "panel"}).events
        assert (event.concept.code, event.numeric_value) == ("TEXT/panel", None)


def test_an_observation_with_only_the_end_of_its_period():
    period = {"start": "", "end": "2019-03-04T12:00:00-05:00"}
    (event,) = observation(effectiveDateTime=None, effectivePeriod=period).events
    assert event.time == event.end_time == event.available_time == at("2019-03-04T12:00")


def test_components_are_events_of_their_own():
    parts = [
        {
            "code": {"coding": [{"system": LOINC, "code": "8480-6"}]},
            "valueQuantity": {"value": 120},
        },
        {"code": {"coding": [{"system": LOINC, "code": "8462-4"}]}, "valueQuantity": {"value": 80}},
    ]
    found = [(e.concept.code, e.numeric_value) for e in observation(component=parts).events]
    assert found == [("LOINC/8480-6", 120.0), ("LOINC/8462-4", 80.0)]
    valued = observation(component=parts, valueString="seated").events
    assert [event.concept.code for event in valued] == [
        *("LOINC/2345-7", "LOINC/8480-6", "LOINC/8462-4")
    ]


@pytest.mark.parametrize(
    ("category", "kind"),
    [
        ([{"coding": [{"code": "laboratory"}]}], "lab"),
        (
            [
                {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "LAB"}
                    ]
                }
            ],
            "lab",
        ),
        ([{"text": "Laboratory"}], "lab"),
        ([{"coding": [{"code": "26436-6", "display": "Laboratory"}]}], "lab"),
        ([{"coding": [{"code": "exam"}]}, {"coding": [{"code": "laboratory"}]}], "lab"),
        ([{"coding": [{"code": "vital-signs"}]}], "vital_sign"),
        ([{"coding": [{"code": "Routine Vital Signs"}]}], "vital_sign"),
        ([{"text": "Vital Signs"}], "vital_sign"),
        ([{"coding": [{"code": "survey"}]}], "observation"),
        (None, "observation"),
    ],
)
def test_observation_categories(category, kind):
    assert observation(category=category).events[0].category == kind


@pytest.mark.parametrize("host", ["http://mimic.mit.edu/fhir/mimic", "http://fhir.mimic.mit.edu"])
def test_mimic_output_events(host):
    code = {
        "coding": [{"system": f"{host}/CodeSystem/mimic-outputevents-d-items", "code": "226559"}]
    }
    found = observation(code=code, category=[{"coding": [{"code": "Output"}]}]).events[0]
    assert (found.category, found.concept.code) == ("output", "MIMIC_OUTPUT/226559")


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
        ("MedicationAdministration", {"status": "not-done"}, "status not-done"),
    ],
)
def test_what_is_not_used_and_why(kind, fields, reason):
    with pytest.raises(NotUsed) as outcome:
        rows(kind, **fields)
    assert outcome.value.reason == reason


@pytest.mark.parametrize(
    "status", ["final", "preliminary", "amended", "corrected", "unknown", None]
)
def test_observations_that_are_used(status):
    assert len(observation(status=status).events) == 1


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
        ("Patient", {"birthDate": "01/02/1950"}, "birthDate"),
    ],
)
def test_what_is_rejected_and_where(kind, fields, field):
    with pytest.raises(Reject) as refusal:
        rows(kind, **fields)
    assert refusal.value.field == field


def test_utc_is_converted_with_a_timezone():
    fields = {"subject": PATIENT, "code": GLUCOSE, "effectiveDateTime": "2019-07-01T03:00:00Z"}
    assert rows("Observation", **fields).events[0].time == at("2019-07-01T03:00")
    converted = rows("Observation", timezone="America/New_York", **fields)
    assert converted.events[0].time == at("2019-06-30T23:00")
