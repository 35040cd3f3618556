"""Bytes to resources: types, Bundles, and refusals that name the field but never the content."""

import json

import pytest

from ehrmamba_hf.fhir.decoding import Other, aliases_of, decode, entries_of
from ehrmamba_hf.fhir.resources import (
    Bundle,
    Clinical,
    Encounter,
    EncounterMeta,
    Identifier,
    Meta,
    Observation,
)
from ehrmamba_hf.fhir.rows import Reject


def as_bytes(record: object) -> bytes:
    return json.dumps(record).encode()


def test_every_used_type_decodes_wherever_its_name_stands():
    for kind in Clinical.__args__:
        assert isinstance(decode(as_bytes({"id": "1", "resourceType": kind.__name__})), kind)


def test_null_is_absent_and_unknown_fields_are_ignored():
    record = {"resourceType": "Observation", "code": None, "extra": {"deep": [1]}}
    assert decode(as_bytes(record)) == Observation()


def test_a_null_in_an_array_is_no_member_of_it():
    record = {"resourceType": "Observation", "code": {"coding": [None, {"code": "a"}, None]}}
    found = decode(as_bytes(record))
    assert isinstance(found, Observation) and [c.code for c in found.code.coding] == ["a"]


def test_a_malformed_field_that_changes_no_event_is_left_out():
    odd = {"meta": {"profile": "p"}, "identifier": [{"system": 1}], "extension": 5, "gender": 1}
    for kind in ("Patient", "Encounter"):
        found = decode(as_bytes({"resourceType": kind, "id": "1", **odd}))
        assert (found.id, found.meta) == ("1", Meta() if kind == "Patient" else EncounterMeta())
    with pytest.raises(Reject) as refusal:
        decode(as_bytes({"resourceType": "Encounter", **odd, "period": {"start": 5}}))
    assert refusal.value.field == "period.start"


STAMP = "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("kind", "fields", "kept", "malformed"),
    [
        (
            "Encounter",
            {"meta": {"lastUpdated": STAMP, "profile": "p"}},
            {"meta": EncounterMeta(STAMP)},
            ("meta.profile",),
        ),
        (
            "Encounter",
            {"meta": {"lastUpdated": 5, "profile": ["p"]}},
            {"meta": EncounterMeta(None, ["p"])},
            ("meta.lastUpdated",),
        ),
        (
            "Encounter",
            {"identifier": [{"system": 1}, {"system": "u"}, {"system": []}, 7]},
            {"identifier": [Identifier("u")]},
            ("identifier",),
        ),
        # Only Encounters are asked for a profile.
        ("Condition", {"meta": {"lastUpdated": STAMP, "profile": 5}}, {"meta": Meta(STAMP)}, ()),
        ("Observation", {"meta": {"lastUpdated": 5}}, {"meta": Meta()}, ("meta.lastUpdated",)),
        ("Observation", {"meta": "now"}, {"meta": None}, ("meta",)),
        ("Patient", {"gender": 1, "extension": 5}, {"gender": None}, ("extension", "gender")),
        ("Patient", {"extension": [{"url": 5}] * 9}, {"extension": None}, ("extension",)),
        ("Patient", {"malformed": ["secret"], "gender": "male"}, {"gender": "male"}, ()),
    ],
)
def test_of_a_malformed_field_only_the_offending_part_is_left_out(kind, fields, kept, malformed):
    found = decode(as_bytes({"resourceType": kind, **fields}))
    assert {name: getattr(found, name) for name in kept} == kept
    assert tuple(sorted(found.malformed)) == malformed


def test_the_class_of_an_encounter_in_r4_and_r5():
    r4 = decode(as_bytes({"resourceType": "Encounter", "class": {"code": "IMP"}}))
    r5 = decode(as_bytes({"resourceType": "Encounter", "class": [{"coding": [{"code": "IMP"}]}]}))
    assert isinstance(r4, Encounter) and isinstance(r5, Encounter)
    assert r4.class_.code == r5.class_[0].coding[0].code == "IMP"


def test_other_types_are_told_apart():
    assert decode(b'{"resourceType": "Specimen"}') == Other("Specimen")


@pytest.mark.parametrize(
    ("raw", "field", "expected", "kind"),
    [
        (b"not json", "", "one JSON record", None),
        (b'{"resourceType":"Patient"', "", "one JSON record", None),
        (b'{"resourceType":"Patient"}{}', "", "one JSON record", None),
        (b'{"resourceType":"Patient","gender":"\xff"}', "", "UTF-8 text", None),
        (b'{"resourceType":"Patient","gender":"a\x00"}', "", "one JSON record", None),
        (b'{"resourceType":"Patient","x":' + b"[" * 9999 + b"]" * 9999 + b"}", "", "a FHIR resource", None),  # noqa: E501
        (b"[]", "resourceType", "a FHIR resource", None),
        (b"5", "resourceType", "a FHIR resource", None),
        (b'{"id":"1"}', "resourceType", "a FHIR resource", None),
        (b'{"resourceType":5}', "resourceType", "a FHIR resource", None),
        (b'{"resourceType":"SecretName 1"}', "resourceType", "a FHIR resource type", None),
        (b'{"resourceType":"Patient","birthDate":["SecretName"]}', "birthDate", "str", "Patient"),
        (b'{"resourceType":"Patient","deceasedBoolean":"SecretName"}', "deceasedBoolean", "bool", "Patient"),  # noqa: E501
        (b'{"resourceType":"Observation","component":[{"code":"SecretName"}]}', "component[0].code", "object", "Observation"),  # noqa: E501
        (b'{"resourceType":"Observation","valueQuantity":{"value":1e999}}', "valueQuantity.value", "a value in range", "Observation"),  # noqa: E501
    ],
)  # fmt: skip
def test_refusals(raw, field, expected, kind):
    with pytest.raises(Reject) as refusal:
        decode(raw)
    assert (refusal.value.field, refusal.value.expected) == (field, expected)
    assert refusal.value.resource_type == kind
    assert "SecretName" not in str(refusal.value)


def test_of_repeated_keys_the_last_counts():
    found = decode(b'{"resourceType":"Patient","gender":"male","gender":"female"}')
    assert found.gender == "female"
    assert decode(b'{"resourceType":"Patient","resourceType":"Observation"}') == Observation()


def bundle(*entries: dict) -> Bundle:
    found = decode(as_bytes({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    assert isinstance(found, Bundle)
    return found


def test_a_bundle_gives_its_entries_and_skips_those_without_a_resource():
    found = bundle(
        {"fullUrl": "urn:uuid:a", "resource": {"resourceType": "Patient"}},
        {"fullUrl": "http://h/Patient/b", "resource": {"resourceType": "Patient", "id": "b"}},
        {"request": {"method": "DELETE", "url": "Patient/c"}},
        {"resource": None},
    )
    assert [entry.fallback_id for entry in entries_of(found)] == ["a", "b"]


def test_a_full_url_that_differs_from_the_id_is_an_alias():
    found = bundle(
        {"fullUrl": "urn:uuid:a", "resource": {"resourceType": "Patient", "id": "a"}},
        {"fullUrl": "urn:uuid:b", "resource": {"resourceType": "Patient", "id": "7"}},
        {"fullUrl": "urn:uuid:c", "resource": {"resourceType": "Patient"}},
        {"fullUrl": "urn:uuid:d", "resource": {"resourceType": "Patient", "id": 4}},
    )
    assert aliases_of(found) == {"urn:uuid:b": "7"}


def test_an_empty_bundle():
    assert list(entries_of(bundle())) == []


def test_a_huge_record_is_not_repaired(monkeypatch):
    text = as_bytes({"resourceType": "Patient", "id": "1", "gender": 5})
    assert decode(text).id == "1"
    monkeypatch.setattr("ehrmamba_hf.fhir.decoding._LARGEST_REPAIR", len(text) - 1)
    with pytest.raises(Reject, match="gender: expected str, found int"):
        decode(text)
