"""Patients and encounters, row by row. Times are written as the wall clock says them."""

import pytest

from ehrmamba_hf.fhir.rows import EncounterRow, NotUsed, Reject, Rows, SubjectRow

PATIENT = {"reference": "Patient/p"}


def test_patient(rows, at):
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


def test_a_death_known_as_a_date_or_only_as_a_fact(rows, at):
    dated = rows("Patient", deceasedDateTime="2019-03-04")
    assert dated.subject == SubjectRow(None, at("2019-03-04"), True, True, None, None)
    assert dated.events[0].available_time == at("2019-03-04T23:59:59.999999")
    fact = rows("Patient", birthDate="1950", deceasedBoolean=True)
    assert fact.subject == SubjectRow(at("1950-01-01"), None, False, True, None, None)
    assert [event.category for event in fact.events] == ["birth"]
    assert not rows("Patient", deceasedBoolean=False).subject.deceased


def test_a_death_before_the_birth_is_rejected_but_a_vague_one_is_not(rows, at):
    with pytest.raises(Reject) as refusal:
        rows("Patient", birthDate="2019-03-04", deceasedDateTime="2019-03-03")
    assert refusal.value.field == "deceasedDateTime"
    vague = rows("Patient", birthDate="2019-03-04", deceasedDateTime="2019")
    assert vague.subject == SubjectRow(at("2019-03-04"), None, False, True, None, None)
    assert [event.category for event in vague.events] == ["birth"]


def test_a_death_at_midnight_is_a_date(rows, at):
    found = rows("Patient", deceasedDateTime="2019-03-04T00:00:00-05:00")
    assert found.subject == SubjectRow(None, at("2019-03-04"), True, True, None, None)
    assert found.events[0].available_time == at("2019-03-04T23:59:59.999999")


@pytest.mark.parametrize(
    ("written", "day"),
    [
        # New York: UTC-5, and UTC-4 from 10 March to 3 November 2019
        ("2019-03-05T00:00:00Z", "2019-03-05"),
        ("2019-03-11T00:00:00Z", "2019-03-11"),
        ("2019-11-03T00:00:00Z", "2019-11-03"),
        ("2019-03-10T05:00:00Z", "2019-03-10"),
        ("2019-03-11T04:00:00Z", "2019-03-11"),
    ],
)
def test_a_death_at_midnight_utc_is_of_the_day_that_is_written(rows, at, written, day):
    found = rows("Patient", "America/New_York", deceasedDateTime=written, birthDate=day)
    assert found.subject == SubjectRow(at(day), at(day), True, True, None, None)
    assert found.events[1].time == at(day)
    assert found.events[1].available_time == at(f"{day}T23:59:59.999999")
    hour = written.replace(":00:00Z", ":00:01Z")
    later = rows("Patient", "America/New_York", deceasedDateTime=hour).subject
    assert not later.death_is_date and later.death != at(day)


def test_encounter_in_r4_and_r5(rows, at):
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


def test_of_the_classes_of_r5_the_one_of_hl7_counts(rows):
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


@pytest.fixture
def disposition(rows):
    """The disposition that an encounter's row has for these fields."""
    stay = {"subject": PATIENT, "period": {"start": "2019-03-04"}}
    return lambda **fields: rows(
        "Encounter", **stay, hospitalization={"dischargeDisposition": fields}
    ).encounter[4]


def test_a_disposition_keeps_all_its_terms(disposition):
    local = {"system": "urn:oid:1.2.3", "code": "7"}
    assert disposition(coding=[local, {"code": "exp"}]) == "7; exp"
    assert disposition(coding=[{"display": "Expired"}], text="Expired") == "Expired"
    assert disposition(text="Home") == "Home"
    assert disposition(coding=[]) is None


def test_a_german_reason_of_discharge_is_read_by_its_own_code_set(disposition):
    system = "http://fhir.de/CodeSystem/dgkev/EntlassungsgrundErsteUndZweiteStelle"
    died, regular = {"system": system, "code": "07"}, {"system": system, "code": "01"}
    inner = {"url": "ErsteUndZweiteStelle", "valueCoding": died}
    assert disposition(coding=[died]) == "07; exp"
    assert disposition(extension=[{"url": "u", "extension": [inner]}]) == "07; exp"
    assert disposition(coding=[regular]) == "01"
    assert disposition(coding=[{"system": "urn:other", "code": "07"}]) == "07"


def test_an_end_known_by_its_month_is_no_end(rows):
    found = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": "2019-03"})
    assert found.encounter.end is None


def test_an_encounter_of_whole_days_ends_with_its_last_day(rows, at):
    found = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": "2019-03-06"})
    assert found.encounter.start == at("2019-03-04")
    assert found.encounter.end == at("2019-03-06T23:59:59.999999")


def test_an_encounter_that_ends_before_it_starts_stays_as_written(rows):
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
def test_mimic_is_known_by_profile_or_code_system(rows, fields):
    found = rows("Encounter", subject=PATIENT, period={"start": "2119-01-01"}, **fields)
    assert found.encounter.source == "mimic"


def test_a_birth_that_cannot_be_read_does_not_cost_the_patient(rows, at):
    found = rows("Patient", birthDate="01/02/1950", gender="male", deceasedDateTime="2019-03-04")
    assert found.subject == SubjectRow(None, at("2019-03-04"), True, True, "male", None)
    assert [event.category for event in found.events] == ["death"]
    assert found.notes == ("birthDate is not a FHIR date",)


def test_a_death_that_cannot_be_read_is_one_without_a_date(rows):
    found = rows("Patient", deceasedDateTime="in March")
    assert found.subject == SubjectRow(None, None, False, True, None, None)
    assert found.notes == ("deceasedDateTime is not a FHIR date",)
    assert rows("Patient", deceasedDateTime="2019-03").notes == ("deceasedDateTime without a day",)


def test_mimic_is_known_by_the_system_of_a_class_in_r5(rows):
    coding = {"system": "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-admission-class", "code": "URGENT"}  # noqa: E501  # fmt: skip
    stay = {"subject": PATIENT, "actualPeriod": {"start": "2119-01-01"}}
    found = rows("Encounter", class_=[{"coding": [coding]}], **stay).encounter
    assert (found.class_code, found.source) == ("URGENT", "mimic")


MIMIC_CLASSES = (
    *("AMB", "EMER", "OBSENC", "ACUTE", "SS"),
    *("EW EMER.", "DIRECT EMER.", "URGENT", "ELECTIVE", "OBSERVATION ADMIT", "EU OBSERVATION"),
    *("DIRECT OBSERVATION", "AMBULATORY OBSERVATION", "SURGICAL SAME DAY ADMISSION"),
)


@pytest.mark.parametrize("code", MIMIC_CLASSES)
@pytest.mark.parametrize("kind", ["hosp", "icu", "ed"])
@pytest.mark.parametrize("base", ["http://mimic.mit.edu/fhir/mimic", "http://fhir.mimic.mit.edu"])
def test_the_encounters_of_mimic_in_all_its_versions(rows, at, base, kind, code):
    found = rows(
        "Encounter",
        meta={"profile": [f"{base}/StructureDefinition/mimic-encounter-{kind}"]},
        identifier=[{"system": f"{base}/identifier/encounter-{kind}"}],
        class_={"system": f"{base}/CodeSystem/mimic-admission-class", "code": code},
        subject=PATIENT,
        partOf={"reference": "Encounter/whole"},
        period={"start": "2119-01-01T10:00:00-05:00", "end": "2119-01-02T10:00:00-05:00"},
        hospitalization={"dischargeDisposition": {"coding": [{"code": "ADMITTED"}]}},
    )
    assert found.encounter == EncounterRow(
        "whole", at("2119-01-01T10:00"), at("2119-01-02T10:00"), code, "ADMITTED", "mimic"
    )


@pytest.mark.parametrize(
    ("start", "end", "timezone", "expected"),
    [
        # New York, 3 November 2019: at 02:00 EDT the clock goes back to 01:00 EST.
        ("01:50:00-04:00", "01:10:00-05:00", None, ("01:50", "01:50")),  # 20 minutes
        ("05:50:00Z", "06:10:00Z", "America/New_York", ("01:50", "01:50")),  # the same
        ("01:50:00-04:00", "02:10:00-05:00", None, ("01:50", "02:10")),  # 80 minutes: 20
        ("01:50:00-05:00", "01:10:00-05:00", None, ("01:50", "01:10")),  # before it starts
        ("01:50:00", "01:10:00", None, ("01:50", "01:10")),
    ],
)
def test_an_encounter_within_the_hour_that_comes_twice(rows, at, start, end, timezone, expected):
    period = {"start": f"2019-11-03T{start}", "end": f"2019-11-03T{end}"}
    found = rows("Encounter", timezone, subject=PATIENT, period=period).encounter
    assert (found.start, found.end) == tuple(at(f"2019-11-03T{time}") for time in expected)


def test_an_encounter_over_the_hour_that_is_missing_is_an_hour_longer_by_the_wall(rows, at):
    # New York, 10 March 2019: at 02:00 EST the clock goes to 03:00 EDT. 23 hours pass, 24 are read.
    period = {"start": "2019-03-10T00:00:00-05:00", "end": "2019-03-11T00:00:00-04:00"}
    found = rows("Encounter", subject=PATIENT, period=period).encounter
    assert (found.start, found.end) == (at("2019-03-10"), at("2019-03-11"))
    utc = {"start": "2019-03-10T05:00:00Z", "end": "2019-03-11T04:00:00Z"}
    assert rows("Encounter", "America/New_York", subject=PATIENT, period=utc).encounter == found


def test_an_encounter_written_in_two_offsets(rows, at):
    # A transfer from Boston to Zurich: each time is that of the clock where it was written.
    period = {"start": "2019-03-04T10:00:00-05:00", "end": "2019-03-05T08:00:00+01:00"}
    found = rows("Encounter", subject=PATIENT, period=period).encounter
    assert (found.start, found.end) == (at("2019-03-04T10:00"), at("2019-03-05T08:00"))


def test_what_is_planned_is_no_start(rows):
    with pytest.raises(NotUsed, match=r"no period\.start"):
        rows("Encounter", subject=PATIENT, plannedStartDate="2019-03-04")


def test_an_end_without_a_day_is_noted(rows):
    stay = rows("Encounter", subject=PATIENT, period={"start": "2019-03-04", "end": "2019-03"})
    assert stay.notes == ("period.end without a day",)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("ombCategory", {"valueCoding": {"code": "2106-3"}})], "2106-3"),
        (
            [
                ("ombCategory", {"valueCoding": {"code": "2106-3", "display": "White"}}),
                ("ombCategory", {"valueCoding": {"code": "2028-9"}}),
                ("text", {"valueString": "Mixed"}),
            ],
            "2028-9; White",
        ),
        ([("text", {"valueString": "Mixed"})], "Mixed"),
        ([("ombCategory", {"valueCoding": {}}), ("text", {"valueString": "Mixed"})], "Mixed"),
        ([("text", {})], None),
    ],
)
def test_a_race_is_its_display_else_its_code_else_its_text(rows, parts, expected):
    url = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"
    race = {"url": url, "extension": [{"url": part, **fields} for part, fields in parts]}
    assert rows("Patient", extension=[race]).subject.race == expected


def test_a_malformed_profile_costs_neither_the_rest_nor_goes_uncounted(rows):
    identifier = [{"system": "http://fhir.mimic.mit.edu/identifier/encounter-hosp"}, 5]
    found = rows(
        "Encounter",
        subject=PATIENT,
        period={"start": "2119-01-01"},
        meta={"profile": 5},
        identifier=identifier,
    )
    assert found.encounter.source == "mimic"
    assert sorted(found.notes) == ["identifier is malformed", "meta.profile is malformed"]


def test_an_encounter_that_is_part_of_something_else(rows):
    stay = {"subject": PATIENT, "period": {"start": "2019-03-04"}}
    found = rows("Encounter", **stay, partOf={"reference": "EpisodeOfCare/5"})
    assert found.encounter.part_of is None
    assert found.notes == ("the encounter's reference names no Encounter",)


def test_extensions_nested_as_deep_as_json_allows(disposition):
    inner = {"url": "u", "valueCoding": {"code": "7"}}
    for _ in range(250):
        inner = {"url": "u", "extension": [inner]}
    assert disposition(extension=[inner]) == "7"
