"""References in all forms, and the subject id: a hash, the same everywhere."""

from hashlib import blake2b

import pytest

from ehrmamba_hf.fhir.identity import Target, parse_reference, subject_id


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("Patient/x-1", Target("Patient", "x-1")),
        ("https://host/fhir/Patient/x-1", Target("Patient", "x-1")),
        ("https://host/fhir/Patient/x-1/_history/3", Target("Patient", "x-1")),
        ("Patient/x-1/_history/3", Target("Patient", "x-1")),
        ("urn:uuid:4d1f7e5d-ec01-570f-8a91-06f43fde8e22", Target(None, "4d1f7e5d-ec01-570f-8a91-06f43fde8e22")),  # noqa: E501
        ("urn:oid:1.2.3", Target(None, "1.2.3")),
        ("#contained", Target("#", "contained")),
        ("x-1", Target(None, "x-1")),
        (" Patient/x-1 ", Target("Patient", "x-1")),
        ("Patient?identifier=s|1", None),
        ("Patient/", Target(None, "Patient")),
        ("#", None),
        ("urn:uuid:", None),
        ("", None),
    ],
)  # fmt: skip
def test_references(reference, target):
    assert parse_reference(reference) == target


def test_the_subject_id_is_the_published_hash():
    expected = int.from_bytes(blake2b(b"example", digest_size=8).digest(), "big") >> 1
    assert subject_id("example") == expected
    assert 0 <= expected < 2**63
