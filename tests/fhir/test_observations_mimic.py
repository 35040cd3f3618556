"""Observations as MIMIC-IV on FHIR has them."""

import pytest

LOINC = "http://loinc.org"
MIMIC = "http://mimic.mit.edu/fhir/mimic"
LAB_CATEGORY = [{"coding": [{"code": "laboratory"}]}]


def test_output_events_of_the_older_mimic_are_known_by_their_category(observation):
    code = {
        "coding": [{"system": "http://fhir.mimic.mit.edu/CodeSystem/d-items", "code": "226559"}]
    }
    found = observation(code=code, category=[{"coding": [{"code": "Output"}]}]).events[0]
    assert (found.category, found.concept.code) == ("output", "MIMIC_ICU/226559")


@pytest.mark.parametrize(
    ("fields", "code", "category", "value"),
    [
        # Microbiology: a test, an organism that grew, and whether a drug would kill it.
        (
            {"code": "microbiology-test", "category": LAB_CATEGORY, "valueString": "NO GROWTH."},
            "MIMIC_MICROBIOLOGY_TEST/90039",
            "lab",
            (None, "NO GROWTH.", None),
        ),
        (
            {
                "code": "microbiology-organism",
                "category": LAB_CATEGORY,
                "hasMember": [{"reference": "Observation/s"}],
                "derivedFrom": [{"reference": "Observation/t"}],
            },
            "MIMIC_MICROBIOLOGY_ORGANISM/90039",
            "lab",
            (None, None, None),
        ),
        (
            {
                "code": "microbiology-antibiotic",
                "category": LAB_CATEGORY,
                "valueCodeableConcept": {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation",
                            "code": "S",
                        }
                    ]
                },
            },
            "MIMIC_MICROBIOLOGY_ANTIBIOTIC/90039",
            "lab",
            (None, "INTERPRETATION/S", None),
        ),
        # Charted dates and texts
        (
            {"code": "d-items", "valueDateTime": "2119-01-02T10:00:00-05:00"},
            "MIMIC_ICU/90039",
            "observation",
            (None, "2119-01-02T10:00:00-05:00", None),
        ),
        (
            {"code": "chartevents-d-items", "valueString": "Sinus Rhythm"},
            "MIMIC_CHART/90039",
            "observation",
            (None, "Sinus Rhythm", None),
        ),
    ],
)
def test_the_observations_of_mimic_that_are_no_numbers(observation, fields, code, category, value):
    coding = {"system": f"{MIMIC}/CodeSystem/mimic-{fields['code']}", "code": "90039"}
    (event,) = observation(**{**fields, "code": {"coding": [coding]}}).events
    assert (event.concept.code, event.category) == (code, category)
    assert (event.numeric_value, event.text_value, event.unit) == value


def test_the_vital_signs_of_mimics_emergency_department(observation):
    parts = [
        {
            "code": {"coding": [{"system": LOINC, "code": code}]},
            "valueQuantity": {"value": value, "unit": "mmHg", "code": "mm[Hg]"},
        }
        for code, value in (("8480-6", 120), ("8462-4", 80))
    ]
    panel = {"coding": [{"system": LOINC, "code": "85354-9"}]}
    found = observation(
        meta={"profile": [f"{MIMIC}/StructureDefinition/mimic-observation-vital-signs"]},
        partOf=[{"reference": "Procedure/v"}],
        code=panel,
        category=[{"coding": [{"code": "vital-signs"}]}],
        component=parts,
    )
    assert [(e.concept.code, e.numeric_value, e.category) for e in found.events] == [
        ("LOINC/8480-6", 120, "vital_sign"),
        ("LOINC/8462-4", 80, "vital_sign"),
    ]
