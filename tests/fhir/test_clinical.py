"""Conditions, allergies, procedures and immunizations, row by row."""

import pytest

from ehrmamba_hf.fhir.rows import NotUsed

PATIENT = {"reference": "Patient/p"}
STAY = {"reference": "Encounter/e"}
GLUCOSE = {"coding": [{"system": "http://loinc.org", "code": "2345-7", "display": "Glucose"}]}


def test_a_condition_waits_for_the_end_of_its_encounter(rows, at):
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


def test_an_undated_condition_takes_its_encounters_end_or_its_onset(rows, at):
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
    rows, at, fields, time, end, available, after_encounter
):
    found = rows("Procedure", subject=PATIENT, encounter=STAY, code=GLUCOSE, **fields).events[0]
    assert found.time == at(time)
    assert found.end_time == (at(end) if end else None)
    assert found.available_time == at(available)
    assert found.after_encounter == after_encounter


def test_a_procedure_at_midnight_utc_is_of_the_day_that_is_written(rows, at):
    # New York puts its clocks on an hour on 10 March 2019.
    for day in ("2019-03-10", "2019-03-11"):
        utc = f"{day}T00:00:00Z"
        plain = {"subject": PATIENT, "encounter": STAY, "code": GLUCOSE}
        whole = rows(
            "Procedure", "America/New_York", **plain, performedPeriod={"start": utc, "end": utc}
        )
        (event,) = whole.events
        assert (event.time, event.after_encounter) == (at(day), True)
        assert event.available_time == event.end_time == at(f"{day}T23:59:59.999999")
    ended = {"start": "2019-03-10T23:00:00Z", "end": "2019-03-11T00:00:00Z"}
    (event,) = rows("Procedure", "America/New_York", **plain, performedPeriod=ended).events
    assert (event.time, event.end_time) == (at("2019-03-10T19:00"), at("2019-03-10T20:00"))
    assert not event.after_encounter


@pytest.mark.parametrize("kind", ["Condition", "AllergyIntolerance"])
@pytest.mark.parametrize("code", ["entered-in-error", "refuted"])
@pytest.mark.parametrize("place", ["second", "text", "beside"])
def test_any_code_of_a_verification_counts(rows, kind, code, place):
    local = {"system": "urn:h", "code": "7"}
    status = {
        "second": {"coding": [local, {"code": code}]},
        "text": {"text": code},
        "beside": {"coding": [local], "text": code},
    }[place]
    who = {"subject": PATIENT, "patient": PATIENT, "code": GLUCOSE}
    with pytest.raises(NotUsed, match=f"status {code}"):
        rows(kind, **who, verificationStatus=status)
    sound = {"coding": [local, {"code": "confirmed"}], "text": "sure"}
    assert rows(kind, **who, verificationStatus=sound).events


@pytest.mark.parametrize("reference", ["EpisodeOfCare/5", "#5", "https://h.org/Location/5", "?a=b"])
@pytest.mark.parametrize("field", ["encounter", "context"])
def test_a_reference_to_something_else_is_no_encounter_and_noted(rows, field, reference):
    plain = {"subject": PATIENT, "code": GLUCOSE}
    found = rows("Condition", **plain, **{field: {"reference": reference}})
    assert found.events[0].encounter_id is None
    assert found.notes == ("the encounter's reference names no Encounter",)
    for sound in ("Encounter/5", "https://h.org/fhir/Encounter/5", "urn:uuid:5"):
        found = rows("Condition", **plain, **{field: {"reference": sound}})
        assert (found.events[0].encounter_id, found.notes) == ("5", ())
    assert rows("Condition", **plain, **{field: {"display": "a stay"}}).notes == ()


def test_a_procedure_known_only_by_the_end_of_its_period_stands_there(rows, at):
    period = {"end": "2019-03-04T12:00:00Z"}
    found = rows("Procedure", subject=PATIENT, code=GLUCOSE, performedPeriod=period).events[0]
    assert found.time == found.end_time == at("2019-03-04T12:00")


@pytest.mark.parametrize(
    "name",
    [
        f"{stem}{kind}"
        for stem in ("performed", "occurrence")
        for kind in ("String", "Age", "Range")
    ],
)
def test_a_procedure_dated_by_something_else_has_no_date_which_is_noted(rows, name):
    value = "in spring" if name.endswith("String") else {"value": 30, "unit": "a"}
    found = rows("Procedure", subject=PATIENT, encounter=STAY, code=GLUCOSE, **{name: value})
    assert found.notes == ("performed[x] is not a date",)
    assert (found.events[0].time, found.events[0].after_encounter) == (None, True)
    dated = rows(
        "Procedure", subject=PATIENT, code=GLUCOSE, performedDateTime="2019", **{name: value}
    )
    assert dated.notes == ()


@pytest.mark.parametrize("name", ["onsetString", "onsetAge", "onsetRange"])
def test_an_onset_that_is_no_date_is_noted_where_there_is_no_other(rows, name):
    value = {name: "as a child" if name == "onsetString" else {"value": 5}}
    plain = {"subject": PATIENT, "code": GLUCOSE}
    assert rows("Condition", **plain, **value).notes == ("onset[x] is not a date",)
    assert rows("Condition", **plain, **value, recordedDate="2019").notes == ()
    assert rows("Condition", **plain).notes == ()


def test_an_abatement_changes_nothing(rows):
    plain = {"subject": PATIENT, "code": GLUCOSE, "onsetDateTime": "2018-01-01"}
    ended = rows("Condition", **plain, abatementDateTime="2019-01-01")
    assert ended == rows("Condition", **plain)


def test_an_allergy_is_known_when_it_is_recorded(rows, at):
    plain = {"patient": PATIENT, "encounter": STAY, "code": {"text": "Penicillin"}}
    found = rows("AllergyIntolerance", **plain, recordedDate="2019-03-04", onsetDateTime="2001")
    (event,) = found.events
    assert found.patient_id == "p"
    assert (event.category, event.concept.code) == ("allergy", "TEXT/penicillin")
    assert (event.time, event.after_encounter) == (at("2019-03-04"), False)
    assert event.available_time == at("2019-03-04T23:59:59.999999")
    (undated,) = rows("AllergyIntolerance", **plain, onsetDateTime="2001").events
    assert (undated.time, undated.after_encounter) == (None, True)
    assert undated.fallback_time == at("2001-01-01")


def test_an_immunization(rows, at):
    found = rows(
        "Immunization",
        status="completed",
        patient=PATIENT,
        encounter=STAY,
        vaccineCode={"coding": [{"system": "http://hl7.org/fhir/sid/cvx", "code": "140"}]},
        occurrenceDateTime="2019-03-04T10:00:00-05:00",
        doseQuantity={"value": 0.5, "unit": "mL"},
    )
    (event,) = found.events
    assert (event.category, event.concept.code) == ("immunization", "CVX/140")
    assert event.time == event.available_time == at("2019-03-04T10:00")
    assert (event.numeric_value, event.unit, event.encounter_id) == (0.5, "mL", "e")


def test_the_conditions_and_procedures_of_mimics_emergency_department(rows, at):
    icd = {
        "system": "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-diagnosis-icd10",
        "code": "R0789",
    }
    (event,) = rows("Condition", subject=PATIENT, encounter=STAY, code={"coding": [icd]}).events
    assert (event.concept.code, event.time, event.after_encounter) == ("ICD10CM/R0789", None, True)
    triage = {"coding": [{"system": "http://snomed.info/sct", "code": "386478007"}]}
    (event,) = rows("Procedure", subject=PATIENT, encounter=STAY, code=triage).events
    assert (event.concept.code, event.time, event.after_encounter) == (
        *("SNOMED/386478007", None, True),
    )
