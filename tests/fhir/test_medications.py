"""Medications: by code, by reference, contained; ordered, given, dispensed and stated."""

import pytest

from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import decode
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Site
from ehrmamba_hf.fhir.times import Clock

PATIENT = {"reference": "Patient/p"}
STAY = {"reference": "Encounter/e"}


def test_medication_request_by_code_reference_and_contained(order):
    insulin = {
        "coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "5856"}]
    }
    assert order().events[0].concept.code == "TEXT/aspirin"
    assert order(medicationCodeableConcept=insulin).events[0].concept.code == "RXNORM/5856"
    r5 = order(medicationCodeableConcept=None, medication={"concept": insulin})
    assert r5.events[0].concept.code == "RXNORM/5856"
    for reference in ("Medication/m", "https://h/fhir/Medication/m/_history/2", "urn:uuid:m"):
        named = order(medicationCodeableConcept=None, medicationReference={"reference": reference})
        assert (named.events[0].concept, named.events[0].medication_id) == (None, "m")
    worded = order(medicationCodeableConcept=None, medicationReference={"display": "Heparin  5000"})
    assert worded.events[0].concept.code == "TEXT/heparin 5000"
    inside = order(
        medicationCodeableConcept=None,
        medicationReference={"reference": "#m"},
        contained=[
            {"resourceType": "Organization", "id": "o", "code": ["of another kind"]},
            {"resourceType": "Medication", "id": "m", "code": insulin},
        ],
    )
    assert inside.events[0].concept.code == "RXNORM/5856"


def test_medication_request_times(at, order):
    assert order().events[0].time == order().events[0].available_time == at("2019-03-04T10:00")
    window = {"validityPeriod": {"start": "2019-03-05", "end": "2019-03-09"}}
    found = order(authoredOn=None, dispenseRequest=window).events[0]
    assert (found.time, found.available_time) == (
        at("2019-03-05"),
        at("2019-03-05T23:59:59.999999"),
    )
    assert found.end_time is None  # a plan, and not known at the time


def test_medication_administration_in_r4_and_r5(rows, at):
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


DRUG = {"text": "Heparin"}


@pytest.mark.parametrize(
    ("fields", "time"),
    [
        (
            {"whenHandedOver": "2019-03-04T10:00:00Z", "whenPrepared": "2019-03-03T10:00:00Z"},
            "2019-03-04T10:00",
        ),
        ({"whenPrepared": "2019-03-03T10:00:00Z", "recorded": "2019"}, "2019-03-03T10:00"),
        ({"recorded": "2019-03-05T10:00:00Z"}, "2019-03-05T10:00"),
    ],
)
def test_a_dispense_stands_where_it_was_handed_over_else_prepared_else_recorded(
    rows, at, fields, time
):
    (event,) = rows(
        "MedicationDispense",
        subject=PATIENT,
        context=STAY,
        medicationCodeableConcept=DRUG,
        quantity={"value": 30, "unit": "tablet"},
        **fields,
    ).events
    assert event.time == event.available_time == at(time)
    assert (event.category, event.numeric_value, event.unit) == ("dispense", 30, "tablet")
    assert event.encounter_id == "e"


@pytest.mark.parametrize(
    ("fields", "time", "end", "available"),
    [
        ({"effectiveDateTime": "2019-03-04"}, "2019-03-04", None, "2019-03-04T23:59:59.999999"),
        (
            {"effectivePeriod": {"start": "2018-05"}, "dateAsserted": "2019-03-04T10:00:00Z"},
            "2018-05-01",
            None,
            "2019-03-04T10:00",
        ),
        (
            {
                "effectivePeriod": {"start": "2019-03-04T10:00:00Z", "end": "2019-03-06"},
                "dateAsserted": "2019-03-01",
            },
            "2019-03-04T10:00",
            "2019-03-06T23:59:59.999999",
            "2019-03-04T10:00",
        ),
        ({"dateAsserted": "2019-03-04T10:00:00Z"}, "2019-03-04T10:00", None, "2019-03-04T10:00"),
        (
            {"effectiveTiming": {"event": ["2019-03-04T10:00:00Z", "2019-03-05T10:00:00Z"]}},
            "2019-03-04T10:00",
            "2019-03-05T10:00",
            "2019-03-04T10:00",
        ),
    ],
)
def test_a_statement_is_known_when_it_is_made(rows, at, fields, time, end, available):
    (event,) = rows(
        "MedicationStatement", subject=PATIENT, medicationCodeableConcept=DRUG, **fields
    ).events
    assert (event.category, event.time, event.available_time) == (
        *("statement", at(time), at(available)),
    )
    assert event.end_time == (at(end) if end else None)


def test_the_medications_of_mimics_emergency_department(rows, at):
    mimic = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-medication-"
    etc, gsn = {"system": f"{mimic}etc", "code": "00005953"}, {"system": f"{mimic}gsn", "code": "9"}
    ndc = {"system": "http://hl7.org/fhir/sid/ndc", "code": "11845014031"}
    stated = rows(
        "MedicationStatement",
        status="unknown",
        subject=PATIENT,
        context=STAY,
        medicationCodeableConcept={"text": "calcium", "coding": [ndc, etc, gsn]},
        dateAsserted="2177-02-13T03:31:00-05:00",
    ).events[0]
    assert stated.concept.code == "MIMIC_MED_GSN/9"
    assert stated.concept.codings == (
        *("NDC/11845014031", "MIMIC_MED_ETC/00005953", "MIMIC_MED_GSN/9"),
    )
    dispensed = rows(
        "MedicationDispense",
        status="completed",
        subject=PATIENT,
        context=STAY,
        medicationCodeableConcept={"coding": [gsn]},
        whenHandedOver="2118-07-10T17:22:00-04:00",
    ).events[0]
    assert (dispensed.concept.code, dispensed.time) == ("MIMIC_MED_GSN/9", at("2118-07-10T17:22"))


def test_the_pharmacys_dispenses_in_mimic_have_no_time(rows):
    with pytest.raises(NotUsed, match="no time"):
        rows("MedicationDispense", subject=PATIENT, medicationCodeableConcept=DRUG)


def test_a_medication_contained_in_a_record_with_a_broken_byte():
    raw = (
        b'{"resourceType":"MedicationRequest","id":"x","subject":{"reference":"Patient/p"},'
        b'"authoredOn":"2019-03-04","medicationReference":{"reference":"#m"},'
        b'"contained":[{"id":%s}]}'
    )
    with pytest.raises(Reject, match="contained: expected UTF-8 text, found an invalid byte"):
        convert(decode(raw % b'"\xff"'), Site(Clock()))
    with pytest.raises(NotUsed, match="unresolved medicationReference"):
        convert(decode(raw % b"5"), Site(Clock()))


RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
NDC = "http://hl7.org/fhir/sid/ndc"
MIMIC = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-medication-"


def coded(*codings: tuple[str, str]) -> dict:
    return {"coding": [{"system": system, "code": code} for system, code in codings]}


def test_a_mixture_is_its_first_ingredient_with_the_codings_of_all(rows):
    nothing, salt = {"text": " "}, coded((NDC, "1"), (RXNORM, "2"))
    water = coded((RXNORM, "3"), (RXNORM, "2"))
    for parts in (
        [{"itemCodeableConcept": one} for one in (nothing, salt, water, None)],
        [{"item": {"concept": salt}}, {"item": {"concept": water}}],
    ):
        found = rows("Medication", ingredient=parts)
        assert (found.medication.code, found.ingredients) == ("RXNORM/2", ())
        assert found.medication.codings == ("NDC/1", "RXNORM/2", "RXNORM/3")
    plain = rows("Medication", code=coded((NDC, "9")), ingredient=[{"itemCodeableConcept": salt}])
    assert plain.medication.codings == ("NDC/9",)
    with pytest.raises(NotUsed, match="no code"):
        rows("Medication", ingredient=[{"itemReference": {"reference": "Substance/s"}}])


def test_ingredients_that_are_other_medications_are_left_to_be_looked_up(rows):
    parts = [
        {"itemReference": {"reference": "Medication/a"}},
        {"item": {"reference": {"reference": "urn:uuid:b"}}},
        {"itemReference": {"display": "Salt"}},
    ]
    found = rows("Medication", ingredient=parts)
    assert found.medication is None
    *others, salt = found.ingredients
    assert (others, salt.code) == (["a", "b"], "TEXT/salt")


def test_a_contained_mixture(order):
    inside = {"id": "m", "ingredient": [{"itemCodeableConcept": coded((RXNORM, "2"))}] * 2}
    (event,) = order(
        medicationCodeableConcept=None,
        medicationReference={"reference": "#m"},
        contained=[inside],
    ).events
    assert (event.concept.code, event.concept.codings) == ("RXNORM/2", ("RXNORM/2",))


def test_mimics_list_of_concepts(order):
    listed = [coded((NDC, "1")), {"text": "Salt"}, coded((f"{MIMIC}name", "Salt"))]
    (event,) = order(medicationCodeableConcept=listed).events
    assert event.concept.code == "MIMIC_DRUG_NAME/Salt"
    assert event.concept.codings == ("NDC/1", "MIMIC_DRUG_NAME/Salt")
    assert order(medicationCodeableConcept=listed[1:2]).events[0].concept.code == "TEXT/salt"


def test_identifiers_of_known_systems_are_codings_of_a_medication(rows):
    identifiers = [
        {"system": f"{MIMIC}name", "value": "Meropenem"},
        {"system": f"{MIMIC}formulary-drug-cd", "value": "MERO1I"},
        {"system": "http://hospital.org/drug-numbers", "value": "17"},
        {"value": "18"},
        {"system": NDC},
    ]
    ndc = coded((NDC, "63323050831"))
    found = rows("Medication", code=ndc, identifier=identifiers).medication
    assert found.code == "MIMIC_DRUG/MERO1I"
    assert found.codings == (
        *("NDC/63323050831", "MIMIC_DRUG_NAME/Meropenem", "MIMIC_DRUG/MERO1I"),
    )
    assert found.unknown_systems == ()
    assert rows("Medication", code=ndc).medication.codings == ("NDC/63323050831",)
    mixed = f"{MIMIC}mix"
    parts = [{"itemCodeableConcept": ndc}]
    found = rows("Medication", ingredient=parts, identifier=[{"system": mixed, "value": "A_B"}])
    assert found.medication.codings == ("NDC/63323050831",)


def test_an_order_does_not_stand_where_it_expires(order):
    window = {"validityPeriod": {"end": "2019-03-09"}}
    with pytest.raises(NotUsed, match="no time"):
        order(authoredOn=None, dispenseRequest=window)
    with pytest.raises(NotUsed, match="no time"):
        order(authoredOn=None, dispenseRequest={})
