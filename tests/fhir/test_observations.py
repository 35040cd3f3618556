"""Observations and reports: times, values, components, categories."""

import pytest

from ehrmamba_hf.fhir.rows import NotUsed, Reject

PATIENT = {"reference": "Patient/p"}
STAY = {"reference": "Encounter/e"}
LOINC = "http://loinc.org"
GLUCOSE = {"coding": [{"system": LOINC, "code": "2345-7", "display": "Glucose"}]}


def test_an_observation_is_available_when_issued(at, observation):
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
def test_observation_times(at, observation, fields, time, available):
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
        (
            {
                "valueRatio": {
                    "numerator": {"value": 1, "comparator": "<"},
                    "denominator": {"value": 20},
                }
            },
            (None, "<1:20", None),
        ),
        (
            {"valueRange": {"low": {"value": 0.1}, "high": {"value": 7.0, "comparator": ">"}}},
            (None, "0.1->7", None),
        ),
        (
            {"valueRange": {"low": {"value": 1234567}, "high": {"value": 1234567.125}}},
            (None, "1234567-1234567.125", None),
        ),
        ({"valueRange": {"high": {"value": -0.0}}}, (None, "-0", None)),
        ({"valueRatio": {"numerator": {"comparator": "<"}}}, (None, None, None)),
        ({"valuePeriod": {}}, (None, None, None)),
        ({"valueTime": "10:00:00"}, (None, "10:00:00", None)),
        ({"valuePeriod": {"start": "2019", "end": "2020"}}, (None, "2019/2020", None)),
        ({"valueString": ""}, (None, None, None)),
        ({"valueQuantity": {"value": 5, "unit": " mg "}}, (5.0, None, "mg")),
        ({"valueQuantity": {"value": 5, "code": " "}}, (5.0, None, None)),
    ],
)
def test_observation_values(observation, value, expected):
    found = observation(**value).events[0]
    assert (found.numeric_value, found.text_value, found.unit) == expected


def test_minus_zero_is_zero(observation):
    assert str(observation(valueQuantity={"value": -0.0}).events[0].numeric_value) == "0.0"


def test_a_component_without_a_code_does_not_cost_the_others(observation):
    coded = {"code": GLUCOSE, "valueQuantity": {"value": 5}}
    for bare in ({"valueQuantity": {"value": 7}}, {"code": {"coding": []}}):
        (event,) = observation(component=[bare, coded], code={"text": "panel"}).events
        assert (event.concept.code, event.numeric_value) == ("LOINC/2345-7", 5)
        (event,) = observation(component=[bare], code={"text": "panel"}).events
        assert (event.concept.code, event.numeric_value) == ("TEXT/panel", None)


def test_components_that_give_no_event_are_noted(observation):
    good = {"code": GLUCOSE, "valueQuantity": {"value": 5}}
    bare, absent = {"valueQuantity": {"value": 7}}, {"code": {"text": "a"}, **ABSENT}
    found = observation(component=[bare, good, absent, absent], code={"text": "panel"})
    assert len(found.events) == 1
    assert found.notes == ("component without a code", *["component without a result"] * 2)
    found = observation(component=[absent], valueString="seen")
    assert (len(found.events), found.notes) == (1, ("component without a result",))


def test_unknown_systems_of_coded_answers_are_told(observation):
    answer = {"coding": [{"system": "https://h.org/answers", "code": "yes"}]}
    part = {"code": {"text": "a"}, "valueCodeableConcept": answer}
    whole, inner = observation(valueCodeableConcept=answer, component=[part]).events
    assert (whole.concept.code, inner.concept.code) == ("LOINC/2345-7", "TEXT/a")
    assert whole.concept.unknown_systems == ("https://h.org/answers",)
    assert inner.concept.unknown_systems == ("https://h.org/answers",)
    assert whole.concept.display == "Glucose"


def test_a_result_at_midnight_utc_is_an_instant(rows, at):
    (event,) = rows(
        *("Observation", "America/New_York"),
        subject=PATIENT,
        code=GLUCOSE,
        effectiveDateTime="2019-03-11T00:00:00Z",
    ).events
    assert event.time == event.available_time == at("2019-03-10T20:00")


def test_an_observation_with_only_the_end_of_its_period(at, observation):
    period = {"start": "", "end": "2019-03-04T12:00:00-05:00"}
    (event,) = observation(effectiveDateTime=None, effectivePeriod=period).events
    assert event.time == event.end_time == event.available_time == at("2019-03-04T12:00")


def test_components_are_events_of_their_own(observation):
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
def test_observation_categories(observation, category, kind):
    assert observation(category=category).events[0].category == kind


@pytest.mark.parametrize("host", ["http://mimic.mit.edu/fhir/mimic", "http://fhir.mimic.mit.edu"])
def test_mimic_output_events(observation, host):
    code = {
        "coding": [{"system": f"{host}/CodeSystem/mimic-outputevents-d-items", "code": "226559"}]
    }
    found = observation(code=code, category=[{"coding": [{"code": "Output"}]}]).events[0]
    assert (found.category, found.concept.code) == ("output", "MIMIC_OUTPUT/226559")


@pytest.mark.parametrize(
    "status", ["final", "preliminary", "amended", "corrected", "unknown", None]
)
def test_observations_that_are_used(observation, status):
    assert len(observation(status=status).events) == 1


ABSENT = {"dataAbsentReason": {"coding": [{"code": "unknown"}]}}


@pytest.mark.parametrize(
    "fields",
    [
        ABSENT,
        {"dataAbsentReason": [{"coding": [{"code": "unknown"}]}]},  # as in MIMIC-IV on FHIR 1.0
        {"component": [{"code": {"text": "a"}, **ABSENT}]},
        {"component": [{"code": {"text": "a"}, **ABSENT}, {**ABSENT}], **ABSENT},
        {"hasMember": [{"reference": "Observation/x"}], **ABSENT},
    ],
)
def test_an_absent_result_is_none(observation, fields):
    with pytest.raises(NotUsed, match="dataAbsentReason"):
        observation(**fields)


def test_a_value_counts_though_it_is_said_to_be_absent(observation):
    assert observation(valueString="turbid", **ABSENT).events[0].text_value == "turbid"


def test_components_are_judged_on_their_own(observation):
    systolic = {"code": {"text": "systolic"}, "valueQuantity": {"value": 120}}
    diastolic = {"code": {"text": "diastolic"}, **ABSENT}
    (event,) = observation(component=[systolic, diastolic]).events
    assert (event.concept.code, event.numeric_value) == ("TEXT/systolic", 120)
    (event,) = observation(component=[systolic, diastolic], **ABSENT).events
    assert event.numeric_value == 120


def test_a_panel_that_names_its_members_elsewhere_is_an_event_without_a_value(observation):
    (event,) = observation(hasMember=[{"reference": "Observation/x"}]).events
    assert (event.concept.code, event.numeric_value, event.text_value) == (
        *("LOINC/2345-7", None, None),
    )


@pytest.mark.parametrize("name", ["valueSampledData", "valueAttachment", "valueReference"])
def test_values_without_a_column_are_noted(observation, name):
    note = f"{name} has no column"
    alone = observation(**{name: {"url": "u"}})
    assert (len(alone.events), alone.notes) == (1, (note,))
    inside = observation(component=[{"code": {"text": "a"}, name: {"url": "u"}}])
    assert ([e.concept.code for e in inside.events], inside.notes) == (["TEXT/a"], (note,))


def test_the_reference_range_changes_nothing(observation):
    value = {"valueQuantity": {"value": 5, "code": "mg"}}
    ranges = [{"low": {"value": 1, "code": "g"}, "high": {"value": 9, "code": "g"}}]
    assert observation(**value, referenceRange=ranges) == observation(**value)


@pytest.mark.parametrize(
    ("timing", "time", "end"),
    [
        (
            {"event": ["2019-03-04T12:00:00Z", "2019-03-04T10:00:00Z", "2019-03-04T11:00:00Z"]},
            "2019-03-04T10:00",
            "2019-03-04T12:00",
        ),
        ({"event": ["2019-03-04T10:00:00Z"]}, "2019-03-04T10:00", None),
        (
            {
                "repeat": {
                    "boundsPeriod": {"start": "2019-03-04T10:00:00Z", "end": "2019-03-05T10:00:00Z"}
                }
            },
            "2019-03-04T10:00",
            "2019-03-05T10:00",
        ),
    ],
)
def test_the_times_of_a_timing(observation, at, timing, time, end):
    (event,) = observation(effectiveDateTime=None, effectiveTiming=timing).events
    assert (event.time, event.end_time) == (at(time), at(end) if end else None)
    assert event.available_time == at(end or time)


def test_a_timing_that_only_repeats_is_no_time(observation):
    with pytest.raises(NotUsed, match="no time"):
        observation(effectiveDateTime=None, effectiveTiming={"repeat": {"frequency": 2}})


def test_a_number_of_any_kind_must_fit_a_float(observation):
    for value in ({"valueInteger": 10**400}, {"valueQuantity": {"value": 10**39}}):
        with pytest.raises(Reject):
            observation(**value)
    assert observation(valueInteger=2**70).events[0].numeric_value == float(2**70)


def test_parts_written_in_several_offsets_are_each_their_own_wall_clock(observation, at):
    # Drawn at 23:30 in New York; the laboratory, in Chicago, issues at 22:45, a quarter later.
    found = observation(
        effectiveDateTime="2019-03-04T23:30:00-05:00", issued="2019-03-04T22:45:00-06:00"
    ).events[0]
    assert found.time == found.available_time == at("2019-03-04T23:30")


def test_a_report_is_its_code(rows, at):
    found = rows(
        "DiagnosticReport",
        status="final",
        subject=PATIENT,
        encounter=STAY,
        code={"coding": [{"system": LOINC, "code": "57698-3"}]},
        effectiveDateTime="2019-03-04T10:00:00-05:00",
        issued="2019-03-04T12:30:00.250-05:00",
        conclusionCode=[{"text": "hyperlipidemia"}],
        presentedForm=[{"data": "c2VjcmV0"}],
    )
    (event,) = found.events
    assert (event.category, event.concept.code, event.encounter_id) == (
        *("report", "LOINC/57698-3", "e"),
    )
    assert (event.time, event.available_time) == (
        *(at("2019-03-04T10:00"), at("2019-03-04T12:30:00.250")),
    )
    undated = rows("DiagnosticReport", subject=PATIENT, code=GLUCOSE, issued="2019-03-04T12:00:00Z")
    assert undated.events[0].time == at("2019-03-04T12:00")
