"""Plain Observations as columns give what `convert` gives, and everything else is handed back."""

import json
import random
from typing import Any

import numpy as np
import pytest

from ehrmamba_hf.fhir.batch import Plain, PlainReader
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import decode
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.reading import Lines
from ehrmamba_hf.fhir.rows import Site
from ehrmamba_hf.fhir.time_columns import NONE
from ehrmamba_hf.fhir.times import Clock, instant_of
from ehrmamba_hf.fhir.vocabulary import Vocabulary

LAB: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "category": [{"coding": [{"code": "laboratory"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "2345-7", "display": "Glucose"}]},
    "subject": {"reference": "Patient/p1"},
    "encounter": {"reference": "Encounter/e1"},
    "effectiveDateTime": "2019-03-04T11:00:00-05:00",
    "issued": "2019-03-04T13:00:00.5-05:00",
    "valueQuantity": {"value": 90.5, "unit": "mg/dL"},
}
PLAIN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no category": {"category": None},
    "empty category": {"category": []},
    "telling no category": {"category": [{"text": "survey"}]},
    "vital sign": {"category": [{"text": "Vital Signs"}]},
    "output by its code": {
        "category": None,
        "code": {
            "coding": [
                {"system": "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-outputevents-d-items"}
                | {"code": "226559"}
            ]
        },
    },
    "no encounter": {"encounter": None},
    "an encounter without an id": {"encounter": {"display": "stay"}},
    "not issued": {"issued": None},
    "issued before": {"issued": "2019-03-01T00:00:00Z"},
    "no unit": {"valueQuantity": {"value": 1}},
    "a blank unit": {"valueQuantity": {"value": 1, "unit": " "}},
    "a unit's code": {"valueQuantity": {"value": 1, "unit": "milligram", "code": "mg"}},
    "minus zero": {"valueQuantity": {"value": -0.0}},
    "before 1970": {"effectiveDateTime": "1931-03-04T11:00:00.25Z", "issued": None},
    "the largest number": {"valueQuantity": {"value": 3.4028234663852886e38}},
    "a leap second": {"effectiveDateTime": "2016-12-31T23:59:60Z"},
    "a version": {"meta": {"lastUpdated": "2020-01-01T00:00:00Z"}},
    "a profile that nobody reads": {"meta": {"lastUpdated": "2020-01-01T00:00:00Z", "profile": 5}},
    "midnight": {"effectiveDateTime": "2019-03-05T00:00:00Z"},
    "a version that is no time": {"meta": {"lastUpdated": "now"}},
    "no status": {"status": None},
    "a full reference": {"subject": {"reference": "https://h.org/fhir/Patient/p1/_history/2"}},
    "text beside the codes": {"code": {**LAB["code"], "text": "Glucose in blood"}},
    "a code that is text": {"code": {"text": "Glucose"}},
    "a range that nobody reads": {"referenceRange": [{"low": {"value": 70}}]},
    "a text": {"valueQuantity": None, "valueString": "high"},
    "a text beside a number": {"valueString": "high"},
    "a blank text": {"valueQuantity": None, "valueString": " "},
    "a text that looks like a number": {"valueQuantity": None, "valueString": "90.5"},
    "a text in any script": {"valueQuantity": None, "valueString": "nicht nachweisbar \u2265 \0"},
    "a text before a time": {"valueQuantity": None, "valueString": "x", "valueTime": "11:00:00"},
    "a text in spite of a reason": {
        "valueQuantity": None,
        "valueString": "see report",
        "dataAbsentReason": {"text": "not performed"},
    },
    "a comparator": {"valueQuantity": {"value": 5, "comparator": "<", "code": "mg/dL"}},
    "an empty comparator": {"valueQuantity": {"value": 5, "comparator": ""}},
    "a comparator of a number in another unit": {
        "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        "valueQuantity": {"value": 900, "comparator": ">", "code": "umol/L"},
    },
    "another number beside it": {"valueInteger": 5},
}
_TEXT = {"valueQuantity": None, "valueString": "high"}
OTHER: dict[str, dict[str, Any]] = {
    "another type": {"resourceType": "Condition"},
    "no id": {"id": None},
    "cancelled": {"status": "cancelled"},
    "no code": {"code": None},
    "an empty code": {"code": {"coding": [{"display": " "}]}},
    "no subject": {"subject": None},
    "a group": {"subject": {"reference": "Group/g1"}},
    "a very long reference": {"encounter": {"reference": "Encounter/" + "e" * 3000}},
    "an episode": {"encounter": {"reference": "EpisodeOfCare/5"}},
    "a contained encounter": {"encounter": {"reference": "#5"}},
    "an encounter without an id in its reference": {"encounter": {"reference": "Encounter?a=b"}},
    "a malformed version": {"meta": {"lastUpdated": 5}},
    "a day": {"effectiveDateTime": "2019-03-04"},
    "no day": {"effectiveDateTime": "2019-02-30T00:00:00Z"},
    "no time": {"effectiveDateTime": None},
    "issued never": {"issued": "never"},
    "a period": {"effectiveDateTime": None, "effectivePeriod": {"start": "2019-03-04"}},
    "no value": {"valueQuantity": None},
    "an empty text": {"valueQuantity": None, "valueString": ""},
    "a text of a wrong kind": {"valueQuantity": None, "valueString": 5},
    "a comparator alone": {"valueQuantity": {"comparator": "<"}},
    "a quantity without a number and a text": {"valueQuantity": {}, "valueString": "high"},
    "a text and a whole number": _TEXT | {"valueInteger": 5},
    "a text and a coded answer": _TEXT | {"valueCodeableConcept": {"text": "Positive"}},
    "a text and a truth": _TEXT | {"valueBoolean": False},
    "a text and a range": _TEXT | {"valueRange": {"low": {"value": 1}}},
    "a text and a ratio": _TEXT | {"valueRatio": {"numerator": {"value": 1}}},
    "a text and a period": _TEXT | {"valuePeriod": {"start": "2019"}},
    "a huge number": {"valueQuantity": {"value": 1e300}},
    "a number just too large": {"valueQuantity": {"value": 3.4028236e38}},
    "a number too large but for its unit": {
        "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        "valueQuantity": {"value": 1e39, "code": "umol/L"},
    },
    "after the end of time": {"effectiveDateTime": "9999-12-31T23:59:60Z"},
    "a second value of a wrong kind": {"valueString": 5},
    "a period of a wrong kind": {"effectivePeriod": "2019"},
    "components": {"component": [{"code": {"text": "x"}, "valueQuantity": {"value": 1}}]},
    "an earlier release": {"encounter": None, "context": {"reference": "Encounter/e1"}},
    "a wrong kind": {"category": "laboratory"},
}


def lines_of(records: list[Any]) -> Lines:
    texts = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    return lines_in(b"".join(text + b"\n" for text in texts), first=7)


def lines_in(text: bytes, first: int = 1) -> Lines:
    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    return Lines(first, len(breaks), text, breaks)


def site_of(timezone: str | None = None) -> Site:
    return Site(Clock(timezone), book=Codebook.load(units="common"))


def rows(plain: Plain | None, words: Vocabulary) -> list[tuple]:
    """The columns, an event a row, with the words in place of their numbers."""
    if plain is None:
        return []
    return [
        (
            *(plain.source_id[i], plain.subject[i], plain.time[i], plain.available[i]),
            *(repr(float(plain.value[i])), words.texts.values_[plain.text[i]]),
            words.concepts.values_[plain.concept[i]].code,
            *(words.units.values_[plain.unit[i]], words.categories.values_[plain.category[i]]),
            *(words.encounters.values_[plain.encounter[i]], plain.updated[i]),
        )
        for i in range(len(plain.source_id))
    ]


def converted(records: list[dict], site: Site) -> list[tuple]:
    """The same, from `convert`."""
    found = []
    for record in records:
        resource = decode(json.dumps(record).encode())
        result = convert(resource, site)
        (e,) = result.events
        updated = instant_of(resource.meta.lastUpdated or "") if resource.meta else None
        found.append(
            (
                *(resource.id, subject_id(result.patient_id), e.time, e.available_time),
                repr(float("nan") if e.numeric_value is None else float(e.numeric_value)),
                *(e.text_value, e.concept.code),
                *(e.unit, e.category, e.encounter_id),
                NONE if updated is None else updated,
            )
        )
    return found


def numbered(changes: dict[str, dict[str, Any]]) -> list[dict]:
    return [LAB | {"id": f"o{n}"} | change for n, change in enumerate(changes.values())]


@pytest.mark.parametrize("timezone", [None, "America/New_York"])
def test_plain_observations_give_what_convert_gives(timezone):
    records = numbered(PLAIN)
    words = Vocabulary()
    plain, others = PlainReader(site_of(timezone), words).read(lines_of(records))
    assert others == []
    assert rows(plain, words) == converted(records, site_of(timezone))
    assert plain.without_category == 3
    assert np.isnan(plain.value).sum() == sum(not r["valueQuantity"] for r in records)


def test_units_are_converted_where_the_site_wants_it():
    record = LAB | {"valueQuantity": {"value": 5.0, "code": "mmol/L"}}
    words = Vocabulary()
    plain, _ = PlainReader(site_of(), words).read(lines_of([record, LAB]))
    assert rows(plain, words) == converted([record, LAB], site_of())
    assert [words.units.values_[u] for u in plain.unit] == ["mg/dL", "mg/dL"]
    assert plain.value[0] == pytest.approx(90.1, abs=0.1)


@pytest.mark.parametrize("name", OTHER)
def test_whatever_is_not_plain_is_handed_back(name):
    odd = LAB | OTHER[name]
    words = Vocabulary()
    plain, others = PlainReader(site_of(), words).read(lines_of([LAB, odd, LAB]))
    assert others == [(8, json.dumps(odd).encode())]
    assert rows(plain, words) == converted([LAB, LAB], site_of())


@pytest.mark.parametrize("seed", range(20))
def test_lines_of_all_kinds_are_told_apart(seed):
    rng = random.Random(seed)
    good, odd = numbered(PLAIN), [*numbered(OTHER), b"", b"  ", b"not json", b"[1]", b"\xff", b"{"]
    records = rng.choices(good, k=30) + rng.choices(odd, k=rng.randrange(6))
    rng.shuffle(records)
    words = Vocabulary()
    plain, others = PlainReader(site_of(), words).read(lines_of(records))
    assert rows(plain, words) == converted([r for r in records if r in good], site_of())
    expected = [(7 + n, r) for n, r in enumerate(records) if r not in good]
    texts = [
        (n, r.strip() if isinstance(r, bytes) else json.dumps(r).encode()) for n, r in expected
    ]
    assert others == texts


@pytest.mark.parametrize(
    "rest",
    [
        [],
        [b""],  # as many records as lines
        [b" \r"],
        [b'{"x":', b'{"y":1}}'],
        [json.dumps(LAB).encode().replace(b", ", b",\n", 1)],
    ],
)
def test_two_records_on_a_line_are_no_record(rest):
    double = json.dumps(LAB).encode() * 2
    plain, others = PlainReader(site_of(), Vocabulary()).read(lines_of([LAB, double, *rest]))
    assert len(plain.source_id) == 1
    texts = b"\n".join([double, *rest]).split(b"\n")
    assert others == [(8 + n, text.strip()) for n, text in enumerate(texts)]


def test_a_record_without_a_type_is_no_observation_whatever_stands_beside_it():
    nameless = {name: value for name, value in LAB.items() if name != "resourceType"}
    plain, others = PlainReader(site_of(), Vocabulary()).read(lines_of([LAB, nameless, LAB]))
    assert len(plain.source_id) == 2
    assert others == [(8, json.dumps(nameless).encode())]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n"])
def test_line_ends_of_any_kind(end):
    text = b"".join(json.dumps(LAB).encode() + end for _ in range(3))
    plain, others = PlainReader(site_of(), Vocabulary()).read(lines_in(text))
    assert len(plain.source_id) == 3
    assert others == []


def test_a_record_on_several_lines():
    text = json.dumps(LAB, indent=1).encode()
    words = Vocabulary()
    plain, others = PlainReader(site_of(), words).read(Lines(1, 1, text))
    assert rows(plain, words) == converted([LAB], site_of())
    assert others == []


def test_utc_is_noticed():
    site = site_of()
    PlainReader(site, Vocabulary()).read(lines_of([LAB]))
    assert (site.clock.met_utc, site.clock.met_other) == (False, True)
    record = LAB | {"effectiveDateTime": "2019-03-04T11:00:00Z", "issued": None}
    PlainReader(site, Vocabulary()).read(lines_of([record]))
    assert site.clock.met_utc
