"""Made records in R4 and in R5, ways to read them, and ways to break them."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest

from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import decode
from ehrmamba_hf.fhir.resources import Clinical
from ehrmamba_hf.fhir.rows import Rows, Site
from ehrmamba_hf.fhir.times import Clock

Record = dict[str, Any]

PATIENT = {"reference": "Patient/p"}
STAY = {"reference": "Encounter/e"}
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
DRUG = {"coding": [{"system": RXNORM, "code": "5856"}]}
OTHER, INSIDE = {"reference": "Medication/m1"}, {"reference": "#inside"}
GLUCOSE = {"coding": [{"system": "http://loinc.org", "code": "2345-7", "display": "Glucose"}]}
MOMENT, LATER = "2019-03-04T10:00:00-05:00", "2019-03-04T11:30:00-05:00"
SPAN = {"start": MOMENT, "end": LATER}
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
HOME = {"coding": [{"code": "home"}]}


class Releases(NamedTuple):
    """One record as R4 (and R4B) and as R5 write it."""

    shared: Record
    r4: Record = {}
    r5: Record = {}


RECORDS = {
    "Patient": Releases(
        {
            "gender": "female",
            "birthDate": "1950-06-01",
            "deceasedDateTime": MOMENT,
            "extension": [
                {
                    "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
                    "extension": [{"url": "ombCategory", "valueCoding": {"display": "White"}}],
                }
            ],
        }
    ),
    "Encounter": Releases(
        {"subject": PATIENT, "partOf": {"reference": "Encounter/whole"}},
        {
            "status": "finished",
            "class": {"system": ACT_CODE, "code": "IMP"},
            "period": SPAN,
            "hospitalization": {"dischargeDisposition": HOME},
        },
        {
            "status": "completed",
            "class": [{"coding": [{"system": ACT_CODE, "code": "IMP"}]}],
            "actualPeriod": SPAN,
            "plannedStartDate": "2019-01-01",
            "admission": {"dischargeDisposition": HOME},
        },
    ),
    "Condition": Releases(
        {
            "subject": PATIENT,
            "encounter": STAY,
            "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E11.9"}]},
            "recordedDate": "2019-03-04",
            "onsetDateTime": "2018",
            "verificationStatus": {"coding": [{"code": "confirmed"}]},
        }
    ),
    "AllergyIntolerance": Releases(
        {
            "patient": PATIENT,
            "encounter": STAY,
            "code": {"text": "Penicillin"},
            "recordedDate": MOMENT,
        },
        {"type": "allergy", "verificationStatus": {"coding": [{"code": "confirmed"}]}},
        {
            "type": {"coding": [{"code": "allergy"}]},
            "verificationStatus": {"coding": [{"code": "presumed"}]},
        },
    ),
    "Procedure": Releases(
        {"status": "completed", "subject": PATIENT, "encounter": STAY, "code": {"text": "X-ray"}},
        {"performedPeriod": SPAN},
        {"occurrencePeriod": SPAN},
    ),
    "Immunization": Releases(
        {
            "status": "completed",
            "patient": PATIENT,
            "encounter": STAY,
            "vaccineCode": {"coding": [{"system": "http://hl7.org/fhir/sid/cvx", "code": "140"}]},
            "occurrenceDateTime": MOMENT,
            "doseQuantity": {"value": 0.5, "code": "mL"},
        }
    ),
    "Medication": Releases(
        {"status": "active", "identifier": [{"system": RXNORM, "value": "1"}]},
        {"ingredient": [{"itemReference": OTHER}, {"itemCodeableConcept": DRUG}]},
        {"ingredient": [{"item": {"reference": OTHER}}, {"item": {"concept": DRUG}}]},
    ),
    "MedicationRequest": Releases(
        {"intent": "order", "subject": PATIENT, "encounter": STAY, "authoredOn": MOMENT},
        {"status": "stopped", "medicationCodeableConcept": DRUG},
        {"status": "ended", "medication": {"concept": DRUG}},
    ),
    "MedicationAdministration": Releases(
        {
            "status": "completed",
            "subject": PATIENT,
            "dosage": {"dose": {"value": 5, "unit": "milligram", "code": "mg"}},
        },
        {"medicationCodeableConcept": DRUG, "context": STAY, "effectivePeriod": SPAN},
        {"medication": {"concept": DRUG}, "encounter": STAY, "occurencePeriod": SPAN},
    ),
    "MedicationDispense": Releases(
        {
            "status": "completed",
            "subject": PATIENT,
            "quantity": {"value": 30, "unit": "tablet"},
            "whenHandedOver": MOMENT,
        },
        {"medicationReference": {"reference": "Medication/m"}, "context": STAY},
        {"medication": {"reference": {"reference": "Medication/m"}}, "encounter": STAY},
    ),
    "MedicationStatement": Releases(
        {
            "subject": PATIENT,
            "effectivePeriod": {"start": "2018-05"},
            "dateAsserted": MOMENT,
            "contained": [{"resourceType": "Medication", "id": "inside", "code": DRUG}],
        },
        {"status": "active", "medicationReference": INSIDE, "context": STAY},
        {
            "status": "recorded",
            "medication": {"reference": INSIDE},
            "encounter": STAY,
            "adherence": {"code": {"coding": [{"code": "taking"}]}},
        },
    ),
    "Observation": Releases(
        {
            "status": "final",
            "category": [{"coding": [{"code": "laboratory"}]}],
            "subject": PATIENT,
            "encounter": STAY,
            "code": GLUCOSE,
            "effectiveDateTime": MOMENT,
            "issued": LATER,
            "valueQuantity": {"value": 5.5, "comparator": "<", "unit": "mmol/l", "code": "mmol/L"},
            "component": [{"code": {"text": "fasting"}, "valueBoolean": True}],
        }
    ),
    "DiagnosticReport": Releases(
        {
            "subject": PATIENT,
            "encounter": STAY,
            "code": {"coding": [{"system": "http://loinc.org", "code": "57698-3"}]},
            "effectiveDateTime": MOMENT,
            "issued": LATER,
        },
        {"status": "amended"},
        {"status": "modified"},
    ),
}


def _rows(kind: str, timezone: str | None = None, **fields: object) -> Rows:
    record = {"resourceType": kind, "id": "x", **{k.rstrip("_"): v for k, v in fields.items()}}
    return convert(decode(json.dumps(record).encode()), Site(Clock(timezone)))


@pytest.fixture(scope="session")
def rows() -> Callable[..., Rows]:
    """The Rows of a resource of a type with these fields (`class_` is `class`)."""
    return _rows


@pytest.fixture(scope="session")
def observation() -> Callable[..., Rows]:
    """The Rows of a glucose of 10:00, changed by `fields`."""
    usual = {"subject": PATIENT, "code": GLUCOSE, "effectiveDateTime": MOMENT}
    return lambda **fields: _rows("Observation", **{**usual, **fields})


@pytest.fixture(scope="session")
def order() -> Callable[..., Rows]:
    """The Rows of a MedicationRequest for aspirin of 10:00, changed by `fields`."""
    drug = {"text": "aspirin"}
    usual = {"subject": PATIENT, "medicationCodeableConcept": drug, "authoredOn": MOMENT}
    return lambda **fields: _rows("MedicationRequest", **{**usual, **fields})


@pytest.fixture(scope="session")
def at() -> Callable[[str], int]:
    """Microseconds of a wall-clock time."""
    return lambda text: (
        (datetime.fromisoformat(text) - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    )


@pytest.fixture(scope="session")
def records() -> dict[str, tuple[Record, Record]]:
    """By type, one made record in R4 and in R5."""
    return {
        kind: tuple(
            {"resourceType": kind, "id": "x", **made.shared, **own} for own in (made.r4, made.r5)
        )
        for kind, made in RECORDS.items()
    }


@pytest.fixture(scope="session")
def mutated(records) -> Callable[..., bytes]:
    """A record as JSON text, broken in one to three places that the generator chooses.

    It is one of `records`, or of those that are given.
    """
    samples = [record for pair in records.values() for record in pair]

    def mutate(rng: random.Random, among: Sequence[Record] = samples) -> bytes:
        record = json.loads(json.dumps(rng.choice(among)))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(_CHANGES)(record, rng)
        text = json.dumps(record, ensure_ascii=rng.random() < 0.5)
        for number, raw in enumerate(_RAW):
            text = text.replace(f'"@raw{number}@"', raw)
        data = text.encode("utf-8", "surrogatepass")
        return rng.choice(_SPOILS)(data, rng) if rng.random() < 0.1 else data

    return mutate


# What JSON allows, or nearly, and Python's encoder would not write.
_RAW = (
    *("1e999", "-1e999", "9" * 400, "9" * 5000, "1e-999", "-0.0", "123456789012345678901234567890"),
    *("[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, '"\\ud800"', '"\\udc00\\ud800"'),
    '{"code":"a","code":{"text":"b"},"code":null}',
)
_FIELDS = sorted({name for kind in Clinical.__args__ for name in kind.__struct_encode_fields__})
_TEXTS = (
    *("", " ", "\x00", "a\x00b", "\u202e", "\U0001f9ec", "x" * 3000, "5.5", "true", "null", "#"),
    *("2019", "2019-13", "2019-02-29", "0000", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z"),
    *("0001-01-01T00:00:00+14:00", "2019-03-04T24:00:00Z", "2019-03-04T10:00:00." + "1" * 99 + "Z"),
    *("2019-03-10T02:30:00-05:00", "#x", "Patient/", "urn:uuid:", "Patient/p/_history/1", "?"),
    *(
        "entered-in-error",
        "not-done",
        "http://loinc.org|",
        "urn:oid:",
        "://",
        "http://snomed.info/sct/",
    ),
)


_NUMBERS = (0, -1, -0.0, 1.5, 3.5e38, 1e-300, 2**31, 2**63, 2**64)


def _value(rng: random.Random, like: Any = None) -> Any:
    """Any JSON value; mostly one of the kind of another, so that it gets past the decoder."""
    kind = type(like) if rng.random() < 0.8 else None
    if kind is str:
        return rng.choice(_TEXTS)
    if kind in (int, float):
        return rng.choice(_NUMBERS)
    if kind is bool:
        return not like
    return rng.choice(
        (
            rng.choice((None, True, [], {}, [None], [[]], *_NUMBERS)),
            rng.choice(_TEXTS),
            f"@raw{rng.randrange(len(_RAW))}@",
            {rng.choice(_FIELDS): rng.choice(_TEXTS)},
            [{"coding": [{"code": rng.choice(_TEXTS), "system": rng.choice(_TEXTS)}]}],
        )
    )


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a JSON tree."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys):
        yield node, key
        yield from _places(node[key])


def _place(record: Record, rng: random.Random) -> tuple[Any, Any]:
    return rng.choice(list(_places(record)) or [(record, "id")])


def _replace(record: Record, rng: random.Random) -> None:
    node, key = _place(record, rng)
    node[key] = _value(rng, node.get(key) if isinstance(node, dict) else node[key])


def _remove(record: Record, rng: random.Random) -> None:
    node, key = _place(record, rng)
    if isinstance(node, list) or key in node:
        del node[key]


def _add(record: Record, rng: random.Random) -> None:
    node, _ = _place(record, rng)
    if isinstance(node, dict):
        node[rng.choice(_FIELDS)] = _value(rng)
    else:
        node.append(_value(rng))


def _rename(record: Record, rng: random.Random) -> None:
    node, key = _place(record, rng)
    if isinstance(node, dict) and key in node:
        node[rng.choice(_FIELDS)] = node.pop(key)


def _swap(record: Record, rng: random.Random) -> None:
    (one, at_one), (other, at_other) = _place(record, rng), _place(record, rng)
    copy = json.loads(json.dumps(other.get(at_other) if isinstance(other, dict) else other))
    one[at_one] = copy


def _wrap(record: Record, rng: random.Random) -> None:
    node, key = _place(record, rng)
    inner = node.get(key) if isinstance(node, dict) else node[key]
    node[key] = rng.choice(([inner], [inner, inner], {"extension": [inner]}, str(inner)))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    spot = rng.randrange(len(data))
    return data[:spot] + bytes([rng.randrange(256)]) + data[spot + 1 :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    spot = rng.randrange(len(data) + 1)
    return data[:spot] + rng.choice((b"\x00", b"\xff", b"\xed\xa0\x80", b"[", b'"', b"{}")) + data[spot:]  # fmt: skip  # noqa: E501


_CHANGES = (*[_replace] * 6, _remove, _remove, _rename, _add, _swap, _wrap)
_SPOILS = (_cut, _flip, _insert)
